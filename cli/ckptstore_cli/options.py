"""Options, arguments and completions that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from ckptstore_cli.repo import open_repository, repo_option

if TYPE_CHECKING:
    from collections.abc import Callable

    Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]
    Command = Callable[..., None]

DEFAULT_BRANCH = "main"

_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)


def common(function: Command) -> Command:
    """The options of every command: --json and --repo. The function takes `as_json`."""
    return repo_option(_json_option(function))


def complete_refs(*, branches: bool = True, tags: bool = True) -> Completer:
    """A completion of branch and tag names; silent about a repository that cannot be read."""

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        try:
            branch_names, tag_names = open_repository(ctx).ref_names()
        except Exception:  # noqa: BLE001 (it must never write into the line that is being typed)
            return []
        items = [CompletionItem(name, help="branch") for name in branch_names if branches]
        items += [CompletionItem(name, help="tag") for name in tag_names if tags]
        return [item for item in items if item.value.startswith(incomplete)]

    return complete


def revision_argument(help: str) -> Callable[[Command], Command]:
    """The argument REV that a command must be given, passed on as `rev`."""
    return click.argument("rev", metavar="REV", shell_complete=complete_refs(), help=help)


def optional_revision_argument(
    help: str, *, default: str | None = None
) -> Callable[[Command], Command]:
    """The argument REV that a command may be given, passed on as `rev`."""
    return click.argument(
        "rev",
        metavar="[REV]",
        required=False,
        default=default,
        shell_complete=complete_refs(),
        help=help,
    )


def selection_options(function: Command) -> Command:
    """The options --include and --exclude, passed on as tuples of globs."""
    exclude = click.option(
        "--exclude",
        multiple=True,
        metavar="GLOB",
        help="Leave out arrays with such a path; may be repeated.",
    )
    include = click.option(
        "--include",
        multiple=True,
        metavar="GLOB",
        help="Take only arrays with such a path; may be repeated. * stays within one part of a "
        "path, ** does not; a name also means all below it.",
    )
    return include(exclude(function))
