"""One module a command; each holds one click command of the module's own name."""
