"""Checkpoint in, bundle out: trace, bind weights, build engines, prove them equal to eager PyTorch."""
