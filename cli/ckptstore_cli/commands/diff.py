"""`ckptstore diff`: the differences between two checkpoints."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptstore_cli import documents, fields, output, text
from ckptstore_cli.options import common, complete_refs, selection_options
from ckptstore_cli.output import PATH_WIDTH_MIN, Column
from ckptstore_cli.parts import check_part, glob_of, part_option
from ckptstore_cli.repo import open_repository, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ckptstore import ArrayChange, Diff, Numbers, ValueChange

_COLUMNS = (
    Column("array", gives_way=3, shortens=True, width_min=PATH_WIDTH_MIN),
    Column("change", style="bold"),
    Column("dtype", drops=5),
    Column("shape", right=True, drops=4),
    Column("size", right=True),
)
_NUMERIC_COLUMNS = (
    *_COLUMNS[:2],
    Column("rel. L2", right=True),
    Column("", style="cyan", drops=1),
    Column("max", right=True),
    Column("cosine", right=True, drops=5),
    Column("elements", right=True, drops=4),
    Column("norms", drops=2),
    Column("new NaN/inf", right=True),
)
_SUM_COLUMNS = (
    Column("part", gives_way=1, shortens=True),
    Column("arrays", folds=True, gives_way=2),
    Column("not shared", right=True),
)
_VALUE_COLUMNS = (
    Column("value", gives_way=1, shortens=True),
    Column("before", folds=True, gives_way=2),
    Column("after", folds=True, gives_way=2),
)
_KINDS = ("changed", "retyped", "moved", "added", "removed", "undecided")
EXIT_DIFFERENT = 1
_SORTS = ("path", "l2", "max")
_PATHS_SHOWN = 5


@click.command()
@click.argument("a", metavar="A", shell_complete=complete_refs(), help="The checkpoint before.")
@click.argument(
    "b",
    metavar="B",
    shell_complete=complete_refs(),
    help="The checkpoint after: a revision, or a file as `ckptstore commit` takes it.",
)
@click.option(
    "--numeric",
    is_flag=True,
    help="Read the arrays that changed, and report how much they changed.",
)
@click.option(
    "--stat",
    "is_summed",
    is_flag=True,
    help="Sum up the arrays of each part instead of listing them.",
)
@part_option(
    "Compare only the value of this key of the state, such as model. A file is taken as that value."
)
@selection_options
@click.option(
    "--sort",
    type=click.Choice(_SORTS),
    default="path",
    show_default=True,
    help="The order of the arrays: by path, or the largest relative L2 or largest change of an "
    "element first, which implies --numeric.",
)
@click.option(
    "--other",
    metavar="REPO",
    type=click.Path(file_okay=False),
    help="The repository of B, when it is another one: a folder or URL.",
)
@click.option(
    "--under", metavar="PATH", help="Where in A the arrays of a file belong, such as model."
)
@click.option(
    "--exit-code",
    "has_exit_code",
    is_flag=True,
    help="Exit with 1 if anything differs, as git does.",
)
@common
@click.pass_context
def diff(
    ctx: click.Context,
    a: str,
    b: str,
    numeric: bool,
    is_summed: bool,
    part: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    sort: str,
    other: str | None,
    under: str | None,
    has_exit_code: bool,
    as_json: bool,
) -> None:
    """Compare two checkpoints: arrays, values, and what they share.

    Without --numeric no array is read, and the time depends on what differs. With it, each changed
    array gets the norm of its change relative to its norm before (rel. L2), the largest change of
    an element, the cosine similarity, the share of elements that changed, both norms, and how many
    elements became NaN or infinite.

    \b
    Examples:
      ckptstore diff main~1 main --numeric --sort l2
      ckptstore diff main tuned.safetensors --part model
      ckptstore diff main~5 main --stat
      ckptstore diff main main --other ../copy
    """
    repo = open_repository(ctx)
    is_file = _names_file(b) and other is None
    if under is not None and not is_file:
        raise click.UsageError("--under is for a file: B names none.", ctx)
    if part is not None and include:
        raise click.UsageError("Choose by --part or by --include, not by both.", ctx)
    if is_summed and (numeric or sort != "path"):
        raise click.UsageError("--stat has no numbers of arrays: without --numeric, --sort.", ctx)
    under = part if under is None else under
    difference = repo.diff(
        a,
        _state(b, under) if is_file else b,
        numeric=numeric or sort != "path",
        include=include or None if part is None else glob_of(part),
        exclude=exclude,
        other=None if other is None else opened(other),
    )
    if part is not None:
        check_part(part, (array.path for array in repo.resolve(a).arrays))
    changes = sorted(difference.arrays, key=_KEYS[sort])
    if as_json:
        output.document(documents.diff(difference, changes))
    else:
        is_numeric = numeric or sort != "path"
        _print(difference, changes, is_numeric=is_numeric, is_summed=is_summed)
        if is_file and under is None and _has_nothing_in_common(difference):
            output.note(
                "No array of the file has a path of A. Name the part of A where they belong, if "
                "any: --under model"
            )
    if has_exit_code and not difference.is_empty:
        ctx.exit(EXIT_DIFFERENT)


def _names_file(text: str) -> bool:
    from ckptstore import formats

    return formats.has_format(text) and Path(text).is_file()


def _state(file: str, under: str | None) -> Any:
    """Returns what a file holds, with its arrays where they belong in A."""
    from ckptstore import formats

    state = formats.read_file(file).state
    for part in reversed((under or "").split("/")):
        state = {part: state} if part else state
    return state


def _print(
    difference: Diff, changes: list[ArrayChange], *, is_numeric: bool, is_summed: bool
) -> None:
    if changes and is_summed:
        output.table(_SUM_COLUMNS, _sums(changes))
    elif changes and is_numeric:
        largest = max((_measured(change, "relative_l2") for change in changes), default=0.0)
        rows = [_numeric_row(change, largest) for change in changes]
        output.table(_NUMERIC_COLUMNS, rows)
    elif changes:
        output.table(_COLUMNS, [_row(change) for change in changes])
    values = () if is_summed else difference.values
    if changes and values:
        output.line()
    if values:
        output.table(_VALUE_COLUMNS, [_value_row(change) for change in difference.values])
    if changes or difference.values:
        output.line()
    for line in _summary(difference):
        output.line(line)


def _sums(changes: Iterable[ArrayChange]) -> list[tuple[str, str, str]]:
    """A row for each part of the state: how many arrays differ, and their bytes."""
    parts: dict[str, list[ArrayChange]] = {}
    for change in changes:
        parts.setdefault(change.path.partition("/")[0], []).append(change)
    rows = []
    for part, those in sorted(parts.items()):
        counts = Counter[str](change.kind for change in those)
        listed = ", ".join(f"{counts[kind]:,} {kind}" for kind in _KINDS if counts[kind])
        new = sum(change.after.nbytes - change.shared_bytes for change in those if change.after)
        rows.append((part, listed, text.size(new)))
    return rows


def _row(change: ArrayChange) -> tuple[str, ...]:
    sides = [side for side in (change.before, change.after) if side]
    return (
        _path(change),
        change.kind,
        _arrow(side.dtype for side in sides),
        _arrow(text.shape(side.shape) for side in sides),
        _arrow(text.size(side.nbytes) for side in sides),
    )


def _numeric_row(change: ArrayChange, largest: float) -> tuple[str, ...]:
    numbers = change.numbers
    if numbers is None:
        return (_path(change), change.kind, *("",) * (len(_NUMERIC_COLUMNS) - 2))
    return (
        _path(change),
        change.kind,
        _number(numbers.relative_l2),
        output.bar(_part(numbers.relative_l2, largest)),
        _number(numbers.max_abs),
        f"{numbers.cosine:.6f}",
        text.share(numbers.changed_share),
        f"{_number(numbers.norm_before)} -> {_number(numbers.norm_after)}",
        f"{numbers.new_nan:,}/{numbers.new_inf:,}" if numbers.new_nan or numbers.new_inf else "",
    )


def _value_row(change: ValueChange) -> tuple[str, str, str]:
    return (
        change.path,
        "" if change.kind == "added" else fields.plain(change.before),
        "" if change.kind == "removed" else fields.plain(change.after),
    )


def _summary(difference: Diff) -> list[str]:
    unchanged = text.count(difference.unchanged, "array")
    size = text.size(difference.bytes_after)
    if difference.is_empty:
        return [f"Nothing differs: {unchanged}, {size}."]
    counts = [(len(difference.of_kind(kind)), kind) for kind in _KINDS]  # type: ignore[arg-type]
    arrays = [f"{number:,} {kind}" for number, kind in counts if number]
    lines = [f"Arrays: {', '.join([*arrays, f'{difference.unchanged:,} unchanged'])}."]
    if difference.values:
        verb = "differs" if len(difference.values) == 1 else "differ"
        lines.append(f"{text.count(len(difference.values), 'plain value')} {verb}.")
    if difference.rearranged:
        shown = [path or "the state itself" for path in difference.rearranged[:_PATHS_SHOWN]]
        more = ", …" if len(difference.rearranged) > _PATHS_SHOWN else ""
        lines.append(f"Arranged differently (kinds, keys, ties): {', '.join(shown)}{more}.")
    if difference.undecided:
        lines.append("Undecided arrays have other chunks: --numeric shows whether they differ.")
    lines.append(f"Shared: {text.share(difference.shared)} of {size}.")
    return lines


def _path(change: ArrayChange) -> str:
    if change.kind == "moved" and change.before:
        return f"{change.before.path} -> {change.path}"
    return change.path


def _arrow(texts: Iterable[str]) -> str:
    return " -> ".join(dict.fromkeys(texts))


def _number(value: float) -> str:
    return f"{value:.4g}"


def _part(value: float, largest: float) -> float:
    """The filled part of a bar. An infinite value fills all of it."""
    if math.isinf(value):
        return 1.0
    return value / largest if largest else 0.0


def _measured(change: ArrayChange, name: str) -> float:
    """A finite number of an array; 0 if it has none."""
    value = getattr(change.numbers, name) if change.numbers else 0.0
    return value if math.isfinite(value) else 0.0


def _by(number: Callable[[Numbers], float]) -> Callable[[ArrayChange], Any]:
    """Sorts the largest first, and arrays that were not measured last."""

    def key(change: ArrayChange) -> Any:
        return (0, -number(change.numbers), change.path) if change.numbers else (1, 0, change.path)

    return key


def _has_nothing_in_common(difference: Diff) -> bool:
    both = [
        change for change in difference.arrays if change.kind not in ("added", "removed", "moved")
    ]
    return bool(difference.arrays) and not difference.unchanged and not both


_KEYS: dict[str, Callable[[ArrayChange], Any]] = {
    "path": lambda change: change.path,
    "l2": _by(lambda numbers: numbers.relative_l2),
    "max": _by(lambda numbers: numbers.max_abs),
}
