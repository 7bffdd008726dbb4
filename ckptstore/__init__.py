"""ckptstore: a content-addressed checkpoint store for deep learning.

    repo = ckptstore.open("runs/store", create=True)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    repo.commit(state, step=100, metrics={"val_loss": 0.31})
    repo.checkout("best:val_loss", into={"model": model, "optimizer": optimizer})

The names below are the public ones. Their modules are imported on first use: importing ckptstore
imports neither torch nor numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.lazy_module import lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ckptstore.arrays.codecs import register_codec as register_codec
    from ckptstore.checkpoint import Annotation as Annotation
    from ckptstore.checkpoint import ArrayInfo as ArrayInfo
    from ckptstore.checkpoint import Checkpoint as Checkpoint
    from ckptstore.cloning import clone as clone
    from ckptstore.commit_hooks import CommitEvent as CommitEvent
    from ckptstore.diff.changes import ArrayChange as ArrayChange
    from ckptstore.diff.changes import Diff as Diff
    from ckptstore.diff.changes import Numbers as Numbers
    from ckptstore.diff.changes import ValueChange as ValueChange
    from ckptstore.digest import Digest as Digest
    from ckptstore.documents.entry import StoredArray as StoredArray
    from ckptstore.errors import CheckoutMismatchError as CheckoutMismatchError
    from ckptstore.errors import CkptStoreError as CkptStoreError
    from ckptstore.errors import ConflictError as ConflictError
    from ckptstore.errors import CorruptError as CorruptError
    from ckptstore.errors import ExpiredError as ExpiredError
    from ckptstore.errors import Incompatible as Incompatible
    from ckptstore.errors import InvalidInputError as InvalidInputError
    from ckptstore.errors import NotFoundError as NotFoundError
    from ckptstore.errors import RankError as RankError
    from ckptstore.errors import StorageError as StorageError
    from ckptstore.errors import UnsupportedValueError as UnsupportedValueError
    from ckptstore.follow.follower import Follower as Follower
    from ckptstore.follow.follower import Update as Update
    from ckptstore.gc import GcPlan as GcPlan
    from ckptstore.gc import GcReport as GcReport
    from ckptstore.imports import Import as Import
    from ckptstore.imports import ImportPlan as ImportPlan
    from ckptstore.imports import plan_import as plan_import
    from ckptstore.repository import Repository as Repository
    from ckptstore.repository import init as init
    from ckptstore.repository import open as open
    from ckptstore.state.classes import NamedValue as NamedValue
    from ckptstore.store.meter import Progress as Progress
    from ckptstore.store.undo import Move as Move
    from ckptstore.store.undo import OperationInfo as OperationInfo
    from ckptstore.store.undo import Undone as Undone
    from ckptstore.store.undo import UndoPlan as UndoPlan
    from ckptstore.store.usage import Growth as Growth
    from ckptstore.store.usage import Share as Share
    from ckptstore.store.usage import Usage as Usage
    from ckptstore.this_run import run_meta as run_meta
    from ckptstore.transfer import RefMove as RefMove
    from ckptstore.transfer import TransferPlan as TransferPlan
    from ckptstore.transfer import TransferReport as TransferReport
    from ckptstore.verify import Problem as Problem
    from ckptstore.verify import Unreachable as Unreachable
    from ckptstore.verify import VerifyReport as VerifyReport
    from ckptstore.weights import load_weights as load_weights
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "arrays.codecs": ("register_codec",),
            "checkpoint": ("Annotation", "ArrayInfo", "Checkpoint"),
            "cloning": ("clone",),
            "commit_hooks": ("CommitEvent",),
            "diff.changes": ("ArrayChange", "Diff", "Numbers", "ValueChange"),
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
                "RankError",
                "StorageError",
                "UnsupportedValueError",
            ),
            "follow.follower": ("Follower", "Update"),
            "gc": ("GcPlan", "GcReport"),
            "imports": ("Import", "ImportPlan", "plan_import"),
            "repository": ("Repository", "init", "open"),
            "state.classes": ("NamedValue",),
            "store.meter": ("Progress",),
            "store.undo": ("Move", "OperationInfo", "Undone", "UndoPlan"),
            "store.usage": ("Growth", "Share", "Usage"),
            "this_run": ("run_meta",),
            "transfer": ("RefMove", "TransferPlan", "TransferReport"),
            "verify": ("Problem", "Unreachable", "VerifyReport"),
            "weights": ("load_weights",),
        },
        "__version__",
    )
