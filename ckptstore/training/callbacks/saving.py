"""Saving: what the callbacks have in common that keep a training in a store."""

# ruff: noqa: ARG002 - a hook is called with all that there is to tell

from __future__ import annotations

import string
import weakref
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from ckptstore.errors import InvalidInputError, shown
from ckptstore.training.callbacks.base import Callback
from ckptstore.training.callbacks.monitor import metrics_of
from ckptstore.training.training import CALLBACKS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.repository import Repository
    from ckptstore.training.callbacks.base import Logs
    from ckptstore.training.manager import CheckpointManager
    from ckptstore.training.training import Training

    Store = str | Path | Repository | CheckpointManager

DEFAULT_BRANCH = "main"
NEW_MAX = 64  # checkpoints made since the last look: at most one is in flight, others may commit to the branch


def manager_of(store: Store) -> CheckpointManager | None:
    """The manager that a store is, if it is one."""
    from ckptstore.training.manager import CheckpointManager

    return store if isinstance(store, CheckpointManager) else None


def make_manager(
    store: str | Path | Repository,
    training: Training,
    *,
    branch: str,
    weights_only: bool = False,
    max_to_keep: int | None = None,
) -> CheckpointManager:
    """A manager that saves at once what a training tracks, or only the weights of its model."""
    from ckptstore.training.manager import CheckpointManager

    if "model" not in training.tracked:
        raise InvalidInputError("There is no model to save. Pass model=… to CallbackList.")
    names = ("model",) if weights_only else tuple(training.tracked)
    return CheckpointManager(
        store,
        branch=branch,
        max_to_keep=max_to_keep,
        async_save=False,
        rng=not weights_only,
        **{name: training.tracked[name] for name in names},
    )


def lend(manager: CheckpointManager, training: Training) -> None:
    """Make a manager track what it does not yet. What another training lent it before is exchanged."""
    lent = _lent.setdefault(manager, set())
    for name, item in training.tracked.items():
        if name not in manager.tracked or name in lent or name == CALLBACKS:
            manager.tracked[name] = item
            lent.add(name)


_lent: weakref.WeakKeyDictionary[CheckpointManager, set[str]] = weakref.WeakKeyDictionary()


class Template:
    """A text with fields such as {epoch} or {val_loss:.3f}, to be filled with numbers."""

    def __init__(self, text: str, *, what: str) -> None:
        try:
            self._fields = [
                name for _, name, _, _ in string.Formatter().parse(text) if name is not None
            ]
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"The {what} {shown(text)} is no template: {error}.") from error
        self._text, self._what = text, what

    @property
    def has_fields(self) -> bool:
        """False for a text that is always the same."""
        return bool(self._fields)

    def fill(self, numbers: Mapping[str, object]) -> str:
        """The text with these numbers."""
        try:
            return self._text.format(**numbers)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            raise InvalidInputError(
                f"The {self._what} {shown(self._text)} cannot be filled ({error!r}). "
                f"There are: {', '.join(numbers)}."
            ) from error


class Frequency:
    """When a callback saves: at the end of epochs, or whenever so many batches are done."""

    def __init__(self, save_freq: str | int, *, what: str) -> None:
        is_count = isinstance(save_freq, int) and not isinstance(save_freq, bool) and save_freq > 0
        if save_freq != "epoch" and not is_count:
            raise InvalidInputError(
                f'{what}: save_freq is {shown(save_freq)}; "epoch" or a number of batches is expected.'
            )
        self._every = save_freq
        self._since = 0
        self._last_batch: int | None = None

    @property
    def is_epoch(self) -> bool:
        """True when epochs count, not batches."""
        return self._every == "epoch"

    def is_due(self, batch: int) -> bool:
        """Count the batches up to this one; true when that makes enough since the last time.

        Keras may do several batches at once, and then tells of the last of them only.
        """
        if isinstance(self._every, str):
            return False
        is_new_epoch = self._last_batch is None or batch <= self._last_batch
        self._since += batch + 1 if is_new_epoch else batch - (self._last_batch or 0)
        self._last_batch = batch
        if self._since < self._every:
            return False
        self._since = 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """What was counted."""
        return {"since": self._since, "last_batch": self._last_batch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from there."""
        self._since, self._last_batch = state["since"], state["last_batch"]


class Saver(Callback):
    """A callback that saves through a CheckpointManager: the one it is given, or one that it makes."""

    turn = 1

    def __init__(self, store: Store, *, branch: str) -> None:
        self.store = store
        self._branch = branch
        self._manager: CheckpointManager | None = None

    @property
    def manager(self) -> CheckpointManager:
        """The manager that it saves through, once training has begun."""
        if self._manager is None:
            raise InvalidInputError(f"{type(self).__name__} has no manager before on_train_begin.")
        return self._manager

    @property
    def manager_or_none(self) -> CheckpointManager | None:
        """The same, None before training has begun."""
        return self._manager

    @property
    def _line(self) -> tuple[str, str]:
        """What it saves to: callbacks may share it."""
        return self.manager.repository.url, self.manager.branch

    @property
    def fixed_branch(self) -> str | None:
        """The branch that it saves to; None when that changes."""
        given = manager_of(self.store)
        return self._branch if given is None else given.branch

    def take_manager(self, *, branch: str, **made: Any) -> None:
        """Save through the manager that was given, or make one for a branch."""
        given = manager_of(self.store)
        if given is None:
            if self._manager is not None and self._manager.branch == branch:
                return
            where = self._manager.repository if self._manager is not None else self.store
            self._manager = make_manager(where, self.training, branch=branch, **made)  # type: ignore[arg-type]
        else:
            lend(given, self.training)
            self._manager = given
        head = self.manager.latest
        self.training.told.setdefault(self._line, head.id if head is not None else None)

    def save(self, logs: Logs, *, message: str) -> bool:
        """Save now: False when the same manager has saved this very moment already, or when nothing is worth saving."""
        training = self.training
        moment = (self.manager, *training.position)
        if training.is_terminated or training.saved == moment:
            return False
        epoch, batch, step = training.position
        self.manager.save(
            step or epoch,
            metrics=metrics_of(logs),
            message=message,
            epoch=epoch,
            batch=batch,
            force=True,
        )
        training.saved = moment
        self._tell()
        return True

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """An epoch begins."""
        self.training.epoch = epoch

    def on_train_end(self, logs: Logs = None) -> None:
        """Training ended: wait for the save in flight."""
        if self._manager is not None:
            self.manager.wait()
            self._tell()

    def _tell(self) -> None:
        """Tell the others of the checkpoints that are durable since the last time."""
        head, told = self.manager.latest, self.training.told[self._line]
        if head is None or head.id == told:
            return
        newest = self.manager.repository.log(head.id, limit=NEW_MAX)
        new: list[Checkpoint] = list(takewhile(lambda found: found.id != told, newest))
        self.training.told[self._line] = head.id
        for checkpoint in reversed(new):
            self.training.announce(checkpoint, self.manager.branch)
