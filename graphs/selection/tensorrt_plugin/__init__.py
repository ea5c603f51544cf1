"""The greedy max-min step as a TensorRT plugin."""
