"""Callbacks: the mechanisms that Keras users know, for plain PyTorch loops and for Keras' fit with the torch backend.

The names are imported when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptstore.training.callbacks.base import Callback, CallbackList
    from ckptstore.training.callbacks.checkpoint import BackupAndRestore, ModelCheckpoint
    from ckptstore.training.callbacks.logs import (
        CSVLogger,
        LambdaCallback,
        ProgbarLogger,
        RemoteMonitor,
    )
    from ckptstore.training.callbacks.rates import LearningRateScheduler, ReduceLROnPlateau
    from ckptstore.training.callbacks.stopping import EarlyStopping, TerminateOnNaN
    from ckptstore.training.callbacks.tensorboard import TensorBoard

_HOMES = {
    "BackupAndRestore": "checkpoint",
    "CSVLogger": "logs",
    "Callback": "base",
    "CallbackList": "base",
    "EarlyStopping": "stopping",
    "LambdaCallback": "logs",
    "LearningRateScheduler": "rates",
    "ModelCheckpoint": "checkpoint",
    "ProgbarLogger": "logs",
    "ReduceLROnPlateau": "rates",
    "RemoteMonitor": "logs",
    "TensorBoard": "tensorboard",
    "TerminateOnNaN": "stopping",
}

__all__ = [
    "BackupAndRestore",
    "CSVLogger",
    "Callback",
    "CallbackList",
    "EarlyStopping",
    "LambdaCallback",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "ProgbarLogger",
    "ReduceLROnPlateau",
    "RemoteMonitor",
    "TensorBoard",
    "TerminateOnNaN",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
