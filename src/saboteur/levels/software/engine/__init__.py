"""The fast engine: the plain engine's outcomes from a fraction of its work."""
