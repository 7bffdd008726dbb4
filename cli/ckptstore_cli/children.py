"""Commands of the user that are run for a checkpoint: what they find in their environment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ckptstore_cli.repo import VARIABLE

if TYPE_CHECKING:
    from ckptstore import Checkpoint, Repository

REV_VARIABLE = "CKPTSTORE_REV"


def environment(repo: Repository, checkpoint: Checkpoint) -> dict[str, str]:
    """The environment of a command, in which `ckptstore` means the same repository."""
    return {**os.environ, VARIABLE: repo.url, REV_VARIABLE: checkpoint.id}


def filled(word: str, checkpoint: Checkpoint) -> str:
    """A part of a command with the {id} and {step} of a checkpoint."""
    step = "" if checkpoint.step is None else str(checkpoint.step)
    return word.replace("{id}", checkpoint.id).replace("{step}", step)
