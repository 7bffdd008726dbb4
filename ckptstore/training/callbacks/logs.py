"""CSVLogger, ProgbarLogger, RemoteMonitor and LambdaCallback: tell others how the training goes."""

# ruff: noqa: ARG002 - a hook is called with all that there is to tell

from __future__ import annotations

import csv
import io
import json
import math
import sys
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptstore.errors import InvalidInputError, shown
from ckptstore.training.callbacks.base import Callback
from ckptstore.training.callbacks.monitor import number, plain

if TYPE_CHECKING:
    from os import PathLike

    from rich.progress import Progress

    from ckptstore.training.callbacks.base import Logs

    Hook = Callable[..., object] | None

TIMEOUT_SECONDS = 3.0
NOTHING = "NA"  # what Keras writes where there is no value


class CSVLogger(Callback):
    """Writes the metrics of each epoch as a line of a CSV file, as Keras does.

    The first epoch's metrics, sorted, are the columns, with val_ twins if there are none. append: go on with a file that is
    there. A resumed training goes on after the last line that its checkpoint knows of; later ones are taken away.
    """

    def __init__(
        self, filename: str | PathLike[str], separator: str = ",", append: bool = False
    ) -> None:
        self.filename = Path(filename)
        self.separator, self.append = separator, append
        self._is_open = self._is_resumed = False
        self._columns: list[str] | None = None
        self._size = 0

    def on_train_begin(self, logs: Logs = None) -> None:
        """Training begins. Nothing is taken from the file before the first line: a resumed training needs what it holds."""
        self._is_open = self._is_resumed = False
        self._columns = None
        with self.filename.open("ab") as file:
            self._size = file.tell() if self.append else 0

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Write a line."""
        self._open()
        metrics = plain(logs)
        text = ""
        if self._columns is None:
            self._columns = _columns(metrics)
            text = "" if self._size else self._line("epoch", *self._columns)
        text += self._line(epoch, *(_cell(metrics.get(name, NOTHING)) for name in self._columns))
        data = text.encode()
        with self.filename.open("ab") as file:
            file.write(data)
        self._size += len(data)

    def on_train_end(self, logs: Logs = None) -> None:
        """A training without epochs leaves an empty file."""
        self._open()

    def state_dict(self) -> dict[str, Any]:
        """The columns, and the bytes written."""
        return {"columns": self._columns, "size": self._size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._columns, self._size = state["columns"], state["size"]
        self._is_resumed = True

    def _open(self) -> None:
        """Once, bring the file to where the training is."""
        if self._is_open:
            return
        self._is_open = True
        if self._is_resumed and not self._ends_a_line_at(self._size):
            warnings.warn(
                f"{self.filename} is not the file that the training wrote before it was interrupted. "
                "What it holds is lost.",
                stacklevel=3,
            )
            header = self._line("epoch", *self._columns).encode() if self._columns else b""
            self.filename.write_bytes(header)
            self._size = len(header)
            return
        with self.filename.open("ab") as file:
            file.truncate(self._size)

    def _ends_a_line_at(self, size: int) -> bool:
        with self.filename.open("rb") as file:
            file.seek(max(size - 1, 0))
            return size == 0 or file.read(1) == b"\n"

    def _line(self, *cells: object) -> str:
        text = io.StringIO()
        csv.writer(text, delimiter=self.separator).writerow(cells)
        return text.getvalue()


class ProgbarLogger(Callback):
    """Shows the progress of each epoch on stderr: a live bar on a terminal, otherwise a line for each epoch.

    verbose: 0 for nothing, 1 for a bar, 2 for lines only; by default as CallbackList or fit was told. Keras draws a bar
    of its own unless fit is told verbose=0; pass verbose=1 here then.
    """

    def __init__(self, verbose: int | None = None) -> None:
        self.verbose = verbose
        self._bar: Progress | None = None
        self._task: Any = None
        self._in_training = False

    def on_train_begin(self, logs: Logs = None) -> None:
        """Training begins."""
        self._in_training = True

    def on_train_end(self, logs: Logs = None) -> None:
        """Training ended."""
        self._in_training = False
        self._close()

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Begin a bar."""
        self._open(self._title(epoch))

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """End the bar with the epoch's metrics."""
        self._finish(self._title(epoch), logs)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Move on."""
        self._move(batch, logs)

    def on_test_begin(self, logs: Logs = None) -> None:
        """Begin a bar, unless this is the validation of an epoch."""
        if not self._in_training:
            self._open("Evaluation")

    def on_test_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Move on."""
        if not self._in_training:
            self._move(batch, logs)

    def on_test_end(self, logs: Logs = None) -> None:
        """End the bar."""
        if not self._in_training:
            self._finish("Evaluation", logs)

    def on_predict_begin(self, logs: Logs = None) -> None:
        """Begin a bar."""
        self._open("Prediction")

    def on_predict_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Move on."""
        self._move(batch, None)

    def on_predict_end(self, logs: Logs = None) -> None:
        """End the bar."""
        self._finish("Prediction", None)

    @property
    def _level(self) -> int:
        level = self.params.get("verbose", 1) if self.verbose is None else self.verbose
        return 1 if level == "auto" else int(level)

    def _title(self, epoch: int) -> str:
        count = self.params.get("epochs")
        return f"Epoch {epoch + 1}" if count is None else f"Epoch {epoch + 1}/{count}"

    def _open(self, title: str) -> None:
        """Show a bar where somebody can see it move."""
        self._close()
        if self._level != 1 or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Remaining(),
            TextColumn("{task.fields[metrics]}"),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(title, total=self.params.get("steps"), metrics="")
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

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class RemoteMonitor(Callback):
    """Sends the metrics of each epoch to a web server: an HTTP POST to root + path.

    field: the form's field that holds them as JSON. headers: sent along. send_as_json: the body is the JSON itself.
    timeout: seconds to wait. A server that cannot be reached, or refuses, is a warning, never an end of the training.
    """

    def __init__(
        self,
        root: str = "http://localhost:9000",
        path: str = "/publish/epoch/end/",
        field: str = "data",
        headers: Mapping[str, str] | None = None,
        send_as_json: bool = False,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        if not root.startswith(("http://", "https://")):
            raise InvalidInputError(
                f"RemoteMonitor: root is {shown(root)}; http://… or https://… is expected."
            )
        self.root, self.path, self.field = root, path, field
        self.headers, self.send_as_json, self.timeout = dict(headers or {}), send_as_json, timeout

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Send."""
        try:
            with urllib.request.urlopen(self._request(epoch, logs), timeout=self.timeout):  # noqa: S310 - http alone
                pass
        except (OSError, ValueError, HTTPException) as error:  # the network, a wrong URL, nonsense
            warnings.warn(
                f"RemoteMonitor could not send epoch {epoch + 1} to {self.root + self.path}: {error}.",
                stacklevel=2,
            )

    def _request(self, epoch: int, logs: Logs) -> urllib.request.Request:
        sent = {"epoch": epoch, **{name: _as_json(value) for name, value in plain(logs).items()}}
        text = json.dumps(sent, default=str)
        if self.send_as_json:
            body, kind = text.encode(), "application/json"
        else:
            body = urllib.parse.urlencode({self.field: text}).encode()
            kind = "application/x-www-form-urlencoded"
        return urllib.request.Request(  # noqa: S310 - http alone, checked above
            self.root + self.path,
            data=body,
            headers={"Content-Type": kind, **self.headers},
            method="POST",
        )


class LambdaCallback(Callback):
    """Calls functions at hooks. Those of epochs and batches get (number, logs), the others (logs)."""

    def __init__(
        self,
        on_epoch_begin: Hook = None,
        on_epoch_end: Hook = None,
        on_train_begin: Hook = None,
        on_train_end: Hook = None,
        on_train_batch_begin: Hook = None,
        on_train_batch_end: Hook = None,
        **hooks: Hook,
    ) -> None:
        given = {
            "on_epoch_begin": on_epoch_begin,
            "on_epoch_end": on_epoch_end,
            "on_train_begin": on_train_begin,
            "on_train_end": on_train_end,
            "on_train_batch_begin": on_train_batch_begin,
            "on_train_batch_end": on_train_batch_end,
            **hooks,
        }
        for name, function in given.items():
            if not name.startswith("on_") or not hasattr(Callback, name):
                raise InvalidInputError(f"LambdaCallback: there is no hook {shown(name)}.")
            if function is not None:
                takes_two = any(word in name for word in ("epoch", "batch", "checkpoint"))
                setattr(self, name, _with_two(function) if takes_two else function)


def _with_two(function: Callable[..., object]) -> Callable[..., None]:
    """A function called by position, whatever its parameters are called: Keras passes logs by name."""

    def call(first: object, logs: object = None) -> None:
        function(first, logs)

    return call


def _columns(metrics: Mapping[str, Any]) -> list[str]:
    """Sorted names; with the names of metrics of validation that may come later."""
    names = sorted(metrics)
    if any(name.startswith("val_") for name in names):
        return names
    return names + [f"val_{name}" for name in names]


def _cell(value: object) -> object:
    """A value as Keras writes it: what has several in brackets."""
    if isinstance(value, str) or number(value) is not None or not isinstance(value, Iterable):
        return value
    return f'"[{", ".join(map(str, value))}]"'


def _as_json(value: object) -> object:
    """What JSON can say: neither NaN nor infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.tolist() if hasattr(value, "tolist") else value


def _listed(logs: Logs) -> str:
    """Metrics on one line."""
    return "  ".join(
        f"{name}: {value:.4g}" for name, value in plain(logs).items() if isinstance(value, float)
    )
