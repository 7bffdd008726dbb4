"""CheckpointManager: the checkpoints of one training run, saved while it goes on and found again when it starts anew."""

from __future__ import annotations

import difflib
import inspect
import sys
import time
from typing import TYPE_CHECKING, Any, Self

from ckptstore import repository
from ckptstore.commit.seed import SEED
from ckptstore.commit.staging import Staging
from ckptstore.documents.manifest import check_metrics
from ckptstore.documents.names import check_ref_name
from ckptstore.errors import CkptStoreError, InvalidInputError, NotFoundError, shown
from ckptstore.repository import Repository
from ckptstore.retention import KeepBest, KeepEveryNHours, KeepEveryNSteps, MaxToKeep, Policy, Union
from ckptstore.training.background import Background
from ckptstore.training.preemption import EXIT_CODE, Preemption
from ckptstore.training.tracked import capture, destination, settle, stateful
from ckptstore.training.triggers import Interval

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.training.tracked import Stateful

WHEN_BUSY = ("wait", "skip")


class CheckpointManager:
    """Saves and restores everything that a training run needs to go on as if it had never stopped.

    store: a repository, or where one is or is to be made. branch: the run's own line of checkpoints.
    max_to_keep, keep_best ("val_loss", "val_acc:max", "val_acc:max:3"), keep_every_n_hours, keep_every_n_steps, policy:
    a checkpoint of this branch stays if any of them keeps it, and gc follows each save; none given: the policy saved in
    the repository for all branches, or, without one, everything stays.
    save_interval_steps, save_interval_minutes: when `save` saves; at every call when neither is given.
    async_save: `save` returns once the state is copied to host memory, which takes as much memory as the state; hashing and
    writing go on in the background. when_busy: "wait" for the save before, or "skip" a save that comes too soon.
    save_on_signal: after SIGTERM the next `save` saves whatever is due, waits, and ends the program with exit code 143.
    rng: save and restore the random numbers of Python, numpy and torch, on all devices.
    tracked: by name, whatever has state_dict and load_state_dict (model, optimizer, scheduler, scaler, ema, loader, …), and
    random generators.
    """

    def __init__(
        self,
        store: str | Path | Repository,
        *,
        branch: str = "main",
        max_to_keep: int | None = None,
        keep_best: str | KeepBest | None = None,
        keep_every_n_hours: float | None = None,
        keep_every_n_steps: int | None = None,
        policy: Policy | None = None,
        save_interval_steps: int | None = None,
        save_interval_minutes: float | None = None,
        async_save: bool = True,
        when_busy: str = "wait",
        save_on_signal: bool = False,
        rng: bool = True,
        clock: Callable[[], float] = time.monotonic,
        **tracked: object,
    ) -> None:
        check_ref_name(branch, kind="branch")
        if when_busy not in WHEN_BUSY:
            raise InvalidInputError(f"when_busy is {shown(when_busy)}; wait or skip is expected.")
        best = _best(keep_best)
        given = (
            policy,
            None if max_to_keep is None else MaxToKeep(max_to_keep),
            best,
            None if keep_every_n_hours is None else KeepEveryNHours(keep_every_n_hours),
            None if keep_every_n_steps is None else KeepEveryNSteps(keep_every_n_steps),
        )
        self._policies = [part for part in given if part is not None]
        self._best = best or _first_best(policy)
        self._interval = Interval(steps=save_interval_steps, minutes=save_interval_minutes)
        self.branch = branch
        self.tracked: dict[str, Stateful] = {
            name: _tracked(name, value) for name, value in tracked.items() if value is not None
        }
        self.epoch: int | None = None
        self.batch: int | None = None
        self._rng, self._when_busy, self._clock = rng, when_busy, clock
        self._staging = Staging() if async_save else None
        self._background: Background[Checkpoint] = Background()
        self._made: Checkpoint | None = None
        self._preemption = Preemption()
        self._saved_step, self._saved_time = 0, clock()
        self.repository = (
            store if isinstance(store, Repository) else repository.open(store, create=True)
        )
        if save_on_signal:
            self._preemption.listen()

    def __repr__(self) -> str:
        return f"CheckpointManager({self.repository.url!r}, branch={self.branch!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the save in flight, and raise its error unless another one is on its way."""
        try:
            self.close()
        except Exception as failed:
            if error is None:
                raise
            error.add_note(f"Besides, the last save failed: {failed}")

    @property
    def preempted(self) -> bool:
        """True once SIGTERM came; the next `save` saves and ends the program."""
        return self._preemption.is_asked

    @property
    def latest(self) -> Checkpoint | None:
        """The newest checkpoint of the branch, saves in flight not counted; None before the first."""
        return self.repository.branches().get(self.branch)

    @property
    def best(self) -> Checkpoint | None:
        """The best checkpoint by `keep_best`'s metric; None when none has it. InvalidInputError without a metric."""
        if self._best is None:
            raise InvalidInputError(
                "There is no best without a metric. Pass keep_best='val_loss' or the like."
            )
        try:
            return self.repository.resolve(
                f"{self.branch}@best:{self._best.metric}:{self._best.mode}"
            )
        except NotFoundError:
            return None

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints of the branch that have not expired, oldest first."""
        if self.latest is None:
            return []
        found = self.repository.log(self.branch)
        return [checkpoint for checkpoint in reversed(found) if not checkpoint.expired]

    def restore_or_initialize(
        self,
        rev: str | None = None,
        *,
        init_fn: Callable[[], object] | None = None,
        strict: bool = True,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
    ) -> int:
        """Restore the newest checkpoint of the branch, or call init_fn when there is none: how many steps are done.

        A checkpoint that cannot be loaded is an error, never a fresh start. The arguments are those of `restore`.
        """
        if rev is None and self.latest is None:
            if init_fn is not None:
                init_fn()
            return 0
        return self.restore(rev, strict=strict, include=include, exclude=exclude).step or 0

    def restore(
        self,
        rev: str | None = None,
        *,
        strict: bool = True,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
    ) -> Checkpoint:
        """Bring everything tracked to a checkpoint, the newest of the branch by default.

        strict: CheckoutMismatchError lists every difference before anything changes; without it what fits is restored.
        include, exclude: globs of what to restore ("model/**"). What they leave out, and what a seed did not take from its
        source, stays as it is.
        """
        self.wait()
        try:
            checkpoint = self.repository.resolve(rev or self.branch)
            into, random, progress = destination(self.tracked, checkpoint.names)
            if include is None and SEED in checkpoint.meta:
                include = [f"{path}/**" for path in _tops(checkpoint)]
            self.repository.checkout(
                checkpoint.id, into=into, strict=strict, include=include, exclude=exclude
            )
        except CkptStoreError as error:
            error.add_note(
                "Nothing was started anew. Restore another checkpoint (rev=), only parts (include=, exclude=, strict=False), "
                "or choose another branch."
            )
            raise
        settle(self.tracked, random)
        found = progress.state or {}
        self.epoch, self.batch = found.get("epoch"), found.get("batch")
        self._saved_step, self._saved_time = checkpoint.step or 0, self._clock()
        return checkpoint

    def should_save(self, step: int) -> bool:
        """Whether `save` would save at this step; raises the error of a save that failed in the background."""
        self._background.raise_error()
        return self.preempted or self._interval.is_due(
            step, last_step=self._saved_step, seconds=self._clock() - self._saved_time
        )

    def save(
        self,
        step: int,
        *,
        metrics: Mapping[str, object] | None = None,
        message: str = "",
        meta: Mapping[str, Any] | None = None,
        epoch: int | None = None,
        batch: int | None = None,
        force: bool = False,
    ) -> bool:
        """Save when it is due, or with force: True when a checkpoint was made, or is being made in the background.

        step: how many steps are done. epoch, batch: the position in the data, given back after a restore. What the caller
        does to the tracked objects after this returns does not reach the checkpoint.
        """
        if not (force or self.should_save(step)):
            return False
        if self._background.is_busy and self._when_busy == "skip" and not (force or self.preempted):
            return False
        self._background.wait()
        facts = {"step": step, "metrics": check_metrics(metrics), "message": message, "meta": meta}
        progress = {"epoch": epoch, "batch": batch}
        state = capture(self.tracked, progress=progress, random=self._rng)
        if self._staging is None:
            self._commit(state, facts)
        else:
            staged = self._staging.copy(state)
            self._background.start(lambda: self._commit(staged, facts))
        self._saved_step, self._saved_time = step, self._clock()
        if self.preempted:
            self._end(step)
        return True

    def wait(self) -> Checkpoint | None:
        """Wait for the save in flight, and raise its error: the newest checkpoint that this manager made."""
        self._background.wait()
        return self._made

    def close(self) -> None:
        """Wait, raise the error of the last save, and give SIGTERM back."""
        self._preemption.close()
        self.wait()

    def _commit(self, state: object, facts: Mapping[str, Any]) -> Checkpoint:
        """Store a state, then give up what the policy does not keep."""
        made = self._made = self.repository.commit(state, branch=self.branch, retry=True, **facts)
        policies = self._decidable()
        if policies:
            policy = policies[0] if len(policies) == 1 else Union(tuple(policies))
            self.repository.gc(policy, branches=[self.branch])
        elif not self._policies and (saved := self.repository.retention) is not None:
            self.repository.gc(saved)
        return made

    def _decidable(self) -> list[Policy]:
        """The policies that can decide yet: no best before the first checkpoint has the metric."""
        if not any(policy.metrics for policy in self._policies):
            return self._policies
        known = {name for checkpoint in self.checkpoints for name in checkpoint.metrics}
        if all(policy.metrics <= known for policy in self._policies):
            return self._policies
        return [policy for policy in self._policies if policy.metrics <= known]

    def _end(self, step: int) -> None:
        """End the program after a save on SIGTERM."""
        self.close()
        sys.stderr.write(f"ckptstore: SIGTERM came; saved step {step} to {self.branch}.\n")
        raise SystemExit(EXIT_CODE)


def _tracked(name: str, value: object) -> Stateful:
    """What to track under a name; one that looks like an option is most likely that, mistyped."""
    try:
        return stateful(name, value)
    except InvalidInputError as error:
        options = inspect.signature(CheckpointManager).parameters
        if close := difflib.get_close_matches(name, options, n=1):
            raise InvalidInputError(f"{error} Did you mean {close[0]}?") from error
        raise


def _tops(checkpoint: Checkpoint) -> list[str]:
    """The first parts of all paths."""
    paths = (*checkpoint.values, *(array.path for array in checkpoint.arrays))
    return sorted({path.split("/")[0] for path in paths})


def _best(text: str | KeepBest | None) -> KeepBest | None:
    if text is None or isinstance(text, KeepBest):
        return text
    if not isinstance(text, str):
        raise InvalidInputError(
            f"keep_best is {shown(text)}; a metric such as 'val_loss' is expected."
        )
    best = KeepBest.parse(text)
    if best is None:
        raise InvalidInputError(f"keep_best is {shown(text)}; METRIC[:MODE[:N]] is expected.")
    return best


def _first_best(policy: Policy | None) -> KeepBest | None:
    parts = policy.parts if policy is not None else ()
    return next((part for part in parts if isinstance(part, KeepBest)), None)
