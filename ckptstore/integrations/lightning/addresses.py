"""Addresses: checkpoints in place of the paths that Lightning is given.

"ckptstore://REV" is one of the callback's repository, "ckptstore://STORE#REV" one of any.
"""

# ruff: noqa: ARG002 - fsspec passes on options that are of other file systems

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from ckptstore import formats, repository
from ckptstore.errors import InvalidInputError, NotFoundError, shown

if TYPE_CHECKING:
    from datetime import datetime

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.repository import Repository

SCHEME = "ckptstore://"
LAST, BEST = "last", "best"


def is_address(path: object) -> bool:
    """True for what Lightning is given in place of a path, and that names a checkpoint."""
    return str(path).startswith(SCHEME)


def parsed(address: str) -> tuple[str, str]:
    """The store of an address, "" where it names none, and the revision."""
    store, _, rev = address.removeprefix(SCHEME).rpartition("#")
    if not rev:
        raise InvalidInputError(
            f"{shown(address)} names no checkpoint; {SCHEME}REV or {SCHEME}STORE#REV is expected."
        )
    return store, rev


def found(path: str) -> tuple[Repository, Checkpoint]:
    """The repository and the checkpoint of an address outside of a Trainer."""
    store, rev = parsed(path)
    if not store:
        raise InvalidInputError(
            f"{shown(path)} names no repository; {SCHEME}STORE#REV is expected."
        )
    repo = repository.open(store)
    return repo, repo.resolve(rev)


class StoreFileSystem(fsspec.AbstractFileSystem):
    """Checkpoints in repositories as the files that Lightning looks for and opens.

    So `ckpt_path="last"` finds them, and `LightningModule.load_from_checkpoint` reads them.
    """

    protocol = "ckptstore"

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """The name, size and time of a checkpoint."""
        checkpoint = found(path)[1]
        return {
            "name": path,
            "size": checkpoint.array_bytes,
            "type": "file",
            "mtime": checkpoint.created,
        }

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether there is such a checkpoint."""
        try:
            return not found(path)[1].expired
        except NotFoundError:
            return False

    def modified(self, path: str) -> datetime:
        """When it was made."""
        return found(path)[1].created

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        """Open it as a .ckpt for reading."""
        if mode != "rb":
            raise InvalidInputError(f"{SCHEME}{path} can only be read as a file.")
        repo, checkpoint = found(path)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "checkpoint.ckpt")
            formats.write_file(repo.checkout(checkpoint.id, lazy=True), file)
            return file.open("rb")  # which stays when its name is gone


fsspec.register_implementation("ckptstore", StoreFileSystem, clobber=True)
