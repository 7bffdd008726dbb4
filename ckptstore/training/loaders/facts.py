"""Facts of a data loader that decide which batches it yields: no other loader ends its epoch."""

from __future__ import annotations

from typing import Any

from torch.utils.data import IterableDataset

from ckptstore.errors import InvalidInputError

ANEW = "Leave the loader out of the restore, as with exclude='loader', to begin the epoch anew."


def is_iterable(loader: Any) -> bool:
    """Whether the dataset has an order of its own, and no sampler chooses the samples."""
    return isinstance(loader.dataset, IterableDataset)


def facts(loader: Any) -> dict[str, Any]:
    """Properties that decide which batches a loader yields, as plain values."""
    indices = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    own = loader.sampler if loader.batch_size else indices
    if is_iterable(loader):
        sizes = {"dataset": "iterable", "num_workers": loader.num_workers}  # each has its own part
    else:
        sizes = {"dataset": "map", "samples": _length(loader.dataset), "batches": _length(indices)}
    return sizes | {
        "batch_size": loader.batch_size,
        "drop_last": loader.drop_last,
        "sampler": type(own).__name__,
    }


def check_facts(saved: dict[str, Any], now: dict[str, Any], *, yielded: int) -> None:
    """Refuse to go on with the epoch of another loader.

    Args:
        saved: Facts of the loader whose epoch was interrupted.
        now: Those of the loader that is to go on.
        yielded: The number of batches that were done.

    Raises:
        InvalidInputError: They differ.
    """
    found = [
        f"{name} was {saved.get(name)!r} and is {now.get(name)!r}"
        for name in dict.fromkeys((*now, *saved))
        if saved.get(name) != now.get(name)
    ]
    if found:
        raise InvalidInputError(
            f"The epoch was interrupted after batch {yielded}, and cannot go on with another "
            f"loader: {', '.join(found)}. {ANEW}"
        )


def _length(item: Any) -> int | None:
    try:
        return len(item)
    except (TypeError, NotImplementedError):
        return None
