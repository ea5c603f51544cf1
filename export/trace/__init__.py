"""Stage → ONNX graph: traced, layers replicated, checked."""
