"""Arrays as bytes: one module for each framework, and what all of them share."""
