"""The callbacks that Keras users know, for PyTorch loops and for Keras' `fit` with the torch backend.

The names are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.lazy_module import lazy_names

if TYPE_CHECKING:
    from ckptstore.training.callbacks.base import Callback as Callback
    from ckptstore.training.callbacks.base import CallbackList as CallbackList
    from ckptstore.training.callbacks.checkpoint import BackupAndRestore as BackupAndRestore
    from ckptstore.training.callbacks.checkpoint import ModelCheckpoint as ModelCheckpoint
    from ckptstore.training.callbacks.logs import CSVLogger as CSVLogger
    from ckptstore.training.callbacks.logs import LambdaCallback as LambdaCallback
    from ckptstore.training.callbacks.logs import ProgbarLogger as ProgbarLogger
    from ckptstore.training.callbacks.logs import RemoteMonitor as RemoteMonitor
    from ckptstore.training.callbacks.rates import LearningRateScheduler as LearningRateScheduler
    from ckptstore.training.callbacks.rates import ReduceLROnPlateau as ReduceLROnPlateau
    from ckptstore.training.callbacks.stopping import EarlyStopping as EarlyStopping
    from ckptstore.training.callbacks.stopping import TerminateOnNaN as TerminateOnNaN
    from ckptstore.training.callbacks.tensorboard import TensorBoard as TensorBoard
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "base": ("Callback", "CallbackList"),
            "checkpoint": ("BackupAndRestore", "ModelCheckpoint"),
            "logs": ("CSVLogger", "LambdaCallback", "ProgbarLogger", "RemoteMonitor"),
            "rates": ("LearningRateScheduler", "ReduceLROnPlateau"),
            "stopping": ("EarlyStopping", "TerminateOnNaN"),
            "tensorboard": ("TensorBoard",),
        },
    )
