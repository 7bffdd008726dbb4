"""Comparing two checkpoints: which arrays and values differ, and by how much."""
