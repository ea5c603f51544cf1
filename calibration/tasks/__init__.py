"""Drawn pictures and clips with questions whose answers are known."""
