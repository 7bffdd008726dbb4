"""Hugging Face's accelerate: what `save_state` writes is committed, for `load_state` to read.

The folder is whole (docs/adr/0073): models, optimizers, schedulers, samplers, random states of each
process, and objects that are registered for checkpointing. A program without these can as well pass
what `prepare` returns to a CheckpointManager.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ckptstore import repository
from ckptstore.errors import CkptStoreError
from ckptstore.integrations import needed
from ckptstore.repository import Repository
from ckptstore.training.folder_saves import FolderSaves, write_folder

with needed("hf"):
    from accelerate.utils import broadcast_object_list

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from accelerate import Accelerator

    from ckptstore.retention import KeepBest, Policy

__all__ = ["AcceleratorManager"]


class AcceleratorManager:
    """Saves and restores the state of an Accelerator, as `save_state` and `load_state` do.

    Make one on every process, after `prepare`, and call its methods alike on all. Leaving it as a
    context manager waits for the last save.

    Args:
        accelerator: The Accelerator.
        store: A folder or URL, where a repository is created if there is none, or a Repository.
        branch: The branch of this run. If it is a new one, and the run restores a checkpoint of the
            repository, it begins there.
        max_to_keep: Keep the newest N checkpoints.
        keep_best: Keep the best by a metric: "METRIC", "METRIC:MODE" or "METRIC:MODE:N".
        keep_every_n_hours: Keep one checkpoint every N hours.
        keep_every_n_steps: Keep one checkpoint every N steps.
        policy: Any policy of `ckptstore.retention`. A checkpoint is kept if any of these keeps it.
        reset: Move the branch back to a checkpoint that is restored. Without it, to restore another
            than the newest of the branch is an error.
        async_save: Hash and store in the background.
        mirror: A path or URL to which a thread pushes the branch after each save.
        folder: Where a folder is written for a moment, the same on all machines; None for the
            folder of temporary files.

    Raises:
        InvalidInputError: An argument is invalid.
        ConflictError: A manager of another process saves to the branch.

    Example:
        >>> import torch
        >>> from accelerate import Accelerator
        >>> from ckptstore.integrations.accelerate import AcceleratorManager
        >>> accelerator = Accelerator(cpu=True)
        >>> model = accelerator.prepare(torch.nn.Linear(2, 1))
        >>> with AcceleratorManager(accelerator, "memory://accelerate-example") as manager:
        ...     start = manager.restore_or_initialize()
        ...     manager.save(1, metrics={"loss": 0.5})
        >>> start, manager.restore_or_initialize()
        (0, 1)
    """

    def __init__(
        self,
        accelerator: Accelerator,
        store: str | Path | Repository,
        *,
        branch: str = "main",
        max_to_keep: int | None = None,
        keep_best: str | KeepBest | None = None,
        keep_every_n_hours: float | None = None,
        keep_every_n_steps: int | None = None,
        policy: Policy | None = None,
        reset: bool = False,
        async_save: bool = True,
        mirror: str | Path | None = None,
        folder: str | Path | None = None,
    ) -> None:
        self.accelerator, self.branch = accelerator, branch
        self._store, self._reset, self._folder = store, reset, folder
        self._saves: FolderSaves | None = None
        self._on_main(
            lambda: self._begin(
                max_to_keep=max_to_keep,
                keep_best=keep_best,
                keep_every_n_hours=keep_every_n_hours,
                keep_every_n_steps=keep_every_n_steps,
                policy=policy,
                async_save=async_save,
                mirror=mirror,
            )
        )

    def _begin(self, **options: Any) -> None:
        self._saves = FolderSaves(
            self._store, branch=self.branch, rng=False, ranks="first", **options
        )

    @property
    def repository(self) -> Repository:
        """The repository."""
        if self._saves is not None:
            return self._saves.repository
        return self._store if isinstance(self._store, Repository) else repository.open(self._store)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the save in flight, and let other processes save to the branch."""
        if self._saves is not None:
            self._saves.__exit__(kind, error, traceback)

    def save(self, step: int, *, metrics: Mapping[str, object] | None = None) -> None:
        """Save the state of all processes as one checkpoint.

        Args:
            step: The number of steps done.
            metrics: Numbers by name.

        Raises:
            CkptStoreError: As for `CheckpointManager.save`. With `async_save`, an error of the save
                is raised by the next call.
        """
        path = Path(self._on_main(self._new_folder))
        try:
            self.accelerator.save_state(str(path))
            self.accelerator.wait_for_everyone()
            self._on_main(lambda: self._commit(path, step, metrics))
        finally:
            self._remove(path)

    def _commit(self, path: Path, step: int, metrics: Mapping[str, object] | None) -> None:
        assert self._saves is not None, "on the main process"
        self._saves.save_folder(path, step=step, metrics=metrics)

    def restore(self, rev: str | None = None) -> int:
        """Restore a checkpoint on all processes, by default the newest of the branch.

        Args:
            rev: Any revision of the repository.

        Returns:
            Its step, 0 if it has none.

        Raises:
            NotFoundError: There is no such checkpoint.
            ExpiredError: It has expired.
            ConflictError: It is not the newest of the branch, and `reset` is not set.
            InvalidInputError: It is not one of a folder.
        """
        id, path = self._on_main(lambda: self._resolve(rev))
        path = Path(path)
        try:
            if self.accelerator.is_local_main_process:
                repo = self.repository
                write_folder(repo.resolve(id), repo, path / "state")
            self.accelerator.wait_for_everyone()
            self.accelerator.load_state(str(path / "state"))
            return int(self._on_main(lambda: self._resume(id)))
        finally:
            self._remove(path)

    def restore_or_initialize(self) -> int:
        """Restore the newest checkpoint of the branch; return 0 if there is none."""
        is_new = self._on_main(lambda: self.branch not in self.repository.ref_names()[0])
        return 0 if is_new else self.restore()

    def close(self) -> None:
        """Wait for the save in flight, raise its error, and release the branch."""
        if self._saves is not None:
            self._saves.close()

    def _resolve(self, rev: str | None) -> tuple[str, str]:
        """The checkpoint of a revision, and a new folder for it."""
        assert self._saves is not None, "on the main process"
        checkpoint = self.repository.resolve(self.branch if rev is None else rev)
        self._saves.check_resume(checkpoint, resets=self._reset)
        return str(checkpoint.id), self._new_folder()

    def _resume(self, id: str) -> int:
        assert self._saves is not None, "on the main process"
        checkpoint = self.repository.resolve(id)
        self._saves.resume(checkpoint, resets=self._reset)
        return checkpoint.step or 0

    def _new_folder(self) -> str:
        if self._folder is not None:
            Path(self._folder).mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(prefix="ckptstore-accelerate-", dir=self._folder)

    def _remove(self, path: Path) -> None:
        """Remove a folder, once all processes are through with it."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_local_main_process:
            shutil.rmtree(path, ignore_errors=True)

    def _on_main(self, act: Callable[[], Any]) -> Any:
        """What the main process returns or raises, on all processes."""
        answer: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            try:
                answer[0] = act()
            except CkptStoreError as error:
                answer[1] = error
        if self.accelerator.num_processes > 1:
            broadcast_object_list(answer)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]
