"""Modules: the loading of those that load their state by themselves.

The tensors of a plain module are filled in place. Another one is loaded by its own method: once,
with all that the checkpoint holds for it, read and verified before. See docs/adr/0054.
"""

from __future__ import annotations

import inspect
import sys
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.frameworks import is_uninitialized
from ckptstore.arrays.modules import own_state, plain_name, unwrapped
from ckptstore.documents.names import escape_key
from ckptstore.documents.nodes import DictNode
from ckptstore.errors import Incompatible, shown
from ckptstore.state.paths import join

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_COUNTER = "num_batches_tracked"


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
        state: The state from the checkpoint, in memory of its own.
        path: The path of that.
        strict: Whether the module judges by itself, and raises its own error. Otherwise it loads
            what it can.
        is_whole: False if globs may have left something out, so that names may be missing.
        differences: The names that seem not to fit. The module may know better: hooks rename
            parameters, and observers change the sizes of their buffers.
        unfit: Keys whose arrays have another shape or dtype.

    Returns:
        The names that were left out; None if the module judged by itself.

    Raises:
        Exception: The module refuses the state; it may have taken a part of it.
    """
    state = own_state(module, state)
    unfit = own_state(module, OrderedDict.fromkeys(unfit)).keys()
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
        missing, unexpected = (
            tuple(join(path, escape_key(plain_name(str(name)))) for name in names)
            for names in (result.missing_keys, result.unexpected_keys)
        )
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
