"""ckptstore: a content-addressed checkpoint store for deep learning.

    repo = ckptstore.open("runs/store", create=True)
    repo.commit({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, step=100, metrics={"val_loss": 0.31})
    repo.checkout("best:val_loss", into={"model": model, "optimizer": optimizer})

The names below are the public ones. They load what they need when first used: importing ckptstore imports neither torch
nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckptstore.checkpoint import ArrayInfo, Checkpoint
    from ckptstore.diff.compare import ArrayChange, Diff, Numbers, ValueChange
    from ckptstore.digest import Digest
    from ckptstore.documents.entry import StoredArray
    from ckptstore.errors import (
        CheckoutMismatchError,
        CkptStoreError,
        ConflictError,
        CorruptError,
        ExpiredError,
        Incompatible,
        InvalidInputError,
        NotFoundError,
        StorageError,
        UnsupportedValueError,
    )
    from ckptstore.follow.follower import Follower, Update
    from ckptstore.gc import GcPlan, GcReport
    from ckptstore.repository import Repository, Undone, Usage, init, open
    from ckptstore.state.codecs import register_codec
    from ckptstore.verify import Problem, VerifyReport
    from ckptstore.weights import load_weights

__version__ = "0.1.0"

_HOMES = {
    "checkpoint": ("ArrayInfo", "Checkpoint"),
    "diff.compare": ("ArrayChange", "Diff", "Numbers", "ValueChange"),
    "digest": ("Digest",),
    "documents.entry": ("StoredArray",),
    "errors": (
        "CheckoutMismatchError",
        "CkptStoreError",
        "ConflictError",
        "CorruptError",
        "ExpiredError",
        "Incompatible",
        "InvalidInputError",
        "NotFoundError",
        "StorageError",
        "UnsupportedValueError",
    ),
    "follow.follower": ("Follower", "Update"),
    "gc": ("GcPlan", "GcReport"),
    "repository": ("Repository", "Undone", "Usage", "init", "open"),
    "state.codecs": ("register_codec",),
    "verify": ("Problem", "VerifyReport"),
    "weights": ("load_weights",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ArrayChange",
    "ArrayInfo",
    "CheckoutMismatchError",
    "Checkpoint",
    "CkptStoreError",
    "ConflictError",
    "CorruptError",
    "Diff",
    "Digest",
    "ExpiredError",
    "Follower",
    "GcPlan",
    "GcReport",
    "Incompatible",
    "InvalidInputError",
    "NotFoundError",
    "Numbers",
    "Problem",
    "Repository",
    "StorageError",
    "StoredArray",
    "Undone",
    "UnsupportedValueError",
    "Update",
    "Usage",
    "ValueChange",
    "VerifyReport",
    "init",
    "load_weights",
    "open",
    "register_codec",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ckptstore' has no attribute {name!r}")
    return getattr(import_module(f"ckptstore.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
