"""Committing: a state becomes objects, pages and a manifest."""
