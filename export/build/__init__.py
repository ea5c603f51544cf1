"""Engines of a bundle for each backend."""
