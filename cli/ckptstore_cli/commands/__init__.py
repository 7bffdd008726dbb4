"""The commands: one module for each, which defines a click command of the same name."""
