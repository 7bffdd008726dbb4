"""Tracked: the objects of a run as one nested state to commit, and one destination to fill."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch.nn import Module

from ckptstore.arrays.keras import as_stateful
from ckptstore.arrays.modules import named_state, plain_name, unwrapped
from ckptstore.arrays.pytrees import is_pytree
from ckptstore.checkout.optimizers import Recorded, record, renamed_record
from ckptstore.documents.names import escape_key, unescape_key
from ckptstore.errors import InvalidInputError, shown
from ckptstore.state.paths import join
from ckptstore.state.tree import path_of
from ckptstore.training.loaders.ends import at_next_epoch, compare_strictly, is_loader, note_next
from ckptstore.training.loaders.position import is_plain_loader, with_position
from ckptstore.training.random_state import Generator, RandomState
from ckptstore.training.ranks import rank_and_size, warn_of_random_states

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.repository import Repository
    from ckptstore.state.rename import Names

RANDOM, PROGRESS = "rng", "progress"
RANKS = "ranks"  # what other ranks than the first have of their own, by rank and name
WORLD = "world_size"  # the key in the progress of the number of ranks that saved
RECORDS = "objects"  # the key in the progress of facts about objects that their states lack


@runtime_checkable
class Stateful(Protocol):
    """Anything with a state: modules, optimizers, schedulers, scalers, data loaders."""

    def state_dict(self) -> Any:
        """The state, a nested structure."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Restore a state."""


class Box:
    """A stateful object that only keeps the state it is given.

    Args:
        state: The state.
        is_replica: Whether it is equal on all ranks, so that that of rank 0 is saved.
    """

    def __init__(self, state: Any = None, *, is_replica: bool = False) -> None:
        self.state = state
        self.is_replica = is_replica

    def state_dict(self) -> Any:
        """The state."""
        return self.state

    def load_state_dict(self, state_dict: Any) -> None:
        """Keep a state."""
        self.state = state_dict


def stateful(name: str, value: object) -> Stateful:
    """The stateful object to track for an object; InvalidInputError for one without a state."""
    if name in (RANDOM, PROGRESS, RANKS):
        raise InvalidInputError(
            f"The manager itself saves something under the name {name!r}. Choose another name."
        )
    known: Stateful | None = as_stateful(value)
    if known is not None:
        return known
    if is_plain_loader(value):
        return with_position(value)
    value = unwrapped(value)
    if isinstance(value, Generator.kinds):
        return Generator(value)
    if isinstance(value, Stateful) and not isinstance(value, type):
        return value
    hint = " Pass **JaxState(...) of ckptstore.integrations.jax." if is_pytree(value) else ""
    raise InvalidInputError(
        f"{name}={shown(value)} cannot be tracked: it has no state_dict and load_state_dict.{hint}"
    )


def capture(
    tracked: Mapping[str, Stateful],
    *,
    progress: Mapping[str, object],
    random: bool,
    next_batch: bool = False,
    world_size: int = 1,
) -> dict[str, Any]:
    """The current states of all objects; arrays are those in use, not copies.

    Args:
        tracked: The objects by name.
        progress: The "epoch" and "batch" of the save.
        random: Whether to take the random states of the process.
        next_batch: Whether to load the next batch of plain data loaders, and to note its contents.
        world_size: The number of ranks that save together.
    """
    state: dict[str, Any] = {
        name: named_state(item) if isinstance(item, Module) else item.state_dict()
        for name, item in tracked.items()
    }
    at_next_epoch(state, tracked, progress)
    records = {name: facts for name, facts in _records(tracked).items() if facts}
    state[PROGRESS] = dict(progress) | ({RECORDS: records} if records else {})
    if world_size > 1:
        state[PROGRESS][WORLD] = world_size
    if random:
        state[RANDOM] = RandomState().state_dict()
    if next_batch:
        note_next(state, tracked)
    return state


def _records(tracked: Mapping[str, Stateful]) -> dict[str, dict[str, Any]]:
    """The facts about each object that its state lacks, by the names of the objects."""
    names: dict[int, str] = {}
    for top, item in tracked.items():
        if isinstance(item, Module):
            for name, parameter in item.named_parameters(remove_duplicate=False):
                names.setdefault(id(parameter), join(path_of(top), escape_key(plain_name(name))))
    return {name: record(item, names) for name, item in tracked.items()}


def records_of(repository: Repository, checkpoint: Checkpoint, names: Names) -> Mapping[str, Any]:
    """The recorded facts about the objects of a checkpoint, by their names after a rename."""
    if PROGRESS not in checkpoint.names:
        return {}
    progress = repository.checkout(checkpoint.id, part=PROGRESS, lazy=True)
    records = progress.get(RECORDS) if isinstance(progress, dict) else None
    return {
        unescape_key(names.of(path_of(name))): renamed_record(facts, names)
        for name, facts in (records if isinstance(records, dict) else {}).items()
        if isinstance(name, str) and isinstance(facts, dict)
    }


def destination(
    tracked: Mapping[str, Stateful],
    names: Collection[str | int],
    records: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[dict[str, Any], Box, Box]:
    """The destination of a checkout, and the boxes in it for random states and progress.

    Data loaders follow the other objects because creating their iterators draws random numbers.

    Args:
        tracked: The objects by name.
        names: The outermost keys of the checkpoint.
        records: The facts that `records_of` returned.
    """
    random, progress = Box(), Box()
    into: dict[str, Any] = dict(sorted(tracked.items(), key=lambda pair: is_loader(pair[1])))
    for name, now in _records(tracked).items():
        if now:
            into[name] = Recorded(target=tracked[name], saved=records.get(name, {}), now=now)
    into |= {name: box for name, box in ((RANDOM, random), (PROGRESS, progress)) if name in names}
    return into, random, progress


def settle(
    tracked: Mapping[str, Stateful], random: Box, *, strict: bool = True, is_own: bool = False
) -> None:
    """Finish a restore: let data loaders create their iterators, then set the random states.

    is_own: whether the random states are those of this rank; otherwise they are those of rank 0.
    """
    compare_strictly(tracked, is_strict=strict)
    for item in tracked.values():
        if is_loader(item):
            item.state_dict()
    if random.state is not None:
        if is_own or rank_and_size()[0] == 0:
            RandomState().load_state_dict(random.state)
        else:
            warn_of_random_states()
