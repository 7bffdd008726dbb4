"""Checkout: a checkpoint becomes a state again, or fills an existing one."""
