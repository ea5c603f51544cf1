"""The selection as CUDA kernels: sources, launcher, and `select_tokens` on CUDA tensors."""
