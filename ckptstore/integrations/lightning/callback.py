"""CkptStoreCallback: saves the runs of a Trainer, in place of ModelCheckpoint."""

# ruff: noqa: ARG002 - a hook is called with more than each of them needs

from __future__ import annotations

import time
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from ckptstore import repository
from ckptstore.documents.names import check_ref_name
from ckptstore.errors import ConflictError, InvalidInputError, NotFoundError, shown
from ckptstore.formats.torch.lightning import meta
from ckptstore.integrations.lightning.addresses import BEST, LAST, SCHEME, parsed
from ckptstore.integrations.lightning.contents import (
    LOADERS,
    OPTIMIZERS,
    OWN,
    PLATEAUS,
    WEIGHTS,
    check_hyperparameters,
    checked,
    destination,
    in_shards,
    is_sharded,
    plateaus,
    read,
    with_ended_loaders,
)
from ckptstore.integrations.lightning.run import Run
from ckptstore.integrations.lightning.strategy import StoreStrategy
from ckptstore.repository import Repository
from ckptstore.retention import KeepBest
from ckptstore.training.branch_gc import joined, stored_best
from ckptstore.training.manager import CheckpointManager
from ckptstore.training.random_state import RandomState
from ckptstore.training.tracked import PROGRESS, RANDOM, Box

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import lightning.pytorch as pl

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.retention import Policy


class CkptStoreCallback(ModelCheckpoint):
    """Saves the runs of a Trainer in a repository, and restores them.

    It takes the place of ModelCheckpoint. A checkpoint has all that Lightning saves, under the
    names that Lightning has for it, and the random states, which Lightning does not save. Its step
    is the global step, its metrics are the callback metrics that were measured at this step.

    A run resumes with `trainer.fit(model, ckpt_path=...)`, where "last" is the newest checkpoint of
    the branch, "best" the best by `monitor`, "ckptstore://REV" any revision, such as
    "ckptstore://main~2", and "ckptstore://STORE#REV" one of another repository. Paths of files work
    as ever. So do these in `validate`, `test` and `predict`.

    A step at which to save that is the last one of an epoch is saved after the validation, at the
    end of the epoch. From a checkpoint in the middle of an epoch a run resumes bit for bit if the
    data loader has a state, as torchdata's StatefulDataLoader.

    Args:
        store: A folder or URL, where a repository is created if there is none, or a Repository.
        branch: The branch of this run. If it is a new one, and the run goes on from a checkpoint of
            the repository, it begins there.
        monitor: The metric of `best`. A checkpoint is also saved after each validation in the
            middle of an epoch that measures it.
        mode: "min" or "max". Without it the words of the metric's name decide, and a name that does
            not say its direction is an error.
        save_top_k: With `monitor`, keep the best N checkpoints and the newest; -1 keeps all.
        every_n_train_steps: Save every N steps of the optimizer.
        every_n_epochs: Save every N epochs; each epoch, if no other interval is set.
        train_time_interval: Save when this much time has passed since the last save.
        max_to_keep: Keep the newest N checkpoints.
        keep_every_n_hours: Keep one checkpoint every N hours.
        keep_every_n_steps: Keep one checkpoint every N steps.
        policy: Any policy of `ckptstore.retention`. A checkpoint is kept if any of these keeps it.
        reset: Move the branch back to the checkpoint that `ckpt_path` names. Without it, a run that
            goes on from another one than the newest of its branch is an error.
        async_save: Return from a save once the state is copied to host memory; hashing and writing
            continue in the background.
        mirror: A path or URL to which a thread pushes the branch after each save.
        save_on_signal: As for CheckpointManager: save and end the program after SIGTERM, say.

    Attributes:
        best_model_path: The address of the best stored checkpoint, or without `monitor` of the
            newest; "" if there is none.
        best_model_score: The value of `monitor` of that checkpoint, or None.
        last_model_path: The address of the newest checkpoint of the branch, "" if there is none.

    Raises:
        InvalidInputError: An argument is invalid.

    Example:
        >>> import torch
        >>> from lightning.pytorch import LightningModule, Trainer
        >>> from ckptstore.integrations.lightning import CkptStoreCallback
        >>> class Model(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(4, 1)
        ...     def training_step(self, batch):
        ...         return self.layer(batch).square().mean()
        ...     def configure_optimizers(self):
        ...         return torch.optim.Adam(self.parameters())
        >>> data = torch.utils.data.DataLoader(torch.ones(8, 4), batch_size=4)
        >>> callback = CkptStoreCallback("runs/lightning")
        >>> trainer = Trainer(max_epochs=2, callbacks=[callback])  # doctest: +SKIP
        >>> trainer.fit(Model(), data, ckpt_path="last")  # doctest: +SKIP
    """

    def __init__(
        self,
        store: str | Path | Repository,
        *,
        branch: str = "main",
        monitor: str | None = None,
        mode: str | None = None,
        save_top_k: int = 1,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        train_time_interval: timedelta | None = None,
        max_to_keep: int | None = None,
        keep_every_n_hours: float | None = None,
        keep_every_n_steps: int | None = None,
        policy: Policy | None = None,
        reset: bool = False,
        async_save: bool = True,
        mirror: str | Path | None = None,
        save_on_signal: bool | str | int | Sequence[str | int] | Mapping[str, str] = False,
    ) -> None:
        self.store, self.reset = store, reset
        self.branch = str(check_ref_name(branch, kind="branch"))
        self._best = _best(monitor, mode, save_top_k)
        _check_intervals(every_n_train_steps, every_n_epochs, train_time_interval)
        self._options: dict[str, Any] = {
            "max_to_keep": max_to_keep,
            "keep_best": self._best if save_top_k > 0 else None,
            "keep_every_n_hours": keep_every_n_hours,
            "keep_every_n_steps": keep_every_n_steps,
            "policy": policy,
        }
        joined(**self._options)  # which refuses what no policy is, before the training
        self._options |= {
            "async_save": async_save,
            "mirror": mirror,
            "save_on_signal": save_on_signal,
        }
        super().__init__(
            monitor=monitor,
            mode="min" if self._best is None else self._best.mode,
            save_top_k=save_top_k if monitor is not None else -1,
            every_n_train_steps=every_n_train_steps,
            every_n_epochs=every_n_epochs,
            train_time_interval=train_time_interval,
        )
        self._repository = store if isinstance(store, Repository) else None
        self._manager: CheckpointManager | None = None
        self._strategy: StoreStrategy | None = None
        self._run = Run()

    @property
    def state_key(self) -> str:
        """The name of this callback's state."""
        return f"{type(self).__qualname__}({str(self.store)!r}, {self.branch!r})"

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the repository has it all."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """No effect."""

    @property
    def best_model_path(self) -> str:
        """The address of the best stored checkpoint; "" if there is none."""
        return self._address(self._best_checkpoint())

    @best_model_path.setter
    def best_model_path(self, path: str) -> None:
        """No effect: the repository knows."""

    @property
    def best_model_score(self) -> Any:
        """The value of `monitor` of the best stored checkpoint, as a tensor; None without one."""
        import torch

        best = None if self._best is None else self._best_checkpoint()
        return None if best is None else torch.tensor(best.metrics[self._best.metric])  # type: ignore[union-attr]

    @best_model_score.setter
    def best_model_score(self, score: Any) -> None:
        """No effect: the repository knows."""

    @property
    def last_model_path(self) -> str:
        """The address of the newest checkpoint of the branch; "" if there is none."""
        return self._address(self._last_checkpoint())

    @last_model_path.setter
    def last_model_path(self, path: str) -> None:
        """No effect: the repository knows."""

    def _find_last_checkpoints(self, trainer: pl.Trainer) -> set[str]:
        """What Lightning considers for `ckpt_path="last"`. There is no public way to be asked."""
        last = self.last_model_path
        return {last} if last else set()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Have the strategy save to and load from the repository what has its address."""
        if stage == "fit":
            check_hyperparameters(pl_module, getattr(trainer, "datamodule", None))
            self._run = Run()
        self._release()
        self._strategy = StoreStrategy(
            trainer,
            save=partial(self._commit, trainer),
            load=partial(self._load, trainer),
            run=self._run,
        )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wait for the save in flight, and end."""
        self._release()
        if self._manager is not None:
            manager, self._manager = self._manager, None
            manager.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """End, and have the other ranks know of the error."""
        self._release()
        if self._manager is not None:
            manager, self._manager = self._manager, None
            with suppress(SystemExit):
                manager.__exit__(type(exception), exception, exception.__traceback__)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the random states and those of the data loaders, which are set where they begin."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._run.take(checkpoint, is_own=self._run.has_own or trainer.global_rank == 0)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to save to the branch, before the training takes time."""
        self._manager_of(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to train."""
        self._run.begin(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note from where the data loaders draw the order of the epoch."""
        self._run.begin_epoch()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Go on without what was restored."""
        self._run.note_trained()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save in the middle of an epoch, if a save is due."""
        run = self._run
        run.batch = batch_idx + 1
        if trainer.is_last_batch:
            run.note_values(trainer)
        if trainer.global_step == run.seen_step:
            return  # gradients are still accumulated, which no checkpoint has
        run.seen_step = trainer.global_step
        if self._is_due(trainer):
            self._save_or_wait(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the metrics before the validation."""
        self._run.note_values(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after a validation in the middle of an epoch, which has measured `monitor`."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._run.has_validated = True
        measured = self._run.measured(trainer, "validation")
        if self.monitor in measured:
            self._save_or_wait(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end of an epoch."""
        run = self._run
        if run.repeats_end():
            return
        run.measured(trainer, "epoch")
        count = self.every_n_epochs or 0
        is_due = run.is_pending or (count > 0 and (trainer.current_epoch + 1) % count == 0)
        if is_due and (trainer.is_last_batch or run.saved_step != trainer.global_step):
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for the save in flight."""
        if self._manager is not None:
            self._manager.wait()

    def _is_due(self, trainer: pl.Trainer) -> bool:
        """Whether to save at this step."""
        run, count = self._run, self._every_n_train_steps
        if (count > 0 and trainer.global_step % count == 0) or _is_stopping(trainer):
            return True
        if self._train_time_interval is not None:
            seconds = self._train_time_interval.total_seconds()
            is_over = time.monotonic() - run.saved_time >= seconds
            if trainer.strategy.broadcast(is_over):
                return True
        manager = self._manager_of(trainer)
        if not self._options["save_on_signal"]:
            return False
        asked = trainer.strategy.reduce_boolean_decision(manager.save_requested, all=False)
        return bool(asked)

    def _save_or_wait(self, trainer: pl.Trainer) -> None:
        """Save now, or at the end of the epoch if its last batch is done.

        After a checkpoint in between, Lightning would take the training for finished.
        """
        if trainer.is_last_batch:
            self._run.is_pending = True
        else:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        """Save, unless the run is a trial."""
        run = self._run
        if trainer.fast_dev_run:
            return
        run.is_saving = True
        try:
            trainer.save_checkpoint(SCHEME, weights_only=False)
        finally:
            run.is_saving = False
        run.saved_step, run.saved_time, run.is_pending = (
            trainer.global_step,
            time.monotonic(),
            False,
        )

    def _commit(self, trainer: pl.Trainer, checkpoint: dict[str, Any], address: str) -> None:
        """Save what Lightning would write to a file; called on all ranks.

        Args:
            trainer: The trainer.
            checkpoint: Its dict.
            address: "ckptstore://", or "ckptstore://TAG" for a tag.
        """
        if taken := [name for name in (*OWN, LOADERS, PLATEAUS) if name in checkpoint]:
            raise InvalidInputError(
                f"The LightningModule adds {', '.join(map(repr, taken))} in on_save_checkpoint, "
                "which are names of the store itself. Choose others."
            )
        run, manager = self._run, self._manager_of(trainer)
        self._release_warnings(trainer, manager)
        if trainer.is_last_batch:
            checkpoint = with_ended_loaders(checkpoint)
            if metrics := plateaus(trainer):
                checkpoint = checkpoint | {PLATEAUS: metrics}
        if generators := run.generators(is_at_end=trainer.is_last_batch):
            checkpoint = checkpoint | {LOADERS: generators}
        if is_sharded(trainer):
            checkpoint = in_shards(checkpoint, trainer)
        replicas = (WEIGHTS, OPTIMIZERS)
        manager.tracked = {
            name: Box(value, is_replica=name in replicas) for name, value in checkpoint.items()
        }
        manager.save(
            trainer.global_step,
            metrics=run.metrics(trainer),
            meta=meta(checkpoint),
            epoch=trainer.current_epoch,
            batch=0 if trainer.is_last_batch else run.batch,
            tag=address.removeprefix(SCHEME) or None,
            force=True,
        )
        manager.tracked = {}  # the state of now, which takes memory

    def _load(self, trainer: pl.Trainer, address: str) -> dict[str, Any]:
        """Return the checkpoint of an address as Lightning would read it; called on all ranks."""
        rev, repo = self._revision(address)
        is_fitting = trainer.state.fn == TrainerFn.FITTING
        if repo is None and is_fitting:
            return self._restore(trainer, rev)
        repo = repo or self._opened()
        checkpoint = checked(repo.resolve(rev))
        if not is_sharded(trainer):
            return read(repo, checkpoint, is_fitting=is_fitting)
        into = destination(trainer, is_fitting=is_fitting)
        repo.checkout(checkpoint.id, into=into, include=[f"{name}/**" for name in into])
        return read(repo, checkpoint, is_fitting=is_fitting, exclude=[WEIGHTS, OPTIMIZERS]) | {
            WEIGHTS: {},
            OPTIMIZERS: [],
        }

    def _restore(self, trainer: pl.Trainer, rev: str) -> dict[str, Any]:
        """Restore a checkpoint of this repository, from which the run goes on."""
        manager = self._manager_of(trainer)
        checkpoint = checked(manager.repository.resolve(rev))
        latest = manager.latest
        if latest is not None and latest.id != checkpoint.id and not self.reset:
            raise ConflictError(
                f"Branch {self.branch!r} is at checkpoint {latest.id.short}, and this run is to go "
                f"on from {checkpoint.id.short}. To keep both, pass a new branch= to "
                "CkptStoreCallback, which then begins there, and name the checkpoint: "
                f"ckpt_path='{SCHEME}{checkpoint.id.short}'. To give up what came after it, pass "
                "reset=True."
            )
        boxes = {str(name): Box() for name in checkpoint.names if name not in OWN}
        tracked: dict[str, Any] = dict(boxes)
        if is_sharded(trainer):
            tracked |= destination(trainer, is_fitting=True)
        manager.tracked = tracked
        manager.restore(str(checkpoint.id), reset=self.reset)
        state = {name: box.state for name, box in boxes.items() if tracked[name] is box}
        if is_sharded(trainer):
            state |= {WEIGHTS: {}, OPTIMIZERS: []}
        if RANDOM in checkpoint.names:
            state[RANDOM], self._run.has_own = RandomState().state_dict(), True
        state[PROGRESS] = {"epoch": manager.epoch, "batch": manager.batch}
        manager.tracked = {}
        return state

    def _revision(self, address: str) -> tuple[str, Repository | None]:
        """The revision of an address, and its repository if it is not this one."""
        store, rev = parsed(address)
        own = self._opened()
        repo = None if store in ("", own.url) else repository.open(store)
        if repo is None and rev in (LAST, BEST):
            found = self._last_checkpoint() if rev == LAST else self._best_checkpoint()
            if found is None:
                raise NotFoundError(
                    f"Branch {self.branch!r} of {own.url} has no {rev} checkpoint yet."
                )
            rev = str(found.id)
        return rev, repo

    def _opened(self) -> Repository:
        """The repository."""
        if self._repository is None:
            assert not isinstance(self.store, Repository)
            self._repository = repository.open(self.store, create=True)
        return self._repository

    def _manager_of(self, trainer: pl.Trainer) -> CheckpointManager:
        """The manager of this fit, which is made when it is first needed."""
        if self._manager is None:
            self._manager = CheckpointManager(
                self._opened(),
                branch=self.branch,
                **self._options,
                **{WEIGHTS: trainer.lightning_module},
            )
            self._manager._gc.holds_warnings = True  # noqa: SLF001 - no metric is there yet
        return self._manager

    def _release_warnings(self, trainer: pl.Trainer, manager: CheckpointManager) -> None:
        """Have a gc warn of `monitor`, say, once a validation or else an epoch may have it."""
        gc = manager._gc  # noqa: SLF001
        is_over = trainer.is_last_batch and not trainer.enable_validation
        if gc.holds_warnings and (self._run.has_validated or is_over):
            manager.wait()  # whose gc is of before
            gc.holds_warnings = False

    def _last_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint of the branch."""
        repo = self._settled()
        heads = {} if repo is None else repo.ref_names()[0]
        return None if repo is None or self.branch not in heads else repo.resolve(self.branch)

    def _best_checkpoint(self) -> Checkpoint | None:
        """The best stored checkpoint of the branch, without a metric the newest."""
        repo = self._settled()
        if self._best is None or repo is None:
            return self._last_checkpoint()
        return stored_best(repo, self.branch, self._best)

    def _settled(self) -> Repository | None:
        """The repository once the save in flight is done; None if it does not exist yet."""
        if self._manager is not None:
            self._manager.wait()
        if self._repository is None:
            assert not isinstance(self.store, Repository)
            with suppress(NotFoundError):
                self._repository = repository.open(self.store)
        return self._repository

    def _address(self, checkpoint: Checkpoint | None) -> str:
        return "" if checkpoint is None else f"{SCHEME}{self._opened().url}#{checkpoint.id}"

    def _release(self) -> None:
        """Give the strategy its methods back."""
        if self._strategy is not None:
            self._strategy.release()
            self._strategy = None


def _best(monitor: str | None, mode: str | None, top: int) -> KeepBest | None:
    """The policy of a monitor, without which the best is the newest."""
    if type(top) is not int or top < -1 or top == 0:
        raise InvalidInputError(
            f"save_top_k is {shown(top)}; a number of checkpoints, or -1 for all, is expected."
        )
    if monitor is None:
        top_k = "save_top_k needs a monitor. Pass one, or leave save_top_k out to keep all."
        given = {"mode needs a monitor. Pass one, or leave mode out.": mode is not None}
        given[top_k] = top != 1
        if any(given.values()):
            raise InvalidInputError(" ".join(text for text, is_given in given.items() if is_given))
        return None
    return KeepBest(monitor, mode="auto" if mode is None else mode, n=max(1, top), pending=0)


def _check_intervals(steps: object, epochs: object, time_interval: object) -> None:
    """Raise InvalidInputError unless at most one of the intervals is set, to one that there is."""
    counts = {"every_n_train_steps": steps, "every_n_epochs": epochs}
    for name, value in counts.items():
        if value is not None and (type(value) is not int or value < 1):
            raise InvalidInputError(f"{name} is {shown(value)}; a number of 1 or more is expected.")
    if time_interval is not None and not isinstance(time_interval, timedelta):
        raise InvalidInputError(
            f"train_time_interval is {shown(time_interval)}; a datetime.timedelta is expected."
        )
    given = counts | {"train_time_interval": time_interval}
    if len(names := [name for name, value in given.items() if value is not None]) > 1:
        raise InvalidInputError(f"{' and '.join(names)} exclude each other. Pass one of them.")


def _is_stopping(trainer: pl.Trainer) -> bool:
    """Whether no batch follows, although the epoch may not be at its end."""
    return bool(trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step)
