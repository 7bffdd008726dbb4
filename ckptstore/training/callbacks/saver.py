"""Saver: the base class of the callbacks that save a training run.

`ModelCheckpoint` and `BackupAndRestore` decide when to save. See docs/adr/0014.
"""

# ruff: noqa: ARG002 - a hook is called with more than each of them needs

from __future__ import annotations

import weakref
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from ckptstore.errors import InvalidInputError
from ckptstore.training.callback_states import CALLBACKS
from ckptstore.training.callbacks.callback import Callback
from ckptstore.training.callbacks.monitor import metrics_of
from ckptstore.training.triggers import Frequency

if TYPE_CHECKING:
    from pathlib import Path

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.repository import Repository
    from ckptstore.training.callbacks.callback import Logs
    from ckptstore.training.manager import CheckpointManager
    from ckptstore.training.training import Training

    Store = str | Path | Repository | CheckpointManager

DEFAULT_BRANCH = "main"
NEW_MAX = 64  # new checkpoints to announce at once; the rest were committed by other processes


def manager_of(store: Store) -> CheckpointManager | None:
    """The store if it is a manager, else None."""
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
    """A manager that saves, synchronously, what a run tracks or only its model's weights."""
    from ckptstore.training.manager import CheckpointManager

    if "model" not in training.tracked:
        raise InvalidInputError("There is no model to save. Pass model=… to CallbackList.")
    names = ("model",) if weights_only else tuple(training.tracked)
    manager = CheckpointManager(
        store,
        branch=branch,
        max_to_keep=max_to_keep,
        async_save=False,
        rng=not weights_only,
        ranks="first",  # what is monitored may differ between ranks
        **{name: training.tracked[name] for name in names},
    )
    manager._place.follows_head = weights_only  # noqa: SLF001 - it replaces those of another run
    share_place(manager, training)
    return manager


def share_place(manager: CheckpointManager, training: Training) -> None:
    """Let all callbacks of a run that save to one branch follow each other's checkpoints.

    Another callback may have restored the run from its own branch.
    """
    line = manager.repository.url, manager.branch
    place = training.places.setdefault(line, manager._place)  # noqa: SLF001
    place.goes_on = True
    manager._place = place  # noqa: SLF001


def lend(manager: CheckpointManager, training: Training) -> None:
    """Make a manager track what a run does; names lent by an earlier run are replaced."""
    from ckptstore.training.tracked import stateful

    lent = _lent.setdefault(manager, set())
    for name, item in training.tracked.items():
        if name not in manager.tracked or name in lent or name == CALLBACKS:
            manager.tracked[name] = stateful(name, item)
            lent.add(name)


_lent: weakref.WeakKeyDictionary[CheckpointManager, set[str]] = weakref.WeakKeyDictionary()


def savers_of(training: Training) -> list[Saver]:
    """The callbacks of a training run that save it, in their order."""
    return [callback for callback in training.callbacks if isinstance(callback, Saver)]


def newest_of(training: Training) -> Checkpoint | None:
    """The newest durable checkpoint that a training made.

    Backups count only where no other callback saves: they are deleted soon.
    """
    lines = [manager_line(manager) for manager in managers_of(training)]
    found = [training.made[line] for line in lines if line in training.made]
    return max(found, key=lambda checkpoint: checkpoint.created, default=None)


def managers_of(training: Training) -> list[CheckpointManager]:
    """The managers through which a training saves what is to stay, as far as it has begun."""
    savers = savers_of(training)
    turn = min((saver.turn for saver in savers), default=0)
    found = [saver.manager_or_none for saver in savers if saver.turn == turn]
    return [manager for manager in found if manager is not None]


def manager_line(manager: CheckpointManager) -> tuple[str, str]:
    """The repository and the branch that a manager saves to."""
    return manager.repository.url, manager.branch


def save_before_end(training: Training) -> None:
    """Save through each manager that a signal asked to end the program, which then ends.

    Called between two batches, when a loader has none left to give.
    """
    for saver in savers_of(training):
        manager = saver.manager_or_none
        if manager is not None and manager.preempted:
            saver.save({}, message="before the program was ended")


class Saver(Callback):
    """A callback that saves through a CheckpointManager, its store or one that it makes."""

    turn = 1

    def __init__(
        self, store: Store, *, branch: str, save_freq: str | int, period: int | None = None
    ) -> None:
        self.store, self.save_freq = store, save_freq
        self._branch = branch
        self._frequency = Frequency(save_freq, what=type(self).__name__, period=period)
        self._manager: CheckpointManager | None = None

    @property
    def manager(self) -> CheckpointManager:
        """The manager that it saves through; InvalidInputError before training begins."""
        if self._manager is None:
            raise InvalidInputError(f"{type(self).__name__} has no manager before on_train_begin.")
        return self._manager

    @property
    def manager_or_none(self) -> CheckpointManager | None:
        """The manager that it saves through; None before training begins."""
        return self._manager

    @property
    def line(self) -> tuple[str, str]:
        """The repository and the branch that it saves to. Several callbacks may share them."""
        return manager_line(self.manager)

    @property
    def fixed_branch(self) -> str | None:
        """The branch that it saves to; None when that changes."""
        manager = manager_of(self.store)
        return self._branch if manager is None else manager.branch

    def take_manager(self, *, branch: str, **options: Any) -> None:
        """Save through the store if it is a manager, else through a new one for the branch."""
        manager = manager_of(self.store)
        if manager is None:
            if self._manager is not None and self._manager.branch == branch:
                share_place(self._manager, self.training)
                return
            where = self._manager.repository if self._manager is not None else self.store
            self._manager = make_manager(where, self.training, branch=branch, **options)  # type: ignore[arg-type]
        else:
            lend(manager, self.training)
            share_place(manager, self.training)
            self._manager = manager
        head = self.manager.latest
        self.training.announced.setdefault(self.line, head.id if head is not None else None)

    def save(self, logs: Logs, *, message: str, tag: str | None = None) -> bool:
        """Save now.

        False when the same manager has already saved this position, which then gets the tag, or
        when the training was terminated because its loss is no longer finite.
        """
        training = self.training
        moment = (self.manager, *training.position)
        if training.is_terminated:
            return False
        if training.saved == moment:
            if tag is not None:
                self.manager.tag_newest(tag)
            return False
        epoch, batch, step = training.position
        self.manager.save(
            step or epoch,
            metrics=metrics_of(logs),
            message=message,
            epoch=epoch,
            batch=batch,
            tag=tag,
            force=True,
        )
        training.saved = moment
        self._announce()
        return True

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Note the position."""
        self.training.epoch = epoch

    def on_train_end(self, logs: Logs = None) -> None:
        """Wait for the save in flight."""
        self.finish()

    def finish(self) -> None:
        """Wait for the save in flight, and announce it."""
        if self._manager is not None:
            self.manager.wait()
            self._announce()

    def _announce(self) -> None:
        """Announce the checkpoints that have become durable since the last time."""
        head, last = self.manager.latest, self.training.announced[self.line]
        if head is None or head.id == last:
            return
        newest = self.manager.repository.log(head.id, limit=NEW_MAX)
        new: list[Checkpoint] = list(takewhile(lambda checkpoint: checkpoint.id != last, newest))
        self.training.announced[self.line] = head.id
        for checkpoint in reversed(new):
            self.training.made[self.line] = checkpoint
            self.training.announce(checkpoint, self.manager.branch)
