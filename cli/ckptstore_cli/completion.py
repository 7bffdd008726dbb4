"""Completion in shells: revisions, metrics and paths of arrays of the repository.

On any error nothing is suggested: its message would appear in the line that is being typed.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, ClassVar

from click.shell_completion import BashComplete, CompletionItem, split_arg_string

from ckptstore_cli.repo import open_repository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import click

    from ckptstore import Repository

    Item = CompletionItem[str]
    Completer = Callable[[click.Context, click.Parameter, str], list[Item]]

DEFAULT_BRANCH = "main"
LOOKED_AT_MAX = 200  # checkpoints
OFFERED_MAX = 200
ID_DIGITS_MIN = 2
_BEST = re.compile(r"(?:(?P<base>[^@]+)@)?best:")
_STEP = re.compile(r"(?P<base>[^@]+)@step=")
_NEEDS_QUOTES = re.compile(r"[:@~\"'\s]")  # in a revision or a shell


def quietly(complete: Callable[[Repository, click.Context, str], Iterable[Item]]) -> Completer:
    """A completer whose items come from the repository of the command and match the typed text."""

    def completer(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Item]:
        try:
            items = [*complete(open_repository(ctx), ctx, incomplete)]
        except Exception:  # noqa: BLE001 - see above
            return []
        return [item for item in items if item.value.startswith(incomplete)][:OFFERED_MAX]

    return completer


def refs(*, branches: bool = True, tags: bool = True) -> Completer:
    """Complete names of branches or tags; for both together, other revisions too."""

    def items(repo: Repository, ctx: click.Context, typed: str) -> Iterator[Item]:
        branch_names, tag_names = repo.ref_names()
        yield from (CompletionItem(name, help="branch") for name in branch_names if branches)
        yield from (CompletionItem(name, help="tag") for name in tag_names if tags)
        if branches and tags and typed:
            yield from _revisions(repo, typed)

    return quietly(items)


def metrics(*, end: str = "") -> Completer:
    """Complete names of metrics. `end`: the text after the name, as in NAME=NUMBER."""

    def items(repo: Repository, ctx: click.Context, typed: str) -> Iterator[Item]:
        return (CompletionItem(f"{name}{end}", help="metric") for name in _metrics(repo, None))

    return quietly(items)


def _paths(repo: Repository, ctx: click.Context, typed: str) -> Iterator[Item]:
    """Yield the paths of arrays up to the next slash, in the checkpoint that the line names."""
    words = (ctx.params.get("rev"), ctx.params.get("a"), *ctx.args)  # args: before an open option
    rev = next(filter(None, words), DEFAULT_BRANCH)
    folder = typed[: typed.rfind("/") + 1]
    names: dict[str, None] = {}
    for array in repo.resolve(rev).arrays:
        if array.path.startswith(typed):
            head, slash, _ = array.path[len(folder) :].partition("/")
            names[f"{folder}{head}{slash}"] = None
    return (CompletionItem(name, help="array") for name in names)


paths = quietly(_paths)


def _revisions(repo: Repository, typed: str) -> Iterator[Item]:
    """Yield revisions beside the names of branches and tags."""
    if found := _BEST.match(typed):
        for name in _metrics(repo, found["base"]):
            yield CompletionItem(f"{found[0]}{name}", help="best")
    elif found := _STEP.match(typed):
        for step in {c.step: None for c in repo.log(found["base"], limit=LOOKED_AT_MAX)}:
            if step is not None:
                yield CompletionItem(f"{found[0]}{step}", help="step")
    elif typed.endswith("@"):
        yield CompletionItem(f"{typed}best:", help="the best of the branch by a metric")
        yield CompletionItem(f"{typed}step=", help="by step")
    else:
        yield CompletionItem("best:", help=f"the best of {DEFAULT_BRANCH} by a metric")
        yield CompletionItem("latest", help="the newest of all")
        if len(typed) >= ID_DIGITS_MIN:
            for c in repo.log(limit=LOOKED_AT_MAX, expired=False):
                id = c.id if len(typed) > len(c.id.short) else c.id.short
                at_step = "" if c.step is None else f" step {c.step}"
                yield CompletionItem(id, help=f"{c.branch or ''}{at_step}".strip())


def _metrics(repo: Repository, rev: str | None) -> list[str]:
    """The metrics of the newest checkpoints, except for names that need quotes."""
    found = repo.log(rev, limit=LOOKED_AT_MAX)
    names = {name for c in found for name in c.metrics}
    return sorted(name for name in names if not _NEEDS_QUOTES.search(name))


class WholeWords(BashComplete):
    """Completion for bash that keeps words with ":", "=" and "@" whole, as revisions are.

    Bash breaks its words there, and replaces only what follows the last of these.
    """

    source_template: ClassVar[str] = r"""%(complete_func)s() {
    local IFS=$'\n' line="${COMP_LINE:0:$COMP_POINT}" word="${COMP_WORDS[COMP_CWORD]}"
    local typed="${line##*[[:space:]]}" before type value completion response
    case "$word" in
        [:=@]) before="$typed" ;;
        *) before="${typed%%"$word"}" ;;
    esac
    response=$(env COMP_LINE="$line" %(complete_var)s=bash_complete $1)
    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"
        if [[ $type == 'dir' ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            COMPREPLY=()
            compopt -o default
        elif [[ $type == 'plain' ]]; then
            COMPREPLY+=("${value#"$before"}")
            case "$value" in *[/:=@]) compopt -o nospace ;; esac
        fi
    done
    return 0
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one that is being typed, and that one."""
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)
        if not line or line[-1].isspace():
            words.append("")
        return words[1:-1], words[-1] if words else ""
