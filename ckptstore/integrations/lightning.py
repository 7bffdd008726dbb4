"""Lightning: one callback saves a run of its Trainer, and `fit(ckpt_path=...)` resumes it.

The checkpoint is the dict that Lightning itself would write to a file, under the same names, with
the random states of each rank beside it. A CheckpointManager saves it, so branches, policies,
mirrors and many ranks work as they do there. See docs/adr/0072.
"""

# ruff: noqa: ARG002 - a hook is called with more than each of them needs

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.core import url_to_fs
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn

from ckptstore import formats, repository
from ckptstore.commit.flatten import flatten
from ckptstore.documents.names import check_ref_name
from ckptstore.errors import (
    ConflictError,
    ExpiredError,
    InvalidInputError,
    NotFoundError,
    UnsupportedValueError,
    shown,
)
from ckptstore.formats.torch.lightning import HYPERPARAMETERS, VERSION, facts, meta
from ckptstore.repository import Repository
from ckptstore.retention import KeepBest
from ckptstore.this_run import run_meta
from ckptstore.training.branch_gc import joined, stored_best
from ckptstore.training.loaders.ends import FINISHED
from ckptstore.training.loaders.randomness import LoaderRandomness
from ckptstore.training.manager import CheckpointManager
from ckptstore.training.random_state import RandomState
from ckptstore.training.tracked import PROGRESS, RANDOM, RANKS, Box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    import lightning.pytorch as pl

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.retention import Policy

__all__ = ["CkptStoreCallback", "CkptStoreIO"]

SCHEME = "ckptstore://"
STUB, STUB_BYTES_MAX = "ckptstore", 10_000  # in a file that names a checkpoint
LAST, BEST = "last", "best"
WEIGHTS, OPTIMIZERS = "state_dict", "optimizer_states"
LOADERS = "loaders"  # the generators of data loaders
_OWN = (RANDOM, PROGRESS, RANKS)  # the keys that a manager adds


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
        self._strategy: _Strategy | None = None
        self._run = _Run()

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
            _check_hyperparameters(pl_module, getattr(trainer, "datamodule", None))
            self._run = _Run()
        self._release()
        self._strategy = _Strategy(
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
        if taken := [name for name in (*_OWN, LOADERS) if name in checkpoint]:
            raise InvalidInputError(
                f"The LightningModule adds {', '.join(map(repr, taken))} in on_save_checkpoint, "
                "which are names of the store itself. Choose others."
            )
        run, manager = self._run, self._manager_of(trainer)
        if trainer.is_last_batch:
            checkpoint = _with_ended_loaders(checkpoint)
        if generators := run.generators(is_at_end=trainer.is_last_batch):
            checkpoint = checkpoint | {LOADERS: generators}
        if _is_sharded(trainer):
            checkpoint = _in_shards(checkpoint, trainer)
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
        checkpoint = _checked(repo.resolve(rev))
        if not _is_sharded(trainer):
            return _read(repo, checkpoint, is_fitting=is_fitting)
        into = _destination(trainer, is_fitting=is_fitting)
        repo.checkout(checkpoint.id, into=into, include=[f"{name}/**" for name in into])
        return _read(repo, checkpoint, is_fitting=is_fitting, exclude=[WEIGHTS, OPTIMIZERS]) | {
            WEIGHTS: {},
            OPTIMIZERS: [],
        }

    def _restore(self, trainer: pl.Trainer, rev: str) -> dict[str, Any]:
        """Restore a checkpoint of this repository, from which the run goes on."""
        manager = self._manager_of(trainer)
        checkpoint = _checked(manager.repository.resolve(rev))
        latest = manager.latest
        if latest is not None and latest.id != checkpoint.id and not self.reset:
            raise ConflictError(
                f"Branch {self.branch!r} is at checkpoint {latest.id.short}, and this run is to go "
                f"on from {checkpoint.id.short}. To keep both, pass another branch to "
                "CkptStoreCallback: it begins at that checkpoint. To give up what came after it, "
                "pass reset=True."
            )
        boxes = {str(name): Box() for name in checkpoint.names if name not in _OWN}
        tracked: dict[str, Any] = dict(boxes)
        if _is_sharded(trainer):
            tracked |= _destination(trainer, is_fitting=True)
        manager.tracked = tracked
        manager.restore(str(checkpoint.id), reset=self.reset)
        state = {name: box.state for name, box in boxes.items() if tracked[name] is box}
        if _is_sharded(trainer):
            state |= {WEIGHTS: {}, OPTIMIZERS: []}
        if RANDOM in checkpoint.names:
            state[RANDOM], self._run.has_own = RandomState().state_dict(), True
        state[PROGRESS] = {"epoch": manager.epoch, "batch": manager.batch}
        manager.tracked = {}
        return state

    def _revision(self, address: str) -> tuple[str, Repository | None]:
        """The revision of an address, and its repository if it is not this one."""
        store, rev = _parsed(address)
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
        return self._manager

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


class _Strategy:
    """A strategy that saves to and loads from a repository what has an address of one.

    Only rank 0 calls the CheckpointIO of a strategy, and the one for models in shards calls none.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        *,
        save: Callable[[dict[str, Any], str], None],
        load: Callable[[str], dict[str, Any]],
        run: _Run,
    ) -> None:
        strategy = trainer.strategy
        kind = type(strategy)
        if not issubclass(kind, ModelParallelStrategy) and (
            kind.save_checkpoint is not Strategy.save_checkpoint
        ):
            raise InvalidInputError(
                f"{kind.__name__} saves in a format of its own, of which each rank has a part. "
                "Models in shards are saved under ModelParallelStrategy (FSDP2)."
            )
        self._strategy = strategy
        save_file, load_file = strategy.save_checkpoint, strategy.load_checkpoint
        process = strategy.process_dataloader

        def save_checkpoint(
            checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
        ) -> None:
            is_of_other = filepath == SCHEME and not run.is_saving  # there may be several
            if is_address(filepath) and not (is_of_other and self._before["save_checkpoint"]):
                save(checkpoint, str(filepath))
            else:
                save_file(checkpoint, filepath, storage_options=storage_options)

        def load_checkpoint(checkpoint_path: Any, weights_only: bool | None = None) -> Any:
            if is_address(checkpoint_path):
                return load(str(checkpoint_path))
            return load_file(checkpoint_path, weights_only=weights_only)

        def process_dataloader(dataloader: Any) -> Any:
            loader = process(dataloader)
            if trainer.training:
                run.begin_loader(loader, trainer.fit_loop.epoch_progress.current.processed)
            return loader

        self._methods = {
            "save_checkpoint": save_checkpoint,
            "load_checkpoint": load_checkpoint,
            "process_dataloader": process_dataloader,
        }
        self._before = {name: vars(strategy).get(name) for name in self._methods}
        vars(strategy).update(self._methods)

    def release(self) -> None:
        """Give the strategy its methods back."""
        attributes = vars(self._strategy)
        for name, method in self._methods.items():
            if attributes.get(name) is method:
                del attributes[name]
                if self._before[name] is not None:
                    attributes[name] = self._before[name]


@dataclass(slots=True)
class _Run:
    """One call of fit.

    Attributes:
        batch: The number of batches of the epoch that are done.
        seen_step: The global step after the batch before.
        saved_step: The global step of the last save.
        saved_time: The time of the last save, in seconds.
        is_pending: Whether to save at the end of the epoch whatever the interval.
        is_saving: Whether the callback itself asks the trainer for a checkpoint.
        has_own: Whether the random states that were restored are those of this rank.
        is_within_epoch: Whether the run resumes in the middle of an epoch.
        has_trained: Whether a batch was trained.
    """

    batch: int = 0
    seen_step: int = 0
    saved_step: int = -1
    saved_time: float = 0.0
    is_pending: bool = False
    is_saving: bool = False
    has_own: bool = False
    is_within_epoch: bool = False
    has_trained: bool = False
    _random: dict[str, Any] | None = None
    _positions: list[Any] = field(default_factory=list)  # of loaders, to restore
    _generators: list[Any] = field(default_factory=list)  # of loaders, to restore
    _restored: list[Any] = field(default_factory=list)  # generators of loaders, as restored
    _repeated: list[_Repeated] = field(default_factory=list)
    _loaders: list[Any] = field(default_factory=list)
    _begun: list[Any] = field(default_factory=list)  # their generators before they drew the order
    _has_begun: bool = False
    _values: dict[str, float] = field(default_factory=dict)
    _known: dict[str, set[str]] = field(default_factory=dict)  # metrics by what measures them
    _measured: dict[str, int] = field(default_factory=dict)  # the step at which each was measured

    def take(self, checkpoint: Mapping[str, Any], *, is_own: bool) -> None:
        """Take the states of random generators and data loaders from a checkpoint.

        is_own: whether the random states are those of this rank.
        """
        random, progress = checkpoint.get(RANDOM), checkpoint.get(PROGRESS)
        if not isinstance(random, dict):
            return  # Lightning itself has saved it
        self.is_within_epoch = isinstance(progress, dict) and bool(progress.get("batch"))
        self._random = random if is_own else None
        self._generators = [*checkpoint.get(LOADERS, ())]
        if states := _loader_states(checkpoint):
            self._positions = [*states]
            states.clear()  # Lightning would load some of them once more

    def begin_loader(self, loader: Any, epoch: int) -> None:
        """Restore the position of a loader, and set the random states that it draws an order from.

        At the end of an epoch torchdata's loaders make an iterator only to find out that it has
        ended, and draw random numbers for it: the random states are set after that.
        """
        if self._has_begun:  # the loaders are made anew
            self._has_begun, self._loaders, self._begun, self._restored = False, [], [], []
        generators = self._generators.pop(0) if self._generators else {}
        self._restored.append(generators)
        _set_generators(loader, generators)
        if self._positions and hasattr(loader, "load_state_dict"):
            samplers: list[Any] = [loader.sampler, getattr(loader.batch_sampler, "sampler", None)]
            for sampler in samplers:
                if hasattr(sampler, "set_epoch"):  # Lightning sets it after the order is drawn
                    sampler.set_epoch(epoch)
            loader.load_state_dict(self._positions.pop(0))
            if not self.is_within_epoch:
                loader.state_dict()
                _set_generators(loader, generators)
        self._set_random_states()
        self._loaders.append(loader)
        self._begun.append(_generators(loader))
        if self.is_within_epoch and generators:
            self._repeated.extend(_Repeated.within(loader, generators))

    def begin_epoch(self) -> None:
        """Note the generators of the loaders, unless they have drawn the order already."""
        if self._has_begun:
            self._begun = [*map(_generators, self._loaders)]
        self._has_begun = True

    def generators(self, *, is_at_end: bool) -> list[dict[str, Any]]:
        """The states of the generators of the loaders, from which a resumed run draws an order.

        is_at_end: whether that is the order of the next epoch.
        """
        states = [*map(_generators, self._loaders)] if is_at_end else self._begun
        return states if any(states) else []

    def begin(self, trainer: pl.Trainer) -> None:
        """Begin to train."""
        if self.is_within_epoch:  # where no loader draws the order of an epoch any more
            self._set_random_states()
        for repeated in self._repeated:
            repeated.release()
        self._repeated = []
        self.seen_step, self.saved_time = trainer.global_step, time.monotonic()

    def repeats_end(self) -> bool:
        """Whether Lightning ends the epoch of the checkpoint again, as where it counts steps.

        Loaders then draw the order of the next epoch once more, so their states are set again.
        """
        if self.has_trained or self._random is None:
            return False
        for loader, states in zip(self._loaders, self._restored, strict=True):
            _set_generators(loader, states)
        self._set_random_states()
        return True

    def note_trained(self) -> None:
        """Note that a batch is trained, so that nothing is restored any more."""
        self._random, self.has_trained = None, True

    def _set_random_states(self) -> None:
        if self._random is not None:
            RandomState().load_state_dict(self._random)

    def note_values(self, trainer: pl.Trainer) -> None:
        """Note the metrics as they are."""
        self._values = _numbers(trainer.callback_metrics)

    def measured(self, trainer: pl.Trainer, by: str) -> set[str]:
        """The metrics that were measured since `note_values`, by a validation or an epoch."""
        now, known = _numbers(trainer.callback_metrics), self._known.setdefault(by, set())
        known |= {name for name, value in now.items() if self._values.get(name) != value}
        names = known & now.keys()
        self._measured |= dict.fromkeys(names, trainer.global_step)
        return names

    def metrics(self, trainer: pl.Trainer) -> dict[str, float]:
        """The metrics of this step: those of a validation or an epoch count when it has ended."""
        step = trainer.global_step
        return {
            name: value
            for name, value in _numbers(trainer.callback_metrics).items()
            if self._measured.get(name, step) == step
        }


class CkptStoreIO(CheckpointIO):
    """Commits what Lightning saves to files, for those who keep `ModelCheckpoint`.

    In place of each file there is a small one that names the checkpoint. So `ModelCheckpoint`
    finds, names and removes files as ever, and `ckpt_path="last"` and the path of a file resume.
    The step, the epoch, the hyperparameters and the score of the file by `monitor` are recorded. A
    checkpoint whose file is removed or replaced expires. Random states are not saved: that takes
    `CkptStoreCallback`.

    Args:
        store: A folder or URL, where a repository is created if there is none, or a Repository.
        branch: The branch to commit to.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.callbacks import ModelCheckpoint
        >>> from ckptstore.integrations.lightning import CkptStoreIO
        >>> files = ModelCheckpoint("checkpoints", monitor="val_loss", save_last=True)
        >>> trainer = Trainer(
        ...     callbacks=[files], plugins=[CkptStoreIO("runs/lightning")]
        ... )  # doctest: +SKIP
    """

    def __init__(self, store: str | Path | Repository, *, branch: str = "main") -> None:
        self._repository = store if isinstance(store, Repository) else None
        self._store, self._branch = store, str(check_ref_name(branch, kind="branch"))
        self._files = TorchCheckpointIO()
        self._removed: list[str] = []  # ids of checkpoints that are to expire

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Commit a checkpoint, and write a file that names it.

        Args:
            checkpoint: Lightning's dict.
            path: The path of the file. Names that begin with a dot are Lightning's own temporary
                files, which are written as ever.
            storage_options: Passed on for such files.

        Raises:
            UnsupportedValueError: It holds a value that no checkpoint can hold.
        """
        name = Path(path).name
        if name.startswith("."):
            self._files.save_checkpoint(checkpoint, path, storage_options)
            return
        repo, found = self._opened(), facts(checkpoint, name)
        made = repo.commit(
            checkpoint,
            branch=self._branch,
            step=found.get("step"),
            metrics=found.get("metrics"),
            meta=run_meta() | meta(checkpoint) | {"file": name},
            retry=True,
        )
        document = {STUB: repo.url, "id": str(made.id), "branch": self._branch}
        self._let_go(path)
        fs, file = url_to_fs(str(path))
        fs.makedirs(os.path.dirname(file), exist_ok=True)
        fs.pipe_file(f"{file}.part", json.dumps(document).encode())
        fs.mv(f"{file}.part", file)
        self._expire()

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            path: A file that names one, an address, or any file of Lightning.
            map_location: For files of Lightning.
            weights_only: For files of Lightning.

        Returns:
            Lightning's dict.

        Raises:
            NotFoundError: There is no such checkpoint.
        """
        if is_address(path):
            store, rev = _parsed(str(path))
            repo = repository.open(store) if store else self._opened()
        elif (named := _named(path)) is not None:
            repo, rev = repository.open(named[STUB]), named["id"]
        else:
            return dict(self._files.load_checkpoint(path, map_location, weights_only))
        return _read(repo, _checked(repo.resolve(rev)), is_fitting=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a file, and let the checkpoint that it names expire.

        Args:
            path: The path of the file.
        """
        self._let_go(path)
        self._files.remove_checkpoint(path)
        self._expire()

    def _let_go(self, path: str | Path) -> None:
        """Note that the checkpoint that a file names is to expire, if it names one."""
        if (named := _named(path)) is not None and named[STUB] == self._opened().url:
            self._removed.append(named["id"])

    def _expire(self) -> None:
        """Expire what was removed; the newest of the branch only after the next save."""
        repo = self._opened()
        head = repo.ref_names()[0].get(self._branch)
        for rev in [rev for rev in self._removed if rev != str(head)]:
            self._removed.remove(rev)
            with suppress(ConflictError, ExpiredError, NotFoundError):  # it has a tag, say
                repo.expire(rev).execute()

    def _opened(self) -> Repository:
        """The repository."""
        if self._repository is None:
            assert not isinstance(self._store, Repository)
            self._repository = repository.open(self._store, create=True)
        return self._repository


def _named(path: object) -> dict[str, str] | None:
    """What a file of CkptStoreIO says; None for another file."""
    fs, file = url_to_fs(str(path))
    if not fs.isfile(file) or fs.size(file) > STUB_BYTES_MAX:
        return None
    try:
        document = json.loads(fs.cat_file(file))
    except ValueError:
        return None
    is_stub = isinstance(document, dict) and {STUB, "id"} <= document.keys()
    return document if is_stub else None


class StoreFileSystem(fsspec.AbstractFileSystem):
    """Checkpoints in repositories as the files that Lightning looks for and opens.

    So `ckpt_path="last"` finds them, and `LightningModule.load_from_checkpoint` reads them.
    """

    protocol = "ckptstore"

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """The name, size and time of a checkpoint."""
        checkpoint = _found(path)[1]
        return {
            "name": path,
            "size": checkpoint.array_bytes,
            "type": "file",
            "mtime": checkpoint.created,
        }

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether there is such a checkpoint."""
        try:
            return not _found(path)[1].expired
        except NotFoundError:
            return False

    def modified(self, path: str) -> datetime:
        """When it was made."""
        return _found(path)[1].created

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        """Open it as a .ckpt for reading."""
        if mode != "rb":
            raise InvalidInputError(f"{SCHEME}{path} can only be read as a file.")
        repo, checkpoint = _found(path)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "checkpoint.ckpt")
            formats.write_file(repo.checkout(checkpoint.id, lazy=True), file)
            return file.open("rb")  # which stays when its name is gone


fsspec.register_implementation("ckptstore", StoreFileSystem, clobber=True)


def is_address(path: object) -> bool:
    """True for what Lightning is given in place of a path, and that names a checkpoint."""
    return str(path).startswith(SCHEME)


def _parsed(address: str) -> tuple[str, str]:
    """The store of an address, "" where it names none, and the revision."""
    store, _, rev = address.removeprefix(SCHEME).rpartition("#")
    if not rev:
        raise InvalidInputError(
            f"{shown(address)} names no checkpoint; {SCHEME}REV or {SCHEME}STORE#REV is expected."
        )
    return store, rev


def _found(path: str) -> tuple[Repository, Checkpoint]:
    """The repository and the checkpoint of an address outside of a Trainer."""
    store, rev = _parsed(path)
    if not store:
        raise InvalidInputError(
            f"{shown(path)} names no repository; {SCHEME}STORE#REV is expected."
        )
    repo = repository.open(store)
    return repo, repo.resolve(rev)


def _best(monitor: str | None, mode: str | None, top: int) -> KeepBest | None:
    """The policy of a monitor, without which the best is the newest."""
    if type(top) is not int or top < -1 or top == 0:
        raise InvalidInputError(
            f"save_top_k is {shown(top)}; a number of checkpoints, or -1 for all, is expected."
        )
    if monitor is None:
        if mode is not None or top != 1:
            raise InvalidInputError("mode and save_top_k are of a monitor. Pass the name of one.")
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


def _loader_states(checkpoint: Mapping[str, Any]) -> list[Any]:
    """The states of the training's data loaders, of those that have one."""
    loop = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {})
    states: list[Any] = loop.get("combined_loader", [])
    return states


def _generators(loader: Any) -> dict[str, Any]:
    """The states of the generators that a loader has of its own, by their place in it."""
    found = LoaderRandomness(loader).generators
    return {path: generator.state_dict() for path, generator in found.items()}


def _set_generators(loader: Any, states: Mapping[str, Any]) -> None:
    """Set the generators of a loader."""
    for path, generator in LoaderRandomness(loader).generators.items():
        if path in states:
            generator.load_state_dict(states[path])


class _Repeated:
    """A sampler that draws the same order each time, until it is released.

    To restore a position, torchdata draws an order several times; only its own samplers know that
    it is one and the same, not those that Lightning wraps for many ranks.
    """

    def __init__(self, home: Any, draw: Callable[[], None]) -> None:
        self.home, self.sampler, self.draw = home, home._sampler, draw  # noqa: SLF001
        home._sampler = self  # noqa: SLF001

    @classmethod
    def within(cls, loader: Any, states: Mapping[str, Any]) -> Iterator[_Repeated]:
        """Take the place of the sampler that Lightning has wrapped, if it has."""
        sampler = getattr(loader.batch_sampler, "sampler", None)
        if isinstance(sampler, DistributedSamplerWrapper):
            found = LoaderRandomness(loader).generators

            def draw() -> None:
                for path, generator in found.items():
                    generator.load_state_dict(states[path])

            yield cls(sampler.dataset, draw)

    def __iter__(self) -> Iterator[int]:
        self.draw()
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)

    def release(self) -> None:
        """Let the sampler itself draw the next orders."""
        self.home._sampler = self.sampler  # noqa: SLF001


def _with_ended_loaders(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint of the end of an epoch, in which torchdata's loaders begin the next one.

    They mark the end of an epoch only when they are asked for one batch more.
    """
    states = [
        {**state, FINISHED: True} if isinstance(state, dict) and FINISHED in state else state
        for state in _loader_states(checkpoint)
    ]
    if not states:
        return checkpoint
    fit_loop = checkpoint["loops"]["fit_loop"]
    own = {**fit_loop["state_dict"], "combined_loader": states}
    return checkpoint | {
        "loops": checkpoint["loops"] | {"fit_loop": fit_loop | {"state_dict": own}}
    }


def _is_stopping(trainer: pl.Trainer) -> bool:
    """Whether no batch follows, although the epoch may not be at its end."""
    return bool(trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step)


def _is_sharded(trainer: pl.Trainer) -> bool:
    """Whether ranks may have parts of tensors."""
    return isinstance(trainer.strategy, ModelParallelStrategy)


def _in_shards(checkpoint: dict[str, Any], trainer: pl.Trainer) -> dict[str, Any]:
    """The checkpoint of a model in shards, in the form of one without.

    Lightning names the states of optimizers by parameters, or gathers them on rank 0.
    """
    states: dict[str, Any] = {OPTIMIZERS: [each.state_dict() for each in trainer.optimizers]}
    gathers = not trainer.strategy._save_distributed_checkpoint  # noqa: SLF001 - not public
    if gathers:
        states[WEIGHTS] = trainer.lightning_module.state_dict()
    return checkpoint | states


def _destination(trainer: pl.Trainer, *, is_fitting: bool) -> dict[str, Any]:
    """What a checkpoint fills in place where tensors are in shards."""
    into: dict[str, Any] = {WEIGHTS: trainer.lightning_module}
    return into | ({OPTIMIZERS: list(trainer.optimizers)} if is_fitting else {})


def _read(
    repo: Repository, checkpoint: Checkpoint, *, is_fitting: bool, exclude: Sequence[str] = ()
) -> dict[str, Any]:
    """Read a checkpoint in Lightning's form."""
    left_out = [RANKS, *exclude, *([] if is_fitting else [RANDOM, OPTIMIZERS])]
    state: dict[str, Any] = repo.checkout(checkpoint.id, exclude=left_out)
    return state


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, if it is one of Lightning."""
    if VERSION not in checkpoint.names:
        raise InvalidInputError(
            f"{checkpoint!r} is no checkpoint of Lightning: it has {shown(checkpoint.names)}. For "
            "its weights alone, use ckptstore.load_weights."
        )
    return checkpoint


def _check_hyperparameters(*owners: Any) -> None:
    """Raise an error for what no checkpoint can hold before a training, not at its first save."""
    for owner in owners:
        if parameters := getattr(owner, "hparams", None):
            try:
                flatten({HYPERPARAMETERS: dict(parameters)})
            except UnsupportedValueError as error:
                raise UnsupportedValueError(
                    f"{error} It is a hyperparameter of {type(owner).__name__}. Leave it out: "
                    "self.save_hyperparameters(ignore=[...])."
                ) from error


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as numbers."""
    return {name: float(value) for name, value in metrics.items()}
