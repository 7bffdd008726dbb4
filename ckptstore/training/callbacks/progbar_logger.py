"""ProgbarLogger: the progress of each epoch on stderr."""

# ruff: noqa: ARG002 - a hook is called with more than each of them needs

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ckptstore.errors import printable
from ckptstore.forks import renewed
from ckptstore.training.arguments import explained
from ckptstore.training.callbacks.callback import Callback
from ckptstore.training.callbacks.monitor import plain

if TYPE_CHECKING:
    from rich.progress import Progress

    from ckptstore.training.callbacks.callback import Logs


NAME_LENGTH_MAX = 60  # of a metric; the rest is left out


class ProgbarLogger(Callback):
    """Shows progress on stderr: a live bar on a terminal, otherwise a line for each epoch.

    Keras' `fit` draws a bar of its own. To replace it, pass verbose=0 to `fit` and verbose=1 here.
    Unlike Keras' class it also shows evaluations and predictions, and draws no bar into a log file.

    Args:
        verbose: 0 for nothing, 1 for a bar, 2 for lines only. By default the value passed to
            `CallbackList` or `fit`.

    Example:
        >>> import contextlib, sys
        >>> from ckptstore.training import CallbackList, ProgbarLogger
        >>> callbacks = CallbackList([ProgbarLogger(verbose=2)], epochs=3)
        >>> with contextlib.redirect_stderr(sys.stdout):
        ...     callbacks.on_epoch_end(0, {"loss": 0.5})
        Epoch 1/3  loss: 0.5
    """

    @explained
    def __init__(self, verbose: int | None = None) -> None:
        self.verbose = verbose
        self._bar: Progress | None = None
        self._task: Any = None
        self._in_training = False
        renewed(self, ProgbarLogger._leave_to_parent)

    def on_train_begin(self, logs: Logs = None) -> None:
        """Note that validation belongs to epochs."""
        self._in_training = True

    def on_train_end(self, logs: Logs = None) -> None:
        """Remove the bar."""
        self._in_training = False
        self._close()

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Show a bar."""
        self._open(self._title(epoch))

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Show the epoch's metrics."""
        self._finish(self._title(epoch), logs)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Advance the bar."""
        self._move(batch, logs)

    def on_test_begin(self, logs: Logs = None) -> None:
        """Show a bar, unless this is the validation of an epoch."""
        if not self._in_training:
            self._open("Evaluation")

    def on_test_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Advance the bar."""
        if not self._in_training:
            self._move(batch, logs)

    def on_test_end(self, logs: Logs = None) -> None:
        """Remove the bar, and show the metrics."""
        if not self._in_training:
            self._finish("Evaluation", logs)

    def on_predict_begin(self, logs: Logs = None) -> None:
        """Show a bar."""
        self._open("Prediction")

    def on_predict_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Advance the bar."""
        self._move(batch, None)

    def on_predict_end(self, logs: Logs = None) -> None:
        """Remove the bar, and show the metrics."""
        self._finish("Prediction", None)

    @property
    def _level(self) -> int:
        level = self.params.get("verbose", 1) if self.verbose is None else self.verbose
        return 1 if level == "auto" else int(level)

    def _title(self, epoch: int) -> str:
        count = self.params.get("epochs")
        return f"Epoch {epoch + 1}" if count is None else f"Epoch {epoch + 1}/{count}"

    def _open(self, title: str) -> None:
        """Show a bar if stderr is a terminal."""
        self._close()
        if self._level != 1 or not sys.stderr.isatty():
            return
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[metrics]}", markup=False),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(title, total=self.params.get("steps"), metrics="")
        self._streams = sys.stdout, sys.stderr  # which the bar replaces
        self._bar.start()

    def _move(self, batch: int, logs: Logs) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=batch + 1, metrics=_listed(logs))

    def _finish(self, title: str, logs: Logs) -> None:
        if self._bar is not None:
            done = self._bar.tasks[0].completed
            total = self._bar.tasks[0].total or done
            self._bar.update(self._task, total=total, metrics=_listed(logs))
            self._close()
        elif self._level:
            sys.stderr.write(f"{title}  {_listed(logs)}".rstrip() + "\n")

    def _leave_to_parent(self) -> None:
        """Print without the bar in a forked child, where its thread would never let go of it."""
        if self._bar is not None:
            sys.stdout, sys.stderr = self._streams
            self._bar = None

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _listed(logs: Logs) -> str:
    """The metrics on one line, with names that no terminal can take for anything else."""
    return "  ".join(
        f"{printable(str(name)[:NAME_LENGTH_MAX])}: {value:.4g}"
        for name, value in plain(logs).items()
        if isinstance(value, float)
    )
