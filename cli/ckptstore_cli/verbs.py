"""The commands of the program, and how a message names one for the repository of this command."""

from __future__ import annotations

import re
import shlex

import click

COMMANDS = (
    "init",
    "commit",
    "import",
    "annotate",
    "log",
    "best",
    "show",
    "ls",
    "checkout",
    "diff",
    "bisect",
    "branch",
    "tag",
    "follow",
    "clone",
    "remote",
    "push",
    "pull",
    "fetch",
    "ops",
    "undo",
    "expire",
    "gc",
    "config",
    "verify",
    "usage",
)
REPO_KEY = "ckptstore_cli.repo"  # in the meta of a context: the value of -r
_NAMED = re.compile(rf"\bckptstore (?=(?:{'|'.join(COMMANDS[1:])})\b)")


def for_this_repo(message: str) -> str:
    """Return a message whose commands name the repository with -r, if this command has it."""
    ctx = click.get_current_context(silent=True)
    url = ctx.meta.get(REPO_KEY) if ctx else None
    if url is None:
        return message
    named = shlex.join(["ckptstore", "-r", url])
    return _NAMED.sub(lambda _: f"{named} ", message)
