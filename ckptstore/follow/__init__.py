"""Following a branch: a model in memory is kept at the newest checkpoint."""
