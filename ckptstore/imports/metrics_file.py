"""Metrics in files of their own: CSV, JSON lines, trainer_state.json, or those of TensorBoard.

A row belongs to a file name, a step or an epoch, depending on the columns. Rows of the same step
are joined, as loggers write the numbers of training and validation separately.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ckptstore.errors import InvalidInputError, StorageError
from ckptstore.imports.template import EPOCHS, STEPS, number

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    Metrics = dict[str, int | float]
    Key = tuple[str, int | str]  # "file", "step" or "epoch", and its value

FILE_BYTES_MAX = 256 << 20
EVENT_FILE = "tfevents"  # in the name of an event file of TensorBoard
_FILES = ("file", "path", "checkpoint", "filename")
_TIMES = frozenset({"time", "timestamp", "created", "wall_time"})


@dataclass(slots=True)
class Rows:
    """The metrics in a file, by file name, step and epoch.

    Attributes:
        by_file: Metrics by the name of a checkpoint file.
        by_step: Metrics by step.
        by_epoch: Metrics by epoch.
        steps: The last step in the rows of a file or epoch.
        epochs: The last epoch in the rows of a file or step.
        ignored: The names of columns whose values are not numbers.
        times: The names of columns with times, which are not metrics.
        keys: The file, step or epoch of each row with metrics, in the order of the rows.
        lost: The number of rows with metrics but without a file, step or epoch.
        notes: Warnings about damaged files.
    """

    by_file: dict[str, Metrics] = field(default_factory=dict)
    by_step: dict[int, Metrics] = field(default_factory=dict)
    by_epoch: dict[int, Metrics] = field(default_factory=dict)
    steps: dict[Key, int] = field(default_factory=dict)
    epochs: dict[Key, int] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)
    times: set[str] = field(default_factory=set)
    keys: dict[tuple[Key, ...], None] = field(default_factory=dict)
    lost: int = 0
    notes: list[str] = field(default_factory=list)

    def key_of(self, name: str, step: int | None, epoch: int | None) -> Key | None:
        """Return the key of the rows of a checkpoint; None if it has no row."""
        if self.by_file.get(name):
            return "file", name
        if step is not None and self.by_step.get(step):
            return "step", step
        # By the epoch only if no row has the step: loggers may count steps from 0.
        return ("epoch", epoch) if epoch is not None and self.by_epoch.get(epoch) else None

    def at(self, key: Key | None) -> Metrics:
        """Return the metrics of a key; none for None."""
        if key is None:
            return {}
        kind, value = key
        by_kind: Mapping[str, Mapping[Any, Metrics]] = {
            "file": self.by_file,
            "step": self.by_step,
            "epoch": self.by_epoch,
        }
        return by_kind[kind].get(value, {})

    def of(self, name: str, step: int | None, epoch: int | None) -> Metrics:
        """Return the metrics of a checkpoint; none if it has no row."""
        return self.at(self.key_of(name, step, epoch))

    def without(self, used: Collection[Key | None]) -> list[str]:
        """Return the keys of unused rows as text, such as "step 100". used: keys to leave out."""
        unused = (keys[0] for keys in self.keys if not any(key in used for key in keys))
        return list(dict.fromkeys(f"{kind} {value}" for kind, value in unused))

    def add(self, row: Mapping[str, object]) -> None:
        """Add the metrics of a row to those of its file, step and epoch."""
        step, epoch = first_integer(row, STEPS), first_integer(row, EPOCHS)
        file = next((str(row[name]) for name in _FILES if row.get(name)), None)
        metrics: Metrics = {}
        for name, value in row.items():
            if name in (*STEPS, *EPOCHS, *_FILES) or value in ("", None):
                continue
            as_number = number_of(value)
            if name in _TIMES:
                self.times.add(name)
            elif as_number is None:
                self.ignored.add(name)
            else:
                metrics[name] = as_number
        keys: list[Key] = []
        if file is not None:
            file = file.rpartition("/")[2]
            keys.append(("file", file))
            self.by_file.setdefault(file, {}).update(metrics)
        if step is not None:
            keys.append(("step", step))
            self.by_step.setdefault(step, {}).update(metrics)
        if epoch is not None:
            keys.append(("epoch", epoch))
            self.by_epoch.setdefault(epoch, {}).update(metrics)
        if step is not None:
            self.steps |= {key: max(step, self.steps.get(key, step)) for key in keys}
        if epoch is not None:
            self.epochs |= {key: max(epoch, self.epochs.get(key, epoch)) for key in keys}
        if metrics and keys:
            self.keys[tuple(keys)] = None
        elif metrics:
            self.lost += 1


def read_rows(path: Path) -> Rows:
    """Read a file of metrics.

    Args:
        path: A .csv or .tsv, or JSON: lines, a list of objects, or an object with `log_history`. An
            event file of TensorBoard, or a folder with such files.

    Raises:
        InvalidInputError: The file has another format, no row has a file, a step or an epoch, or
            the tensorboard package is missing.
        StorageError: The file cannot be read.
    """
    if path.is_dir() or EVENT_FILE in path.name:
        return _read_events(path)
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise InvalidInputError(f"{path} has more than {FILE_BYTES_MAX} bytes.")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise StorageError(f"{path} could not be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not a text file of metrics.") from error
    rows = Rows()
    try:
        for row in _rows(text):
            rows.add(row)
    except (ValueError, TypeError, AttributeError, csv.Error, RecursionError) as error:
        raise InvalidInputError(
            f"{path} is neither CSV with a header nor JSON lines of objects ({error})."
        ) from error
    if not (rows.by_file or rows.by_step or rows.by_epoch):
        raise InvalidInputError(
            f"The rows of {path} have no step, epoch or file. A column called step, epoch or file "
            "is expected."
        )
    return rows


def _read_events(path: Path) -> Rows:
    from ckptstore.imports.event_files import rows_of

    rows = Rows()
    listed, rows.notes = rows_of(path)
    for row in listed:
        rows.add(row)
    if not (rows.by_step or rows.by_epoch):
        raise InvalidInputError(" ".join([f"{path} holds no scalars.", *rows.notes]))
    return rows


def first_integer(values: Mapping[Any, object], names: Iterable[str]) -> int | None:
    """Return the first value that is an integer, or a float or text with an integer value."""
    for name in names:
        value = number_of(values.get(name))
        if value is not None and math.isfinite(value) and int(value) == value:
            return int(value)
    return None


def number_of(value: object) -> int | float | None:
    """Return a number, parsed if it is text; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    try:
        return number(value.strip()) if isinstance(value, str) else None
    except ValueError:
        return None


def _rows(text: str) -> Iterable[Mapping[str, object]]:
    begin = text.lstrip()[:1]
    if begin == "[":
        return list(json.loads(text))
    if begin == "{":
        try:
            document = json.loads(text)
        except ValueError:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return list(document.get("log_history", [document]))
    header = text.partition("\n")[0]
    delimiter = max(",\t;", key=header.count)
    return list(csv.DictReader(io.StringIO(text), delimiter=delimiter))
