"""The callbacks of Keras, for plain PyTorch loops and for `fit` of Keras 3 on any backend.

One module for each, named as in Keras. All of them keep their state in checkpoints, so that a
resumed training decides as one that was never interrupted; see docs/adr/0014. The names are
imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.lazy_module import lazy_names

if TYPE_CHECKING:
    from ckptstore.training.callbacks.backup_and_restore import BackupAndRestore as BackupAndRestore
    from ckptstore.training.callbacks.callback import Callback as Callback
    from ckptstore.training.callbacks.callback_list import CallbackList as CallbackList
    from ckptstore.training.callbacks.csv_logger import CSVLogger as CSVLogger
    from ckptstore.training.callbacks.early_stopping import EarlyStopping as EarlyStopping
    from ckptstore.training.callbacks.lambda_callback import LambdaCallback as LambdaCallback
    from ckptstore.training.callbacks.learning_rate_scheduler import (
        LearningRateScheduler as LearningRateScheduler,
    )
    from ckptstore.training.callbacks.model_checkpoint import ModelCheckpoint as ModelCheckpoint
    from ckptstore.training.callbacks.progbar_logger import ProgbarLogger as ProgbarLogger
    from ckptstore.training.callbacks.reduce_lr_on_plateau import (
        ReduceLROnPlateau as ReduceLROnPlateau,
    )
    from ckptstore.training.callbacks.remote_monitor import RemoteMonitor as RemoteMonitor
    from ckptstore.training.callbacks.tensorboard import TensorBoard as TensorBoard
    from ckptstore.training.callbacks.terminate_on_nan import TerminateOnNaN as TerminateOnNaN
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "backup_and_restore": ("BackupAndRestore",),
            "callback": ("Callback",),
            "callback_list": ("CallbackList",),
            "csv_logger": ("CSVLogger",),
            "early_stopping": ("EarlyStopping",),
            "lambda_callback": ("LambdaCallback",),
            "learning_rate_scheduler": ("LearningRateScheduler",),
            "model_checkpoint": ("ModelCheckpoint",),
            "progbar_logger": ("ProgbarLogger",),
            "reduce_lr_on_plateau": ("ReduceLROnPlateau",),
            "remote_monitor": ("RemoteMonitor",),
            "tensorboard": ("TensorBoard",),
            "terminate_on_nan": ("TerminateOnNaN",),
        },
    )
