"""A state as a tree of arrays and plain values. Pure."""
