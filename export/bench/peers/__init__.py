"""Those who take part in a bench: the bundle, eager PyTorch, and other tools."""
