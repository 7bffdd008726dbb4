"""Differences: what a restore changed in the program's settings, and in its environment.

A scheduler that the program makes with T_max=200 has 100 after a restore, because that is in its
state. Counters and other progress are no settings.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.frameworks import is_module
from ckptstore.documents.names import escape_key
from ckptstore.errors import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Their versions are recorded if the program has imported them.
FRAMEWORKS = ("torch", "numpy", "jax", "tensorflow", "keras", "lightning", "transformers")
ENVIRONMENT = (*FRAMEWORKS, "device", "world_size")  # keys in the meta of a checkpoint
_PROGRESS = frozenset(
    {
        *("last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "_is_initial"),
        *("best", "num_bad_epochs", "cooldown_counter", "T_cur", "T_i"),
        "base_lrs",  # those of the optimizer
    }
)
_PLAIN = (int, float, str)


def environment(tracked: Mapping[str, object]) -> dict[str, Any]:
    """Return the versions of frameworks, the device of the model and the number of processes.

    Only frameworks that the program has imported are among them; none is imported here.
    """
    found: dict[str, Any] = {
        name: str(version)
        for name in FRAMEWORKS
        if (version := getattr(sys.modules.get(name), "__version__", None)) is not None
    }
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return found
    modules = (item for item in tracked.values() if is_module(item))
    parameters: Any = (parameter for module in modules for parameter in module.parameters())  # type: ignore[attr-defined]
    if (first := next(parameters, None)) is not None:
        device = first.device
        is_cuda = device.type == "cuda"
        found["device"] = torch.cuda.get_device_name(device) if is_cuda else device.type
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        found["world_size"] = distributed.get_world_size()
    return found


def settings(tracked: Mapping[str, object]) -> dict[str, object]:
    """Return the plain settings of optimizers and of torch's schedulers, by path."""
    found: dict[str, object] = {}
    scheduler: Any = getattr(sys.modules.get("torch.optim.lr_scheduler"), "LRScheduler", ())
    for name, item in tracked.items():
        groups = getattr(item, "param_groups", None)
        if isinstance(groups, list):
            for number, group in enumerate(groups):
                hidden = {"params", *(("lr",) if "initial_lr" in group else ())}
                for key, value in group.items():
                    if key not in hidden:
                        path = f"{escape_key(name)}/param_groups/{number}/{key}"
                        found.update(_leaves(value, path))
        elif isinstance(item, scheduler):
            found.update(_leaves(item.state_dict(), escape_key(name)))
    return found


def changed(before: Mapping[str, object], after: Mapping[str, object]) -> tuple[str, ...]:
    """Return a sentence for each setting that has another value than before."""
    return tuple(
        f"{path}: {shown(before[path])} became {shown(value)}."
        for path, value in after.items()
        if path in before and before[path] != value
    )


def moved(meta: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a sentence for each part of the environment that the checkpoint records otherwise."""
    return tuple(
        f"{key.replace('_', ' ')}: {shown(meta[key])} when it was saved, {shown(now[key])} now."
        for key in ENVIRONMENT
        if key in meta and key in now and meta[key] != now[key]
    )


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Yield the plain values of a nested state that are settings."""
    if value is None or isinstance(value, _PLAIN):
        yield path, value
    elif hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a learning rate
        yield path, value.item()
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in _PROGRESS:
                yield from _leaves(item, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        if all(isinstance(item, _PLAIN) for item in value):
            yield path, tuple(value)
        else:
            for number, item in enumerate(value):
                yield from _leaves(item, f"{path}/{number}")
