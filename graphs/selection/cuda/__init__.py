"""The selection as CUDA kernels."""
