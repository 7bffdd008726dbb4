"""Lightning: one callback saves a run of its Trainer, and `fit(ckpt_path=...)` resumes it.

The checkpoint is the dict that Lightning itself would write to a file, under the same names, with
the random states of each rank beside it. A CheckpointManager saves it, so branches, policies,
mirrors and many ranks work as they do there. See docs/adr/0072.
"""

from ckptstore.integrations import needed

with needed("lightning"):
    from ckptstore.integrations.lightning.callback import CkptStoreCallback as CkptStoreCallback
    from ckptstore.integrations.lightning.checkpoint_io import CkptStoreIO as CkptStoreIO

__all__ = ["CkptStoreCallback", "CkptStoreIO"]
