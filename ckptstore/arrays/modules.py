"""Modules of torch: what is inside wrappers, the state of a module, whether it loads that itself.

Only the type tells a wrapper. An average of weights, or any object that passes attributes on, has a
state of its own.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

COMPILED = "_orig_mod"  # the attribute, and the prefix, of torch.compile
# Also those of FullyShardedDataParallel and of activation checkpointing, in names of parameters.
_PREFIXES = frozenset({COMPILED, "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Wrappers of accelerate by module and name, with the attribute that has what is inside.
_ACCELERATED = (
    ("accelerate.optimizer", "AcceleratedOptimizer", "optimizer"),
    ("accelerate.scheduler", "AcceleratedScheduler", "scheduler"),
)

_METHODS = (
    "state_dict",
    "load_state_dict",
    "_save_to_state_dict",
    "_load_from_state_dict",
    "get_extra_state",
    "set_extra_state",
)
_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def unwrapped(value: Any) -> Any:
    """Return the object inside wrappers, in any mix; anything else as it is.

    They are those of torch.compile, DistributedDataParallel and DataParallel, and those that
    accelerate has for optimizers and schedulers. FullyShardedDataParallel loads and saves by the
    names of the module inside by itself, and needs its wrapper for that.
    """
    while (attribute := _inner(value)) is not None:
        value = getattr(value, attribute)
    return value


def is_replicated(value: Any) -> bool:
    """True for a module that DistributedDataParallel keeps equal on all ranks, in any wrappers."""
    while (attribute := _inner(value)) is not None:
        if type(value).__name__ == "DistributedDataParallel":
            return True
        value = getattr(value, attribute)
    return False


def _inner(value: object) -> str | None:
    """The attribute of a wrapper that has what is inside."""
    if is_compiled(value):
        return COMPILED
    if _is_parallel(value):
        return "module"
    for home, name, attribute in _ACCELERATED:
        kind = getattr(sys.modules.get(home), name, None)
        if kind is not None and isinstance(value, kind):
            return attribute
    return None


def is_compiled(value: object) -> bool:
    """True for what torch.compile returned for a module."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and isinstance(value, dynamo.OptimizedModule)


def _is_parallel(value: object) -> bool:
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    parallel = torch.nn.parallel
    return isinstance(value, (parallel.DistributedDataParallel, parallel.DataParallel))


def loads_itself(module: Any) -> bool:
    """True for a module that has to be loaded by its own load_state_dict.

    It does something when it is loaded, or its state is not simply its tensors.
    """
    torch = sys.modules["torch"]
    base, batchnorm = torch.nn.Module, torch.nn.modules.batchnorm
    plain = {getattr(base, name) for name in _METHODS}
    # These only look at the versions of old files, as a checkout does.
    plain.add(batchnorm._NormBase._load_from_state_dict)  # noqa: SLF001
    plain.add(torch.nn.modules.instancenorm._InstanceNorm._load_from_state_dict)  # noqa: SLF001
    types = {torch.Tensor, torch.nn.Parameter}
    judged: dict[type, bool] = {}
    for part in module.modules():
        kind = type(part)
        if kind not in judged:
            judged[kind] = any(getattr(kind, name, None) not in plain for name in _METHODS)
        if judged[kind] or any(getattr(part, name, None) for name in _HOOKS):
            return True
        if not vars(part).keys().isdisjoint(_METHODS):
            return True
        if any(
            type(tensor) not in types
            for tensor in (*part._parameters.values(), *part._buffers.values())  # noqa: SLF001
            if tensor is not None
        ):
            return True
    return False


def named_state(module: Any, *, keep_vars: bool = False) -> Any:
    """Return the state dict of a module, without the prefixes of layers that are compiled alone."""
    state = module.state_dict(keep_vars=True) if keep_vars else module.state_dict()
    if not isinstance(state, OrderedDict) or not any(map(is_compiled, module.modules())):
        return state
    return _renamed(state, plain_name)


def own_state(module: Any, state: Any) -> Any:
    """Return a state with the names that a module has for it, for its own load_state_dict.

    These have prefixes where layers are compiled alone, or the module inside of a wrapper is.
    """
    if not isinstance(state, OrderedDict) or not any(map(is_compiled, module.modules())):
        return state
    names = [*module.state_dict(), *(name for name, _ in module.named_modules())]
    own = {plain_name(name): name for name in names if isinstance(name, str)}
    return _renamed(state, lambda name: own.get(plain_name(name), name))


def _renamed(state: OrderedDict[Any, Any], new: Callable[[str], str]) -> OrderedDict[Any, Any]:
    """Return a state dict with other names, in its _metadata too."""
    renamed = OrderedDict(
        (new(name) if isinstance(name, str) else name, value) for name, value in state.items()
    )
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        versions = OrderedDict((new(name), value) for name, value in metadata.items())
        renamed._metadata = versions  # type: ignore[attr-defined]  # noqa: SLF001
    return renamed


def plain_name(name: str) -> str:
    """Return the name of a tensor without the prefixes that only wrappers give."""
    if not any(prefix in name for prefix in _PREFIXES):
        return name
    return ".".join(part for part in name.split(".") if part not in _PREFIXES)
