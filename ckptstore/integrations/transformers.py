"""Hugging Face's Trainer: one callback keeps its checkpoints, and `train` resumes from them.

Trainer writes checkpoint-N as ever, and the callback commits the folder whole. So what is saved,
and what a resume restores, is Trainer's own business, bit for bit. See docs/adr/0073.
"""

# ruff: noqa: ARG002 - a hook is called with more than each of them needs

from __future__ import annotations

import logging
import os
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ckptstore import repository
from ckptstore.errors import CkptStoreError, InvalidInputError, NotFoundError, shown
from ckptstore.integrations import needed
from ckptstore.repository import Repository
from ckptstore.training.branch_gc import parsed_best
from ckptstore.training.folder_saves import FolderSaves, write_folder

with needed("hf"):
    from transformers import TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from transformers import TrainerControl, TrainerState, TrainingArguments

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.retention import KeepBest, Policy

__all__ = ["CkptStoreCallback", "CkptStoreTrainerMixin"]

SCHEME = "ckptstore://"
LAST, BEST = "last", "best"
CALLER_FRAMES = 5  # from the caller of `train` to the warning
_FOLDER = ".resume-"  # of a checkpoint from which a run resumes, in its output folder
_WAY = "resume_from_checkpoint='ckptstore://{}'"
_log = logging.getLogger(__name__)


class CkptStoreCallback(TrainerCallback):
    """Commits each checkpoint that a Trainer saves.

    The checkpoint has the step, the epoch and the metrics that were logged at this step. What to
    keep here is decided by the arguments, what stays in the output folder by Trainer's
    `save_total_limit`: 1 is enough. It goes on with `load_best_model_at_end`. On many ranks,
    rank 0 commits what all have written.

    Args:
        store: A folder or URL, where a repository is created if there is none, or a Repository.
        branch: The branch of this run. If it is a new one, and the run goes on from a checkpoint of
            the repository, it begins there.
        max_to_keep: Keep the newest N checkpoints.
        keep_best: Keep the best by a metric: "METRIC", "METRIC:MODE" or "METRIC:MODE:N", such as
            "eval_loss" or "eval_accuracy:max:3". It also defines "best".
        keep_every_n_hours: Keep one checkpoint every N hours.
        keep_every_n_steps: Keep one checkpoint every N steps.
        policy: Any policy of `ckptstore.retention`. A checkpoint is kept if any of these keeps it.
        reset: Move the branch back to the checkpoint that the run resumes from. Without it, a run
            that resumes from another one than the newest of its branch is an error.
        async_save: Hash and store a folder in the background. Trainer may remove it meanwhile.
        mirror: A path or URL to which a thread pushes the branch after each save.
        save_on_signal: As for CheckpointManager: after SIGTERM, say, save and end the program.

    Attributes:
        manager: The FolderSaves that saves to the branch, from the beginning of a training on; only
            rank 0 has one. A Trainer that only evaluates makes no repository.

    Raises:
        InvalidInputError: An argument is invalid.

    Example:
        >>> from ckptstore.integrations.transformers import CkptStoreCallback
        >>> callback = CkptStoreCallback("memory://trainer-example", keep_best="eval_loss")
        >>> trainer = Trainer(model, arguments, callbacks=[callback])  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
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
        reset: bool = False,
        async_save: bool = True,
        mirror: str | Path | None = None,
        save_on_signal: bool | str | int | Sequence[str | int] | Mapping[str, str] = False,
    ) -> None:
        self.store, self.branch, self.reset = store, branch, reset
        self._best = parsed_best(keep_best)
        self._options: dict[str, Any] = {
            "max_to_keep": max_to_keep,
            "keep_best": self._best,
            "keep_every_n_hours": keep_every_n_hours,
            "keep_every_n_steps": keep_every_n_steps,
            "policy": policy,
            "async_save": async_save,
            "mirror": mirror,
            "save_on_signal": save_on_signal,
        }
        self.manager: FolderSaves | None = None
        self._resumed: int | None = None  # the step from which the mixin has resumed

    @property
    def repository(self) -> Repository:
        """The repository; an error if there is none yet."""
        if self.manager is not None:
            return self.manager.repository
        return self.store if isinstance(self.store, Repository) else repository.open(self.store)

    def has_branch(self) -> bool:
        """Whether the branch of this run exists already."""
        try:
            return self.branch in self.repository.ref_names()[0]
        except NotFoundError:
            return False

    def revision(self, name: str) -> str:
        """Return the revision for "last", "best" or any revision of the repository.

        Args:
            name: "last", "best" by `keep_best`, "best:METRIC", or a revision.

        Raises:
            InvalidInputError: "best" was asked for, and there is no `keep_best`.
        """
        if name == LAST:
            return self.branch
        if name != BEST:
            return f"{self.branch}@{name}" if name.startswith(f"{BEST}:") else name
        if self._best is None:
            raise InvalidInputError(
                "There is no best checkpoint without a metric. Pass one, such as "
                "keep_best='eval_loss', or name it: 'best:eval_loss'."
            )
        return f"{self.branch}@best:{self._best.metric}:{self._best.mode}"

    def _open(self, args: TrainingArguments) -> FolderSaves | None:
        """Open the repository and hold the branch, before the training takes time."""
        if self.manager is None and args.process_index == 0:
            self.manager = FolderSaves(
                self.store, branch=self.branch, rng=False, ranks="first", **self._options
            )
        return self.manager

    def resumes(self, checkpoint: Checkpoint, args: TrainingArguments) -> None:
        """Note that the run goes on from a checkpoint of the repository.

        Args:
            checkpoint: The checkpoint.
            args: The arguments of the Trainer.

        Raises:
            ConflictError: It is not the newest of the branch, and `reset` is not set.
        """
        if (manager := self._open(args)) is not None:
            manager.resume(checkpoint, resets=self.reset, way=_WAY)
        self._resumed = checkpoint.step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the checkpoint from which the run goes on, and the best one before."""
        manager = self._open(args)
        if state.global_step and self._resumed != state.global_step and manager is not None:
            self._resume_local(manager, state.global_step)
        self._resumed = None
        if args.load_best_model_at_end and state.best_global_step:
            self._bring_best(args, state)

    def _resume_local(self, manager: FolderSaves, step: int) -> None:
        """Note that the run goes on from a folder that Trainer has kept.

        A folder newer than the branch, as after a save that failed, goes on after its head.
        """
        latest = manager.latest
        if latest is None:
            return
        if (latest.step or 0) > step:
            saved = manager.repository.log(self.branch, own=True)
            latest = next((one for one in saved if one.step == step), latest)
        if (latest.step or 0) <= step:
            manager.resume(latest, resets=self.reset, way=_WAY)

    def _bring_best(self, args: TrainingArguments, state: TrainerState) -> None:
        """Write the best checkpoint of a run that resumes elsewhere, for Trainer to load it."""
        if state.best_model_checkpoint is not None:
            return  # Trainer has found it where it was
        own = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
        with args.main_process_first(local=True, desc="checkout of the best checkpoint"):
            if args.local_process_index == 0 and not own.is_dir():
                try:
                    best = self.repository.resolve(f"{self.branch}@step={state.best_global_step}")
                    write_folder(best, self.repository, own)
                except CkptStoreError as error:
                    _log.warning("The best checkpoint of this run is not at hand: %s", error)
        if own.is_dir():
            state.best_model_checkpoint = str(own)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have Trainer save after a signal of `save_on_signal`."""
        if self._options["save_on_signal"]:
            asked = torch.tensor(self.manager is not None and self.manager.save_requested)
            if args.world_size > 1:
                asked = asked.to(args.device, torch.int32)
                torch.distributed.broadcast(asked, 0)
            if asked:
                control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Commit the folder that Trainer has just written."""
        if state.is_hyper_param_search:
            raise InvalidInputError(
                "A search of hyperparameters has many runs in one Trainer. Pass each a callback "
                "with a branch of its own, or commit the folders afterwards."
            )
        if args.world_size > 1:
            torch.distributed.barrier()  # each rank has written its random states
        if (manager := self._open(args)) is not None:
            manager.save_folder(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait until all is saved, and let other processes save to the branch."""
        if self.manager is not None:
            self.manager.close()


class CkptStoreTrainerMixin:
    """Lets `train` resume from a repository: put it before a Trainer in the bases of a class.

    `train(resume_from_checkpoint=...)` then takes, beside folders and True:

    - "last", "best" by `keep_best`, or "best:METRIC": a checkpoint of the branch of the
      CkptStoreCallback; with "last" a run begins from the start if there is no such branch yet,
    - "ckptstore://REV": any revision in its repository, such as "ckptstore://main~2",
    - "ckptstore://STORE#REV": one of another repository, also without a callback.

    With True, and no checkpoint in the output folder, a run goes on from the newest of the branch,
    as on another machine. The checkpoint is written to the output folder while the run lasts.

    Example:
        >>> from transformers import Trainer
        >>> from ckptstore.integrations.transformers import CkptStoreTrainerMixin
        >>> class StoreTrainer(CkptStoreTrainerMixin, Trainer):
        ...     pass
        >>> trainer.train(resume_from_checkpoint="best:eval_loss")  # doctest: +SKIP
    """

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train, as Trainer does.

        Args:
            resume_from_checkpoint: As of Trainer, or a checkpoint of a repository.
            *args: As of Trainer.
            **kwargs: As of Trainer.

        Raises:
            NotFoundError: There is no such checkpoint.
        """
        with _local(self, resume_from_checkpoint) as folder:
            return super().train(folder, *args, **kwargs)  # type: ignore[misc]


@contextmanager
def _local(trainer: Any, resume: Any) -> Iterator[Any]:
    """What Trainer is to resume from, once a checkpoint of a repository is in a folder."""
    args = trainer.args
    callbacks = trainer.callback_handler.callbacks
    callback = next((one for one in callbacks if isinstance(one, CkptStoreCallback)), None)
    is_true = resume is True
    if is_true and callback is not None and not _has_folder(args.output_dir):
        resume = LAST
    if not isinstance(resume, str) or not _is_address(resume):
        yield resume
        return
    if resume == LAST and not is_true and callback is not None and not callback.has_branch():
        if args.process_index == 0:
            _warn_of_start(callback.branch, args.output_dir)
        yield None
        return
    repo, rev = _place(resume, callback)
    checkpoint = repo.resolve(rev)
    folder = Path(args.output_dir) / f"{_FOLDER}{checkpoint.id.short}"
    try:
        with args.main_process_first(local=True, desc="checkout of a checkpoint"):
            if args.local_process_index == 0:
                folder.parent.mkdir(parents=True, exist_ok=True)
                for earlier in folder.parent.glob(f"{_FOLDER}*"):  # of a run that was killed
                    shutil.rmtree(earlier)
                write_folder(checkpoint, repo, folder)
        if callback is not None and repo.url == callback.repository.url:
            callback.resumes(checkpoint, args)
        yield str(folder)
    finally:
        if args.local_process_index == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _warn_of_start(branch: str, output: str) -> None:
    """Warn that a run begins from the start, as where it is started for the first time."""
    kept = f" To go on from the newest in {output}, pass True." if _has_folder(output) else ""
    warnings.warn(
        f"Branch {branch!r} has no checkpoint yet: the training begins from the start.{kept}",
        stacklevel=CALLER_FRAMES,
    )


def _has_folder(output: str) -> bool:
    """Whether Trainer has left a checkpoint in its output folder."""
    return os.path.isdir(output) and get_last_checkpoint(output) is not None


def _is_address(text: str) -> bool:
    """Whether a text names a checkpoint in a repository; a folder of that name comes first."""
    is_name = text in (LAST, BEST) or text.startswith(f"{BEST}:")
    return text.startswith(SCHEME) or (is_name and not os.path.exists(text))


def _place(address: str, callback: CkptStoreCallback | None) -> tuple[Repository, str]:
    """The repository and the revision of an address."""
    store, separator, rev = address.removeprefix(SCHEME).rpartition("#")
    if separator:
        return repository.open(store), rev or "main"
    if callback is None:
        raise InvalidInputError(
            f"{shown(address)} names no repository, and the Trainer has no CkptStoreCallback. Add "
            "one, or name the repository too: ckptstore://STORE#REV."
        )
    is_of_branch = rev in ("", LAST, BEST) or rev.startswith(f"{BEST}:")
    rev = callback.revision(rev or LAST)
    try:
        repo = callback.repository
    except NotFoundError as error:
        raise NotFoundError(f"There is nothing to resume from: {error}") from error
    if is_of_branch and not callback.has_branch():
        raise NotFoundError(
            f"There is nothing to resume from: branch {callback.branch!r} has no checkpoint yet. "
            "To begin it at one of another branch, name that: "
            f"{_WAY.format('main@best:eval_loss')}, for example."
        )
    return repo, rev
