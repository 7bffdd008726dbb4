"""ModelCheckpoint: saves a training run to a branch as it goes on."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptstore.documents.facts import check_message
from ckptstore.documents.names import check_ref_name
from ckptstore.errors import InvalidInputError, shown
from ckptstore.training.arguments import explained
from ckptstore.training.callbacks.callback import report
from ckptstore.training.callbacks.monitor import Monitored, metrics_of
from ckptstore.training.callbacks.saver import DEFAULT_BRANCH, Saver, manager_of
from ckptstore.training.callbacks.templates import Template, split_path, tag_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ckptstore.training.callbacks.callback import Logs
    from ckptstore.training.callbacks.saver import Store


class ModelCheckpoint(Saver, Monitored):
    """Saves the training run at the end of epochs or after a number of batches.

    Unlike with Keras, a save is a checkpoint on a branch instead of a file, and it holds everything
    that a resumed training needs: optimizer, random numbers, the states of other callbacks and all
    else that is tracked. Unchanged arrays are not stored again. The branch keeps all checkpoints
    unless the store is a `CheckpointManager` with a policy or the repository has one. NaN never
    becomes the best.

    Lines written for Keras run as they are. A path with a field or the ending of a model file, such
    as "ckpt/weights-{epoch:02d}-{val_loss:.2f}.hdf5", is no file here, nor a folder: its last part,
    filled, is the message of the checkpoint and a tag of it, and the repository is the ".ckptstore"
    beside where the files would be, here "ckpt/.ckptstore". The ending has no meaning. As Keras
    overwrites a file, a name that comes again moves the tag. Gc keeps what a tag names, whatever
    the policy: to name checkpoints without keeping them, use `message`.

    Args:
        store: A folder or URL, where a repository is created if there is none, a Repository, or a
            CheckpointManager, whose branch, policy and tracked objects are then used. Or a path as
            above.
        monitor: The metric for `save_best_only`. If it is missing, the run is saved with a
            warning, as in Keras. With a list the run is saved when any of the metrics is better
            than ever before; of those that are missing each causes one warning.
        verbose: 1 to report each save on stderr.
        save_best_only: Save only when the metric is better than ever before.
        save_weights_only: Save only the model's weights.
        mode: "min" if less is better, "max" if more is, "auto" to decide by the words
            of the metric's name.
        save_freq: "epoch", or a number of batches.
        initial_value_threshold: What the first value of the metric has to improve on.
        filepath: A path as above; `store` may then name another repository for it. A folder is the
            store itself.
        branch: The branch; a template with {epoch} (counted from 1), {step} and names of metrics
            ({val_loss:.3f}). When saving after batches, also {batch} (counted from 1).
        message: The message of the checkpoints; a template with the same fields. By default the
            file name, or "epoch {epoch}" without one.
        period: Save every N-th epoch. Deprecated, as in Keras, in favour of `save_freq`.

    Attributes:
        best: The best value so far, of the first metric if there are several; None before.
        bests: The best value of each metric.

    Raises:
        InvalidInputError: An argument is invalid, a template cannot be filled or names no legal
            branch, or `branch` or `save_weights_only` contradict the manager.

    Example:
        >>> import ckptstore, torch
        >>> from ckptstore.training import CallbackList, ModelCheckpoint
        >>> repo = ckptstore.init("memory://model-checkpoint-example")
        >>> save = ModelCheckpoint(repo, monitor="loss", save_best_only=True)
        >>> callbacks = CallbackList([save], model=torch.nn.Linear(2, 1), epochs=3)
        >>> callbacks.on_train_begin()
        >>> for epoch, loss in enumerate((0.5, 0.75, 0.25)):
        ...     callbacks.on_epoch_end(epoch, {"loss": loss})
        >>> callbacks.on_train_end()
        >>> [(c.message, c.metrics["loss"]) for c in repo.log("main")]
        [('epoch 3', 0.25), ('epoch 1', 0.5)]
    """

    @explained
    def __init__(
        self,
        store: Store | None = None,
        monitor: str | Sequence[str] = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
        initial_value_threshold: float | None = None,
        *,
        filepath: str | Path | None = None,
        branch: str = DEFAULT_BRANCH,
        message: str | None = None,
        period: int | None = None,
    ) -> None:
        store, name = _store_and_name(store, filepath)
        Saver.__init__(self, store, branch=branch, save_freq=save_freq, period=period)
        Monitored.__init__(self, monitor, mode)
        if period is not None:
            warnings.warn(
                "ModelCheckpoint: period is deprecated, as in Keras. Pass save_freq, the number of "
                "batches between two saves.",
                DeprecationWarning,
                stacklevel=3,  # the caller of the constructor
            )
        if initial_value_threshold is not None and len(self.monitors) > 1:
            raise InvalidInputError(
                "ModelCheckpoint: initial_value_threshold is for one metric, and monitor has "
                f"{len(self.monitors)}. Use one ModelCheckpoint for each."
            )
        self.verbose = verbose
        self.save_best_only, self.save_weights_only = save_best_only, save_weights_only
        self.best = initial_value_threshold
        self.bests: dict[str, float | None] = dict.fromkeys(self.monitors, initial_value_threshold)
        if message is None:
            message = name or "epoch {epoch}"
        known = ("epoch", "step") if save_freq == "epoch" else ("epoch", "batch", "step")
        self._branch_template = Template(branch, what="branch", known=known)
        self._message = Template(message, what="message", known=known)
        self._tag = Template(name, what="filepath", known=known) if name else None
        check_ref_name(self._branch_template.sample(), kind="branch")
        check_message(self._message.sample())
        if self._tag is not None:
            tag_name(self._tag.sample())
        manager = manager_of(store)
        if manager is not None and save_weights_only:
            raise InvalidInputError(
                "A CheckpointManager saves all that it tracks. Pass a repository for "
                "save_weights_only."
            )
        if manager is not None and branch not in (DEFAULT_BRANCH, manager.branch):
            raise InvalidInputError(
                f"The manager saves to {manager.branch!r}, not to {branch!r}. Leave branch out, or "
                "pass a repository."
            )

    watches_several = True

    @property
    def fixed_branch(self) -> str | None:
        """The branch that it saves to; None for a template."""
        return None if self._branch_template.has_fields else super().fixed_branch

    def on_train_begin(self, logs: Logs = None) -> None:
        """Open the store.

        Raises:
            InvalidInputError: `save_best_only` was given, but the direction of the metric is
                unknown.
        """
        if self.save_best_only:
            self.check_direction()
        self.training.settle(self, "on_train_begin", logs)
        self._manager = None
        if not self._branch_template.has_fields:
            self.take_manager(branch=self._branch, weights_only=self.save_weights_only)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Save when enough batches are done, or when the program is about to be ended."""
        self.training.settle(self, "on_train_batch_end", batch, logs)
        if self._frequency.is_due(batch):
            self._consider(self.training.epoch, batch, logs)
        elif self._manager is not None and self._manager.save_requested:
            is_end = self._manager.preempted
            why = "before the program was ended" if is_end else "asked for by a signal"
            self.save(logs, message=why)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Save at the end of epochs."""
        self.training.settle(self, "on_epoch_end", epoch, logs)
        if self._frequency.is_due_at_epoch():
            self._consider(epoch, None, logs)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, and the batches since the last save."""
        return {"best": dict(self.bests), "frequency": self._frequency.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        bests = state["best"]
        if not isinstance(bests, dict):  # saved before there could be several metrics
            bests = {self.monitors[0]: bests}
        self._note_best({name: bests[name] for name in self.monitors if name in bests})
        self._frequency.load_state_dict(state["frequency"])

    def _consider(self, epoch: int, batch: int | None, logs: Logs) -> None:
        """Save, unless only the best is to be saved and this is not it."""
        if self.training.is_terminated:
            return
        numbers: dict[str, object] = {**metrics_of(logs), "step": self.training.step}
        numbers["epoch"] = epoch + 1
        if batch is not None:
            numbers["batch"] = batch + 1
        branch = self._branch_template.fill(numbers)
        message = self._message.fill(numbers)
        tag = None if self._tag is None else tag_name(self._tag.fill(numbers))
        if self.save_best_only and not self._is_best(epoch, logs):
            return
        if self._branch_template.has_fields:
            self.take_manager(branch=branch, weights_only=self.save_weights_only)
        self.save(logs, message=message, tag=tag)
        if self.verbose:
            place = self.manager.branch if tag is None else f"{self.manager.branch} as {tag}"
            text = "" if message == tag else f": {message}"
            report(f"Epoch {epoch + 1}: saved to {place}{text}")

    def _is_best(self, epoch: int, logs: Logs) -> bool:
        """Whether any metric is better than ever; also true without one, as in Keras."""
        otherwise = " The run is saved anyway." if len(self.monitors) == 1 else ""
        values = {
            name: value
            for name in self.monitors
            if (value := self._value(logs, name, otherwise=otherwise)) is not None
        }
        better = {}
        for name, value in values.items():
            best = self.bests[name]
            before = "nothing" if best is None else f"{best:.5f}"
            change = f"did not improve from {before}"
            if self._improves(value, best, name):
                better[name] = value
                change = f"improved from {before} to {value:.5f}"
            if self.verbose:
                report(f"Epoch {epoch + 1}: {name} ({self._direction(name)}) {change}")
        self._note_best(better)
        return bool(better) or not values

    def _note_best(self, values: Mapping[str, float | None]) -> None:
        self.bests.update(values)
        self.best = self.bests[self.monitors[0]]


def _store_and_name(store: Store | None, filepath: str | Path | None) -> tuple[Store, str]:
    """The store of a callback, and the template of its file names; "" without one.

    Raises:
        InvalidInputError: There is no store, or there are two.
    """
    if filepath is None:
        if store is None:
            raise InvalidInputError(
                "ModelCheckpoint has no place to save to. Pass store, such as "
                'ModelCheckpoint("runs/store").'
            )
        repository, name = _split(store)
        return (repository, name) if name else (store, "")
    if not isinstance(filepath, str | Path):
        raise InvalidInputError(f"filepath is {shown(filepath)}; a path is expected.")
    repository, name = _split(filepath)
    if store is None:
        return (repository, name) if name else (filepath, "")
    if not name or _split(store)[1]:
        raise InvalidInputError(
            f"store is {shown(store)} and filepath is {shown(filepath)}. Together, store is a "
            'repository and filepath names files, as in filepath="weights-{epoch:02d}.h5".'
        )
    return store, name


def _split(place: Store) -> tuple[str, str]:
    """The repository and the template of file names of a path; "" if it names none."""
    if not isinstance(place, str | Path):
        return "", ""
    repository, name = split_path(str(place))
    is_folder = name and "{" not in name and os.path.isdir(place)
    return ("", "") if is_folder else (repository, name)
