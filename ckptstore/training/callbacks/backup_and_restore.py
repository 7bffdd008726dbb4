"""BackupAndRestore: backs up a training run, and resumes it where it was interrupted."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

from ckptstore.documents.names import check_ref_name
from ckptstore.errors import CorruptError
from ckptstore.store.author import as_training
from ckptstore.training.arguments import explained
from ckptstore.training.callback_states import CALLBACKS
from ckptstore.training.callbacks.callback import report
from ckptstore.training.callbacks.saver import Saver, manager_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.training.callbacks.callback import Logs
    from ckptstore.training.callbacks.saver import Store


class BackupAndRestore(Saver):
    """Backs up the training run, and resumes it where it was interrupted.

    When the training begins and there is a backup, it restores the model, the optimizer, everything
    else that is tracked, random numbers and the states of the other callbacks, and the loop begins
    at the position of the backup. The resumed run equals one that was never interrupted, bit for
    bit; Keras' class restores the model and its optimizer only. Keras' `fit` can begin only at a
    whole epoch, so there the interrupted epoch is repeated.

    Args:
        store: A folder or URL, where a repository is created if there is none, a Repository, or a
            CheckpointManager, whose branch is then used and never deleted.
        save_freq: "epoch", or a number of batches.
        double_checkpoint: Keep two backups, and fall back to the older one if the newer is damaged.
        delete_checkpoint: Delete the backup's branch when the training has ended normally.
        branch: The branch of the backups. Each run needs its own.

    Raises:
        InvalidInputError: `save_freq` is neither "epoch" nor a number of 1 or more, or `branch` is
            no legal name.

    Example:
        >>> import torch
        >>> from ckptstore.training import BackupAndRestore, CallbackList
        >>> def callback_list():
        ...     backup = BackupAndRestore("memory://backup-example")
        ...     return CallbackList([backup], model=torch.nn.Linear(2, 1), epochs=5)
        >>> callbacks = callback_list()
        >>> callbacks.on_train_begin()
        >>> for epoch in (0, 1):
        ...     callbacks.on_epoch_begin(epoch)
        ...     callbacks.on_epoch_end(epoch, {"loss": 0.5})
        >>> callbacks = callback_list()  # the same program, started again
        >>> callbacks.on_train_begin()
        >>> list(callbacks.epochs())
        [2, 3, 4]
    """

    turn = 2

    @explained
    def __init__(
        self,
        store: Store,
        save_freq: str | int = "epoch",
        double_checkpoint: bool = False,
        delete_checkpoint: bool = True,
        branch: str = "backup",
    ) -> None:
        super().__init__(store, branch=branch, save_freq=save_freq)
        check_ref_name(branch, kind="branch")
        self.double_checkpoint, self.delete_checkpoint = double_checkpoint, delete_checkpoint
        self._is_due = False
        self._restore_random: Callable[[], None] | None = None

    def on_train_begin(self, logs: Logs = None) -> None:
        """Open the store, and restore a run that was interrupted.

        Raises:
            CheckoutMismatchError: The backup does not fit the model or another tracked object.
            CorruptError: The backup is damaged, and there is no older one.
        """
        self.training.settle(self, "on_train_begin", logs)
        self._manager, self._is_due, self._restore_random = None, False, None
        self.take_manager(branch=self._branch, max_to_keep=2 if self.double_checkpoint else 1)
        if self.manager.latest is None:
            return
        checkpoint = self._restore()
        from ckptstore.training.random_state import RandomState

        training, random = self.training, RandomState()
        self._restore_random = partial(random.load_state_dict, random.state_dict())
        report(
            f"Resuming from checkpoint {checkpoint.id.short} of {self.manager.branch}: "
            f"epoch {training.epoch + 1}, step {training.step}."
        )

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Before the first epoch, restore the random numbers again: some may have been drawn."""
        super().on_epoch_begin(epoch, logs)
        self.training.note_begun()
        if self._restore_random is not None:
            self._restore_random()
            self._restore_random = None

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Back up when enough batches are done. After an epoch's last batch, its end does so."""
        self.training.settle(self, "on_train_batch_end", batch, logs)
        is_last = batch + 1 == self.params.get("steps")
        if self._frequency.is_due(batch):
            self._is_due = True
        if (self._is_due and not is_last) or self.manager.save_requested:
            self._back_up(logs)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Back up at the end of epochs."""
        self.training.settle(self, "on_epoch_end", epoch, logs)
        if self._frequency.is_epoch or self._is_due:
            self._back_up(logs)

    def on_train_end(self, logs: Logs = None) -> None:
        """Delete the backup, unless it belongs to a manager or the training was terminated."""
        super().on_train_end(logs)
        self.training.note_begun()
        is_own = manager_of(self.store) is None
        if not (self.delete_checkpoint and is_own) or self.training.is_terminated:
            return
        if self.manager.latest is not None:
            with as_training():
                self.manager.repository.delete_branch(self.manager.branch)

    def state_dict(self) -> dict[str, Any]:
        """The batches since the last backup."""
        return self._frequency.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self._frequency.load_state_dict(state)

    def _back_up(self, logs: Logs) -> None:
        self._is_due = False
        self.save(logs, message="backup")

    def _restore(self) -> Checkpoint:
        """Restore the newest backup, or the one before it if that is damaged and there are two."""
        try:
            return self._restore_from(self.manager.branch)
        except CorruptError as error:
            before = f"{self.manager.branch}~1"
            if not self.double_checkpoint or len(self.manager.checkpoints) < 2:
                raise
            warnings.warn(
                f"The newest backup is damaged ({error}). Going back to {before}.", stacklevel=2
            )
            return self._restore_from(before, reset=True)

    def _restore_from(self, rev: str, *, reset: bool = False) -> Checkpoint:
        """Restore a checkpoint. Another program may have saved it without states of callbacks."""
        manager, training = self.manager, self.training
        backup = manager.repository.resolve(rev)
        if any(path.startswith(f"{CALLBACKS}/") for path in backup.values):
            return manager.restore(rev, reset=reset).checkpoint
        states = manager.tracked.pop(CALLBACKS, None)
        try:
            checkpoint = manager.restore(rev, reset=reset).checkpoint
        finally:
            if states is not None:
                manager.tracked[CALLBACKS] = states
        training.step = checkpoint.step or 0
        training.begin_at(manager.epoch or 0, manager.batch or 0)
        return checkpoint
