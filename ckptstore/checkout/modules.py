"""Modules: which torch modules load their state by themselves, and how they do.

The tensors of a plain module are filled in place. A module that does something when it is loaded,
or whose state is not simply its tensors, is loaded by its own method: once, with all that the
checkpoint holds for it, read and verified before. See docs/adr/0054.
"""

from __future__ import annotations

import inspect
import sys
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.frameworks import is_uninitialized
from ckptstore.arrays.wrappers import COMPILED, is_compiled, unwrapped
from ckptstore.documents.names import escape_key
from ckptstore.documents.nodes import DictNode
from ckptstore.errors import Incompatible, shown
from ckptstore.state.paths import join

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

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
_COUNTER = "num_batches_tracked"


def loads_itself(module: Any) -> bool:
    """True for a module that has to be loaded by its own load_state_dict."""
    torch = sys.modules["torch"]
    base, batchnorm = torch.nn.Module, torch.nn.modules.batchnorm
    plain = {getattr(base, name) for name in _METHODS}
    # These only look at the versions of old files: see `is_counter_of_old_file`.
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


def is_counter_of_old_file(node: DictNode, module: Any, name: str) -> bool:
    """True for a counter of batches that BatchNorm had not yet when the state was saved.

    torch leaves it as it is then, and so does a checkout.
    """
    above, _, last = name.rpartition(".")
    if last != _COUNTER:
        return False
    norm = sys.modules["torch"].nn.modules.batchnorm._NormBase  # noqa: SLF001
    if not isinstance(unwrapped(module.get_submodule(above)), norm):
        return False
    known = node.metadata.items.get(above) if isinstance(node.metadata, DictNode) else None
    version = known.items.get("version") if isinstance(known, DictNode) else None
    return not isinstance(version, int) or version < 2


def load_module(
    module: Any,
    state: Any,
    *,
    path: str,
    strict: bool,
    is_whole: bool,
    differences: Incompatible,
    unfit: Collection[object] = (),
) -> Incompatible | None:
    """Have a module load its state.

    Args:
        module: The module.
        state: What the checkpoint holds for it, in memory of its own.
        path: The path of that.
        strict: Whether the module judges by itself, and raises its own error. Otherwise it loads
            what it can.
        is_whole: False if globs may have left something out, so that names may be missing.
        differences: The names that seem not to fit. The module may know better: hooks rename
            parameters, and observers change the sizes of their buffers.
        unfit: Keys whose arrays have another shape or dtype.

    Returns:
        What was left out, where it is not strict.

    Raises:
        Exception: The module refuses the state; it may have taken a part of it.
    """
    with writing_to(module):
        if strict and is_whole:
            module.load_state_dict(state)
            return None
        mismatched: tuple[str, ...] = ()
        try:
            result = _load_leniently(module, state)
        except Exception:  # torch loads what fits before it raises
            if strict or not unfit:
                raise
            mismatched = differences.mismatched
            result = _load_leniently(
                module, {key: value for key, value in state.items() if key not in unfit}
            )
    missing, unexpected = differences.missing, differences.unexpected
    if hasattr(result, "missing_keys") and hasattr(result, "unexpected_keys"):
        missing = tuple(join(path, escape_key(str(name))) for name in result.missing_keys)
        unexpected = tuple(join(path, escape_key(str(name))) for name in result.unexpected_keys)
    if strict and unexpected:
        raise ValueError(f"it has no place for {shown(list(unexpected), 200)}")
    return Incompatible(
        missing=missing if is_whole else (), unexpected=unexpected, mismatched=mismatched
    )


def _load_leniently(module: Any, state: Any) -> Any:
    """Call load_state_dict with strict=False, if it has such a parameter."""
    try:
        inspect.signature(module.load_state_dict).bind(state, strict=False)
    except TypeError:
        return module.load_state_dict(state)
    return module.load_state_dict(state, strict=False)


@contextmanager
def writing_to(module: Any) -> Iterator[None]:
    """Change the tensors of a module, which may have been made in torch's inference mode."""
    torch = sys.modules["torch"]
    tensors = (*module.parameters(), *module.buffers())
    is_inference = any(tensor.is_inference() for tensor in tensors if not is_uninitialized(tensor))
    with torch.inference_mode(is_inference):
        yield
