"""Finds and opens the repository of a command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptstore.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptstore import Repository

FOLDER = ".ckptstore"
VARIABLE = "CKPTSTORE_REPO"
_META_KEY = "ckptstore_cli.repo"


def open_repository(ctx: click.Context) -> Repository:
    """Open the repository given by the command line, the environment or the working folder."""
    import ckptstore

    folder = Path.cwd()
    url = named(ctx, os.environ) or nearest(folder)
    if url is None:
        raise NotFoundError(
            f"No repository found: neither {folder} nor a folder above it has a {FOLDER}. Check "
            f"the path, -r REPO or {VARIABLE}; to create one, use 'ckptstore init'."
        )
    return ckptstore.open(url)


def named(ctx: click.Context, environment: Mapping[str, str]) -> str | None:
    """The repository given by the command line, else by the environment."""
    return ctx.meta.get(_META_KEY) or environment.get(VARIABLE)


def nearest(folder: Path) -> str | None:
    """The nearest .ckptstore in this folder or one above it."""
    places = (place / FOLDER for place in (folder, *folder.parents))
    return next((str(place) for place in places if place.is_dir()), None)


def _remember(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value:
        ctx.meta[_META_KEY] = value


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
