"""Place: where the next save of a run goes in the history of its branch.

The parent of a save is the checkpoint that the run restored, or that it saved last. Whatever would
put two lines into one is refused, or warned of where nothing was restored. See docs/adr/0050.
"""

from __future__ import annotations

import warnings
from collections import deque
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING
from weakref import finalize

from ckptstore.documents.manifest import SEED
from ckptstore.errors import (
    CkptStoreError,
    ConflictError,
    ExpiredError,
    InvalidInputError,
    NotFoundError,
)
from ckptstore.training.ranks import launched_rank

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.digest import Digest
    from ckptstore.documents.facts import Facts
    from ckptstore.repository import Repository
    from ckptstore.storage.hold import Hold

RESUMES = ("auto", "must", "never")
MADE_MAX = 1000
SAVE_FRAMES = 5  # from the caller of `save` to the warning

# The newest checkpoints that managers of this process made: their branches go on, as when a cell of
# a notebook is run again.
_made: deque[Digest] = deque(maxlen=MADE_MAX)


class Place:
    """The place of one run.

    Args:
        repository: The repository.
        resume: One of `RESUMES`.

    Attributes:
        keeps_all: True if checkpoints of another run are on the branch, which are not to expire.
        follows_head: True for a run that replaces what others saved: it follows any head.
        goes_on: True for a run that was restored elsewhere, if it was: it may go on at later steps.
    """

    def __init__(self, repository: Repository, *, resume: str) -> None:
        self._repository, self._resume = repository, resume
        self.keeps_all = self.follows_head = self.goes_on = False
        self._base: Checkpoint | None = None  # what the next save follows
        self._branch = ""  # the branch of this run when it got its base
        self._head: Digest | None = None  # the head of the branch then
        self._resets = False
        self._resumed: Digest | None = None  # what gc is to keep, as the history does not tell
        self._has_begun = False  # whether there was a save since the last restore
        self._hold: Hold | None = None
        self._held = ""  # the branch that it holds

    def start(self, branch: str) -> None:
        """Hold a branch, and check that a run may start on it.

        Raises:
            ConflictError: A manager of another process holds the branch.
            NotFoundError: The run has to resume, and the branch has no checkpoint.
            InvalidInputError: The run has to be a new one, and the branch has checkpoints of
                another.
        """
        self.hold(branch)
        if self._resume == "auto":
            return
        head = self._heads().get(branch)
        if self._resume == "must" and head is None:
            raise NotFoundError(
                f"Branch {branch!r} has no checkpoint to resume from. Check the name and the "
                "repository, or pass resume='auto' to start a new run."
            )
        if (
            self._resume == "never"
            and head is not None
            and _is_of_a_run(self._repository.resolve(head), branch)
        ):
            raise InvalidInputError(
                f"Branch {branch!r} has checkpoints, the newest {self._named(head)}, and this is "
                f"to be a new run. Use another branch, such as {self._free(branch)!r}, or pass "
                "resume='auto' and restore."
            )

    def restored(self, checkpoint: Checkpoint, branch: str, *, is_part: bool, resets: bool) -> bool:
        """Go on from a checkpoint.

        Args:
            checkpoint: The checkpoint.
            branch: The branch of the run.
            is_part: Whether only a part of it was restored. A run that has its place stays there.
            resets: Whether the branch is to be moved back to it.

        Returns:
            False if the run stays where it was.
        """
        if is_part and not resets and self._base is not None:
            self._resumed = checkpoint.id
            return False
        self._base, self._branch, self._head = checkpoint, branch, self._heads().get(branch)
        self._resets, self._has_begun, self.keeps_all = resets, False, False
        self._resumed = checkpoint.id if resets and checkpoint.id != self._head else None
        return True

    def begin(self, branch: str, step: int) -> None:
        """Check, before the state of a save is taken, that the save can follow its parent.

        Args:
            branch: The branch to save to.
            step: The step of the save.

        Raises:
            ConflictError: The branch is not at the checkpoint that this run restored.
            InvalidInputError: The run has to resume, and nothing was restored.
        """
        self.hold(branch)
        if self.follows_head or (self._has_begun and branch == self._branch):
            return
        head = None
        with suppress(CkptStoreError):  # the commit will raise it
            head = self._heads().get(branch)
        if head is not None:
            self._check_head(head, branch, step)
        if self._base is None:
            self._branch = branch
        self._has_begun = branch == self._branch

    def release(self) -> None:
        """Let other processes save to the branch; the next save holds it again."""
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def hold(self, branch: str) -> None:
        """Hold a branch against other processes. Of a group of them only the first does.

        Raises:
            ConflictError: A manager of another process holds the branch.

        A forked child may save with its parent's manager. If both save, the second of them gets an
        error, as the branch has moved.
        """
        if self._hold is not None and self._held == branch:
            self._hold.touch()
            return
        if launched_rank() > 0:
            return
        try:
            hold = self._repository.hold(branch)
        except ConflictError as error:
            raise ConflictError(
                f"{error} If it is not to run any more, end it. Otherwise use another branch, "
                f"such as {self._free(branch)!r}. To only read checkpoints, use "
                "Repository.checkout, load_weights or Repository.follow."
            ) from error
        self.release()
        self._hold, self._held = hold, branch
        finalize(self, hold.release)

    def _check_head(self, head: Digest, branch: str, step: int) -> None:
        base = self._base
        if base is None:
            latest = None
            with suppress(CkptStoreError):
                latest = self._repository.resolve(head)
            if latest is not None and _is_of_a_run(latest, branch):
                self._check_fresh(latest, branch, step)
        elif head != base.id and (head != self._head or branch != self._branch):
            raise self._moved(head, branch)
        elif head != base.id and not self._resets:
            raise ConflictError(
                f"This run restored {self._named(base.id)}, and branch {branch!r} is at "
                f"{self._named(head)}: its saves would continue another line. To give up what came "
                "after the restored one, restore it with reset=True; undo can bring that back. To "
                f"keep both, use another branch: set manager.branch, for example to "
                f"{self._free(branch)!r}, which then begins at the restored one."
            )

    def _check_fresh(self, latest: Checkpoint, branch: str, step: int) -> None:
        """Warn of a run that saves to the branch of another without having restored from it."""
        is_of_this_process = self.goes_on or latest.id in _made
        if is_of_this_process and step >= (latest.step or 0) and self._resume == "auto":
            return
        if self._resume != "auto":
            raise InvalidInputError(
                f"With resume={self._resume!r} a run cannot save to branch {branch!r}, which has "
                f"checkpoints, the newest {self._named(latest.id)}, without having restored one. "
                f"Restore first, or use another branch, such as {self._free(branch)!r}."
            )
        self.keeps_all = True
        warnings.warn(
            f"Branch {branch!r} has {self._named(latest.id)}, and this run saves step {step} "
            "without having restored one. Call restore_or_initialize first to continue the "
            f"branch, or use another branch, such as {self._free(branch)!r}. In this run no "
            "checkpoint of it expires.",
            stacklevel=SAVE_FRAMES,
        )

    def commit(
        self,
        state: object,
        branch: str,
        facts: Facts,
        make: Callable[..., Checkpoint] | None = None,
    ) -> Checkpoint:
        """Commit a state after its parent.

        make: commits it with the arguments of `Repository.commit`, which is the default.

        Raises:
            ConflictError: The branch has moved since.
        """
        parent = None if self.follows_head else self._parent(branch)
        try:
            made = (make or self._repository.commit)(
                state,
                branch=branch,
                parent=parent,
                retry=self.follows_head,
                step=facts.step,
                metrics=facts.metrics,
                message=facts.message,
                meta=dict(facts.meta),
            )
        except ConflictError as error:
            head = self._heads().get(branch)
            if self.follows_head or head in (None, parent):
                raise
            raise self._moved(head, branch) from error
        self._base, self._branch, self._head, self._resets = made, branch, made.id, False
        _made.append(made.id)
        if self._resumed is not None:
            with suppress(CkptStoreError):  # it may have expired, and the save is made
                self._repository.keep_resumed(branch, self._resumed)
            self._resumed = None
        return made

    def _parent(self, branch: str) -> Digest | None:
        """Return the head that the branch must have, after moving it there; None for any."""
        base, head = self._base, self._heads().get(branch)
        if base is None:
            return None
        if head is None:
            if self._head is None or branch != self._branch:
                with suppress(ExpiredError):  # since it was restored: the branch begins without it
                    return self._repository.branch(branch, base.id).id
            return None  # deleted or renamed since: it begins again
        if self._resets and head == self._head and head != base.id:
            self._repository.reset_branch(branch, base.id)
        return base.id

    def _moved(self, head: Digest, branch: str) -> ConflictError:
        who = "a newer manager of this process" if head in _made else "another writer"
        place = self._named(self._base.id) if self._base else "nothing that it restored"
        return ConflictError(
            f"Branch {branch!r} moved to {self._named(head)}: {who} saves to it, and this run "
            f"continues {place}. Nothing was saved. End this run, or restore to go on from the new "
            "checkpoint. To keep both, set manager.branch to another branch, such as "
            f"{self._free(branch)!r}: the next save begins it where this run is."
        )

    def _named(self, id: Digest) -> str:
        """Name a checkpoint with its step, for a message."""
        step = None
        with suppress(CkptStoreError):
            step = self._repository.resolve(id).step
        return f"checkpoint {id.short}" + ("" if step is None else f" (step {step})")

    def _free(self, branch: str) -> str:
        """Return the first free name of a branch like this one."""
        heads, tags = self._repository.ref_names()
        return next(
            name
            for name in (f"{branch}-{number}" for number in count(2))
            if name not in heads and name not in tags
        )

    def _heads(self) -> dict[str, Digest]:
        return self._repository.ref_names()[0]


def _is_of_a_run(head: Checkpoint, branch: str) -> bool:
    """Whether a run saved it on the branch: it has a step, and the branch did not begin with it."""
    is_own = head.branch in (branch, None) and SEED not in head.meta
    return is_own and head.step is not None
