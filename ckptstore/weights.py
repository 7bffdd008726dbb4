"""Weights: the model's part of a checkpoint, without the optimizer and the rest of the state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptstore import repository
from ckptstore.arrays.frameworks import is_model
from ckptstore.repository import Repository
from ckptstore.state.paths import weights_part

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path


def load_weights(
    model: Any,
    store: str | Path | Repository,
    rev: str = "main",
    *,
    part: str | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    strict: bool = True,
) -> Any:
    """Fill a model in place with the weights of a checkpoint. Nothing else is read.

    Args:
        model: An nn.Module, a Keras model, or a nested structure of tensors and arrays, as
            `Repository.checkout(into=)` takes it. With JAX arrays in it, it is a template.
        store: A repository, or its folder or URL.
        rev: The revision to read, such as "main" or "main@best:val_loss".
        part: The key of the outermost dict that holds the weights. None takes for a module "model",
            under which a training manager commits them, or "state_dict", which is Lightning's, if
            there is such a key, else everything.
        include: Globs over the checkpoint's paths, such as "model/backbone.*", as in
            `Repository.checkout`.
        exclude: Globs over paths to leave out.
        rename: New paths of what the globs choose, as in `Repository.checkout`. `part` goes by the
            new names.
        strict: Whether any misfit raises before anything changes. If False, what fits is filled.

    Returns:
        An `Incompatible` that lists what did not fit; false when everything did. For a template of
        JAX, a new pytree like it.

    Raises:
        CheckoutMismatchError: The model does not fit and `strict` is set. Nothing was changed.
        NotFoundError: There is no such repository or revision.
        ExpiredError: The arrays of the checkpoint were deleted by a gc.
        CorruptError: Something in the repository is damaged or missing.

    Example:
        >>> import ckptstore, torch
        >>> repo = ckptstore.init("memory://")
        >>> trained, served = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> _ = repo.commit({"model": trained.state_dict(), "epoch": 3})
        >>> bool(ckptstore.load_weights(served, repo))
        False
        >>> torch.equal(served.weight, trained.weight)
        True
    """
    repo = store if isinstance(store, Repository) else repository.open(store)
    checkpoint = repo.resolve(rev)
    if part is None and is_model(model):
        names: Collection[object] = checkpoint.names
        if rename:
            state = repo.checkout(
                checkpoint.id, include=include, exclude=exclude, rename=rename, lazy=True
            )
            names = state if isinstance(state, dict) else ()
        part = weights_part(names)
    return repo.checkout(
        checkpoint.id,
        into=model,
        part=part,
        include=include,
        exclude=exclude,
        rename=rename,
        strict=strict,
    )
