"""A run: what one call of fit has to know from one hook to the next.

That is when it saved, which metrics were measured at which step, and the states of random
generators and data loaders that are set where Lightning begins with them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.distributed import DistributedSamplerWrapper

from ckptstore.integrations.lightning.contents import LOADERS, PLATEAUS, loader_states
from ckptstore.training.loaders.randomness import LoaderRandomness
from ckptstore.training.random_state import RandomState
from ckptstore.training.tracked import PROGRESS, RANDOM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import lightning.pytorch as pl


@dataclass(slots=True)
class Run:
    """One call of fit.

    Attributes:
        batch: The number of batches of the epoch that are done.
        seen_step: The global step after the batch before.
        saved_step: The global step of the last save.
        saved_time: The time of the last save, in seconds.
        is_pending: Whether to save at the end of the epoch whatever the interval.
        is_saving: Whether the callback itself asks the trainer for a checkpoint.
        has_own: Whether the random states that were restored are those of this rank.
        is_within_epoch: Whether the run resumes in the middle of an epoch.
        has_trained: Whether a batch was trained.
        has_validated: Whether a validation has ended.
    """

    batch: int = 0
    seen_step: int = 0
    saved_step: int = -1
    saved_time: float = 0.0
    is_pending: bool = False
    is_saving: bool = False
    has_own: bool = False
    is_within_epoch: bool = False
    has_trained: bool = False
    has_validated: bool = False
    _random: dict[str, Any] | None = None
    _positions: list[Any] = field(default_factory=list)  # of loaders, to restore
    _generators: list[Any] = field(default_factory=list)  # of loaders, to restore
    _restored: list[Any] = field(default_factory=list)  # generators of loaders, as restored
    _repeated: list[_Repeated] = field(default_factory=list)
    _loaders: list[Any] = field(default_factory=list)
    _begun: list[Any] = field(default_factory=list)  # their generators before they drew the order
    _has_begun: bool = False
    _plateaus: Mapping[int, float] = field(default_factory=dict)
    _values: dict[str, float] = field(default_factory=dict)
    _known: dict[str, set[str]] = field(default_factory=dict)  # metrics by what measures them
    _measured: dict[str, int] = field(default_factory=dict)  # the step at which each was measured

    def take(self, checkpoint: Mapping[str, Any], *, is_own: bool) -> None:
        """Take the states of random generators and data loaders from a checkpoint.

        is_own: whether the random states are those of this rank.
        """
        random, progress = checkpoint.get(RANDOM), checkpoint.get(PROGRESS)
        if not isinstance(random, dict):
            return  # Lightning itself has saved it
        self.is_within_epoch = isinstance(progress, dict) and bool(progress.get("batch"))
        self._random = random if is_own else None
        self._generators = [*checkpoint.get(LOADERS, ())]
        self._plateaus = checkpoint.get(PLATEAUS, {})
        if states := loader_states(checkpoint):
            self._positions = [*states]
            states.clear()  # Lightning would load some of them once more

    def begin_loader(self, loader: Any, epoch: int) -> None:
        """Restore the position of a loader, and set the random states that it draws an order from.

        At the end of an epoch torchdata's loaders make an iterator only to find out that it has
        ended, and draw random numbers for it: the random states are set after that.
        """
        if self._has_begun:  # the loaders are made anew
            self._has_begun, self._loaders, self._begun, self._restored = False, [], [], []
        generators = self._generators.pop(0) if self._generators else {}
        self._restored.append(generators)
        _set_generators(loader, generators)
        if self._positions and hasattr(loader, "load_state_dict"):
            samplers: list[Any] = [loader.sampler, getattr(loader.batch_sampler, "sampler", None)]
            for sampler in samplers:
                if hasattr(sampler, "set_epoch"):  # Lightning sets it after the order is drawn
                    sampler.set_epoch(epoch)
            loader.load_state_dict(self._positions.pop(0))
            if not self.is_within_epoch:
                loader.state_dict()
                _set_generators(loader, generators)
        self._set_random_states()
        self._loaders.append(loader)
        self._begun.append(_generators(loader))
        if self.is_within_epoch and generators:
            self._repeated.extend(_Repeated.within(loader, generators))

    def begin_epoch(self) -> None:
        """Note the generators of the loaders, unless they have drawn the order already."""
        if self._has_begun:
            self._begun = [*map(_generators, self._loaders)]
        self._has_begun = True

    def generators(self, *, is_at_end: bool) -> list[dict[str, Any]]:
        """The states of the generators of the loaders, from which a resumed run draws an order.

        is_at_end: whether that is the order of the next epoch.
        """
        states = [*map(_generators, self._loaders)] if is_at_end else self._begun
        return states if any(states) else []

    def begin(self, trainer: pl.Trainer) -> None:
        """Begin to train."""
        if self.is_within_epoch:  # where no loader draws the order of an epoch any more
            self._set_random_states()
        for repeated in self._repeated:
            repeated.release()
        self._repeated = []
        for number, metric in self._plateaus.items():
            scheduler = trainer.lr_scheduler_configs[number].scheduler
            trainer.lightning_module.lr_scheduler_step(scheduler, metric)
        self.seen_step, self.saved_time = trainer.global_step, time.monotonic()

    def repeats_end(self) -> bool:
        """Whether Lightning ends the epoch of the checkpoint again, as where it counts steps.

        Loaders then draw the order of the next epoch once more, so their states are set again.
        """
        if self.has_trained or self._random is None:
            return False
        for loader, states in zip(self._loaders, self._restored, strict=True):
            _set_generators(loader, states)
        self._set_random_states()
        return True

    def note_trained(self) -> None:
        """Note that a batch is trained, so that nothing is restored any more."""
        self._random, self.has_trained = None, True

    def _set_random_states(self) -> None:
        if self._random is not None:
            RandomState().load_state_dict(self._random)

    def note_values(self, trainer: pl.Trainer) -> None:
        """Note the metrics as they are."""
        self._values = _numbers(trainer.callback_metrics)

    def measured(self, trainer: pl.Trainer, by: str) -> set[str]:
        """The metrics that were measured since `note_values`, by a validation or an epoch."""
        now, known = _numbers(trainer.callback_metrics), self._known.setdefault(by, set())
        known |= {name for name, value in now.items() if self._values.get(name) != value}
        names = known & now.keys()
        self._measured |= dict.fromkeys(names, trainer.global_step)
        return names

    def metrics(self, trainer: pl.Trainer) -> dict[str, float]:
        """The metrics of this step: those of a validation or an epoch count when it has ended."""
        step = trainer.global_step
        return {
            name: value
            for name, value in _numbers(trainer.callback_metrics).items()
            if self._measured.get(name, step) == step
        }


class _Repeated:
    """A sampler that draws the same order each time, until it is released.

    To restore a position, torchdata draws an order several times; only its own samplers know that
    it is one and the same, not those that Lightning wraps for many ranks.
    """

    def __init__(self, home: Any, draw: Callable[[], None]) -> None:
        self.home, self.sampler, self.draw = home, home._sampler, draw  # noqa: SLF001
        home._sampler = self  # noqa: SLF001

    @classmethod
    def within(cls, loader: Any, states: Mapping[str, Any]) -> Iterator[_Repeated]:
        """Take the place of the sampler that Lightning has wrapped, if it has."""
        sampler = getattr(loader.batch_sampler, "sampler", None)
        if isinstance(sampler, DistributedSamplerWrapper):
            found = LoaderRandomness(loader).generators

            def draw() -> None:
                for path, generator in found.items():
                    generator.load_state_dict(states[path])

            yield cls(sampler.dataset, draw)

    def __iter__(self) -> Iterator[int]:
        self.draw()
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)

    def release(self) -> None:
        """Let the sampler itself draw the next orders."""
        self.home._sampler = self.sampler  # noqa: SLF001


def _generators(loader: Any) -> dict[str, Any]:
    """The states of the generators that a loader has of its own, by their place in it."""
    found = LoaderRandomness(loader).generators
    return {path: generator.state_dict() for path, generator in found.items()}


def _set_generators(loader: Any, states: Mapping[str, Any]) -> None:
    """Set the generators of a loader."""
    for path, generator in LoaderRandomness(loader).generators.items():
        if path in states:
            generator.load_state_dict(states[path])


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as numbers."""
    return {name: float(value) for name, value in metrics.items()}
