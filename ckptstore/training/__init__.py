"""Save and resume training loops, with the callbacks of Keras for any of them.

The names are imported on first use, so `import ckptstore.training` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.lazy_module import lazy_names

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
    from ckptstore.training.mirror import MirrorState as MirrorState
    from ckptstore.training.resume import ResumeReport as ResumeReport
else:
    from ckptstore.training import callbacks

    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "callbacks": callbacks.__all__,
            "manager": ("CheckpointManager",),
            "mirror": ("MirrorState",),
            "resume": ("ResumeReport",),
        },
    )
