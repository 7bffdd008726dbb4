"""Checking out: a checkpoint becomes a state again."""
