"""Disk: whether a run has room for its checkpoints, and what a save does when there is none."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from ckptstore.arrays.frameworks import is_module
from ckptstore.arrays.keras import ModelState, OptimizerState, Variable
from ckptstore.arrays.pytrees import PytreeState
from ckptstore.commit.flatten import flatten
from ckptstore.errors import CkptStoreError, StorageError, first_line
from ckptstore.retention import KeepBest, MaxBytes, MaxToKeep
from ckptstore.training.background import ending
from ckptstore.training.ranks import launched_rank

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ckptstore.repository import Repository
    from ckptstore.retention import Policy

ON_FULL = ("raise", "gc", "wait")
POLL_SECONDS = 10.0  # between two attempts while waiting for room
Value = TypeVar("Value")
_log = logging.getLogger(__name__)


class Disk:
    """The room of one run in its repository.

    Args:
        repository: The repository.
        on_full: One of `ON_FULL`.
    """

    def __init__(self, repository: Repository, *, on_full: str) -> None:
        self._repository, self._on_full = repository, on_full

    def shortage(
        self, branch: str, policy: Policy | None, tracked: Mapping[str, object]
    ) -> str | None:
        """Return a warning if there is less room than the policy needs; None if there is enough.

        The size of a checkpoint is what the newest one of the branch stored, or without one an
        estimate from the tensors that are tracked.
        """
        free = self._repository.free_bytes()
        if free is None or launched_rank() > 0:  # of a group of ranks the first warns
            return None
        with suppress(CkptStoreError):  # the first save will raise it
            heads, _ = self._repository.ref_names()
            newest = self._repository.resolve(heads[branch]) if branch in heads else None
            each = _state_bytes(tracked) if newest is None else newest.new_bytes
            number = _peak(policy)
            if number * each > free and newest is not None:
                number -= len(self._repository.log(branch, limit=number, expired=False))
            number = max(1, number)
            if number * each > free:
                return (
                    f"{self._repository.url} has room for {size(free)}, and this run needs "
                    f"{size(number * each)} or more, for {number} "
                    f"checkpoint{'s' if number > 1 else ''} of {size(each)}. Free some space, keep "
                    "fewer checkpoints, or pass on_full='gc' or 'wait'."
                )
        return None

    def with_room(
        self, act: Callable[[], Value], *, may_gc: bool, is_over: Callable[[], bool]
    ) -> Value:
        """Commit, and repeat it once there is room again, if that is asked for.

        Args:
            act: Commits.
            may_gc: Whether a gc may expire checkpoints.
            is_over: Whether to wait no longer.

        Raises:
            StorageError: The storage is full, or it failed.
        """
        is_first = True
        while True:
            try:
                return act()
            except StorageError as error:
                if not error.is_full:
                    raise
                is_again = self._makes_room(is_first=is_first, may_gc=may_gc, is_over=is_over)
                if not is_again:
                    raise self._explained(error) from error.__cause__
            is_first = False

    def _makes_room(self, *, is_first: bool, may_gc: bool, is_over: Callable[[], bool]) -> bool:
        """Whether to try again, after a gc or a while."""
        if self._on_full == "gc" and is_first and may_gc:
            try:
                report = self._repository.gc()
            except CkptStoreError as error:
                _log.warning("The disk is full, and a gc failed: %s", error)
                return False
            _log.warning(
                "The disk was full. A gc freed %s; %d checkpoints expired.",
                size(report.bytes),
                len(report.expired),
            )
            return True
        if self._on_full != "wait" or is_over():
            return False
        if is_first:
            _log.warning("%s is full. The save waits until there is room.", self._repository.url)
        return not ending.wait(POLL_SECONDS)

    def _explained(self, error: StorageError) -> StorageError:
        """Return the error with what a gc would free."""
        hint = "Free some space"
        with suppress(CkptStoreError):
            plan = self._repository.plan_gc()
            hint = (
                f"A gc would free {size(plan.bytes)}, and {len(plan.expired)} checkpoints would "
                "expire: run it, or pass on_full='gc'"
                if plan.bytes
                else "A gc would free nothing: the saved policies keep everything. Keep fewer "
                "checkpoints (max_to_keep), or free space elsewhere"
            )
        return StorageError(f"Nothing was saved: {first_line(error)}. {hint}.")


def size(size_bytes: int) -> str:
    """Return a number of bytes as text, such as "1.2 GB"."""
    return MaxBytes(size_bytes).size if size_bytes else "0 B"


def _peak(policy: Policy | None) -> int:
    """The most checkpoints of a branch at once, as far as the policy says; at least 1.

    A new checkpoint is durable before another expires.
    """
    parts = () if policy is None else policy.parts
    numbers = [part.n for part in parts if isinstance(part, MaxToKeep | KeepBest)]
    return sum(numbers) + 1 if numbers else 1


def _state_bytes(tracked: Mapping[str, object]) -> int:
    """The bytes of the tensors of modules and optimizers, without calling any state_dict.

    Those of Keras are counted too. An optimizer that has made no state yet counts as it will after
    its first step.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return 0
    total = 0
    for item in tracked.values():
        if isinstance(item, PytreeState):
            total += sum(array.nbytes for array in flatten(item.state_dict()).arrays.values())
        elif isinstance(item, ModelState | OptimizerState | Variable):
            total += item.nbytes
        elif is_module(item):
            module: Any = item
            total += _bytes_of([*module.parameters(), *module.buffers()])
        elif isinstance(item, torch.optim.Optimizer):
            parameters = [p for group in item.param_groups for p in group["params"]]
            state = [value for entry in item.state.values() for value in entry.values()]
            kinds = 2 * ("betas" in item.defaults) or bool(item.defaults.get("momentum"))
            tensors = [value for value in state if isinstance(value, torch.Tensor)]
            total += _bytes_of(tensors) if state else kinds * _bytes_of(parameters)
    return total


def _bytes_of(tensors: list[Any]) -> int:
    lazy = sys.modules["torch"].nn.parameter.is_lazy
    return sum(t.numel() * t.element_size() for t in tensors if not lazy(t))
