"""ModelCheckpoint: saves a training run to a branch as it goes on."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

from ckptstore.documents.facts import check_message
from ckptstore.documents.names import check_ref_name
from ckptstore.errors import InvalidInputError, shown
from ckptstore.training.callbacks.callback import report
from ckptstore.training.callbacks.monitor import Monitored, metrics_of
from ckptstore.training.callbacks.saver import DEFAULT_BRANCH, Saver, manager_of

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

    Args:
        store: A folder or URL, where a repository is created if there is none, a Repository, or a
            CheckpointManager, whose branch, policy and tracked objects are then used.
        branch: The branch; a template with {epoch} (counted from 1), {step} and names of metrics
            ({val_loss:.3f}). When saving after batches, also {batch} (counted from 1).
        message: The message of the checkpoints; a template with the same fields.
        monitor: The metric for `save_best_only`. If it is missing, the run is saved with a
            warning, as in Keras.
        verbose: 1 to report each save on stderr.
        save_best_only: Save only when the metric is better than ever before.
        save_weights_only: Save only the model's weights.
        mode: "min" if less is better, "max" if more is, "auto" to decide by the words
            of the metric's name.
        save_freq: "epoch", or a number of batches.
        initial_value_threshold: What the first value of the metric has to improve on.

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
        Saver.__init__(self, store, branch=branch, save_freq=save_freq)
        Monitored.__init__(self, monitor, mode)
        self.verbose = verbose
        self.save_best_only, self.save_weights_only = save_best_only, save_weights_only
        self.best = initial_value_threshold
        known = ("epoch", "step") if save_freq == "epoch" else ("epoch", "batch", "step")
        self._branch_template = Template(branch, what="branch", known=known)
        self._message = Template(message, what="message", known=known)
        check_ref_name(self._branch_template.sample(), kind="branch")
        check_message(self._message.sample())
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
        if self._frequency.is_epoch:
            self._consider(epoch, None, logs)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, and the batches since the last save."""
        return {"best": self.best, "frequency": self._frequency.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.best = state["best"]
        self._frequency.load_state_dict(state["frequency"])

    def _consider(self, epoch: int, batch: int | None, logs: Logs) -> None:
        """Save, unless only the best is to be saved and this is not it."""
        if self.training.is_terminated or (self.save_best_only and not self._is_best(epoch, logs)):
            return
        numbers: dict[str, object] = {**metrics_of(logs), "step": self.training.step}
        numbers["epoch"] = epoch + 1
        if batch is not None:
            numbers.setdefault("batch", batch + 1)
        branch = self._branch_template.fill(numbers)
        message = self._message.fill(numbers)
        if self._branch_template.has_fields:
            self.take_manager(branch=branch, weights_only=self.save_weights_only)
        self.save(logs, message=message)
        if self.verbose:
            report(f"Epoch {epoch + 1}: saved to {self.manager.branch}: {message}")

    def _is_best(self, epoch: int, logs: Logs) -> bool:
        """Whether the metric is better than ever; also true without the metric, as in Keras."""
        value = self._value(logs, otherwise=" The run is saved anyway.")
        if value is None:
            return True
        before = "nothing" if self.best is None else f"{self.best:.5f}"
        is_best = self._improves(value, self.best)
        if self.verbose:
            change = f"improved from {before} to {value:.5f}"
            change = change if is_best else f"did not improve from {before}"
            report(f"Epoch {epoch + 1}: {self.monitor} ({self._direction()}) {change}")
        self.best = value if is_best else self.best
        return is_best


class Template:
    """A text with fields such as {epoch} or {val_loss:.3f}, to be filled with numbers."""

    def __init__(self, text: str, *, what: str, known: Sequence[str]) -> None:
        self._known = known
        try:
            self._fields = [
                name for _, name, _, _ in string.Formatter().parse(text) if name is not None
            ]
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"The {what} {shown(text)} is no template: {error}.") from error
        self._text, self._what = text, what

    @property
    def has_fields(self) -> bool:
        """False for a constant text."""
        return bool(self._fields)

    def sample(self) -> str:
        """The text filled with ones, to see before a training whether that gives what it should.

        A name that is not known may be that of a metric. InvalidInputError where no number fits.
        """
        return self.fill(_Ones(dict.fromkeys(self._known, 1)))

    def fill(self, numbers: Mapping[str, object]) -> str:
        """The text with these numbers."""
        try:
            return self._text.format_map(numbers)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            raise InvalidInputError(
                f"The {self._what} {shown(self._text)} cannot be filled ({error!r}). "
                f"Available: {', '.join(numbers)}."
            ) from error


class _Ones(dict[str, object]):
    """Numbers by name, among them every metric there may be."""

    def __missing__(self, name: str) -> object:
        if name == "batch":
            raise KeyError(name)
        return 1
