"""CSVLogger: the metrics of each epoch in a CSV file, which a resumed training continues."""

# ruff: noqa: ARG002 - a hook is called with more than each of them needs

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptstore.training.arguments import explained
from ckptstore.training.callbacks.callback import Callback
from ckptstore.training.callbacks.monitor import number, plain

if TYPE_CHECKING:
    from os import PathLike

    from ckptstore.training.callbacks.callback import Logs

NOTHING = "NA"  # what Keras writes for a missing value


class CSVLogger(Callback):
    """Writes the metrics of each epoch as a line of a CSV file.

    The columns are "epoch" and the sorted names of the first epoch's metrics. If none of these
    begins with "val_", columns with that prefix are added for validation that starts later. The
    file is the same as with Keras, except that a resumed training continues it: lines written after
    the checkpoint are removed, so that no epoch is in the file twice.

    Args:
        filename: The file.
        separator: The character between two values.
        append: Continue an existing file instead of overwriting it.

    Example:
        >>> import tempfile, pathlib
        >>> from ckptstore.training import CallbackList, CSVLogger
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "log.csv"
        >>> callbacks = CallbackList([CSVLogger(file)], epochs=1)
        >>> callbacks.on_train_begin()
        >>> callbacks.on_epoch_end(0, {"loss": 0.5, "val_loss": 0.75})
        >>> callbacks.on_train_end()
        >>> file.read_text().split()
        ['epoch,loss,val_loss', '0,0.5,0.75']
    """

    _kept = ("_columns", "_size")

    @explained
    def __init__(
        self, filename: str | PathLike[str], separator: str = ",", append: bool = False
    ) -> None:
        self.filename = Path(filename)
        self.separator, self.append = separator, append
        self._is_open = self._is_resumed = False
        self._columns: list[str] | None = None
        self._size = 0  # bytes

    def on_train_begin(self, logs: Logs = None) -> None:
        """Create the file. It is truncated later: a resumed training needs its contents."""
        self._is_open = self._is_resumed = False
        self._columns = None
        with self.filename.open("ab") as file:
            self._size = file.tell() if self.append else 0

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Write the epoch's line."""
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
        """Leave an empty file after a run without epochs."""
        self._open()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        super().load_state_dict(state)
        self._is_resumed = True

    def _open(self) -> None:
        """Once per run, truncate the file to where the run begins."""
        if self._is_open:
            return
        self._is_open = True
        if self._is_resumed and not self._ends_a_line_at(self._size):
            warnings.warn(
                f"{self.filename} is not the file that the run wrote before it was "
                "interrupted. Its contents are discarded.",
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


def _columns(metrics: Mapping[str, Any]) -> list[str]:
    """The sorted names, with val_ names for validation that may start later."""
    names = sorted(metrics)
    if any(name.startswith("val_") for name in names):
        return names
    return names + [f"val_{name}" for name in names]


def _cell(value: object) -> object:
    """A value as Keras writes it: several numbers in brackets."""
    if isinstance(value, str) or number(value) is not None or not isinstance(value, Iterable):
        return value
    return f'"[{", ".join(map(str, value))}]"'
