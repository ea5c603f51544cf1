"""The greedy max-min step as a CUDA kernel and as a TensorRT plugin."""
