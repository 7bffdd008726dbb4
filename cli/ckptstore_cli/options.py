"""Options, arguments and completions shared by several commands."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, TypeVar

import click

from ckptstore.times import seconds_of
from ckptstore_cli import completion, output
from ckptstore_cli.repo import repo_option

if TYPE_CHECKING:
    from collections.abc import Callable

    Command = Callable[..., None]

Value = TypeVar("Value")

complete_refs, complete_metrics = completion.refs, completion.metrics
complete_paths = completion.paths
DEFAULT_BRANCH = completion.DEFAULT_BRANCH
STEP_BITS_MAX = 63
_WHOLE = re.compile(r"[+-]?[0-9]{1,30}")
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([kKMGT]?)(i?)B")
_SHARE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?(%?)")
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}

_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)


def _be_quiet(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta[output.QUIET_KEY] = value


_quiet_option = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    expose_value=False,
    callback=_be_quiet,
    help="Print results and errors only, without remarks and progress.",
)


class Size(click.ParamType[int]):
    """A number of bytes with its unit: 5GB is 5 * 1000 ** 3, 5GiB is 5 * 1024 ** 3."""

    name = "size"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Parse a number and its unit. A number without a unit is rejected as ambiguous."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value)
        if not match or (match[3] and not match[2]):
            self.fail(f"{value!r} is not a size such as 500MB, 5GB or 2GiB.", param, ctx)
        number, power, is_binary = match.groups()
        size = int(Decimal(number) * (1024 if is_binary else 1000) ** _POWERS[power.upper()])
        if not size:
            self.fail(f"{value!r} is less than a byte.", param, ctx)
        return size


class Share(click.ParamType[float]):
    """A share of the whole, as in 5% or 0.05."""

    name = "share"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse a percentage or a number, above 0 and at most 100 %."""
        if isinstance(value, float):
            return value
        match = _SHARE.fullmatch(value)
        share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
        if not 0 < share <= 1:
            self.fail(f"{value!r} is not a share such as 5% or 0.05.", param, ctx)
        return share


class Duration(click.ParamType[float]):
    """A time with its unit, such as 30min, 24h, 7d or 2w, in seconds; 0 needs no unit.

    allows_numbers: take a number without a unit as seconds, instead of rejecting it.
    """

    name = "time"

    def __init__(self, *, allows_numbers: bool = False) -> None:
        self._allows_numbers = allows_numbers

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse a number and its unit."""
        if not isinstance(value, str):
            return float(value)
        number = seconds_of(f"{value}s")
        if number is not None and (self._allows_numbers or not number):
            return number
        seconds = None if value.endswith("m") else seconds_of(value)  # which may mean months
        if seconds is None:
            self.fail(f"{value!r} is not a time such as 30min, 24h, 7d or 2w.", param, ctx)
        return seconds


def pairs(
    parse: Callable[[str], Value], *, at_last: bool = False
) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], dict[str, Value]]:
    """The callback of an option NAME=VALUE that may be repeated: returns the values by name.

    Args:
        parse: Returns a value; its ValueError means that the text is not a number.
        at_last: Split at the last "=", for names that may contain one.
    """

    def by_name(
        ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
    ) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for text in texts:
            name, equals, value = text.rpartition("=") if at_last else text.partition("=")
            if not name or not equals:
                raise click.BadParameter(f"{text!r} is not {param.metavar}.", ctx, param)
            if name in values:
                raise click.UsageError(f"{param.opts[0]} {name} is given twice.", ctx)
            try:
                values[name] = parse(value)
            except ValueError:
                raise click.BadParameter(
                    f"{value!r} is not a number, in {text!r}.", ctx, param
                ) from None
        return values

    return by_name


def metric(text: str) -> float:
    """A number; whole numbers are ints."""
    return int(text) if _WHOLE.fullmatch(text) else float(text)


def metric_option(function: Command) -> Command:
    """The option --metric, passed on as `metrics`: numbers by name."""
    return click.option(
        "--metric",
        "-M",
        "metrics",
        multiple=True,
        callback=pairs(metric, at_last=True),
        metavar="NAME=NUMBER",
        shell_complete=complete_metrics(end="="),
        help="A metric, as in val_loss=0.31. May be repeated.",
    )(function)


def step_option(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    """Check a training step."""
    if value is not None and value.bit_length() > STEP_BITS_MAX:
        raise click.BadParameter(f"{value} has more than {STEP_BITS_MAX} bits.", ctx, param)
    return value


def common(function: Command) -> Command:
    """The options of every command: --json, --quiet and --repo. The function takes `as_json`."""
    return repo_option(_quiet_option(_json_option(function)))


def revision_argument(help: str) -> Callable[[Command], Command]:
    """The required argument REV, passed on as `rev`."""
    return click.argument("rev", metavar="REV", shell_complete=complete_refs(), help=help)


def revisions_argument(help: str) -> Callable[[Command], Command]:
    """The optional arguments REV..., passed on as `revs`."""
    return click.argument(
        "revs", metavar="[REV]...", nargs=-1, shell_complete=complete_refs(), help=help
    )


def optional_revision_argument(
    help: str, *, default: str | None = None
) -> Callable[[Command], Command]:
    """The optional argument REV, passed on as `rev`."""
    return click.argument(
        "rev",
        metavar="[REV]",
        required=False,
        default=default,
        shell_complete=complete_refs(),
        help=help,
    )


def branch_option(help: str) -> Callable[[Command], Command]:
    """The option --branch of what commits, passed on as `branch`."""
    return click.option(
        "-b",
        "--branch",
        metavar="BRANCH",
        default=DEFAULT_BRANCH,
        show_default=True,
        shell_complete=complete_refs(tags=False),
        help=f"{help} It is created if it does not exist.",
    )


def rename_option(help: str) -> Callable[[Command], Command]:
    """The option --rename, passed on as a dict. help: what it renames, without a full stop."""
    return click.option(
        "--rename",
        multiple=True,
        metavar="OLD=NEW",
        callback=pairs(str),
        help=f"{help}: OLD is a regular expression that has to match the whole path of an array, "
        "or of a key, with which everything below it moves. NEW may refer to its groups as \\1. "
        "May be repeated; the first match applies.",
    )


def selection_options(function: Command) -> Command:
    """The options --include and --exclude, passed on as tuples of globs."""
    exclude = click.option(
        "--exclude",
        multiple=True,
        metavar="GLOB",
        shell_complete=complete_paths,
        help="Leave out arrays whose path matches. May be repeated.",
    )
    include = click.option(
        "--include",
        multiple=True,
        metavar="GLOB",
        shell_complete=complete_paths,
        help="Take only arrays whose path matches. May be repeated. * matches within one component "
        "of a path, ** across components; a name also matches everything below it.",
    )
    return include(exclude(function))
