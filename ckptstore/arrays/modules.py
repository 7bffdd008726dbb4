"""Modules of torch: the module inside its wrappers, its state, and whether it loads that itself.

Only the type tells a wrapper. An average of weights, or any object that passes attributes on, has a
state of its own.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any

COMPILED = "_orig_mod"  # the attribute, and the prefix, of torch.compile

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
    """Return the module inside torch.compile, DistributedDataParallel and DataParallel, in any mix.

    Anything else is returned as it is.
    """
    while True:
        if is_compiled(value):
            value = getattr(value, COMPILED)
        elif _is_parallel(value):
            value = value.module
        else:
            return value


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
    if not any(map(is_compiled, module.modules())) or loads_itself(module):
        return state
    renamed = OrderedDict((plain_name(name), value) for name, value in state.items())
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        plain = OrderedDict((plain_name(name), value) for name, value in metadata.items())
        renamed._metadata = plain  # type: ignore[attr-defined]  # noqa: SLF001
    return renamed


def plain_name(name: str) -> str:
    """Return the name of a tensor without the prefixes of torch.compile."""
    if COMPILED not in name:
        return name
    return ".".join(part for part in name.split(".") if part != COMPILED)
