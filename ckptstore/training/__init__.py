"""Training: save and resume training loops, and the callbacks of Keras for any of them.

The names are imported when they are used, so that `import ckptstore.training` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptstore.training.manager import CheckpointManager as CheckpointManager

_HOMES = {"CheckpointManager": "ckptstore.training.manager"}

__all__ = ["CheckpointManager"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
