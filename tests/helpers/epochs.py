"""Epochs without a training: the calls that callbacks get, with given logs."""

from __future__ import annotations

import torch

from ckptstore.training.callbacks import CallbackList


def drive(callbacks, logs, *, batches=2, model=None, **tracked):
    """Epochs with these logs, on a small model."""
    model = model or torch.nn.Linear(2, 2)
    found = CallbackList(callbacks, model=model, epochs=len(logs), **tracked)
    found.on_train_begin()
    for epoch in found.epochs():
        found.on_epoch_begin(epoch)
        for batch in range(batches):
            found.on_train_batch_end(batch, {"loss": 1.0})
        found.on_epoch_end(epoch, logs[epoch])
    found.on_train_end()
    return found
