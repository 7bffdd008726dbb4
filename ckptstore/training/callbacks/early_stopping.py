"""EarlyStopping: ends a run whose metric no longer improves, and restores its best weights."""

# ruff: noqa: ARG002 - a hook is called with more than each of them needs

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from ckptstore.errors import ExpiredError, InvalidInputError, NotFoundError
from ckptstore.training.arguments import explained
from ckptstore.training.callbacks.callback import report
from ckptstore.training.callbacks.monitor import Monitored, metrics_of
from ckptstore.training.callbacks.saver import DEFAULT_BRANCH, make_manager, manager_of, savers_of

if TYPE_CHECKING:
    from ckptstore.training.callbacks.callback import Logs
    from ckptstore.training.callbacks.saver import Store
    from ckptstore.training.manager import CheckpointManager

BEST_BRANCH = "best-weights"
BEST_KEPT = 3  # a backup may be older than the last improvement, and needs its own best weights


class EarlyStopping(Monitored):
    """Ends the training when a metric has not improved for `patience` epochs.

    Unlike with Keras, NaN never counts as an improvement, a resumed training continues counting,
    and `restore_best_weights` takes no memory: each improvement is committed to a branch of its
    own, "best-weights", or "BRANCH-best-weights" beside a branch other than main, and the best is
    read back at the end. Weights that the store already has are not stored again.

    Args:
        monitor: The metric. A missing one causes a warning.
        min_delta: Smaller changes do not count as improvements.
        patience: Epochs without improvement before the training ends.
        verbose: 1 to report the end and the restored epoch on stderr.
        mode: "min" if less is better, "max" if more is, "auto" to decide by the words
            of the metric's name.
        baseline: An improvement resets the patience only if it is also better than this.
        restore_best_weights: When the training ends, restore the model's weights of the best epoch.
        start_from_epoch: Epochs before this one are ignored.
        store: Where to keep the best weights: a folder or URL, a Repository or a CheckpointManager.
            By default the store of a ModelCheckpoint or BackupAndRestore of the same training, or
            that of its manager.

    Raises:
        InvalidInputError: `mode` is not "min", "max" or "auto".

    Example:
        >>> from ckptstore.training import CallbackList, EarlyStopping
        >>> callbacks = CallbackList([EarlyStopping("loss", patience=2)], epochs=100)
        >>> callbacks.on_train_begin()
        >>> for epoch in callbacks.epochs():
        ...     callbacks.on_epoch_end(epoch, {"loss": 1.0})
        >>> epoch
        2
    """

    _kept = ("wait", "stopped_epoch", "best", "best_epoch", "_best_id")

    @explained
    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0,
        patience: int = 0,
        verbose: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
        store: Store | None = None,
    ) -> None:
        super().__init__(monitor, mode)
        self.min_delta, self.patience = abs(min_delta), patience
        self.verbose = verbose
        self.baseline = baseline
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch
        self.store = store
        self._best_weights: CheckpointManager | None = None
        self._reset()

    def _reset(self) -> None:
        self.wait = self.stopped_epoch = self.best_epoch = 0
        self.best = None
        self._best_id: str | None = None

    def on_train_begin(self, logs: Logs = None) -> None:
        """Start counting, and open the store of the best weights.

        Raises:
            InvalidInputError: `restore_best_weights` was given, but there is no store or no model;
                or the direction of the metric is unknown.
        """
        self.check_direction()
        self._reset()
        self._best_weights = None
        if self.restore_best_weights:
            store, branch = self._where()
            self._best_weights = make_manager(
                store, self.training, branch=branch, weights_only=True, max_to_keep=BEST_KEPT
            )

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Compare the metric with the best, and end the training when it is time."""
        value = self._value(logs)
        if value is None or epoch < self.start_from_epoch:
            return
        self.wait += 1
        if self._improves(value, self.best):
            self.best, self.best_epoch = value, epoch
            self._commit(epoch, logs)
            if self.baseline is None or self._improves(value, self.baseline):
                self.wait = 0
        elif self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.training.stop_training = True

    def on_train_end(self, logs: Logs = None) -> None:
        """Restore the best weights; with a warning the newest kept ones if these have expired."""
        if self.stopped_epoch > 0 and self.verbose:
            report(f"Epoch {self.stopped_epoch + 1}: early stopping")
        if self._best_weights is None:
            return
        if self._best_id is None:
            warnings.warn(
                f"EarlyStopping restores nothing: {self.monitor!r} never had a number.",
                stacklevel=2,
            )
            return
        if self.verbose:
            report(
                f"Restoring the weights of epoch {self.best_epoch + 1}, the best by {self.monitor} "
                f"({self._direction()})."
            )
        try:
            self._best_weights.restore(self._best_id)
        except (ExpiredError, NotFoundError) as error:
            warnings.warn(
                f"{error} Restoring the newest of {self._best_weights.branch}.", stacklevel=2
            )
            self._best_weights.restore()

    def _commit(self, epoch: int, logs: Logs) -> None:
        """Keep the weights of this epoch."""
        if self._best_weights is None:
            return
        self._best_weights.save(
            self.training.step or epoch + 1,
            metrics=metrics_of(logs),
            message=f"best so far, epoch {epoch + 1}",
        )
        head = self._best_weights.latest
        self._best_id = str(head.id) if head is not None else None

    def _where(self) -> tuple[Any, str]:
        """The repository for the best weights, and the branch."""
        training = self.training
        savers = sorted(savers_of(training), key=lambda saver: saver.turn)
        stores = [self.store, *(saver.store for saver in savers), training.manager]
        store = next((store for store in stores if store is not None), None)
        if store is None:
            raise InvalidInputError(
                "EarlyStopping reads the best weights from a store, and there is none. Pass "
                "store=…, or use a ModelCheckpoint or BackupAndRestore in the same training."
            )
        manager = manager_of(store)
        branches = [manager.branch] if manager is not None else []
        branches += [saver.fixed_branch for saver in savers if saver.fixed_branch is not None]
        branches += [training.manager.branch] if training.manager is not None else []
        run = next(iter(branches), DEFAULT_BRANCH)
        branch = BEST_BRANCH if run == DEFAULT_BRANCH else f"{run}-{BEST_BRANCH}"
        return (manager.repository if manager is not None else store), branch
