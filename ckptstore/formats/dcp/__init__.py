"""Checkpoint folders of torch.distributed.checkpoint."""
