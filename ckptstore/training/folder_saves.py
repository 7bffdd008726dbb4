"""FolderSaves: a manager for programs that write checkpoints as folders by themselves.

It commits a folder where a CheckpointManager commits the state of tracked objects. All else is
that of a manager: the branch is held, and policies, mirrors and signals work as there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptstore import formats
from ckptstore.errors import ConflictError, InvalidInputError
from ckptstore.training.manager import CheckpointManager

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.repository import Repository
    from ckptstore.training.group import GroupSave
    from ckptstore.training.save_request import SaveRequest


class FolderSaves(CheckpointManager):
    """Saves folders to a branch, and begins a branch where a run resumes."""

    _folder: Any = None  # the state of the folder that is being saved

    def save_folder(
        self, path: Path, *, step: int | None = None, metrics: Mapping[str, object] | None = None
    ) -> None:
        """Save a folder. With `async_save` it is read in the background, also if it is removed.

        Args:
            path: The folder. Its files must not be changed afterwards, but replaced or removed.
            step: The step; None for that of its trainer_state.json.
            metrics: More metrics than are in there.

        Raises:
            CkptStoreError: As for `CheckpointManager.save`, or the folder cannot be read.
        """
        file = formats.read_file(path)
        self._folder = file.state
        epoch = {} if file.epoch is None else {"epoch": file.epoch}
        self.save(
            (file.step or 0) if step is None else step,
            metrics={**file.metrics, **(metrics or {})},
            meta={**file.meta, **epoch},
            force=True,
        )

    def resume(self, checkpoint: Checkpoint, *, resets: bool, way: str = "restore({!r})") -> None:
        """Go on from a checkpoint, which the program has loaded from a folder.

        Args:
            checkpoint: A checkpoint of this repository.
            resets: Whether the branch is to be moved back to it.
            way: As for `check_resume`.

        Raises:
            ConflictError: It is not the newest of the branch, which is not to be moved back.
        """
        self.check_resume(checkpoint, resets=resets, way=way)
        self._place.restored(checkpoint, self.branch, is_part=False, resets=resets)
        self._saved_step = checkpoint.step or 0

    def check_resume(
        self, checkpoint: Checkpoint, *, resets: bool, way: str = "restore({!r})"
    ) -> None:
        """Raise the error of `resume`, before a program loads a checkpoint.

        way: how users ask for a checkpoint, with a field for its id.
        """
        latest = self.latest
        if latest is not None and latest.id != checkpoint.id and not resets:
            raise ConflictError(
                f"The run would go on from checkpoint {checkpoint.id.short} (step "
                f"{checkpoint.step}), and branch {self.branch!r} is at {latest.id.short} (step "
                f"{latest.step}). To give up what came after, pass reset=True; undo can bring it "
                "back. To keep both, pass a new branch=, which then begins there, and name the "
                f"checkpoint: {way.format(checkpoint.id.short)}."
            )

    def _begin(self, request: SaveRequest, save: GroupSave | None) -> None:
        """Commit the folder, or have it committed in the background."""
        del save  # there is none: only rank 0 saves
        state, self._folder = self._folder, None
        self._place.begin(self.branch, request.step)
        self._start(lambda: self._commit(state, request))


def write_folder(checkpoint: Checkpoint, repository: Repository, path: Path) -> None:
    """Write a checkpoint of a folder as that folder again, in place of an earlier one.

    Raises:
        InvalidInputError: The checkpoint is not one of a folder, or the path is taken.
        CkptStoreError: It cannot be read or written.
    """
    state = repository.checkout(checkpoint.id, lazy=True)
    if not formats.holds_folder(state):
        raise InvalidInputError(
            f"Checkpoint {checkpoint.id.short} is not a folder of Hugging Face: it has no files. "
            "Load its weights with load_weights."
        )
    formats.write_file(state, path, overwrite=True)
