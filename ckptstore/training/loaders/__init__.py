"""Data loaders: their position in an epoch is saved, and a resumed epoch goes on exactly there."""
