"""Remotes: names for other repositories, which are settings of a repository. Never transferred.

A name in a repository that was downloaded could send uploads to a stranger, so no transfer copies
this setting (docs/adr/0061).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptstore.digest import Digest
from ckptstore.documents.names import check_ref_name
from ckptstore.documents.settings import MIRRORED, REMOTES, Mirrored, by_name, with_part
from ckptstore.errors import InvalidInputError, NotFoundError, shown
from ckptstore.metric_names import known_names
from ckptstore.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Change = Callable[[Mapping[str, Any]], Mapping[str, Any]]

DEFAULT = "origin"
NAME_LENGTH_MAX = 100
REMOTES_MAX = 100  # every operation carries them along
URL_LENGTH_MAX = 4096
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def remotes_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the URL of each remote by name."""
    found = by_name(settings, REMOTES)
    return {name: url for name, url in sorted(found.items()) if isinstance(url, str)}


def change_remote(name: object, url: object) -> tuple[Change, str]:
    """Return a change of the settings that sets or, for None, removes a remote; and its words.

    Raises:
        InvalidInputError: The name or the URL is not legal.
    """
    legal = check_remote(name)
    saved = None if url is None else checked_url(url)

    def change(settings: Mapping[str, Any]) -> Mapping[str, Any]:
        remotes = remotes_of(settings)
        if saved is None and legal not in remotes:
            raise _unknown(legal, remotes)
        if legal not in remotes and len(remotes) >= REMOTES_MAX:
            raise InvalidInputError(f"There are {REMOTES_MAX} remotes. Remove one first.")
        return with_part(settings, f"{REMOTES}/{legal}", saved)

    return change, f"{'removed' if saved is None else 'set'} remote {legal}"


def change_mirror(branch: object, url: object, newest: object) -> tuple[Change, str]:
    """Return a change of the settings that sets or removes the mirror of a branch; and its words.

    Raises:
        InvalidInputError: An argument is not legal.
    """
    name = check_ref_name(branch, kind="branch")
    saved: Any = None
    if url is not None:
        id = None if newest is None else Digest.parse(newest)
        saved = Mirrored(url=checked_url(url), id=id).to_json()

    def change(settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return with_part(settings, f"{MIRRORED}/{name}", saved)

    return change, f"{'removed' if saved is None else 'set'} the mirror of {name}"


def check_remote(name: object) -> str:
    """Return a legal name of a remote, or raise InvalidInputError."""
    if (
        not isinstance(name, str)
        or len(name) > NAME_LENGTH_MAX
        or not _NAME.fullmatch(name)
        or name.endswith((".lock", "."))
        or ".." in name
    ):
        raise InvalidInputError(
            f"{shown(name)} cannot name a remote: use up to {NAME_LENGTH_MAX} letters, digits and "
            "._-, beginning with a letter, digit or _."
        )
    return name


def checked_url(url: object) -> str:
    """Return the URL under which a place is found from any folder.

    Raises:
        InvalidInputError: It is no place of a repository, or holds credentials.
    """
    if not isinstance(url, (str, Path)) or len(str(url)) > URL_LENGTH_MAX:
        raise InvalidInputError(f"{shown(url)} is not a path or URL of a repository.")
    return open_storage(url).url


def url_of(remote: object, settings: Mapping[str, Any]) -> str | Path:
    """Return the place that a caller names: a remote, a URL or a path.

    Args:
        remote: Its name; None for "origin", or the only remote. Anything with a slash, or that is
            no name, is a URL or path.
        settings: Those of the repository.

    Raises:
        NotFoundError: There is no such remote.
        InvalidInputError: None is given, and it is not clear which one is meant.
    """
    if isinstance(remote, Path):
        return remote
    remotes = remotes_of(settings)
    if (
        isinstance(remote, str)
        and remote not in remotes
        and (os.sep in remote or not _NAME.fullmatch(remote))
    ):
        return remote
    return remotes[name_of(remote, remotes)]


def name_of(remote: object, remotes: Mapping[str, str]) -> str:
    """Return the name of a remote that exists; "origin", or the only one, for None."""
    if remote is None:
        if DEFAULT in remotes:
            return DEFAULT
        if len(remotes) == 1:
            return next(iter(remotes))
        known = f"There are {', '.join(remotes)}." if remotes else "The repository has none."
        raise InvalidInputError(f"No remote is named, and none is {DEFAULT!r}. {known}")
    if not isinstance(remote, str):
        raise InvalidInputError(f"{shown(remote)} is not a remote, path or URL.")
    if remote not in remotes:
        raise _unknown(remote, remotes)
    return remote


def _unknown(name: str, remotes: Mapping[str, str]) -> NotFoundError:
    known = "The repository has no remotes."
    if remotes:
        known = known_names(name, sorted(remotes), what="remotes")
    return NotFoundError(
        f"There is no remote {shown(name)}. {known} A path is recognised by its slash, as in "
        "./NAME."
    )
