"""The checkpoint shipped with the tool: architecture, training from scratch, evaluation in eager PyTorch."""
