"""Heal: what can be done about each kind of damage."""

from __future__ import annotations

DAMAGED = (
    "Once repair has moved it aside, commit the same state again, or copy the file from another "
    "copy of the repository."
)
MISSING = (
    "Copy the file from another copy of the repository, or commit the same state again: a commit "
    "stores what is missing."
)
CONTENT = (
    "The file is as it was written, so no copy of it helps. Commit the state again under another "
    "branch, and delete the branches and tags that reach these checkpoints."
)
MANIFEST = (
    "Copy the file from another copy of the repository. Without one, delete the branches and tags "
    "that name the checkpoint, and make them again at a checkpoint that is left."
)
HISTORY = (
    "Copy the file from another copy of the repository. Without one, commit what is to stay to a "
    "new branch, and delete the branches and tags that were made from the checkpoint: until then "
    "gc expires nothing."
)
EXPIRED = (
    "The operations are older than the checkpoints. Copy ops/ from the newest copy of the "
    "repository, or make the branch or tag again at a checkpoint that is left."
)
OPERATION = (
    "Copy the file from another copy of the repository. An operation that is not the newest is "
    "only read by undo."
)
EXPIRY = (
    "Copy the file from another copy of the repository, or delete it: it only states when and why "
    "a checkpoint expired."
)
NOTE = (
    "Copy the file from another copy of the repository, or delete it and annotate the checkpoint "
    "again. Until then the checkpoint cannot be shown, as its metrics are not known."
)
MARKER = "Copy the file from another copy of this repository."
FOLDER = "Put back the folder itself in place of a link or a file."
OPERATIONS = (
    "Copy ops/ from the newest copy of the repository. Without one, make a branch at each "
    "checkpoint that is to stay; those before it stay with it."
)
