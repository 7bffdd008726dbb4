"""EarlyStopping and TerminateOnNaN: end a training, and say where the best or the last good weights are."""

# ruff: noqa: ARG002 - a hook is called with all that there is to tell

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

from ckptstore.errors import CkptStoreError, ExpiredError, InvalidInputError, NotFoundError
from ckptstore.training.callbacks.base import Callback, say
from ckptstore.training.callbacks.monitor import (
    check_mode,
    direction,
    improves,
    metrics_of,
    number,
    present,
)
from ckptstore.training.callbacks.saving import DEFAULT_BRANCH, Saver, make_manager, manager_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.training.callbacks.base import Logs
    from ckptstore.training.callbacks.saving import Store
    from ckptstore.training.manager import CheckpointManager
    from ckptstore.training.training import Training

BEST_BRANCH = "best-weights"
BEST_KEPT = 3  # a backup may be older than the last improvement, and its best one has to be there


class EarlyStopping(Callback):
    """Stops when a metric has not become better for `patience` epochs.

    min_delta: what counts as better. baseline: patience starts anew only when the metric is better than this too.
    start_from_epoch: epochs before it are not looked at. restore_best_weights: at the end, bring the model back to its
    best epoch. Those weights are read from a store, not kept in memory: each improvement is committed to a branch of its
    own, "best-weights", or "BRANCH-best-weights" beside another run's branch. store: where; by default the store of a
    ModelCheckpoint or BackupAndRestore of the same training, or its manager's.
    """

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
        self.monitor, self.mode = monitor, check_mode(mode)
        self.min_delta, self.patience = abs(min_delta), patience
        self.verbose = verbose
        self.baseline = baseline
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch
        self.store = store
        self._best_weights: CheckpointManager | None = None
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.wait = self.stopped_epoch = self.best_epoch = 0
        self.best: float | None = None
        self._best_id: str | None = None

    def on_train_begin(self, logs: Logs = None) -> None:
        """Training begins."""
        self._begin_anew()
        self._best_weights = None
        if self.restore_best_weights:
            store, branch = self._where()
            self._best_weights = make_manager(
                store, self.training, branch=branch, weights_only=True, max_to_keep=BEST_KEPT
            )

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Look at the metric."""
        value = number((logs or {}).get(self.monitor))
        if value is None:
            warnings.warn(
                f"EarlyStopping looks at {self.monitor!r}, for which there is no number. There are: {present(logs)}.",
                stacklevel=2,
            )
            return
        if epoch < self.start_from_epoch:
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
        """Say that it stopped, and restore."""
        if self.stopped_epoch > 0 and self.verbose:
            say(f"Epoch {self.stopped_epoch + 1}: early stopping")
        if self._best_weights is None:
            return
        if self._best_id is None:
            warnings.warn(
                f"EarlyStopping restores nothing: {self.monitor!r} never had a number.",
                stacklevel=2,
            )
            return
        if self.verbose:
            say(f"Restoring the weights of the best epoch, {self.best_epoch + 1}.")
        try:
            self._best_weights.restore(self._best_id)
        except (ExpiredError, NotFoundError) as error:
            warnings.warn(
                f"{error} Restoring the newest of {self._best_weights.branch}.", stacklevel=2
            )
            self._best_weights.restore()

    def state_dict(self) -> dict[str, Any]:
        """The patience used up, and the best so far."""
        return {
            "wait": self.wait,
            "stopped_epoch": self.stopped_epoch,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_id": self._best_id,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.wait, self.stopped_epoch = state["wait"], state["stopped_epoch"]
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self._best_id = state["best_id"]

    def _improves(self, value: float, reference: float | None) -> bool:
        mode = direction(self.monitor, self.mode, self.training.directions)
        return improves(value, reference, mode=mode, min_delta=self.min_delta)

    def _commit(self, epoch: int, logs: Logs) -> None:
        """Keep the weights of this epoch; those that the store holds already are not stored again."""
        if self._best_weights is None:
            return
        step = self.training.position[2]
        self._best_weights.save(
            step or epoch + 1, metrics=metrics_of(logs), message=f"best so far, epoch {epoch + 1}"
        )
        head = self._best_weights.latest
        self._best_id = str(head.id) if head is not None else None

    def _where(self) -> tuple[Any, str]:
        """The repository for the best weights, and the branch."""
        training = self.training
        savers = [other for other in training.callbacks if isinstance(other, Saver)]
        savers.sort(key=lambda saver: saver.turn)
        stores = [self.store, *(saver.store for saver in savers), training.manager]
        store = next((store for store in stores if store is not None), None)
        if store is None:
            raise InvalidInputError(
                "EarlyStopping reads the best weights from a store, and there is none. Pass store=…, or use a "
                "ModelCheckpoint or BackupAndRestore in the same training."
            )
        given = manager_of(store)
        branches = [given.branch if given is not None else None]
        branches += [saver.fixed_branch for saver in savers]
        branches += [training.manager.branch if training.manager is not None else DEFAULT_BRANCH]
        run = next(branch for branch in (*branches, DEFAULT_BRANCH) if branch is not None)
        branch = BEST_BRANCH if run == DEFAULT_BRANCH else f"{run}-{BEST_BRANCH}"
        return (given.repository if given is not None else store), branch


class TerminateOnNaN(Callback):
    """Stops when the loss is NaN or infinite, and says which checkpoint is the last good one.

    From then on no other callback of ckptstore saves, and no backup is deleted. raise_error: raise RuntimeError instead.
    """

    def __init__(self, raise_error: bool = False) -> None:
        self.raise_error = raise_error

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Look at the loss."""
        loss = number((logs or {}).get("loss"))
        training = self.training
        if loss is None or math.isfinite(loss) or training.is_terminated:
            return
        training.stop_training = training.is_terminated = True
        text = f"Batch {batch}: the loss is {loss}, so training ends. {_last_good(training)}"
        if self.raise_error:
            raise RuntimeError(text)
        say(text)


def _managers(training: Training) -> list[CheckpointManager]:
    """Those that save this training, in the order of its callbacks, then its own."""
    found = [
        manager
        for callback in training.callbacks
        if isinstance(callback, Saver)
        if (manager := callback.manager_or_none) is not None
    ]
    return [*found, *([training.manager] if training.manager is not None else [])]


def _last_good(training: Training) -> str:
    """One sentence on the newest checkpoint whose weights are all finite."""
    managers = _managers(training)
    if not managers:
        return "No checkpoint was saved."
    for manager in managers:
        try:
            manager.wait()
        except CkptStoreError as error:
            say(f"The last save to {manager.branch} failed: {error}")
    found = [(made, manager) for manager in managers for made in manager.checkpoints]
    for made, manager in sorted(found, key=lambda pair: pair[0].created, reverse=True):
        if _is_finite(made, manager):
            return f"The last good checkpoint is {made.id.short} (step {made.step}) on {manager.branch}."
    return "No checkpoint with finite weights was saved."


def _is_finite(checkpoint: Checkpoint, manager: CheckpointManager) -> bool:
    """Whether all weights are numbers: the update before a bad loss may have spoiled them already."""
    if not math.isfinite(checkpoint.metrics.get("loss", 0)):
        return False
    try:
        weights = manager.repository.checkout(checkpoint.id, include="model/**")
    except (NotFoundError, InvalidInputError):
        return True  # nothing under that name
    except CkptStoreError:
        return False
    return all(bool(array.isfinite().all()) for array in _floats(weights))


def _floats(value: Any) -> Iterator[Any]:
    """All tensors of floating point in a nest."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _floats(item)
    elif hasattr(value, "is_floating_point") and value.is_floating_point():
        yield value
