"""The states of the callbacks of a training run, and its position, as one stateful object.

It decides nothing about when to save or load. See docs/adr/0014, and 0055 for the loader.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from ckptstore.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ckptstore.training.loaders.position import PositionedLoader
    from ckptstore.training.training import Training

Data = TypeVar("Data")

CALLBACKS = "callbacks"  # the name under which a checkpoint holds the states of callbacks


class CallbackStates:
    """The states of the callbacks of a training run, and its position.

    A state that is loaded earlier waits for `begin`, which follows the callbacks' on_train_begin.
    """

    def __init__(self, training: Training) -> None:
        self._training = weakref.ref(training)
        self._waiting: dict[str, Any] | None = None
        self._loader: PositionedLoader | None = None
        self._loader_waiting: dict[str, Any] | None = None
        self._last: str | None = None  # a glimpse of the newest batch of anything but a loader
        self.is_strict = True  # whether another next batch than expected is an error
        self.has_begun = False

    def state_dict(self) -> dict[str, Any]:
        """The state of each callback that has one, by its class, and the position of the run."""
        training = self._the_training
        states = {name: item.state_dict() for name, item in self._named()}
        epoch, batch, step = training.position
        loader = self._loader_state()
        return {
            **({} if loader is None else {"loader": loader}),
            **({} if self._last is None else {"last": self._last}),
            "epoch": epoch,
            "batch": batch,
            "step": step,
            "stops": training.stop_training,
            "states": {name: state for name, state in states.items() if state},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore callbacks and position. Callbacks that the state lacks stay as they are."""
        if not self.has_begun:
            self._waiting = state
            return
        training = self._the_training
        training.step = state["step"]
        self._loader, self._loader_waiting = None, state.get("loader")
        self._last = state.get("last")
        for name, callback in self._named():
            if name in state["states"]:
                callback.load_state_dict(state["states"][name])
        training.begin_at(state["epoch"], state["batch"], stops=state["stops"])

    def begin(self) -> None:
        """Load the state that waits, now that all callbacks have begun."""
        self.has_begun = True
        if self._waiting is not None:
            state, self._waiting = self._waiting, None
            self.load_state_dict(state)

    def remaining(self, data: Iterable[Data], *, done: int) -> Iterable[Data]:
        """What is left of an epoch, and keep its position from now on.

        Args:
            data: What the loop goes through in each epoch. A plain DataLoader goes on in the order
                that it had. From anything else the batches that are done are taken and left.
            done: The number of these batches.

        Raises:
            InvalidInputError: The epoch cannot go on, as the loader is another one.
        """
        if any(data is item for item in self._the_training.tracked.values()):
            return data
        loader, state = self._as_loader(data), self._loader_waiting
        self._loader, self._loader_waiting = loader, None
        if loader is not None:
            loader.position.is_strict = self.is_strict
            if state is not None:
                loader.load_state_dict(state)
            if state is not None or not done:
                return data
            if self._last is None and type(loader.sampler).__name__ != "SequentialSampler":  # type: ignore[attr-defined]
                warnings.warn(
                    f"The checkpoint has no position of the loader, so {done} batches of an order "
                    "that is drawn anew are left out: some samples may come twice in this epoch "
                    "and some not at all. Checkpoints of this version have it.",
                    stacklevel=3,
                )
        return self._passed_over(data, done)

    def note_next(self, state: dict[str, Any]) -> dict[str, Any]:
        """Add the contents of the next batch to a state that was just taken."""
        if self._loader is None:
            return state
        following = self._loader.position.with_next(self._loader, state["loader"])
        return state | {"loader": following}

    @staticmethod
    def _as_loader(data: Any) -> PositionedLoader | None:
        """A plain DataLoader, with a state; None for anything else."""
        if "torch.utils.data" not in sys.modules:
            return None
        from ckptstore.training.loaders.position import is_plain_loader, with_position

        return with_position(data) if is_plain_loader(data) else None

    def _passed_over(self, data: Iterable[Data], done: int) -> Iterator[Data]:
        """What is left after the batches that are done; a warning if they are other ones."""
        from ckptstore.training.loaders.glimpse import glimpse

        iterator, saved = iter(data), self._last
        passed = [*islice(iterator, done - 1, done)] if done else []
        if done and saved is not None and [saved] != [*map(glimpse, passed)]:
            warnings.warn(
                f"The batches of the interrupted epoch are others now, such as batch {done}, so "
                "that some samples may come twice and some not at all. An epoch resumes exactly if "
                "its order depends on nothing but its number, or if batches() is given torch's "
                "DataLoader itself.",
                stacklevel=4,
            )
        for batch in iterator:
            self._last = glimpse(batch)
            yield batch

    def leave_epoch(self) -> None:
        """Note that the loop has left the epoch, perhaps before the end of its loader."""
        self._last = None
        for item in (self._loader, *self._the_training.tracked.values()):
            if item is not self and hasattr(item, "leave_epoch"):
                item.leave_epoch()

    def _loader_state(self) -> dict[str, Any] | None:
        """The state of the loader that the loop goes through, unless it is tracked itself."""
        if self._loader is None:
            return self._loader_waiting
        from ckptstore.training.loaders.position import in_epoch

        return in_epoch(self._loader.state_dict())

    @property
    def _the_training(self) -> Training:
        training = self._training()
        if training is None:
            raise InvalidInputError("The training run of these callbacks has ended.")
        return training

    def _named(self) -> list[tuple[str, Any]]:
        """The stateful callbacks by class name, numbered where there are several of a class."""
        counts: dict[str, int] = {}
        pairs = []
        for callback in self._the_training.callbacks:
            if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
                kind = type(callback).__name__
                counts[kind] = counts.get(kind, 0) + 1
                pairs.append((kind if counts[kind] == 1 else f"{kind}_{counts[kind]}", callback))
        return pairs
