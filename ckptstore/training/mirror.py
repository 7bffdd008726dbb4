"""Mirror: copies the branch of a run to another repository, such as a bucket, beside the training.

A save is done when it is on the local disk. A thread then pushes the branch: what is newest, with
its history. It repeats what fails, and never makes the training wait, until `close`. What the
mirror lacks is recorded in the local repository, so that no gc takes it (docs/adr/0065).
"""

from __future__ import annotations

import logging
import shlex
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from ckptstore import repository
from ckptstore.errors import (
    CkptStoreError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    StorageError,
    first_line,
)
from ckptstore.forks import renewed
from ckptstore.retention import UNMIRRORED_MAX
from ckptstore.store.author import as_training
from ckptstore.store.meter import Meter
from ckptstore.threads import Workers
from ckptstore.training.background import finish_all as finish_saves
from ckptstore.training.branch_gc import BranchGc
from ckptstore.training.disk import size
from ckptstore.training.mirrored import MIRROR_SECONDS
from ckptstore.training.ranks import launched_rank
from ckptstore.transfer.plan import plan_transfer
from ckptstore.transfer.remotes import checked_url
from ckptstore.transfer.wanted import Wanted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.digest import Digest
    from ckptstore.repository import Repository
    from ckptstore.retention import Policy
    from ckptstore.transfer.plan import TransferReport
    from ckptstore.transfer.side import Side

PAUSE_SECONDS, PAUSE_SECONDS_MAX = 1.0, 60.0  # after a push that failed: doubled each time
REFUSED_SECONDS = 60.0  # after a push that was refused, as the mirror has what is not here
WARNING_SECONDS = 60.0  # between two warnings
NOTICE_SECONDS = 10.0  # after which a wait for the mirror is announced
COUNTED_MAX = 100  # checkpoints of earlier runs that are counted as missing in the mirror
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorState:
    """How far the mirror of a run is.

    Attributes:
        url: The URL of the mirror.
        branch: The branch.
        checkpoint: The newest checkpoint that is durable there; None if there is none. Its arrays
            may have expired here.
        behind: How many newer checkpoints are only here.
        behind_seconds: How long the oldest of them has been waiting; 0 if there is none.
        error: Why the last push failed; empty once one has succeeded.
    """

    url: str
    branch: str
    checkpoint: Checkpoint | None = None
    behind: int = 0
    behind_seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A checkpoint that is not in the mirror yet, and since when it is here."""

    id: Digest
    step: int | None
    since: float


class Mirror:
    """The mirror of the branches that one manager saves to.

    Args:
        local: The repository of the manager.
        url: The place of the mirror.
        retention: The policy of the branches there; None applies the one that is saved there.
        keep_seeds: As in `BranchGc`.
        gc_every: The number of pushes for each gc there.

    Raises:
        InvalidInputError: The URL is none, or that of the repository itself.
    """

    def __init__(
        self,
        local: Repository,
        url: str | Path,
        *,
        retention: Policy | None = None,
        keep_seeds: bool = True,
        gc_every: int = 1,
    ) -> None:
        self.url = checked_url(url)
        if self.url == local.url:
            raise InvalidInputError(f"{self.place} is the repository itself, and no mirror of it.")
        self._local = local
        self._retention, self._keep_seeds, self._gc_every = retention, keep_seeds, gc_every
        self._is_here = launched_rank() == 0  # in this process, which alone pushes
        self._begin()
        _mirrors.add(self)
        renewed(self, Mirror._leave_to_parent)

    def _begin(self) -> None:
        self._there: Repository | None = None
        self._gc: BranchGc | None = None
        self._thread = ThreadPoolExecutor(1, "ckptstore-mirror")
        self._changed = threading.Condition()  # guards all below
        self._waiting: dict[str, list[_Waiting]] = {}  # by branch, the oldest first
        self._due: dict[str, None] = {}  # branches to push
        self._durable: dict[str, Digest | None] = {}  # the newest checkpoint there, by branch
        self._is_running = self._is_over = self._is_hurried = False
        self._error: CkptStoreError | None = None
        self._warned_at = -inf
        self._has_warned = self._keeps_all = False
        self._push = Workers(1)  # the owner of the push in progress
        self.has_pushed = False

    def _leave_to_parent(self) -> None:
        """Push nothing in a forked child: the mirror is the parent's."""
        self._begin()
        self._is_here = False

    @property
    def place(self) -> str:
        """The URL without options, for messages."""
        return self.url.partition("?")[0]

    def start(self, branch: str) -> None:
        """Make the mirror if there is none, and take from it what the branch lacks here.

        Raises:
            ConflictError: The mirror has another run's checkpoints on the branch.
            StorageError: It cannot be reached, and the branch is not here.
        """
        known = self._local.mirrors.get(branch)
        self._durable[branch] = known.id if known and known.url == self.url else None
        try:
            self._take(branch)
        except StorageError as error:
            if branch not in self._local.ref_names()[0]:
                raise StorageError(
                    f"The mirror {self.place} cannot be used, so it is unknown whether branch "
                    f"{branch!r} is there to be resumed: {first_line(error)}. Start again once it "
                    "can be used; or without a mirror, to begin a new run."
                ) from error
            self._failed(branch, error)
        if self._is_here:
            with as_training():
                self._local._set_mirror(branch, self.url, self._durable[branch])  # noqa: SLF001
            self._count(branch)

    def notify(self, branch: str, checkpoint: Checkpoint, *, keeps_all: bool) -> None:
        """Push a checkpoint that was saved to a branch. Returns at once.

        keeps_all: whether nothing of the branch is to expire now.
        """
        if not self._is_here:
            return
        with self._changed:
            self._keeps_all = keeps_all
            if checkpoint.id != self._durable.get(branch):
                made = _Waiting(checkpoint.id, checkpoint.step, time.monotonic())
                self._waiting.setdefault(branch, []).append(made)
                self._wake(branch)
            behind = len(self._waiting.get(branch, ()))
        if behind > UNMIRRORED_MAX:
            self._warn(branch, "it is slower than the saves")

    def durable(self, branch: str) -> Checkpoint | None:
        """Return the newest checkpoint of a branch that is durable in the mirror."""
        with self._changed:
            id = self._durable.get(branch)
        return None if id is None else self._local.resolve(id)

    def state(self, branch: str) -> MirrorState:
        """Return how far the mirror is with a branch."""
        checkpoint = self.durable(branch)
        with self._changed:
            waiting = self._waiting.get(branch, [])
            return MirrorState(
                url=self.url,
                branch=branch,
                checkpoint=checkpoint,
                behind=len(waiting),
                behind_seconds=time.monotonic() - waiting[0].since if waiting else 0.0,
                error=str(self._error or ""),
            )

    def wait(self, timeout: float) -> bool:
        """Wait until all is in the mirror, some seconds at most, and return whether it is."""
        end = time.monotonic() + timeout
        with self._changed:
            for branch in self._waiting:
                self._wake(branch)
            self._is_hurried = True  # no pause after a failure is waited for
            self._changed.notify_all()
            if not self._changed.wait_for(self._is_idle, min(timeout, NOTICE_SECONDS)):
                left = end - time.monotonic()
                if left > 0:
                    _log.warning("Waiting up to %.0f s for the mirror %s.", left, self.place)
                    self._changed.wait_for(self._is_idle, left)
            self._is_hurried = False
            return not self._waiting

    def close(self, timeout: float = MIRROR_SECONDS) -> CkptStoreError | None:
        """Wait for the push; return an error that names what is not in the mirror, if anything.

        The push is then given up. The next save begins another one.
        """
        try:
            if self.wait(timeout):
                return None
        finally:
            with self._changed:
                if self._is_running:
                    self._is_over = True
                    self._push.abandon()
                    self._changed.notify_all()
        with self._changed:
            lacking = {branch: list(waiting) for branch, waiting in self._waiting.items()}
            self._waiting.clear()
            error = self._error
        if not lacking:
            return None
        why = f" The last push failed: {first_line(error)}." if error else ""
        kind = ConflictError if isinstance(error, ConflictError) else StorageError
        return kind(
            f"{self._lacking(lacking)} in {self._local.url}, and not in the mirror {self.place}."
            f"{why} To push by hand: {self._command(list(lacking))}"
        )

    def _command(self, branches: Sequence[str]) -> str:
        words = ["ckptstore", "-r", self._local.url, "push", self.url, *branches]
        return shlex.join(words)

    @staticmethod
    def _lacking(lacking: dict[str, list[_Waiting]]) -> str:
        """Describe checkpoints that are not in the mirror."""
        parts = []
        for branch, waiting in lacking.items():
            first = "" if waiting[0].step is None else f" from step {waiting[0].step} on"
            number = f"{len(waiting)} checkpoint{'' if len(waiting) == 1 else 's'}"
            parts.append(f"{number} of {branch}{first}")
        total = sum(map(len, lacking.values()))
        return f"{', '.join(parts)} {'is' if total == 1 else 'are'} only"

    def _is_idle(self) -> bool:
        return self._is_over or not self._is_running

    def _wake(self, branch: str) -> None:
        """Have the thread push a branch. The caller holds the condition."""
        self._due[branch] = None
        self._is_over = False
        if not self._is_running:
            self._is_running = True
            try:
                self._thread.submit(self._catch_up)
            except RuntimeError as error:  # no thread can be started, or the interpreter ends
                self._is_running = False
                self._error = StorageError(f"No thread could be started: {error}")
        self._changed.notify_all()

    def _open(self) -> Repository | None:
        """Return the mirror, which is made if this process pushes to it; None if there is none."""
        if self._there is None:
            clock = self._local._clock  # noqa: SLF001
            try:
                there = repository.open(self.url, clock=clock)
            except NotFoundError:
                if not self._is_here:
                    return None
                chunk_bytes = self._local._side().chunk_bytes  # noqa: SLF001
                with suppress(ConflictError):  # another process made it just now
                    repository.init(self.url, chunk_size=chunk_bytes, clock=clock)
                there = repository.open(self.url, clock=clock)
            self._there = there
            self._gc = BranchGc(
                there,
                policy=self._retention,
                keep_seeds=self._keep_seeds,
                every=self._gc_every,
                has_mirror=True,
            )
        return self._there

    def _take(self, branch: str) -> None:
        """Fetch the newest checkpoint of a branch that has more there than here."""
        there = self._open()
        head = there.ref_names()[0].get(branch) if there else None
        if there is None or head is None:
            self._durable[branch] = None
            return
        here = self._local.ref_names()[0]
        if branch not in here or head != self._durable[branch]:
            asked = Wanted.of(branches=branch, depth=1, is_pull=True)
            try:
                plan = plan_transfer(_side(there), _side(self._local), asked, meter=Meter())
                with as_training():
                    report = plan.execute()
            except ConflictError as error:
                raise ConflictError(
                    f"The mirror {self.place} has checkpoints on branch {branch!r} that those in "
                    f"{self._local.url} are not made from, as of another run: {first_line(error)}. "
                    "Nothing was changed. Use another branch or another place; or move one of the "
                    "two branches away."
                ) from error
            if report.moves:
                taken = self._local.resolve(branch)
                _log.info(
                    "Fetched %s at step %s from %s: %s.",
                    *(branch, taken.step, self.place, size(report.bytes)),
                )
        self._durable[branch] = head

    def _count(self, branch: str) -> None:
        """Count what earlier runs left that is not in the mirror, and push it."""
        if branch not in self._local.ref_names()[0]:
            return
        now = time.monotonic()
        with self._changed:
            found = []
            for checkpoint in self._local.log(branch, limit=COUNTED_MAX):
                if checkpoint.id == self._durable[branch]:
                    break
                found.append(_Waiting(checkpoint.id, checkpoint.step, now))
            if found:
                self._waiting[branch] = found[::-1]
                self._wake(branch)

    def _catch_up(self) -> None:
        """Push, on the thread, until nothing is due; pause after each failure."""
        pause = PAUSE_SECONDS
        while (branch := self._next_due()) is not None:
            try:
                with as_training():
                    self._push.submit(lambda branch=branch: self._pushed(branch)).result()  # type: ignore[misc]
                pause = PAUSE_SECONDS
            except Exception as error:  # noqa: BLE001 - the training goes on whatever it is
                is_final = isinstance(error, (ConflictError, NotFoundError))
                with self._changed:
                    if not is_final and not self._is_over:
                        self._due[branch] = None
                if not self._is_over:
                    self._failed(branch, error)
                    if is_final:
                        self._rest(branch)
                    else:
                        self._pause(pause)
                        pause = min(2 * pause, PAUSE_SECONDS_MAX)

    def _next_due(self) -> str | None:
        """Take the next branch to push; None, and the end of the job, if there is none."""
        with self._changed:
            branch = None if self._is_over else next(iter(self._due), None)
            if branch is None:
                self._is_running = False
                self._changed.notify_all()
            else:
                del self._due[branch]
                self._push = Workers(1)
            return branch

    def _pause(self, seconds: float) -> None:
        """Wait until a push may be tried again: sooner if the manager is being closed."""
        with self._changed:
            if self._is_hurried:
                self._changed.wait_for(lambda: self._is_over, PAUSE_SECONDS)
            else:
                self._changed.wait_for(lambda: self._is_hurried or self._is_over, seconds)

    def _rest(self, branch: str) -> None:
        """Wait before a branch that was refused is tried again: not when the manager is closed.

        A push that is due meanwhile, of any branch, does not wait.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_hurried or self._is_over or bool(self._due), REFUSED_SECONDS
            )
            if not (self._is_hurried or self._is_over):
                self._due[branch] = None

    def _pushed(self, branch: str) -> None:
        """Push a branch once, and expire there what its policy does not keep."""
        there = self._open()
        assert there is not None
        begun = time.monotonic()
        asked = Wanted.of(branches=branch, dropped=self._durable.get(branch))
        report = plan_transfer(_side(self._local), _side(there), asked, meter=Meter()).execute()
        moved = (
            move.after for move in report.moves if (move.kind, move.name) == ("branch", branch)
        )
        id = next(moved, None) or there.ref_names()[0][branch]
        self._note(branch, id, report, time.monotonic() - begun)
        assert self._gc is not None
        self._gc.after_commit(branch, keeps_all=self._keeps_all)

    def _note(self, branch: str, id: Digest, report: TransferReport, seconds: float) -> None:
        """Note that a checkpoint and all before it are in the mirror."""
        with self._changed:
            waiting = self._waiting.get(branch, [])
            ids = [item.id for item in waiting]
            left = waiting[ids.index(id) + 1 :] if id in ids else []
            if left:
                self._waiting[branch] = left
            else:
                self._waiting.pop(branch, None)
            self._durable[branch] = id
            self._error = None
            self.has_pushed = True
            has_caught_up = self._has_warned and not left
            self._has_warned &= bool(left)
        step = self._local.resolve(id).step
        _log.info(
            "Pushed %s at step %s to the mirror %s: %d checkpoints, %s in %.1f s.",
            *(branch, step, self.place, len(report.checkpoints), size(report.bytes), seconds),
        )
        if has_caught_up:
            _log.warning(
                "The mirror %s has caught up: it has %s at step %s.", self.place, branch, step
            )
            self._warned_at = -inf

    def _failed(self, branch: str, error: Exception) -> None:
        """Note that a push failed."""
        is_foreseen = isinstance(error, CkptStoreError)
        text = first_line(error) if is_foreseen else f"{type(error).__name__}: {error}"
        with self._changed:
            self._error = error if isinstance(error, CkptStoreError) else StorageError(text)
        self._warn(branch, text, is_final=isinstance(error, (ConflictError, NotFoundError)))

    def _warn(self, branch: str, why: str, *, is_final: bool = False) -> None:
        """Log that checkpoints are not in the mirror, at most once a minute."""
        with self._changed:
            waiting = list(self._waiting.get(branch, ()))
            if time.monotonic() - self._warned_at < WARNING_SECONDS:
                return
            self._warned_at, self._has_warned = time.monotonic(), True
        what = f"{self._lacking({branch: waiting})} here. " if waiting else ""
        again = " with each save and every minute" if is_final else ""
        _log.warning(
            "The mirror %s is behind: %s. %sThe training goes on, and the push is tried again%s "
            "until it succeeds. "
            "The newest %d checkpoints of %s that are not there stay here whatever the policy; "
            "older ones may expire.",
            *(self.place, why.rstrip("."), what, again, UNMIRRORED_MAX, branch),
        )


def _side(repo: Repository) -> Side:
    """The parts of a repository, read without a listener to its progress."""
    side = repo._side()  # noqa: SLF001
    return replace(side, objects=side.objects.counted_by(Meter()))


_mirrors: weakref.WeakSet[Mirror] = weakref.WeakSet()


def _finish_all() -> None:
    """Wait for the saves and then for the pushes of managers that were not closed."""
    finish_saves()
    for mirror in list(_mirrors):
        if (error := mirror.close()) is not None:
            sys.stderr.write(f"ckptstore: {error}\n")


# As in `background`, which is called afterwards: the last to register is called first.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]  # noqa: SLF001
