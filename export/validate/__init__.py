"""Proof that a bundle computes what the checkpoint does in eager PyTorch."""
