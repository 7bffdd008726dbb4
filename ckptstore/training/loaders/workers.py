"""Workers of a data loader: whether they draw random numbers of their own.

A worker seeds its generators when it starts, and a process that resumes within an epoch starts new
ones. So what they draw differs from then on, and the program is warned. See docs/adr/0055.
"""

from __future__ import annotations

import multiprocessing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import get_worker_info

from ckptstore.training.loaders.randomness import LoaderRandomness
from ckptstore.training.random_state import RandomState

if TYPE_CHECKING:
    from collections.abc import Callable

BATCHES_MAX = 16  # of each worker, after which it is taken for one that draws nothing


class Workers:
    """The workers of a loader, which report here, through shared memory, that they drew."""

    def __init__(self) -> None:
        self._flag: Any = None

    @property
    def draw(self) -> bool:
        """Whether one of them has drawn a random number."""
        return self._flag is not None and bool(self._flag.value)

    @draw.setter
    def draw(self, draws: bool) -> None:
        self._shared().value = draws

    def watched(self, loader: Any) -> dict[str, Any]:
        """The attributes of a loader to exchange, so that its workers report."""
        if loader.num_workers == 0:
            return {}
        return {
            "worker_init_fn": _Started(loader.worker_init_fn),
            "collate_fn": _Watched(loader.collate_fn, self._shared()),
        }

    def _shared(self) -> Any:
        if self._flag is None:
            self._flag = multiprocessing.RawValue("b", 0)
        return self._flag


class _Started:
    """Notes the random states of a worker when it starts, after the program's own function."""

    def __init__(self, function: Callable[[int], object] | None) -> None:
        self._function = function

    def __call__(self, worker: int) -> None:
        if self._function is not None:
            self._function(worker)
        _at_start[:] = [_states()]


class _Watched:
    """Collates as the program does, and then looks whether the random states have changed."""

    def __init__(self, function: Callable[[Any], Any], flag: Any) -> None:
        self._function, self._flag, self._left = function, flag, BATCHES_MAX

    def __call__(self, samples: Any) -> Any:
        batch = self._function(samples)
        if self._left and not self._flag.value and _at_start:
            self._left -= 1
            if _states() != _at_start[0]:
                self._flag.value = 1
        return batch


_at_start: list[Any] = []  # in a worker, its random states


def _states() -> Any:
    info = get_worker_info()
    dataset = None if info is None else info.dataset
    own = LoaderRandomness(SimpleNamespace(dataset=dataset)).state_dict()
    return _comparable((RandomState(accelerators=False).state_dict(), own))


def _comparable(state: Any) -> Any:
    """A state that `==` compares, with bytes for tensors."""
    if isinstance(state, dict):
        return {key: _comparable(value) for key, value in state.items()}
    if isinstance(state, tuple):
        return [*map(_comparable, state)]
    return state.numpy().tobytes() if isinstance(state, Tensor) else state
