"""Checkpoint folders of torch.distributed.checkpoint, which are only read."""
