"""The options that form a retention policy, for `gc` and `config retention`."""

from __future__ import annotations

import re
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

import click

from ckptstore.errors import InvalidInputError
from ckptstore.metric_names import quoting
from ckptstore_cli.hints import with_options
from ckptstore_cli.options import Duration, Size, complete_metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ckptstore.retention import Policy

    Command = Callable[..., None]


def policy_options(function: Command) -> Command:
    """The options of a policy, passed on under the names that `policy_of` takes."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def policy_of(options: Mapping[str, Any]) -> Policy | None:
    """The policy that the options form, which keeps what any of them keeps; None without any."""
    from ckptstore import retention

    made: dict[str, Callable[[Any], Policy]] = {
        "max_to_keep": retention.MaxToKeep,
        "keep_best": _best,
        "keep_every_n_hours": retention.KeepEveryNHours,
        "keep_every_n_steps": retention.KeepEveryNSteps,
        "keep_within": _within,
        "max_bytes": retention.MaxBytes,
    }
    parts: list[Policy] = []
    for name, make in made.items():
        given = options[name]
        for value in given if isinstance(given, tuple) else () if given is None else (given,):
            try:
                parts.append(make(value))
            except InvalidInputError as error:
                said = re.sub(r"^\w+: ", "", with_options(str(error)))  # no name of the class
                option = f"--{name.replace('_', '-')}"
                raise click.BadParameter(said, param_hint=option) from error
    if options["keep_all"]:
        parts.append(retention.KeepAll())
    return reduce(or_, parts) if parts else None


def _best(text: str) -> Policy:
    from ckptstore import retention

    best = retention.KeepBest.parse(text)
    if best is None:
        raise click.BadParameter(
            f"{text!r} is not METRIC[:MODE[:N]], as in val_loss, val_acc:max or val_loss:min:3."
            f"{with_options(quoting(text))}",
            param_hint="--keep-best",
        )
    return best


def _within(seconds: float) -> Policy:
    from ckptstore import retention

    return retention.KeepWithin(seconds / 3600)


_OPTIONS = (
    click.option("--max-to-keep", type=int, metavar="N", help="Keep the newest N of each branch."),
    click.option(
        "--keep-best",
        multiple=True,
        metavar="METRIC[:MODE[:N]]",
        shell_complete=complete_metrics(),
        help="Keep the N best (default 1) of each branch by a metric. MODE is min or max, if the "
        "metric's name does not tell whether less or more is better. May be repeated.",
    ),
    click.option(
        "--keep-every-n-hours",
        type=float,
        metavar="H",
        help="Keep one checkpoint every H hours.",
    ),
    click.option(
        "--keep-every-n-steps",
        type=int,
        metavar="N",
        help="Keep one checkpoint every N steps.",
    ),
    click.option(
        "--keep-within",
        type=Duration(),
        metavar="TIME",
        help="Keep the checkpoints of the last TIME of each branch, such as 24h or 7d, counted "
        "back from its newest one.",
    ),
    click.option(
        "--max-bytes",
        type=Size(),
        metavar="SIZE",
        help="Keep at most SIZE of each branch, such as 200GB, among the checkpoints that the "
        "other options keep, or among all. The newest and the best checkpoint always stay.",
    ),
    click.option("--keep-all", is_flag=True, help="Keep every checkpoint of every branch."),
)
