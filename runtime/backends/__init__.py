"""What runs a stage: one module per backend, all with the interface of `session`."""
