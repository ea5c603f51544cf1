"""Quantization of a stage graph: one pass per file."""
