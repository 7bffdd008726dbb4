"""Integrations: ckptstore in the training loops of other frameworks.

Each module imports its framework, and nothing below imports these modules: they are entry points.
See docs/adr/0024.
"""
