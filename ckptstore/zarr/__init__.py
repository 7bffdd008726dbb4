"""Checkpoints as Zarr v3 hierarchies: `CheckpointStore` reads one, `SessionStore` writes the next.

Most users get them from `checkpoint.zarr()` and `repo.session(branch).store`. Decoding is left to
zarr-python; this package only maps its keys to objects. See docs/adr/0016 and section 10.5 of
docs/reference/format.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckptstore.zarr.session import Session, SessionStore
    from ckptstore.zarr.store import CheckpointStore

__all__ = ["CheckpointStore", "Session", "SessionStore"]

_HOME_OF = {"CheckpointStore": "store", "Session": "session", "SessionStore": "session"}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ckptstore.zarr' has no attribute {name!r}")
    return getattr(import_module(f"ckptstore.zarr.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
