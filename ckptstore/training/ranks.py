"""Ranks: a training in several processes, of which the first alone saves (`ranks="first"`).

The checkpoint has the state of rank 0, and the other ranks name what they have that is not its.
Nothing here waits for another rank: such programs may call `save` on one rank only. All ranks
together are `group`. See docs/adr/0069.
"""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.frameworks import is_module
from ckptstore.checkout.handover import is_optimizer
from ckptstore.errors import InvalidInputError, UnsupportedValueError
from ckptstore.rank_group import distributed, group_store
from ckptstore.training.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping


def rank_and_size() -> tuple[int, int]:
    """The rank of this process and the number of them; (0, 1) without a group."""
    group = distributed()
    return (0, 1) if group is None else (group.get_rank(), group.get_world_size())


def launched_rank() -> int:
    """The rank of this process, also before the group is initialised."""
    rank = os.environ.get("RANK", "")  # set by torchrun and other launchers
    return int(rank) if distributed() is None and rank.isdecimal() else rank_and_size()[0]


def refuse_shards(tracked: Mapping[str, object]) -> None:
    """Raise InvalidInputError for an optimizer of which each process has another part.

    FullyShardedDataParallel gathers the state of a model, but not that of an optimizer.
    """
    optimizers = [name for name, item in tracked.items() if is_optimizer(item)]
    for name, item in tracked.items():
        if optimizers and (size := _shards(item)) > 1:
            raise InvalidInputError(
                f"FullyShardedDataParallel has divided {name} among {size} processes, and with it "
                f"the state of {', '.join(optimizers)}. A checkpoint holds the state of one "
                "process. Track an object whose state_dict returns "
                "FullyShardedDataParallel.optim_state_dict(model, optimizer), or leave the "
                "optimizer out."
            )


def _shards(item: object) -> int:
    """The number of processes among which FullyShardedDataParallel has divided a module."""
    home: Any = sys.modules.get("torch.distributed.fsdp.fully_sharded_data_parallel")
    if home is None or not is_module(item):
        return 1
    modules: Any = item.modules()  # type: ignore[attr-defined]
    sharded = (part for part in modules if isinstance(part, home.FullyShardedDataParallel))
    return max((part.process_group.size() for part in sharded), default=1)


class OtherRanks:
    """Compares, once, the state of a rank that does not save with that of rank 0."""

    def __init__(self) -> None:
        self._key = ""
        self._own: dict[str, str] | None = None  # fingerprints by name, until they are compared

    def note(self, state: Mapping[str, Any], tracked: Mapping[str, object], *, key: str) -> None:
        """Publish the fingerprints of rank 0, or keep those of another rank to compare them.

        Args:
            state: The captured states by name.
            tracked: The objects. Of modules only parameters are compared: a replica's buffers may
                differ until its next step.
            key: The branch and step, equal on all ranks.
        """
        rank, size = rank_and_size()
        if size == 1 or self._key:
            return
        self._key = f"ckptstore/{key}"
        own = {name: _told(value, tracked.get(name)) for name, value in state.items()}
        if rank > 0:
            self._own = own
        elif store := group_store():
            for name, text in own.items():
                store.set(f"{self._key}/{name}", text)
            store.set(self._key, "whole")

    def compare(self) -> None:
        """Warn of what differs from rank 0, once that has published its fingerprints."""
        store = group_store()
        if self._own is None or store is None:
            return
        with suppress(RuntimeError):  # the store of a group that has ended
            if not store.check([self._key]):
                return
            own, self._own = self._own, None
            names = [name for name in own if self._differs(store, name, own[name])]
            if names:
                rank, size = rank_and_size()
                warnings.warn(
                    f"Only rank 0 of {size} saves, and its {', '.join(names)} and those of rank "
                    f"{rank} differ. What rank {rank} has is in no checkpoint, so a resumed run is "
                    "not the same on this rank.",
                    stacklevel=4,
                )

    def _differs(self, store: Any, name: str, text: str) -> bool:
        key = f"{self._key}/{name}"
        return not store.check([key]) or store.get(key).decode() != text


def warn_of_random_states() -> None:
    """Warn that the random states of this rank were not restored: those saved are rank 0's."""
    rank, size = rank_and_size()
    warnings.warn(
        f"The random numbers of rank {rank} of {size} are in no checkpoint and were not restored. "
        "They go on as the program has seeded them, so the resumed run is not bit for bit that "
        "which was interrupted.",
        stacklevel=4,
    )


def _told(value: Any, item: Any) -> str:
    if is_module(item) and isinstance(value, dict):
        names = {name for name, _ in item.named_parameters()}
        value = {name: part for name, part in value.items() if name in names}
    value = _of_all_ranks(value)
    try:
        return str(fingerprint(value))
    except UnsupportedValueError:
        return "unsupported"  # rank 0 raises the error


def _of_all_ranks(value: Any) -> Any:
    """A state in which plain data loaders, tracked or of callbacks, have only the position.

    Each rank has samples and seeds of its own, of which the position is the same.
    """
    if not isinstance(value, dict):
        return value
    if {"begin", "yielded"} <= value.keys():
        return value["yielded"]
    return {**value, "loader": _of_all_ranks(value["loader"])} if "loader" in value else value
