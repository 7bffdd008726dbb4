"""Training: save and resume training loops, and the callbacks of Keras for any of them.

The names are imported when they are used, so that `import ckptstore.training` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptstore.training.callbacks import BackupAndRestore as BackupAndRestore
    from ckptstore.training.callbacks import Callback as Callback
    from ckptstore.training.callbacks import CallbackList as CallbackList
    from ckptstore.training.callbacks import CSVLogger as CSVLogger
    from ckptstore.training.callbacks import EarlyStopping as EarlyStopping
    from ckptstore.training.callbacks import LambdaCallback as LambdaCallback
    from ckptstore.training.callbacks import LearningRateScheduler as LearningRateScheduler
    from ckptstore.training.callbacks import ModelCheckpoint as ModelCheckpoint
    from ckptstore.training.callbacks import ProgbarLogger as ProgbarLogger
    from ckptstore.training.callbacks import ReduceLROnPlateau as ReduceLROnPlateau
    from ckptstore.training.callbacks import RemoteMonitor as RemoteMonitor
    from ckptstore.training.callbacks import TensorBoard as TensorBoard
    from ckptstore.training.callbacks import TerminateOnNaN as TerminateOnNaN
    from ckptstore.training.manager import CheckpointManager as CheckpointManager

__all__ = [
    "BackupAndRestore",
    "CSVLogger",
    "Callback",
    "CallbackList",
    "CheckpointManager",
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
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "manager" if name == "CheckpointManager" else "callbacks"
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
