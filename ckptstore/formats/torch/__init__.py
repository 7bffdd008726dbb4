"""PyTorch files (.pt), read and written without running what they hold."""
