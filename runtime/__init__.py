"""Bundle in, answers out. Needs no torch."""
