"""Arguments: what a call written for another tool has to be here.

TensorFlow, Keras, Lightning, Orbax and others have classes of the same names. A call with one of
their arguments is an error that names ours. Pure.
"""

from __future__ import annotations

import inspect
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec

from ckptstore.errors import InvalidInputError, meant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

Arguments = ParamSpec("Arguments")
ALIKE_MIN = 0.6  # of an argument that is proposed for another name

_MODE = 'Pass keep_best="METRIC:MODE", such as "val_acc:max".'
_COUNT = 'Pass keep_best="METRIC:MODE:N", such as "val_loss:min:3".'
_OBJECTS = "Pass the objects by name: CheckpointManager(store, model=model, optimizer=optimizer)."
_NAME = "A checkpoint has no file. Pass message or tag to save."
_NEWEST = "The newest checkpoint of a branch always stays."
_REMOVED = "It has no effect; leave it out."
_OPTIONS = "Pass a CheckpointManager as the store; it saves in the background."

_FOLDERS = (
    "directory",
    "folder",
    "path",
    "root",
    "url",
    "backup_dir",
    "checkpoint_dir",
    "ckpt_dir",
)
_OTHER_FOLDERS = ("dirpath", "model_dir", "output_dir", "save_dir", "save_handler")
_STORE = dict.fromkeys((*_FOLDERS, *_OTHER_FOLDERS), "store")
_MANAGER = {
    **_STORE,
    "filepath": "store",
    # tf.train.CheckpointManager
    "checkpoint": _OBJECTS,
    "keep_checkpoint_every_n_hours": "keep_every_n_hours",
    "checkpoint_name": _NAME,
    "step_counter": "Pass the step to each save: manager.save(step).",
    "checkpoint_interval": "save_interval_steps",
    "init_fn": "Pass it to manager.restore_or_initialize(init_fn=...).",
    # Lightning's ModelCheckpoint, and that of Keras
    "filename": _NAME,
    "monitor": "keep_best",
    "mode": _MODE,
    "save_top_k": _COUNT,
    "save_last": _NEWEST,
    "save_best_only": "keep_best",
    "save_weights_only": "Pass only the model: CheckpointManager(store, model=model, rng=False).",
    "save_freq": "save_interval_steps",
    "every_n_train_steps": "save_interval_steps",
    "every_n_epochs": "Call save at the end of every N-th epoch.",
    "train_time_interval": "save_interval_minutes",
    # Orbax's CheckpointManager and its options
    "options": "Pass the options themselves: CheckpointManager(store, max_to_keep=3).",
    "checkpointers": _OBJECTS,
    "item_names": _OBJECTS,
    "item_handlers": _OBJECTS,
    "keep_period": "keep_every_n_steps",
    "keep_time_interval": "keep_every_n_hours",
    "preservation_policy": "policy",
    "best_fn": "Pass metrics to save, and keep_best.",
    "best_mode": _MODE,
    "save_on_steps": "Call save(step, force=True) at these steps.",
    "enable_async_checkpointing": "async_save",
    "metadata": "Pass meta to save.",
    "read_only": "To only read, use ckptstore.open(store).checkout or load_weights.",
    # Hugging Face's Trainer, and Ignite's Checkpoint
    "save_total_limit": "max_to_keep",
    "save_steps": "save_interval_steps",
    "metric_for_best_model": "keep_best",
    "greater_is_better": _MODE,
    "resume_from_checkpoint": "Call manager.restore(rev).",
    "to_save": _OBJECTS,
    "n_saved": "max_to_keep",
    "score_name": "keep_best",
}
_MODEL_CHECKPOINT = {
    **_STORE,
    "options": _OPTIONS,
    "save_on_background": _OPTIONS,
    "save_format": "A repository has one format. Export a checkpoint for another one.",
    "load_weights_on_restart": "Use BackupAndRestore, or CheckpointManager.restore.",
    "max_to_keep": "Pass CheckpointManager(store, max_to_keep=3) as the store.",
    "filename": "filepath",
    "save_top_k": 'Pass CheckpointManager(store, keep_best="val_loss:min:3") as the store.',
    "save_last": _NEWEST,
    "every_n_epochs": "period",
    "every_n_train_steps": "save_freq",
}
NAMES: Mapping[str, Mapping[str, str]] = {  # by class: an argument of it, or a sentence
    "CheckpointManager": _MANAGER,
    "ModelCheckpoint": _MODEL_CHECKPOINT,
    "BackupAndRestore": {
        **_STORE,
        "filepath": "store",
        "save_before_preemption": "Pass CheckpointManager(store, save_on_signal=True) as the "
        "store.",
    },
    "EarlyStopping": {
        "delta": "min_delta",
        "epsilon": "min_delta",
        "check_finite": "Use TerminateOnNaN.",
    },
    "ReduceLROnPlateau": {
        "epsilon": "min_delta",
        "threshold": "min_delta",
        "optimizer": "Pass the optimizer to CallbackList.",
    },
    "TensorBoard": dict.fromkeys(
        ("batch_size", "write_grads", "embeddings_layer_names", "embeddings_data"), _REMOVED
    ),
    "ProgbarLogger": dict.fromkeys(("count_mode", "stateful_metrics"), _REMOVED),
    "CallbackList": {
        "add_history": "Use a CSVLogger, or read the metrics of the checkpoints.",
        "add_progbar": "Add a ProgbarLogger to the callbacks.",
    },
}
UNNAMED = {"CheckpointManager": f"Only the store has no name. {_OBJECTS}"}  # too many without names


def explained(init: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Make a constructor name the argument that was meant, where another tool has another name.

    Other wrong calls remain a TypeError.
    """
    kind = init.__qualname__.split(".")[0]
    signature = inspect.signature(init)

    @wraps(init)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            init(*args, **kwargs)
        except TypeError as error:
            texts = [*_texts(kind, args, kwargs, signature)]
            if not texts:
                raise
            raise InvalidInputError(" ".join(texts)) from error

    return checked


def advice(kind: str, name: str, options: Iterable[str]) -> str | None:
    """Return what to pass in place of an argument that a class does not have; None if unknown."""
    known = NAMES.get(kind, {}).get(name)
    question = meant(name, options, ALIKE_MIN) if known is None else f" Did you mean {known}?"
    if known is not None and known not in options:
        question = f" {known}"
    return f"{kind} has no argument {name!r}.{question}" if question else None


def _texts(
    kind: str, args: tuple[object, ...], kwargs: Mapping[str, object], signature: inspect.Signature
) -> Iterator[str]:
    """Explanations of the arguments of a call that are wrong; known ones only."""
    options = [*signature.parameters][1:]  # without self
    takes_any = any(item.kind is item.VAR_KEYWORD for item in signature.parameters.values())
    for name, value in kwargs.items():
        is_object = takes_any and (name not in NAMES.get(kind, {}) or hasattr(value, "state_dict"))
        if name not in options and not is_object and (text := advice(kind, name, options)):
            yield text
    unnamed = [item for item in signature.parameters.values() if item.kind is not item.KEYWORD_ONLY]
    if kind in UNNAMED and len(args) > len(unnamed) - takes_any:
        yield UNNAMED[kind]
