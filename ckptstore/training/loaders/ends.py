"""Ends of epochs: whether a saved data loader continues its epoch or begins the next.

Here are also the keys of torchdata's StatefulDataLoader. See docs/adr/0055.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptstore.errors import InvalidInputError
from ckptstore.training.callback_states import CallbackStates
from ckptstore.training.loaders.position import PositionedLoader, in_epoch, resumed_at

if TYPE_CHECKING:
    from collections.abc import Mapping

# Keys in the states of torchdata's StatefulDataLoader, without workers and with them.
FINISHED, YIELDED = "_iterator_finished", "_num_yielded"
SNAPSHOT, SNAPSHOT_STEP, STEPS_SINCE = "_snapshot", "_snapshot_step", "_steps_since_snapshot"


def is_loader(item: object) -> bool:
    """True for a stateful data loader, such as torchdata's StatefulDataLoader."""
    return hasattr(item, "__iter__") and hasattr(item, "dataset")


def at_next_epoch(
    states: dict[str, Any], tracked: Mapping[str, object], position: Mapping[str, object]
) -> None:
    """Note in the states of loaders whether the run resumes in their epoch or in the next.

    A loader at the end of its epoch, or one that marks itself only when it is asked for one batch
    more, would yield nothing once. That is right where the run resumes in the epoch that has just
    ended: with callbacks, which keep the epoch, and after `save(epoch=)`, unless the batch is 0.

    Args:
        states: The states of the tracked objects, which are replaced in place.
        tracked: The objects by name.
        position: The "epoch" and "batch" of the save.
    """
    keeps = any(_keeps_epoch(item) for item in tracked.values())
    for name, item in tracked.items():
        if isinstance(item, PositionedLoader):
            states[name] = in_epoch(states[name]) if keeps else resumed_at(states[name], position)
            continue
        count = _batches(item) if is_loader(item) and not keeps else None
        if not count or _yielded(states[name]) != count:
            continue
        # A loader of one batch has no other number: 0 does not tell the next epoch from this one.
        begins_next = position.get("batch") == 0 and count > 1
        if position.get("epoch") is None or begins_next:
            states[name] = states[name] | {FINISHED: True}


def stay_in_epoch(tracked: Mapping[str, object]) -> None:
    """Note that the program resumes in the epoch of a restored position, even at its end."""
    for item in tracked.values():
        if isinstance(item, PositionedLoader):
            item.position.stay()


def compare_strictly(tracked: Mapping[str, object], *, is_strict: bool) -> None:
    """Set whether another next batch than the one that was saved is an error or a warning."""
    for item in tracked.values():
        if isinstance(item, PositionedLoader):
            item.position.is_strict = is_strict
        elif isinstance(item, CallbackStates):
            item.is_strict = is_strict


def note_next(states: dict[str, Any], tracked: Mapping[str, object]) -> None:
    """Add the contents of the next batch to the states of plain loaders, in place.

    The batch is loaded for this, so all random states must have been taken before.

    Raises:
        InvalidInputError: A loader has a state of its own, so that nothing can be loaded ahead.
        UnsupportedValueError: A batch holds a value that no checkpoint can hold.
    """
    for name, item in tracked.items():
        if isinstance(item, PositionedLoader):
            states[name] = item.position.with_next(item, states[name])
        elif isinstance(item, CallbackStates):
            states[name] = item.note_next(states[name])
        elif is_loader(item):
            raise InvalidInputError(
                f"compare_next_batch needs torch's DataLoader, which can load a batch ahead of the "
                f"loop. {name} is a {type(item).__name__}."
            )


def _keeps_epoch(item: object) -> bool:
    """True for the states of callbacks, and for a CallbackList."""
    return isinstance(item, CallbackStates) or (
        hasattr(item, "epochs") and hasattr(item, "batches")
    )


def _batches(loader: Any) -> int | None:
    """The number of batches of an epoch, None if it is unknown, as for iterable datasets.

    It asks the sampler: `len` of a loader of an iterable dataset changes the loader's state.
    """
    sampler: Any = getattr(loader, "batch_sampler", None)
    if sampler is None:
        sampler = getattr(loader, "sampler", None)
    try:
        return len(sampler)
    except (TypeError, NotImplementedError):
        return None


def _yielded(state: object) -> int | None:
    """The number of batches that a loader has yielded; None for states of another kind."""
    if not isinstance(state, dict) or FINISHED not in state:
        return None
    snapshot = state.get(SNAPSHOT)
    if isinstance(snapshot, dict):
        return int(snapshot[SNAPSHOT_STEP]) + int(state[STEPS_SINCE])
    return state.get(YIELDED)
