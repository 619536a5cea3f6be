"""The levels at which faults are injected; each is a package with the same files in the same places."""
