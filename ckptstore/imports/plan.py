"""Plan: which files of a folder become checkpoints, in which order and with which facts.

Facts come from the names of files, from inside them, and from a file of metrics; for a metric the
last of these wins. An imported checkpoint records its file, so an import that is run again, for
example after an interruption, skips the files that were imported before.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptstore import formats
from ckptstore.commit.flatten import flatten_stored
from ckptstore.commit.staging import Staged
from ckptstore.documents.facts import Facts
from ckptstore.errors import (
    CkptStoreError,
    InvalidInputError,
    NotFoundError,
    StorageError,
    shown,
)
from ckptstore.imports.metrics_file import (
    Rows,
    first_integer,
    number_of,
    read_rows,
)
from ckptstore.imports.template import COUNTS, EPOCHS, STEPS, Template, is_plain, proposed
from ckptstore.metric_names import SIMILARITY_MIN, mode_of
from ckptstore.state.rename import Rename, move
from ckptstore.store.imported import META

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.imports.metrics_file import Key
    from ckptstore.repository import Repository

    Numbers = dict[str, int | float]
    Found = tuple[Path, str, Numbers]
    Other = tuple[Path, str]

FILES_MAX = 100_000
OTHERS_SHOWN = 12
TIME_MAX = 253_402_214_400.0  # seconds, of the last day that a datetime can have
_DATA = re.compile(r"\.data-[0-9]{5}-of-[0-9]{5}$")  # of TensorFlow, where the index is imported
_METRIC_DICTS = ("metrics", "logs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One file or folder that an import found.

    Attributes:
        path: The file or folder.
        name: Its path from the name of the template's folder on; the checkpoint records it.
        step: The step of the checkpoint.
        epoch: The epoch, if known.
        metrics: The metrics of the checkpoint.
        created: The time of the file, which becomes that of the checkpoint.
        bytes: The size on disk.
        left_out: Other files of a folder, which are not imported.
        checkpoint: The checkpoint if the file was imported before, else None.
        problem: The reason why it cannot be imported; empty if it can.
    """

    path: Path
    name: str
    step: int | None
    epoch: int | None
    metrics: Mapping[str, int | float]
    created: datetime
    bytes: int
    left_out: tuple[str, ...] = ()
    checkpoint: Checkpoint | None = None
    problem: str = ""

    @property
    def is_due(self) -> bool:
        """True if executing the plan imports it."""
        return self.checkpoint is None and not self.problem


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportPlan:
    """A plan of an import; nothing is done before `execute`.

    Attributes:
        branch: The branch to import to.
        imports: The matching files and folders, in the order of the history.
        others: Other names in the folder, which the template does not match.
        notes: Warnings: unused columns and rows, checkpoints without a row, fields of the template
            that may be mistyped, files that come after a later step of the branch.
    """

    branch: str
    imports: tuple[Import, ...]
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    _repository: Repository = field(repr=False, compare=False)
    _rename: Rename = field(repr=False, compare=False)

    @property
    def due(self) -> tuple[Import, ...]:
        """The files to import: those that can be imported and were not imported before."""
        return tuple(item for item in self.imports if item.is_due)

    @property
    def refused(self) -> tuple[Import, ...]:
        """The files that cannot be imported."""
        return tuple(item for item in self.imports if item.problem)

    def execute(
        self,
        *,
        done: Callable[[Import, Checkpoint], object] | None = None,
        failed: Callable[[Import, CkptStoreError], object] | None = None,
    ) -> tuple[Checkpoint, ...]:
        """Import the files that are due, one after the other.

        Each checkpoint is durable before the next one begins, so an interrupted import continues
        where it stopped when it is run again.

        Args:
            done: Called with each import and its checkpoint.
            failed: Called with each file that cannot be stored, and the reason; the others are
                imported. If None, the first such file raises.

        Returns:
            The new checkpoints.

        Raises:
            CkptStoreError: A file cannot be read any more, or the commit failed.
        """
        made: list[Checkpoint] = []
        for item in self.due:
            try:
                checkpoint = self._commit(item)
            except InvalidInputError as error:
                if failed is None:
                    raise
                failed(item, error)
                continue
            made.append(checkpoint)
            if done is not None:
                done(item, checkpoint)
        return tuple(made)

    def _commit(self, item: Import) -> Checkpoint:
        file = formats.read_file(item.path)
        epoch = {} if item.epoch is None else {"epoch": item.epoch}
        return self._repository.commit(
            _renamed(file.state, self._rename),
            branch=self.branch,
            step=item.step,
            metrics=item.metrics,
            message=f"imported from {item.name}",
            meta={**file.meta, **epoch, META: _origin(item.name, item.bytes, item.created)},
            created=item.created,
        )


def plan_import(
    repository: Repository,
    template: str | Path,
    *,
    pattern: str | None = None,
    branch: str = "main",
    metrics: str | Path | None = None,
    rename: Mapping[str, str] | None = None,
) -> ImportPlan:
    """Plan to import a folder of checkpoint files as the history of a branch.

    Args:
        repository: The repository to import to.
        template: A path in which `{step}`, `{epoch}` or the name of a metric in braces stands for a
            number, and `*` and `?` stand for text. Examples: "old/ckpt_{step}.pt",
            "logs/epoch={epoch}-val_loss={val_loss}.ckpt" or "out/checkpoint-{step}". With a
            pattern, the folder, whose name stands for itself.
        pattern: The template of the names in the folder, such as "ckpt_{step}.pt".
        branch: The branch to import to.
        metrics: A file with the metrics of each step, epoch or file: CSV, JSON lines or a
            trainer_state.json; or an event file of TensorBoard, or a folder with such files, which
            need the tensorboard package.
        rename: New paths of arrays by regular expression, as for `Repository.branch`.

    Returns:
        The plan. Files that cannot be read are in it, with the reason.

    Raises:
        InvalidInputError: The template is malformed, or names a folder; then the message proposes
            templates.
        NotFoundError: Nothing matches the template.
        StorageError: A folder cannot be read.

    Example:
        >>> import ckptstore, numpy
        >>> for step in (1, 10, 2):
        ...     numpy.savez(f"run-{step}.npz", w=numpy.full(2, step))
        >>> repo = ckptstore.init("memory://")
        >>> plan = ckptstore.plan_import(repo, "run-{step}.npz")
        >>> [checkpoint.step for checkpoint in plan.execute()]
        [1, 2, 10]
        >>> ckptstore.plan_import(repo, "run-{step}.npz").due
        ()
    """
    renames = Rename.of(rename)
    text = str(template) if pattern is None else pattern
    found, others = _found(*_parts(template, pattern))
    rows = None if metrics is None else read_rows(Path(metrics))
    history = _history(repository, branch)
    known = _imported(history)
    keyed = _ordered([_item(one, rows, known) for one in found])
    items = [item for item, _ in keyed]
    return ImportPlan(
        branch=branch,
        imports=tuple(items),
        others=tuple(name for path, name in others if not _is_same(path, metrics)),
        notes=(
            *_field_notes(text),
            *_order_notes(items, history, branch),
            *_notes(keyed, rows, metrics),
        ),
        _repository=repository,
        _rename=renames,
    )


def _parts(template: str | Path, pattern: str | None) -> tuple[Path, list[str]]:
    """Return the folder to search, and the templates of the names in it and below."""
    if pattern is not None and not isinstance(pattern, str):
        raise InvalidInputError(f"pattern is {shown(pattern)}; a template of names is expected.")
    text = str(template) if pattern is None else pattern
    parts = [part for part in text.rstrip("/").split("/") if part not in ("", ".")]
    folder = Path("/" if text.startswith("/") else ".")
    if pattern is not None:
        folder = Path(template)
        if not folder.is_dir():
            raise NotFoundError(f"{folder} is not a folder.")
    while parts and is_plain(parts[0]):
        folder = folder / parts.pop(0)
    return folder, parts


def _found(folder: Path, parts: list[str]) -> tuple[list[Found], list[Other]]:
    """Return the matches of templates with the numbers in their names, and what else is there."""
    if not parts:
        raise _no_template(folder)
    own_name = folder.resolve().name  # stays the same if the folder is moved
    found: list[Found] = [(folder, f"{own_name}/" if own_name else "", {})]
    others: list[Other] = []
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        found = list(_step(found, part, others if is_last else None))
    if not found:
        template = str(folder.joinpath(*parts))
        raise NotFoundError(f"Nothing matches {shown(template)}.{_proposal(folder, parts)}")
    if len(found) > FILES_MAX:
        raise InvalidInputError(f"{'/'.join(parts)} matches more than {FILES_MAX} files.")
    return found, sorted(others, key=lambda other: other[1])


def _step(found: Iterable[Found], part: str, others: list[Other] | None) -> Iterator[Found]:
    """Match one more component of the path. others: receives what does not match."""
    template = Template.parse(part)
    for folder, prefix, numbers in found:
        if not folder.is_dir():
            continue
        for name in sorted(_names(folder)):
            values = template.match(name)
            if values is not None and all(
                numbers.get(field, value) == value for field, value in values.items()
            ):
                yield folder / name, f"{prefix}{name}/", {**numbers, **values}
            elif others is not None and template.match(_DATA.sub(".index", name)) is None:
                others.append((folder / name, f"{prefix}{name}"))


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise StorageError(f"{folder} could not be read: {error.strerror}.") from error


def _no_template(path: Path) -> InvalidInputError | NotFoundError:
    """Return the error for a path without a field, with templates that the names suggest."""
    if not path.exists():
        return NotFoundError(f"{path} does not exist.")
    if not path.is_dir():
        return InvalidInputError(
            f"{path} is one file: commit it. An import takes a template of names, such as "
            f"'{path.parent / 'ckpt_{step}.pt'}'."
        )
    return InvalidInputError(
        f"{path} is a folder: state how its files are called, as in '{path}/ckpt_{{step}}.pt'."
        f"{_proposal(path, [''])}"
    )


def _proposal(folder: Path, parts: list[str]) -> str:
    """Return a sentence with the templates that the names in a folder suggest."""
    if len(parts) > 1 or not folder.is_dir():
        return ""
    templates = proposed(_names(folder))[:3]
    some = ", ".join(
        f"'{folder / text}' ({count} name{'s' if count > 1 else ''})" for text, count in templates
    )
    return f" By the names in it: {some}." if some else f" No name in {folder} has a number."


def _is_same(path: Path, other: str | Path | None) -> bool:
    return (
        other is not None
        and path.name == os.path.basename(os.path.abspath(other))
        and os.path.realpath(path) == os.path.realpath(other)
    )


def _history(repository: Repository, branch: str) -> Sequence[Checkpoint]:
    """Return the checkpoints of a branch, the newest first; none if there is no such branch."""
    heads, _ = repository.ref_names()
    return repository.log(branch) if branch in heads else ()


def _imported(history: Sequence[Checkpoint]) -> dict[str, Checkpoint]:
    """Return the checkpoints imported to a branch before, by the file name that they record."""
    listed = [(checkpoint.meta.get(META), checkpoint) for checkpoint in history]
    return {
        str(origin.get("file")): checkpoint
        for origin, checkpoint in reversed(listed)
        if isinstance(origin, dict)
    }


def _item(
    found: Found, rows: Rows | None, known: Mapping[str, Checkpoint]
) -> tuple[Import, Key | None]:
    """Return the import of a file, with facts from its name, its contents and its rows."""
    path, name, numbers = found[0], found[1].rstrip("/"), found[2]
    size, modified = _size_and_time(path)
    created = datetime.fromtimestamp(modified, UTC)
    before = known.get(name)
    if before is not None and before.meta[META] == _origin(name, size, created):
        item = Import(
            path=path,
            name=name,
            step=before.step,
            epoch=before.meta.get("epoch"),
            metrics=before.metrics,
            created=created,
            bytes=size,
            checkpoint=before,
        )
        return item, _key_before(item, first_integer(numbers, STEPS), rows) if rows else None
    problem = ""
    inside: Numbers = {}
    file = formats.FileState(state=None)
    try:
        file = formats.read_file(path)
        inside = _inside(file.state)
    except CkptStoreError as error:
        problem = str(error)
    step = _first(first_integer(numbers, STEPS), file.step, first_integer(inside, STEPS))
    epoch = _first(first_integer(numbers, EPOCHS), file.epoch, first_integer(inside, EPOCHS))
    key = rows.key_of(path.name, step, epoch) if rows else None
    if rows and key:
        step, epoch = _first(step, rows.steps.get(key)), _first(epoch, rows.epochs.get(key))
    item = Import(
        path=path,
        name=name,
        step=step,
        epoch=epoch,
        metrics={
            **{name: value for name, value in numbers.items() if name not in COUNTS},
            **{name: value for name, value in inside.items() if _is_metric(name)},
            **file.metrics,
            **(rows.at(key) if rows else {}),
        },
        created=created,
        bytes=size,
        left_out=file.left_out,
        problem=problem,
    )
    try:
        Facts.of(step=_first(step, epoch), metrics=item.metrics)
    except InvalidInputError as error:
        item = replace(item, problem=str(error))
    if before is None:
        return item, key
    problem = (
        f"{path} changed since it was imported as {before.id.short}. To store the new contents, "
        "commit the file by its name."
    )
    return replace(item, problem=problem), key


def _key_before(item: Import, step: int | None, rows: Rows) -> Key | None:
    """Return the key of the rows of a file imported before. step: the one in its name."""
    key = rows.key_of(item.path.name, step, item.epoch)
    if step is not None or item.step == item.epoch:
        return key
    if key and rows.steps.get(key) == item.step and not _adds(rows.at(key), item):
        return key  # the step came from these rows
    return rows.key_of(item.path.name, item.step, item.epoch)


def _origin(name: str, size: int, created: datetime) -> dict[str, Any]:
    """Return the facts that a checkpoint records about its file."""
    return {"file": name, "bytes": size, "modified": created.isoformat()}


def _size_and_time(path: Path) -> tuple[int, float]:
    """Return the size and the time of the last change; for a folder, those of all its files."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    try:
        stats = [file.stat() for file in files] or [path.stat()]
    except OSError as error:
        raise StorageError(f"{path} could not be read: {error.strerror}.") from error
    newest = max(stat.st_mtime_ns for stat in stats) // 1000 / 1e6
    return sum(stat.st_size for stat in stats if files), min(max(newest, 0.0), TIME_MAX)


def _inside(state: object) -> Numbers:
    """Return the plain numbers at the top of a state, or in a dict of metrics there."""
    if not isinstance(state, dict):
        return {}
    nested = [state[key] for key in _METRIC_DICTS if isinstance(state.get(key), dict)]
    return {
        name: value
        for part in (state, *nested)
        for name, value in part.items()
        if isinstance(name, str) and not isinstance(value, str) and number_of(value) is not None
    }


def _is_metric(name: str) -> bool:
    """Return True if a name is that of a metric. The best value so far is not one of this step."""
    if name in (*STEPS, *EPOCHS) or name.lower().startswith(("best", "lowest", "highest")):
        return False
    try:
        mode_of(name)
    except InvalidInputError:
        return False
    return True


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _ordered(keyed: list[tuple[Import, Key | None]]) -> list[tuple[Import, Key | None]]:
    """Return imports in the order of the history.

    The epoch stands for the step if the steps of all are unknown. If only those of some are, the
    others have none, and the order is that of the epochs where all have one.
    """
    items = [item for item, _ in keyed]
    if all(item.step in (None, item.epoch) for item in items):
        keyed = [(replace(item, step=_first(item.step, item.epoch)), key) for item, key in keyed]
    lacks_step = any(item.step is None for item, _ in keyed)
    by_epoch = lacks_step and all(item.epoch is not None for item in items)
    return sorted(keyed, key=lambda pair: _order(pair[0], by_epoch=by_epoch))


def _order(item: Import, *, by_epoch: bool) -> tuple[Any, ...]:
    """Return the sort key of an import: the step, then the time and the name."""
    epoch = item.epoch if by_epoch else 0
    return (epoch, item.step is not None, item.step or 0, item.created, item.name)


def _order_notes(
    items: Iterable[Import], history: Sequence[Checkpoint], branch: str
) -> Iterator[str]:
    """Yield a warning if files come after a checkpoint of a later step or epoch."""
    if not history:
        return
    head = history[0]
    epoch = head.meta.get("epoch")
    late: dict[str, list[str]] = {}
    for item in items:
        if not item.is_due:
            continue
        has_only_epochs = _has_only_epoch(item) and head.step in (None, epoch)
        if item.step is not None and head.step is not None and not has_only_epochs:
            kind, own, other = "step", item.step, head.step
        elif item.epoch is not None and isinstance(epoch, int):
            kind, own, other = "epoch", item.epoch, epoch
        else:
            continue
        if own < other:
            late.setdefault(f"{kind} {other}", []).append(f"{kind} {own}")
    for of_head, listed in late.items():
        comes = "comes" if len(listed) == 1 else "come"
        yield (
            f"{_listed(listed)} {comes} after {of_head} on branch {branch}, as that was there "
            "before. For a history in order, import all files to another branch."
        )


def _field_notes(template: str) -> Iterator[str]:
    """Yield warnings about fields of a template that are neither a step nor an epoch."""
    parts = map(Template.parse, template.split("/"))
    for name in dict.fromkeys(name for part in parts for name in part.fields):
        if name in (*STEPS, *EPOCHS):
            continue
        if name in COUNTS:
            yield f"{{{name}}} is neither a step, an epoch nor a metric, and is left out."
        elif alike := get_close_matches(name, (*STEPS, *EPOCHS), 1, SIMILARITY_MIN):
            yield f"{{{name}}} was read as a metric of that name. Did you mean {{{alike[0]}}}?"


def _notes(
    keyed: Iterable[tuple[Import, Key | None]], rows: Rows | None, metrics: str | Path | None
) -> Iterator[str]:
    """Yield warnings about unused columns and rows of a file of metrics, and missing rows."""
    if rows is None:
        return
    yield from rows.notes
    if rows.ignored:
        yield f"Columns of {metrics} that hold no numbers are ignored: {_some(rows.ignored)}."
    if rows.times:
        yield f"Columns of {metrics} that hold times are ignored: {_some(rows.times)}."
    keyed = list(keyed)
    missing = [item for item, key in keyed if key is None]
    if missing:
        yield f"{metrics} has no row for {_some(item.name for item in missing)}."
    if rows.by_step and not rows.by_epoch and any(_has_only_epoch(item) for item in missing):
        yield (
            f"The rows of {metrics} have steps, but only the epoch of these files is known. If the "
            "numbers are epochs, call the column epoch."
        )
    if unused := rows.without({key for _, key in keyed}):
        yield f"No file belongs to these rows of {metrics}: {_listed(unused)}."
    if rows.lost:
        count = f"{rows.lost} row{'s' if rows.lost > 1 else ''}"
        yield f"Not used, without a step, an epoch or a file: {count} of {metrics}."
    if before := [item for item, key in keyed if item.checkpoint and _adds(rows.at(key), item)]:
        yield (
            f"These were imported before, and get no new metrics from {metrics}: "
            f"{_some(item.name for item in before)}. To add metrics to a checkpoint, annotate it."
        )


def _has_only_epoch(item: Import) -> bool:
    """Return True if a checkpoint has no step but its epoch."""
    return item.epoch is not None and item.step in (None, item.epoch)


def _adds(metrics: Mapping[str, int | float], item: Import) -> bool:
    """Return True if metrics differ from those of a checkpoint; NaN equals NaN."""
    return any(repr(value) != repr(item.metrics.get(name)) for name, value in metrics.items())


def _some(names: Iterable[str]) -> str:
    return _listed(sorted(names))


def _listed(listed: Sequence[str]) -> str:
    more = len(listed) - OTHERS_SHOWN
    return f"{', '.join(listed[:OTHERS_SHOWN])}{f' and {more} more' if more > 0 else ''}"


def _renamed(state: Any, rename: Rename) -> Any:
    """Return a state to commit, with its arrays under their new paths."""
    if not rename.patterns:
        return state
    flat = flatten_stored(state)
    moves = rename.names_in(flat.root)
    names = moves.arrays
    return Staged(
        replace(
            flat,
            root=move(flat.root, moves, source=flat.root),
            arrays={names.get(path, path): array for path, array in flat.arrays.items()},
            tied={names.get(path, path): names.get(to, to) for path, to in flat.tied.items()},
        )
    )
