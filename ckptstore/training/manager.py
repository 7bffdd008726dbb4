"""CheckpointManager: saves the checkpoints of one training run, and restores them when it restarts.

It decides when to save and what to keep; commit, checkout and gc are those of `Repository`.
"""

from __future__ import annotations

import inspect
import logging
import math
import sys
import time
import warnings
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, NoReturn, Self, SupportsFloat

from ckptstore import repository
from ckptstore.arrays.keras import pair_optimizers
from ckptstore.commit.staging import Staging
from ckptstore.commit_hooks import CommitEvent, Hooks
from ckptstore.documents.names import check_ref_name
from ckptstore.errors import (
    CkptStoreError,
    InvalidInputError,
    RankError,
    check_choice,
    meant,
    shown,
)
from ckptstore.forks import renewed
from ckptstore.repository import Repository
from ckptstore.store.author import as_training
from ckptstore.this_run import run_meta
from ckptstore.training.arguments import ALIKE_MIN, NAMES, advice, explained
from ckptstore.training.background import Background
from ckptstore.training.branch_gc import (
    BranchGc,
    first_best,
    joined,
    parsed_best,
    stored_best,
)
from ckptstore.training.differences import environment
from ckptstore.training.disk import ON_FULL, Disk
from ckptstore.training.group import RANK_SECONDS, checked_ranks, joined_group
from ckptstore.training.loaders.ends import stay_in_epoch
from ckptstore.training.mirrored import (
    MIRROR_SECONDS,
    MirroredRun,
    checked_retention,
    checked_timeout,
)
from ckptstore.training.place import RESUMES, Place
from ckptstore.training.preemption import Preemption, chosen_signals
from ckptstore.training.ranks import OtherRanks, rank_and_size, refuse_shards
from ckptstore.training.resume import names_to_reset, restore_rev
from ckptstore.training.save_request import SaveRequest, step_number
from ckptstore.training.tracked import capture, stateful
from ckptstore.training.triggers import Interval

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import SupportsIndex

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.retention import KeepBest, Policy
    from ckptstore.training.group import GroupSave
    from ckptstore.training.resume import ResumeReport
    from ckptstore.training.tracked import Stateful

WHEN_BUSY = ("wait", "skip")
NOT_DUE, BUSY, DUE = "not due", "busy", "due"  # what `save` finds
CONSTRUCTOR_FRAMES = 3  # from the caller of the constructor to a warning in it
_log = logging.getLogger(__name__)


class CheckpointManager(MirroredRun):
    """Saves and restores everything that a training run needs to continue as if never interrupted.

    Under an initialised torch.distributed group every rank makes a manager and calls its methods
    alike. One checkpoint has what is of each rank: its part of sharded tensors, its random states,
    and what differs between ranks. Of all else it has the copy of rank 0 (see docs/adr/0069).

    A checkpoint of the branch is kept if any of `max_to_keep`, `keep_best`, `keep_every_n_hours`,
    `keep_every_n_steps` and `policy` keeps it. A gc of this branch alone runs after each save, or
    after every `gc_every`-th. The policy is saved in the repository for the branch, so that any
    other gc obeys it; with a KeepIf, which cannot be saved, any other gc leaves the branch alone. A
    policy saved for the branch later, by another program, takes its place at the next save. Without
    any of these arguments the saved policy applies; without one, everything is kept. An error of gc
    is logged and never fails a save. While the metric of `keep_best` may still come, nothing
    expires for lack of it.

    The manager is a context manager; leaving it calls `close`. Until then, no manager of another
    process can be made for the branch. In one process a newer manager takes over with its first
    save, and later saves of the earlier one are errors.

    Args:
        store: A folder or URL, where a repository is created if there is none, or a Repository.
        branch: The branch of this run.
        max_to_keep: Keep the newest N checkpoints.
        keep_best: Keep the best by a metric: "METRIC", "METRIC:MODE" or "METRIC:MODE:N", such as
            "val_loss", "val_acc:max" or "val_acc:max:3". It also defines `best`. Without a mode the
            words of the name decide, and a name that does not say its direction is an error.
        keep_every_n_hours: Keep one checkpoint every N hours.
        keep_every_n_steps: Keep one checkpoint every N steps.
        policy: Any policy of `ckptstore.retention`.
        keep_seeds: Whether a checkpoint of this branch stays because another branch was started
            from it. If False, the policy decides.
        gc_every: Run gc after the first save and then after every N-th. Until then up to N - 1
            checkpoints more than the policy keeps take space.
        mirror: A path or URL, such as "s3://bucket/run", to which a thread pushes the branch after
            each save. It is made if it is not there. A save is durable on the local disk at once,
            and in the mirror once `latest_durable("mirror")` has come to it. If the branch is not
            here, or has more there, its newest checkpoint is fetched first. A mirror that is slow
            or cannot be reached never stops the training; it is warned of at most once a minute.
        mirror_retention: The policy of the branch in the mirror, by which a gc runs there after
            each push. Without one, the policy that is saved there applies. Here, the newest 10
            checkpoints that are not in the mirror yet stay whatever the policy.
        save_interval_steps: `save` saves when a multiple of N steps was passed.
        save_interval_minutes: `save` saves when N minutes have elapsed since the last save.
            Without either interval, it saves at every call.
        async_save: `save` returns once the state is copied to host memory, which takes as much
            memory as the state; hashing and writing continue in the background (see docs/adr/0012).
        when_busy: "wait" for the save in flight, or "skip" a save that is due before it has ended.
            If the last call of `save` was skipped, `close` makes up for it, and so does leaving the
            `with` block without an error: it saves the objects as they are then, with the arguments
            of that call.
        save_on_signal: True for SIGTERM, or the signals, such as ("SIGTERM", "SIGUSR1", "SIGINT").
            After one of them, the next call of `save` saves, waits and ends the program with exit
            code 128 + its number. A second signal ends it at once. With {"SIGTERM": "end",
            "SIGUSR1": "continue"}, training goes on after the save that SIGUSR1 asks for.
        resume: "auto" to restore or begin as the program asks, with a warning if it saves to a
            branch that has checkpoints of another run without having restored one; "must" if the
            branch must have checkpoints; "never" if it must not have any.
        rng: Save and restore the global random states of Python, numpy and torch on all devices.
        record_run: Record the host, the program, its arguments and git revision in the meta of each
            checkpoint, without values that look like secrets (`ckptstore.run_meta`).
            The versions of torch, numpy and the other frameworks that the program has imported, the
            device and the number of processes are recorded too.
        on_full: When the disk is full, "raise" an error that says what a gc would free, run a "gc"
            of the repository by its saved policies and try again, or "wait" until there is room. A
            warning comes at the start if there is less room than the policy needs.
        save_on_start: Save the initial state as step 0 when `restore_or_initialize` finds no
            checkpoint.
        on_commit: A function, or several, called with a `CommitEvent` of each checkpoint that this
            manager makes, once it is durable, by the thread that saved it: on rank 0, and beside
            the training where saves are asynchronous. An error of it is a warning, once.
        ranks: "all" where every rank of a torch.distributed group makes a manager and calls its
            methods alike: rank 0 decides when to save and publishes one checkpoint, to which each
            rank adds what it holds of sharded tensors, and what it has of its own. "first" saves
            the state of rank 0 alone, waits for no other rank, and refuses sharded tensors.
        rank_timeout: The most seconds that a rank waits for another, of which it then is an error.
        compare_next_batch: Record a BLAKE3 of the batch that a tracked DataLoader gives next, which
            `save` loads for this. When the loop gets that batch after a restore, another one is an
            error that names what differs, or a warning after `restore(strict=False)`.
        verbose: Print the report of each restore to stderr. Otherwise only differences from the
            run that saved the checkpoint are logged, as a warning.
        clock: Returns seconds, for `save_interval_minutes`.
        **tracked: Objects to save by name: anything with state_dict and load_state_dict (`model=`,
            `optimizer=`, `scheduler=` and so on), Keras models, random generators, and torch's
            DataLoader (`loader=`), which gets a state: iterate over it as ever. None is left out.

    Attributes:
        batch: The number of the batch that was passed to `save` when the restored checkpoint was
            made; None before.
        repository: The Repository.

    Raises:
        InvalidInputError: An argument is invalid, an object cannot be tracked, or with
            `resume="never"` the branch has checkpoints.
        ConflictError: A manager of another process saves to the branch, or the mirror has another
            run's checkpoints on it.
        StorageError: The mirror cannot be reached, and the branch, which may be there, is not here.
        NotFoundError: With `resume="must"` the branch has no checkpoint.

    Example:
        >>> import torch
        >>> from ckptstore.training import CheckpointManager
        >>> model = torch.nn.Linear(2, 1)
        >>> manager = CheckpointManager("memory://manager-example", max_to_keep=3, model=model)
        >>> with manager:
        ...     first_step = manager.restore_or_initialize()
        ...     for step in range(first_step, 10):
        ...         _ = manager.save(step + 1, metrics={"loss": 0.5})
        >>> [checkpoint.step for checkpoint in manager.checkpoints]
        [8, 9, 10]
        >>> manager.restore_or_initialize()
        10
    """

    @explained
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
        keep_seeds: bool = True,
        gc_every: int = 1,
        mirror: str | Path | None = None,
        mirror_retention: Policy | None = None,
        save_interval_steps: int | None = None,
        save_interval_minutes: float | None = None,
        async_save: bool = True,
        when_busy: str = "wait",
        save_on_signal: bool | str | int | Sequence[str | int] | Mapping[str, str] = False,
        resume: str = "auto",
        rng: bool = True,
        record_run: bool = True,
        on_full: str = "raise",
        save_on_start: bool = False,
        compare_next_batch: bool = False,
        on_commit: Callable[[CommitEvent], object]
        | Sequence[Callable[[CommitEvent], object]]
        | None = None,
        ranks: str = "all",
        rank_timeout: float = RANK_SECONDS,
        verbose: bool = False,
        clock: Callable[[], float] = time.monotonic,
        **tracked: object,
    ) -> None:
        branch = str(check_ref_name(branch, kind="branch"))
        if not callable(clock):
            raise InvalidInputError(f"clock is {shown(clock)}; a function is expected.")
        check_choice(when_busy, WHEN_BUSY, name="when_busy")
        if type(gc_every) is not int or gc_every < 1:
            raise InvalidInputError(
                f"gc_every is {shown(gc_every)}; a number of saves of 1 or more is expected."
            )
        check_choice(resume, RESUMES, name="resume")
        check_choice(on_full, ON_FULL, name="on_full")
        best = parsed_best(keep_best)
        joint = joined(
            policy,
            max_to_keep=max_to_keep,
            keep_best=best,
            keep_every_n_hours=keep_every_n_hours,
            keep_every_n_steps=keep_every_n_steps,
        )
        there = checked_retention(mirror_retention, mirror)
        self._best = best or first_best(policy)
        self._interval = Interval(steps=save_interval_steps, minutes=save_interval_minutes)
        self.branch, self.tracked = branch, _tracked(tracked)
        refuse_shards(self.tracked)
        rank_seconds = checked_ranks(ranks, rank_timeout)
        self._epoch: int | None = None
        self.batch: int | None = None
        self._save_on_start, self._compare_next_batch = save_on_start, compare_next_batch
        self._hooks = Hooks.of(on_commit)
        self._rng, self._verbose, self._when_busy, self._clock = rng, verbose, when_busy, clock
        self._run = run_meta() if record_run else {}
        self._staging, self._background = Staging() if async_save else None, Background()
        self._newest: Checkpoint | None = None
        self._others = OtherRanks()
        self._skipped: SaveRequest | None = None  # the last call of `save`, if it was skipped
        renewed(self, CheckpointManager._forget_skipped)  # which is the parent's
        self._preemption = Preemption(chosen_signals(save_on_signal))
        # The last call of `save` if nothing was due. Only a signal may ask for it later.
        self._called: SaveRequest | None = None
        self._has_saved, self._saved_step, self._saved_time = False, 0, self._seconds()
        self.repository = (
            store if isinstance(store, Repository) else repository.open(store, create=True)
        )
        self._group = joined_group(
            self.repository, branch, tracked, self.tracked, seconds=rank_seconds
        )
        self._place = Place(self.repository, resume=resume)
        self._start_mirror(mirror, there, keep_seeds=keep_seeds, gc_every=gc_every)
        self._place.start(branch)
        self._gc = BranchGc(
            self.repository,
            policy=joint,
            keep_seeds=keep_seeds,
            every=gc_every,
            has_mirror=mirror is not None,
        )
        self._disk = Disk(self.repository, on_full=on_full)
        if shortage := self._disk.shortage(branch, joint, self.tracked):
            warnings.warn(shortage, stacklevel=CONSTRUCTOR_FRAMES)
        self._preemption.listen()

    def __repr__(self) -> str:
        return f"CheckpointManager({self.repository.url!r}, branch={self.branch!r})"

    def __reduce__(self) -> NoReturn:
        raise InvalidInputError(
            "A CheckpointManager cannot be pickled: it tracks objects of this process. Make one in "
            "the other process, from the same store, branch and names."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Call `close`, and raise its error, or add it to one already raised.

        After an error a skipped save is not made: the objects may be in the middle of a step. But
        if the workers of a DataLoader were ended by a signal of `save_on_signal`, the objects are
        saved as the last call of `save` would have, and the program ends as after that signal.
        """
        if self._preemption.has_ended_loader(error) and (self._called or self._has_saved):
            if self._called is not None:
                self._save(self._called)
            self._end()
        if error is not None and self._group is not None:
            self._group.end(error)
        if error is not None and self._skipped is not None:
            error.add_note(
                f"The save at step {self._skipped.step} was skipped while another was in flight. "
                "It is not made after an error."
            )
            self._forget_skipped()
        try:
            self.close()
        except Exception as failed:
            if error is None:
                raise
            error.add_note(f"The last save failed as well: {failed}")

    @property
    def epoch(self) -> int | None:
        """The epoch passed to `save` when the restored checkpoint was made; None before.

        A program that reads it resumes in that epoch: a tracked DataLoader that had no batch left
        then yields nothing before the next one.
        """
        stay_in_epoch(self.tracked)
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int | None) -> None:
        self._epoch = epoch

    @property
    def preempted(self) -> bool:
        """True after a signal to save and end: the next `save` saves and ends the program."""
        return self._preemption.is_asked

    @property
    def save_requested(self) -> bool:
        """True after any signal of `save_on_signal`, until `save` has saved for it."""
        return self._preemption.is_asked or self._preemption.is_save_asked

    @property
    def latest(self) -> Checkpoint | None:
        """The newest checkpoint of the branch, without a save in flight; None before the first."""
        heads, _ = self.repository.ref_names()
        return self.repository.resolve(heads[self.branch]) if self.branch in heads else None

    @property
    def best(self) -> Checkpoint | None:
        """The best stored checkpoint by the metric of `keep_best`; None if none has it.

        Raises:
            InvalidInputError: The manager has neither `keep_best` nor a policy with KeepBest.
        """
        if self._best is None:
            raise InvalidInputError(
                "There is no best checkpoint without a metric. Pass one, such as "
                "keep_best='val_loss'."
            )
        return stored_best(self.repository, self.branch, self._best)

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints of the branch that have not expired, oldest first."""
        if self.latest is None:
            return []
        return self.repository.log(self.branch, expired=False)[::-1]

    def restore_or_initialize(
        self,
        rev: str | None = None,
        *,
        init_fn: Callable[[], object] | None = None,
        strict: bool = True,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        rename: Mapping[str, str] | None = None,
        reset: bool | str | Sequence[str] = False,
        fallback: bool = False,
    ) -> int:
        """Restore the newest checkpoint of the branch, or call `init_fn` if there is none.

        A checkpoint that cannot be restored is an error, never a fresh start.

        Args:
            rev: As in `restore`.
            init_fn: Called without arguments when there is no checkpoint.
            strict: As in `restore`.
            include: As in `restore`.
            exclude: As in `restore`.
            rename: As in `restore`.
            reset: As in `restore`.
            fallback: As in `restore`.

        Returns:
            The number of steps done, 0 without a checkpoint.

        Raises:
            CkptStoreError: As in `restore`.
        """
        if rev is None and self._is_new():
            if init_fn is not None:
                init_fn()
            if self._save_on_start:
                self.save(0, force=True)
            return 0
        report = self.restore(
            rev,
            strict=strict,
            include=include,
            exclude=exclude,
            rename=rename,
            reset=reset,
            fallback=fallback,
        )
        return report.step or 0

    def _is_new(self) -> bool:
        """Whether the branch has no checkpoint."""
        is_new: bool = self._agreed(lambda: self.latest is None)
        return is_new

    def _agreed(self, decide: Callable[[], Any]) -> Any:
        """Return what is decided; on all ranks of a group what rank 0 decides."""
        return decide() if self._group is None else self._group.told(decide, "start")

    def restore(
        self,
        rev: str | None = None,
        *,
        strict: bool = True,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        rename: Mapping[str, str] | None = None,
        reset: bool | str | Sequence[str] = False,
        fallback: bool = False,
    ) -> ResumeReport:
        """Restore everything tracked from a checkpoint, by default the newest of the branch.

        The next save follows this checkpoint. If the branch does not exist yet, the save starts it
        from there, and the checkpoint stays as the seed of the branch. If the run has already
        restored or saved something, `include` only takes values, and the run goes on where it was.

        On a derived checkpoint, paths that it did not take from its source stay as they are.

        Args:
            rev: Any revision.
            strict: Raise CheckoutMismatchError, before anything changes, if the checkpoint and the
                tracked objects differ. Otherwise restore what fits.
            include: Globs of the paths to restore, such as "model/**". The rest stays as it is.
            exclude: Globs of paths to leave as they are.
            rename: New paths of what the globs choose, as in `Repository.branch`, by which a
                checkpoint of other names fits: `{"model_state_dict": "model"}`. The globs go by the
                names in the checkpoint, `reset` and the report by the new ones.
            reset: True to move the branch back to this checkpoint at the next save. Otherwise a
                save after restoring an older checkpoint than the newest is an error. Or the names
                of tracked objects that begin anew, such as "scheduler" or ("scheduler", "scaler").
            fallback: Whether to restore the newest whole checkpoint if the newest one is damaged,
                with a warning. The next save then moves the branch back to it.

        Returns:
            A report of what was restored, with the checkpoint.

        Raises:
            NotFoundError: There is no such checkpoint.
            ExpiredError: The checkpoint has expired.
            CheckoutMismatchError: It does not fit the tracked objects; every difference is listed.
            CorruptError: It is damaged.
            StorageError: The storage failed, or an earlier save did.
            RankError: Another rank failed to restore it, or does not come within `rank_timeout`.
        """
        self.wait()
        report, position = restore_rev(
            self.repository,
            self.branch if rev is None else rev,
            self.tracked,
            strict=strict,
            include=include,
            exclude=exclude,
            rename=rename,
            reset=names_to_reset(reset, self.tracked),
            fallback=fallback,
            group=self._group,
        )
        self._forget_skipped()
        if self._verbose:
            sys.stderr.write(f"ckptstore: {report}\n")
        elif report.differences:
            _log.warning(
                "Checkpoint %s differs from this run. %s",
                report.id.short,
                " ".join(report.differences),
            )
        if position is not None:
            self._epoch, self.batch = position.get("epoch"), position.get("batch")
        if self._place.restored(
            report.checkpoint,
            self.branch,
            is_part=include is not None,
            resets=reset is True or bool(report.damaged),
        ):
            self._saved_step, self._saved_time = report.step or 0, self._seconds()
        return report

    def should_save(self, step: SupportsIndex) -> bool:
        """Whether `save` would save at this step.

        Args:
            step: Training steps completed so far.

        Raises:
            InvalidInputError: The step is not an integer.
            CkptStoreError: An earlier save failed in the background.
        """
        number = step_number(step)
        return self._verdict(number, force=False) != NOT_DUE

    def _verdict(self, number: int, *, force: bool) -> str:
        """Return whether to save at a step; on all ranks of a group what rank 0 finds."""
        if self._group is None:
            return self._own_verdict(number, force=force)
        self._group.carry(self._preemption)
        of_0, signal, step = self._group.told(
            lambda: (
                self._own_verdict(number, force=force),
                self._preemption.asked_by if self._preemption.is_asked else None,
                number,
            ),
            f"save of step {number}",
        )
        if step != number:
            error = InvalidInputError(
                f"This rank is at step {number}, and rank 0 at step {step}. All ranks have to call "
                "save and should_save alike."
            )
            if of_0 == DUE:
                with self._group.save(step).beginning():
                    raise error
            raise error
        if signal is not None:
            self._preemption.note_of_other(signal)
        return of_0

    def _own_verdict(self, number: int, *, force: bool) -> str:
        self._background.raise_error()
        is_forced = force or self.save_requested
        if not is_forced and not self._interval.is_due(
            number, last_step=self._saved_step, seconds=self._seconds() - self._saved_time
        ):
            return NOT_DUE
        is_skipped = self._background.is_busy and self._when_busy == "skip" and not is_forced
        return BUSY if is_skipped else DUE

    def save(
        self,
        step: SupportsIndex,
        *,
        metrics: Mapping[str, object] | None = None,
        message: str = "",
        meta: Mapping[str, Any] | None = None,
        epoch: SupportsIndex | None = None,
        batch: SupportsIndex | None = None,
        tag: str | None = None,
        force: bool = False,
    ) -> bool:
        """Save the tracked objects if a checkpoint is due.

        Changes to the tracked objects and the arguments after this returns do not reach the
        checkpoint. A step that is no integer is an error at any call, whatever is due. The parent
        of the checkpoint is the one that was restored, or that this manager saved last.

        Args:
            step: The number of steps done.
            metrics: Numbers by name.
            message: Description of the checkpoint.
            meta: Further JSON values by name.
            epoch: The position in the data, which `restore` puts into the attribute `epoch`.
            batch: The same for the attribute `batch`.
            tag: A tag for the checkpoint. If there is one of that name, it moves.
            force: Save even if it is not due.

        Returns:
            True if a checkpoint was made, or is being made in the background. The same on all ranks
            of a torch.distributed group, for which rank 0 decides.

        Raises:
            UnsupportedValueError: A tracked object's state holds a value that cannot be stored.
            InvalidInputError: An argument is invalid.
            ConflictError: Another program moved the branch, or the restored checkpoint is not its
                newest. The message names the ways to go on.
            StorageError: The storage failed. With `async_save`, errors of hashing and writing are
                raised by the next call of a method instead.
            RankError: Another rank failed, or does not come within `rank_timeout`.
            SystemExit: After a signal to save and end, once the checkpoint is durable. If several
                managers listen for it, once all have saved, or at the next call.
        """
        number = step_number(step)
        self._preemption.quiet_loaders()
        if self._preemption.is_served:
            self._end()
        verdict = self._verdict(number, force=force)
        if verdict == NOT_DUE:
            if self._preemption.signals:
                self._called = SaveRequest.of(number, epoch=epoch, batch=batch, run=self._run)
            return False
        request = SaveRequest.of(
            number,
            metrics=metrics,
            message=message,
            meta=meta,
            epoch=epoch,
            batch=batch,
            tag=tag,
            run=self._run | environment(self.tracked) if self._run else {},
        )
        if verdict == BUSY:
            self._skipped = request
            return False
        self._save(request)
        self._preemption.saved()
        if self.preempted:
            self._end()
        return True

    def _end(self) -> None:
        """End the program after a signal, once all managers that listen for it have saved.

        Another manager may have no more to save in this run. So this one waits for the others until
        its own next call.
        """
        self.wait()
        has_waited = self._preemption.is_served
        if self._preemption.serve() or has_waited:
            if (lacking := self._close(MIRROR_SECONDS)) is not None:
                sys.stderr.write(f"ckptstore: {lacking}\n")
            sys.stderr.write(
                f"ckptstore: {self._preemption.asked_by.name} received; saved step "
                f"{self._saved_step} to {self.branch}.\n"
            )
            if self._group is not None:  # launchers end the other ranks once one has ended
                with suppress(RankError):
                    self._group.together(lambda: None, "end after a signal")
            raise SystemExit(self._preemption.exit_code)

    def _save(self, request: SaveRequest) -> None:
        """Save the tracked objects as they are."""
        self._background.wait()
        save = None if self._group is None else self._group.save(request.step)
        with nullcontext() if save is None else save.beginning():
            self._begin(request, save)
        self._saved_step, self._saved_time = request.step, self._seconds()
        self._has_saved = True
        self._forget_skipped()

    def _begin(self, request: SaveRequest, save: GroupSave | None) -> None:
        """Take the state of a save, and commit it or have it committed in the background."""
        rank, size = rank_and_size()
        if rank == 0:
            self._place.begin(self.branch, request.step)
        # On the other ranks too: the state of a sharded model needs all of them.
        state = capture(
            self.tracked,
            progress=request.position,
            random=self._rng,
            next_batch=self._compare_next_batch,
            world_size=1 if save is None else size,
        )
        if save is not None:
            save.take(state, self.tracked, self._staging)
            del state
            self._start(lambda: self._commit_part(save, request))
            return
        self._others.note(state, self.tracked, key=f"{self.branch}/{request.step}")
        if rank > 0:
            self._others.compare()
        elif self._staging is None:
            self._commit(state, request)
        else:
            staged = self._staging.copy(state)
            # Freeing a tensor yields to other threads: the commit would go first, for milliseconds.
            del state
            self._background.start(lambda: self._commit(staged, request))

    def _start(self, job: Callable[[], object]) -> None:
        """Do a job, in the background if saves are asynchronous."""
        if self._staging is None:
            job()
        else:
            self._background.start(job)

    def _commit_part(self, save: GroupSave, request: SaveRequest) -> None:
        """Do the part of this rank in a save of all ranks; that of rank 0 includes the gc."""
        place, disk, branch = self._place, self._disk, self.branch
        room: dict[str, Any] = {"is_over": lambda: self.preempted}
        with as_training():
            self._newest = save.run(
                branch,
                lambda make: disk.with_room(
                    lambda: place.commit(None, branch, request.facts, make),
                    may_gc=not place.keeps_all,
                    **room,
                ),
                lambda put: disk.with_room(put, may_gc=False, **room),
            )
        if save.group.rank == 0:
            self._committed(request)

    def _forget_skipped(self) -> None:
        self._skipped = self._called = None

    def _seconds(self) -> float:
        """The time by the clock, in seconds."""
        seconds: object = self._clock()
        value = math.nan
        if isinstance(seconds, SupportsFloat):
            with suppress(TypeError, ValueError, OverflowError):  # not one number, or too large
                value = float(seconds)
        if not math.isfinite(value):
            raise InvalidInputError(f"The clock returned {shown(seconds)}; seconds are expected.")
        return value

    def wait(self) -> Checkpoint | None:
        """Wait for the save in flight.

        Returns:
            The newest checkpoint that this manager made, None if there is none.

        Raises:
            CkptStoreError: The save failed.
        """
        self._background.wait()
        return self._newest

    def close(self, timeout: float | None = MIRROR_SECONDS) -> None:
        """Wait for the save in flight, raise its error, and restore the handlers of signals.

        If the last call of `save` was skipped, make up for it (see `when_busy`). Other processes
        may then save to the branch.

        Args:
            timeout: The most seconds to wait for the mirror, if there is one; None for no limit.

        Raises:
            CkptStoreError: The save failed.
            StorageError: Not all is in the mirror. It is on the local disk, and the message has the
                command that pushes it.
            ConflictError: The same, as the branch moved on in the mirror.
        """
        if (lacking := self._close(checked_timeout(timeout))) is not None:
            raise lacking

    def _close(self, timeout: float) -> CkptStoreError | None:
        """Close, and return an error that names what is not in the mirror."""
        self._preemption.close()
        self._others.compare()
        try:
            self.wait()
            if self._skipped is not None:
                self._save(self._skipped)
                self.wait()
            if self._mirror is None:
                return None
            lacking = self._mirror.close(timeout)
            if self._newest is not None and self._mirror.has_pushed and not self._place.keeps_all:
                with as_training():
                    self._gc.run(self.branch)  # of what stayed until it was in the mirror
            return lacking
        finally:
            self._place.release()

    def tag_newest(self, tag: str) -> None:
        """Tag the newest checkpoint that this manager made, once it is durable.

        Args:
            tag: The tag. If there is one of that name, it moves.

        Raises:
            CkptStoreError: The save failed, or the name is illegal or that of a branch.
        """
        check_ref_name(tag, kind="tag")
        if (newest := self.wait()) is not None:
            with as_training():
                self.repository.tag(tag, str(newest.id), move=True)

    def _commit(self, state: object, request: SaveRequest) -> None:
        """Commit a state, then expire the checkpoints that the policy of the branch does not keep.

        Without a number, undo skips these operations.
        """
        with as_training():
            self._newest = self._disk.with_room(
                lambda: self._place.commit(state, self.branch, request.facts),
                may_gc=not self._place.keeps_all,
                is_over=lambda: self.preempted,
            )
        self._committed(request)

    def _committed(self, request: SaveRequest) -> None:
        """Tag the newest checkpoint, expire what no policy keeps, and have it mirrored."""
        newest = self._newest
        assert newest is not None, "it was committed"
        try:
            with as_training():
                if request.tag is not None:
                    self.repository.tag(request.tag, str(newest.id), move=True)
                self._gc.after_commit(self.branch, keeps_all=self._place.keeps_all)
            if self._mirror is not None:
                self._mirror.notify(self.branch, newest, keeps_all=self._place.keeps_all)
        finally:
            there = None if self._mirror is None else self._mirror.url
            self._hooks.call(lambda: CommitEvent.of(newest, mirror=there))


def _tracked(given: Mapping[str, object]) -> dict[str, Stateful]:
    """The stateful objects by name, without None.

    An error names all that have no state, and the arguments for which their names may stand.
    """
    objects, errors = {}, []
    options = [*inspect.signature(CheckpointManager).parameters]
    for name, value in given.items():
        if value is not None:
            try:
                objects[name] = stateful(name, value)
            except InvalidInputError as error:
                is_known = name in NAMES["CheckpointManager"]
                errors.append(
                    f"{advice('CheckpointManager', name, options)}"
                    if is_known
                    else f"{error}{meant(name, options, ALIKE_MIN)}"
                )
    if errors:
        raise InvalidInputError(" ".join(errors))
    pair_optimizers(objects.values())
    return objects
