"""Finds and opens the repository of a command."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptstore.errors import InvalidInputError, NotFoundError
from ckptstore_cli import output
from ckptstore_cli.verbs import REPO_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptstore import Repository

FOLDER = ".ckptstore"
VARIABLE = "CKPTSTORE_REPO"


def open_repository(ctx: click.Context) -> Repository:
    """Open the repository given by the command line, the environment or the working folder."""
    return opened(named(ctx, os.environ) or _found())


def opened(url: str) -> Repository:
    """Open a repository, or the one in the .ckptstore of a folder."""
    import ckptstore

    try:
        repo = ckptstore.open(url, by_hand=True)
    except NotFoundError:
        inside = os.path.join(url, FOLDER)
        if not os.path.isdir(inside):
            raise
        repo = ckptstore.open(inside, by_hand=True)
    repo.on_progress(output.progress())
    return repo


def named(ctx: click.Context, environment: Mapping[str, str]) -> str | None:
    """The repository given by the command line, else by the environment."""
    return ctx.meta.get(REPO_KEY) or environment.get(VARIABLE)


def command(ctx: click.Context, *words: str) -> str:
    """A command line for the same repository, with -r if this command has it."""
    url = ctx.meta.get(REPO_KEY)
    return shlex.join(["ckptstore", *(("-r", url) if url else ()), *words])


def nearest(folder: Path) -> str | None:
    """The nearest .ckptstore in this folder or one above it on the same disk."""
    device = folder.stat().st_dev
    for place in (folder, *folder.parents):
        if place.stat().st_dev != device:
            return None
        if place.joinpath(FOLDER).is_dir():
            return str(place / FOLDER)
    return None


def _found() -> str:
    """The repository of the working folder. Whoever can write above it could have put one there."""
    try:
        folder = Path.cwd()
    except FileNotFoundError as error:
        raise NotFoundError(
            "The working folder is gone. Change to another one, or name the repository with "
            f"-r REPO or {VARIABLE}."
        ) from error
    url = nearest(folder)
    if url is None:
        if folder.joinpath("ckptstore.json").is_file():
            raise NotFoundError(f"{folder} is a repository itself: name it with -r .")
        raise NotFoundError(
            f"No repository found: neither {folder} nor a folder above it on the same disk has a "
            f"{FOLDER}. Check the path, -r REPO or {VARIABLE}; to create one, use 'ckptstore init'."
        )
    owners = {os.lstat(url).st_uid, os.stat(url).st_uid}
    if not owners <= _trusted(os.geteuid(), os.environ):
        raise InvalidInputError(
            f"{url} belongs to another user, so it is used only if you name it: -r {url}, or "
            f"{VARIABLE}."
        )
    return url


def _trusted(user: int, environment: Mapping[str, str]) -> set[int]:
    """The users whose repositories are used without being named, as git has it."""
    called_by = environment.get("SUDO_UID", "")
    return {user, int(called_by)} if user == 0 and called_by.isdecimal() else {user}


def _remember(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value:
        ctx.meta[REPO_KEY] = value


repo_option = click.option(
    "-r",
    "--repo",
    metavar="REPO",
    type=click.Path(file_okay=False),
    expose_value=False,
    callback=_remember,
    help=f"The repository: a folder or URL.  "
    f"[default: ${VARIABLE}, else the nearest {FOLDER} here or above]",
)
