"""The checkpoint: read, its weights found and bound, and made ones for tests."""
