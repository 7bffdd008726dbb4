"""Contents: the dict that Lightning saves, as it is committed and read.

Its keys are Lightning's; a manager adds some of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import ModelParallelStrategy

from ckptstore.commit.flatten import flatten
from ckptstore.errors import InvalidInputError, UnsupportedValueError, shown
from ckptstore.formats.torch.lightning import HYPERPARAMETERS, VERSION
from ckptstore.training.loaders.ends import FINISHED
from ckptstore.training.tracked import PROGRESS, RANDOM, RANKS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import lightning.pytorch as pl

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.repository import Repository

WEIGHTS, OPTIMIZERS = "state_dict", "optimizer_states"
LOADERS = "loaders"  # the generators of data loaders
PLATEAUS = "plateaus"  # metrics by which schedulers are updated once the checkpoint is made
OWN = (RANDOM, PROGRESS, RANKS)  # the keys that a manager adds


def checked(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, if it is one of Lightning."""
    if VERSION not in checkpoint.names:
        raise InvalidInputError(
            f"{checkpoint!r} is no checkpoint of Lightning: it has {shown(checkpoint.names)}. For "
            "its weights alone, use ckptstore.load_weights."
        )
    return checkpoint


def read(
    repo: Repository, checkpoint: Checkpoint, *, is_fitting: bool, exclude: Sequence[str] = ()
) -> dict[str, Any]:
    """Read a checkpoint in Lightning's form."""
    left_out = [RANKS, *exclude, *([] if is_fitting else [RANDOM, OPTIMIZERS])]
    state: dict[str, Any] = repo.checkout(checkpoint.id, exclude=left_out)
    return state


def is_sharded(trainer: pl.Trainer) -> bool:
    """Whether ranks may have parts of tensors."""
    return isinstance(trainer.strategy, ModelParallelStrategy)


def in_shards(checkpoint: dict[str, Any], trainer: pl.Trainer) -> dict[str, Any]:
    """The checkpoint of a model in shards, in the form of one without.

    Lightning names the states of optimizers by parameters, or gathers them on rank 0.
    """
    states: dict[str, Any] = {OPTIMIZERS: [each.state_dict() for each in trainer.optimizers]}
    gathers = not trainer.strategy._save_distributed_checkpoint  # noqa: SLF001 - not public
    if gathers:
        states[WEIGHTS] = trainer.lightning_module.state_dict()
    return checkpoint | states


def destination(trainer: pl.Trainer, *, is_fitting: bool) -> dict[str, Any]:
    """What a checkpoint fills in place where tensors are in shards."""
    into: dict[str, Any] = {WEIGHTS: trainer.lightning_module}
    return into | ({OPTIMIZERS: list(trainer.optimizers)} if is_fitting else {})


def loader_states(checkpoint: Mapping[str, Any]) -> list[Any]:
    """The states of the training's data loaders, of those that have one."""
    loop = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {})
    states: list[Any] = loop.get("combined_loader", [])
    return states


def with_ended_loaders(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint of the end of an epoch, in which torchdata's loaders begin the next one.

    They mark the end of an epoch only when they are asked for one batch more.
    """
    states = [
        {**state, FINISHED: True} if isinstance(state, dict) and FINISHED in state else state
        for state in loader_states(checkpoint)
    ]
    if not states:
        return checkpoint
    fit_loop = checkpoint["loops"]["fit_loop"]
    own = {**fit_loop["state_dict"], "combined_loader": states}
    return checkpoint | {
        "loops": checkpoint["loops"] | {"fit_loop": fit_loop | {"state_dict": own}}
    }


def plateaus(trainer: pl.Trainer) -> dict[int, float]:
    """The metrics by which schedulers are updated at the end of this epoch, by their number.

    Lightning updates `ReduceLROnPlateau` once the checkpoints of an epoch are made, and leaves that
    out in a run that goes on from one.
    """
    metrics, epochs = trainer.callback_metrics, trainer.current_epoch + 1
    return {
        number: float(metrics[config.monitor])
        for number, config in enumerate(trainer.lr_scheduler_configs)
        if config.reduce_on_plateau
        and config.interval == "epoch"
        and epochs % config.frequency == 0
        and config.monitor in metrics
        and trainer.lightning_module.automatic_optimization
    }


def check_hyperparameters(*owners: Any) -> None:
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
