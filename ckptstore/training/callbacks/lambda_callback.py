"""LambdaCallback: functions as the hooks of a training run."""

from __future__ import annotations

from collections.abc import Callable

from ckptstore.errors import InvalidInputError, shown
from ckptstore.training.callbacks.callback import Callback

Hook = Callable[..., object] | None


class LambdaCallback(Callback):
    """Calls functions at hooks.

    Functions for epochs and batches are called with (number, logs), the one for on_checkpoint with
    (checkpoint, branch), all others with (logs). Arguments are passed by position, so parameters
    may have any names. Unlike Keras' class it accepts every hook of `Callback` by its name, and
    rejects other names.

    Args:
        on_epoch_begin: Called when an epoch begins.
        on_epoch_end: Called when an epoch has ended.
        on_train_begin: Called when training begins.
        on_train_end: Called when training has ended.
        on_train_batch_begin: Called when a batch of training begins.
        on_train_batch_end: Called when a batch of training has ended.
        **hooks: Functions for any other hook of `Callback`.

    Raises:
        InvalidInputError: There is no hook of that name.

    Example:
        >>> from ckptstore.training import CallbackList, LambdaCallback
        >>> show = LambdaCallback(on_epoch_end=lambda epoch, logs: print(epoch, logs["loss"]))
        >>> CallbackList([show]).on_epoch_end(0, {"loss": 0.5})
        0 0.5
    """

    def __init__(
        self,
        on_epoch_begin: Hook = None,
        on_epoch_end: Hook = None,
        on_train_begin: Hook = None,
        on_train_end: Hook = None,
        on_train_batch_begin: Hook = None,
        on_train_batch_end: Hook = None,
        **hooks: Hook,
    ) -> None:
        functions = {
            "on_epoch_begin": on_epoch_begin,
            "on_epoch_end": on_epoch_end,
            "on_train_begin": on_train_begin,
            "on_train_end": on_train_end,
            "on_train_batch_begin": on_train_batch_begin,
            "on_train_batch_end": on_train_batch_end,
            **hooks,
        }
        for name, function in functions.items():
            if not name.startswith("on_") or not hasattr(Callback, name):
                raise InvalidInputError(f"LambdaCallback: there is no hook {shown(name)}.")
            if function is not None:
                takes_two = any(word in name for word in ("epoch", "batch", "checkpoint"))
                setattr(self, name, _by_position(function) if takes_two else function)


def _by_position(function: Callable[..., object]) -> Callable[..., None]:
    """A function that is called by position. Keras passes logs by name."""

    def call(first: object, logs: object = None) -> None:
        function(first, logs)

    return call
