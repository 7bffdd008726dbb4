"""The strategy of a Trainer, through which every rank saves and loads.

A CheckpointIO sees a dict and a path on rank 0 alone. See docs/adr/0072.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from ckptstore.errors import InvalidInputError
from ckptstore.integrations.lightning.addresses import SCHEME, is_address

if TYPE_CHECKING:
    from collections.abc import Callable

    import lightning.pytorch as pl

    from ckptstore.integrations.lightning.run import Run


class StoreStrategy:
    """A strategy that saves to and loads from a repository what has an address of one.

    Only rank 0 calls the CheckpointIO of a strategy, and the one for models in shards calls none.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        *,
        save: Callable[[dict[str, Any], str], None],
        load: Callable[[str], dict[str, Any]],
        run: Run,
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
