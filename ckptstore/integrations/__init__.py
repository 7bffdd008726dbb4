"""Integrations: ckptstore in the training loops of other frameworks. Each module imports its framework at its own top."""
