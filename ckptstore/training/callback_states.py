"""The states of the callbacks of a training run, and its position, as one stateful object.

It decides nothing about when to save or load. See docs/adr/0014, and 0055 for the loader.
"""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Any

from ckptstore.errors import InvalidInputError

if TYPE_CHECKING:
    from ckptstore.training.loaders.position import PositionedLoader
    from ckptstore.training.training import Training

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
        self.has_begun = False

    def state_dict(self) -> dict[str, Any]:
        """The state of each callback that has one, by its class, and the position of the run."""
        training = self._the_training
        states = {name: item.state_dict() for name, item in self._named()}
        epoch, batch, step = training.position
        loader = self._loader_state()
        return {
            **({} if loader is None else {"loader": loader}),
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

    def position(self, data: Any) -> PositionedLoader | None:
        """Give a plain DataLoader that the loop is about to go through its saved position.

        Args:
            data: What the loop goes through in each epoch, which need not be tracked.

        Returns:
            The loader, whose position is saved from now on. None for anything else.

        Raises:
            InvalidInputError: The epoch cannot go on, as the loader is another one.
        """
        if "torch.utils.data" not in sys.modules:
            return None
        from ckptstore.training.loaders.position import is_plain_loader, with_position

        if not is_plain_loader(data):
            return None
        self._loader, state = with_position(data), self._loader_waiting
        if state is not None:
            self._loader.load_state_dict(state)
            self._loader_waiting = None
        return self._loader

    def leave_epoch(self) -> None:
        """Note that the loop has left the epoch, perhaps before the end of its loader."""
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
