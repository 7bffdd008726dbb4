"""Weights: a model's part of a checkpoint, loaded without the optimizer and all else that a training holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptstore import repository
from ckptstore.arrays.frameworks import is_module
from ckptstore.repository import Repository
from ckptstore.state.paths import WEIGHTS

if TYPE_CHECKING:
    from pathlib import Path

    from ckptstore.errors import Incompatible


def load_weights(
    model: Any,
    store: str | Path | Repository,
    rev: str = "main",
    *,
    part: str | None = None,
    strict: bool = True,
) -> Incompatible:
    """Fill a model in place with the weights of a checkpoint, and return what did not fit.

    model: an nn.Module, a Keras model, or a nest of dicts and lists of tensors and arrays. store: a repository, or where it lies.
    part: the key of the outermost dict that holds the weights; None takes "model" where a module is filled and there is
    one, as a training manager commits it, else everything. Nothing else is read.
    strict: CheckoutMismatchError lists every difference before anything changes.
    """
    repo = store if isinstance(store, Repository) else repository.open(store)
    checkpoint = repo.resolve(rev)
    if part is None and is_module(model) and WEIGHTS in checkpoint.names:
        part = WEIGHTS
    misfit: Incompatible = repo.checkout(checkpoint.id, into=model, part=part, strict=strict)
    return misfit
