"""CkptStoreIO: for those who keep ModelCheckpoint, its files name checkpoints."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.plugins.io import CheckpointIO

from ckptstore import repository
from ckptstore.documents.names import check_ref_name
from ckptstore.errors import ConflictError, ExpiredError, NotFoundError
from ckptstore.formats.torch.lightning import facts, meta
from ckptstore.integrations.lightning.addresses import is_address, parsed
from ckptstore.integrations.lightning.contents import checked, read
from ckptstore.repository import Repository
from ckptstore.this_run import run_meta

STUB, STUB_BYTES_MAX = "ckptstore", 10_000  # in a file that names a checkpoint


class CkptStoreIO(CheckpointIO):
    """Commits what Lightning saves to files, for those who keep `ModelCheckpoint`.

    In place of each file there is a small one that names the checkpoint. So `ModelCheckpoint`
    finds, names and removes files as ever, and `ckpt_path="last"` and the path of a file resume.
    The step, the epoch, the hyperparameters and the score of the file by `monitor` are recorded. A
    checkpoint whose file is removed or replaced expires. Random states are not saved: that takes
    `CkptStoreCallback`.

    Args:
        store: A folder or URL, where a repository is created if there is none, or a Repository.
        branch: The branch to commit to.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.callbacks import ModelCheckpoint
        >>> from ckptstore.integrations.lightning import CkptStoreIO
        >>> files = ModelCheckpoint("checkpoints", monitor="val_loss", save_last=True)
        >>> trainer = Trainer(
        ...     callbacks=[files], plugins=[CkptStoreIO("runs/lightning")]
        ... )  # doctest: +SKIP
    """

    def __init__(self, store: str | Path | Repository, *, branch: str = "main") -> None:
        self._repository = store if isinstance(store, Repository) else None
        self._store, self._branch = store, str(check_ref_name(branch, kind="branch"))
        self._files = TorchCheckpointIO()
        self._removed: list[str] = []  # ids of checkpoints that are to expire

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Commit a checkpoint, and write a file that names it.

        Args:
            checkpoint: Lightning's dict.
            path: The path of the file. Names that begin with a dot are Lightning's own temporary
                files, which are written as ever.
            storage_options: Passed on for such files.

        Raises:
            UnsupportedValueError: It holds a value that no checkpoint can hold.
        """
        name = Path(path).name
        if name.startswith("."):
            self._files.save_checkpoint(checkpoint, path, storage_options)
            return
        repo, found = self._opened(), facts(checkpoint, name)
        made = repo.commit(
            checkpoint,
            branch=self._branch,
            step=found.get("step"),
            metrics=found.get("metrics"),
            meta=run_meta() | meta(checkpoint) | {"file": name},
            retry=True,
        )
        document = {STUB: repo.url, "id": str(made.id), "branch": self._branch}
        self._let_go(path)
        fs, file = url_to_fs(str(path))
        fs.makedirs(os.path.dirname(file), exist_ok=True)
        fs.pipe_file(f"{file}.part", json.dumps(document).encode())
        fs.mv(f"{file}.part", file)
        self._expire()

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            path: A file that names one, an address, or any file of Lightning.
            map_location: For files of Lightning.
            weights_only: For files of Lightning.

        Returns:
            Lightning's dict.

        Raises:
            NotFoundError: There is no such checkpoint.
        """
        if is_address(path):
            store, rev = parsed(str(path))
            repo = repository.open(store) if store else self._opened()
        elif (named := _named(path)) is not None:
            repo, rev = repository.open(named[STUB]), named["id"]
        else:
            return dict(self._files.load_checkpoint(path, map_location, weights_only))
        return read(repo, checked(repo.resolve(rev)), is_fitting=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a file, and let the checkpoint that it names expire.

        Args:
            path: The path of the file.
        """
        self._let_go(path)
        self._files.remove_checkpoint(path)
        self._expire()

    def _let_go(self, path: str | Path) -> None:
        """Note that the checkpoint that a file names is to expire, if it names one."""
        if (named := _named(path)) is not None and named[STUB] == self._opened().url:
            self._removed.append(named["id"])

    def _expire(self) -> None:
        """Expire what was removed; the newest of the branch only after the next save."""
        repo = self._opened()
        head = repo.ref_names()[0].get(self._branch)
        for rev in [rev for rev in self._removed if rev != str(head)]:
            self._removed.remove(rev)
            with suppress(ConflictError, ExpiredError, NotFoundError):  # it has a tag, say
                repo.expire(rev).execute()

    def _opened(self) -> Repository:
        """The repository."""
        if self._repository is None:
            assert not isinstance(self._store, Repository)
            self._repository = repository.open(self._store, create=True)
        return self._repository


def _named(path: object) -> dict[str, str] | None:
    """What a file of CkptStoreIO says; None for another file."""
    fs, file = url_to_fs(str(path))
    if not fs.isfile(file) or fs.size(file) > STUB_BYTES_MAX:
        return None
    try:
        document = json.loads(fs.cat_file(file))
    except ValueError:
        return None
    is_stub = isinstance(document, dict) and {STUB, "id"} <= document.keys()
    return document if is_stub else None
