"""ModelCheckpoint and BackupAndRestore: keep a training in a store, and take it up again where it was interrupted."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from ckptstore.errors import CorruptError, InvalidInputError
from ckptstore.training.callbacks.base import say
from ckptstore.training.callbacks.monitor import check_mode, direction, improves, metrics_of, number
from ckptstore.training.callbacks.saving import (
    DEFAULT_BRANCH,
    Frequency,
    Saver,
    Template,
    manager_of,
)
from ckptstore.training.training import CALLBACKS

if TYPE_CHECKING:
    from ckptstore.checkpoint import Checkpoint
    from ckptstore.training.callbacks.base import Logs
    from ckptstore.training.callbacks.saving import Store


class ModelCheckpoint(Saver):
    """Saves the training at the end of epochs, or every so many batches; on demand only when a metric is better than ever.

    store: where a repository is or is to be made, a Repository, or a CheckpointManager, whose branch, retention and tracked
    objects then count. branch, message: templates of {epoch} (from 1), {batch} (from 1), {step} and metrics
    ({val_loss:.3f}). monitor, mode, initial_value_threshold: which metric save_best_only looks at, whether less or more is
    better, and what the first must beat. save_weights_only: only the model's weights.
    """

    def __init__(
        self,
        store: Store,
        branch: str = DEFAULT_BRANCH,
        message: str = "epoch {epoch}",
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
        initial_value_threshold: float | None = None,
    ) -> None:
        super().__init__(store, branch=branch)
        self.monitor, self.mode = monitor, check_mode(mode)
        self.verbose = verbose
        self.save_best_only, self.save_weights_only = save_best_only, save_weights_only
        self.save_freq = save_freq
        self.best = initial_value_threshold
        self._frequency = Frequency(save_freq, what="ModelCheckpoint")
        self._branch_template = Template(branch, what="branch")
        self._message = Template(message, what="message")
        given = manager_of(store)
        if given is not None and save_weights_only:
            raise InvalidInputError(
                "A CheckpointManager saves all that it tracks. Pass a repository for save_weights_only."
            )
        if given is not None and branch not in (DEFAULT_BRANCH, given.branch):
            raise InvalidInputError(
                f"The manager saves to {given.branch!r}, not to {branch!r}. Leave branch out, or pass a repository."
            )

    @property
    def fixed_branch(self) -> str | None:
        """The branch that it saves to; None for a template."""
        return None if self._branch_template.has_fields else super().fixed_branch

    def on_train_begin(self, logs: Logs = None) -> None:
        """Training begins."""
        self.training.settle(self, "on_train_begin", logs)
        self._manager = None
        if not self._branch_template.has_fields:
            self.take_manager(branch=self._branch, weights_only=self.save_weights_only)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """A batch ended."""
        self.training.settle(self, "on_train_batch_end", batch, logs)
        if self._frequency.is_due(batch):
            self._consider(self.training.epoch, batch, logs)
        elif self._manager is not None and self._manager.preempted:
            self.save(logs, message="before the program was ended")

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """An epoch ended."""
        self.training.settle(self, "on_epoch_end", epoch, logs)
        if self._frequency.is_epoch:
            self._consider(epoch, None, logs)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, and the batches since the last save."""
        return {"best": self.best, "frequency": self._frequency.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.best = state["best"]
        self._frequency.load_state_dict(state["frequency"])

    def _consider(self, epoch: int, batch: int | None, logs: Logs) -> None:
        """Save, unless only the best is wanted and this is not it."""
        if self.training.is_terminated or (self.save_best_only and not self._is_best(epoch, logs)):
            return
        numbers: dict[str, object] = {**metrics_of(logs), "step": self.training.position[2]}
        numbers["epoch"] = epoch + 1
        if batch is not None:
            numbers.setdefault("batch", batch + 1)
        branch = self._branch_template.fill(numbers)
        message = self._message.fill(numbers)
        if self._branch_template.has_fields:
            self.take_manager(branch=branch, weights_only=self.save_weights_only)
        self.save(logs, message=message)
        if self.verbose:
            say(f"Epoch {epoch + 1}: saved to {self.manager.branch}: {message}")

    def _is_best(self, epoch: int, logs: Logs) -> bool:
        """Whether the metric is better than ever; without the metric everything is saved, as with Keras."""
        value = number((logs or {}).get(self.monitor))
        if value is None:
            warnings.warn(
                f"ModelCheckpoint saves although the best is not known: there is no number for {self.monitor!r}. "
                f"There are: {', '.join(metrics_of(logs)) or 'none'}.",
                stacklevel=3,
            )
            return True
        mode = direction(self.monitor, self.mode, self.training.directions)
        before = "nothing" if self.best is None else f"{self.best:.5f}"
        if improves(value, self.best, mode=mode):
            self.best = value
            if self.verbose:
                say(f"Epoch {epoch + 1}: {self.monitor} improved from {before} to {value:.5f}")
            return True
        if self.verbose:
            say(f"Epoch {epoch + 1}: {self.monitor} did not improve from {before}")
        return False


class BackupAndRestore(Saver):
    """Backs the training up, and takes it up again where it was when it was interrupted.

    It restores the model, the optimizer, all else that is tracked, random numbers and the states of the other callbacks,
    and makes the loop begin there: bit for bit, the run goes on as one never stopped. save_freq: "epoch", or a number of
    batches; Keras' fit can begin only with a whole epoch, so there the interrupted epoch is done again.
    double_checkpoint: keep the backup before the last too, and go back to it when the last one cannot be read.
    delete_checkpoint: delete the branch when training has ended as it should. branch: the backup's own; one for each run.
    With a CheckpointManager as the store, its branch is used, and never deleted.
    """

    turn = 2

    def __init__(
        self,
        store: Store,
        save_freq: str | int = "epoch",
        double_checkpoint: bool = False,
        delete_checkpoint: bool = True,
        branch: str = "backup",
    ) -> None:
        super().__init__(store, branch=branch)
        self.save_freq = save_freq
        self.double_checkpoint, self.delete_checkpoint = double_checkpoint, delete_checkpoint
        self._frequency = Frequency(save_freq, what="BackupAndRestore")
        self._is_due = False
        self._random: dict[str, Any] | None = None

    def on_train_begin(self, logs: Logs = None) -> None:
        """Training begins: restore what was interrupted."""
        self.training.settle(self, "on_train_begin", logs)
        self._manager, self._is_due, self._random = None, False, None
        self.take_manager(branch=self._branch, max_to_keep=2 if self.double_checkpoint else 1)
        if self.manager.latest is None:
            return
        checkpoint = self._restore()
        training = self.training
        from ckptstore.training.random_state import RandomState

        self._random = RandomState().state_dict()
        say(
            f"Resuming from checkpoint {checkpoint.id.short} of {self.manager.branch}: "
            f"epoch {training.epoch + 1}, step {training.step}."
        )

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """An epoch begins. Before the first one, random numbers are set again: others may have drawn some."""
        super().on_epoch_begin(epoch, logs)
        self.training.note_begun()
        if self._random is not None:
            from ckptstore.training.random_state import RandomState

            RandomState().load_state_dict(self._random)
            self._random = None

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """A batch ended. What falls due with an epoch's last batch is saved with the epoch's end."""
        self.training.settle(self, "on_train_batch_end", batch, logs)
        is_last = batch + 1 == self.params.get("steps")
        if self._frequency.is_due(batch):
            self._is_due = True
        if (self._is_due and not is_last) or self.manager.preempted:
            self._back_up(logs)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """An epoch ended."""
        self.training.settle(self, "on_epoch_end", epoch, logs)
        if self._frequency.is_epoch or self._is_due:
            self._back_up(logs)

    def on_train_end(self, logs: Logs = None) -> None:
        """Training ended; the backup has done its duty, unless something went wrong."""
        super().on_train_end(logs)
        self.training.note_begun()
        is_own = manager_of(self.store) is None
        if not (self.delete_checkpoint and is_own) or self.training.is_terminated:
            return
        if self.manager.latest is not None:
            self.manager.repository.delete_branch(self.manager.branch)

    def state_dict(self) -> dict[str, Any]:
        """The batches since the last backup."""
        return self._frequency.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._frequency.load_state_dict(state)

    def _back_up(self, logs: Logs) -> None:
        self._is_due = False
        self.save(logs, message="backup")

    def _restore(self) -> Checkpoint:
        """Restore the newest backup, or the one before when it is damaged and there are two."""
        try:
            return self._restore_from(self.manager.branch)
        except CorruptError as error:
            before = f"{self.manager.branch}~1"
            if not self.double_checkpoint or len(self.manager.checkpoints) < 2:
                raise
            warnings.warn(
                f"The newest backup is damaged ({error}). Going back to {before}.", stacklevel=2
            )
            return self._restore_from(before)

    def _restore_from(self, rev: str) -> Checkpoint:
        """Restore a checkpoint; one that another program saved may lack the states of callbacks."""
        manager, training = self.manager, self.training
        held = manager.repository.resolve(rev)
        states = manager.tracked.get(CALLBACKS)
        if any(path.startswith(f"{CALLBACKS}/") for path in held.values):
            return manager.restore(rev)
        manager.tracked.pop(CALLBACKS, None)
        try:
            checkpoint = manager.restore(rev)
        finally:
            if states is not None:
                manager.tracked[CALLBACKS] = states
        training.step = checkpoint.step or 0
        training.begin_at(manager.epoch or 0, manager.batch or 0)
        return checkpoint
