"""Batches: many requests of a file, a folder or a table answered into a file, on this machine or on a cluster."""
