"""The facts in a .ckpt of Lightning: the step, the epoch, the metric and the hyperparameters.

The dict that Lightning saves is a state like any other; only what a checkpoint records beside it is
found here.
"""

from __future__ import annotations

import struct
from math import isfinite
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.lazy import LazyArray
from ckptstore.errors import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VERSION, HYPERPARAMETERS = "pytorch-lightning_version", "hyper_parameters"
DEPTH_MAX, ITEMS_MAX, TEXT_MAX = 8, 1_000, 10_000  # of hyperparameters
INT_MAX = 2**63
_FORMATS = {"float16": "<e", "float32": "<f", "float64": "<d", "int32": "<i", "int64": "<q"}


def is_lightning(state: object) -> bool:
    """True for what Lightning's Trainer saved."""
    return isinstance(state, dict) and type(state.get(VERSION)) is str and "state_dict" in state


def facts(state: Any, name: str) -> dict[str, Any]:
    """Return the step, the epoch and the metrics of what Lightning saved; nothing of other states.

    The metric is the one that a ModelCheckpoint had for this file, by its name: in a file that has
    another name, such as last.ckpt, it has those of other files only.

    Args:
        state: The state in the file.
        name: The name of the file.
    """
    if not is_lightning(state):
        return {}
    return {
        "step": _count(state.get("global_step")),
        "epoch": _count(state.get("epoch")),
        "metrics": dict(_metrics(state.get("callbacks"), name)),
    }


def meta(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint records beside the state: epoch, version and hyperparameters."""
    found: dict[str, Any] = {"epoch": _count(state.get("epoch")), "lightning": state[VERSION]}
    if parameters := state.get(HYPERPARAMETERS):
        found[HYPERPARAMETERS] = _plain(parameters)
    return found


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < INT_MAX else None


def _metrics(callbacks: Any, name: str) -> Iterator[tuple[str, float]]:
    """Yield the scores that states of ModelCheckpoint have for a file."""
    for state in callbacks.values() if isinstance(callbacks, dict) else ():
        scores = state.get("best_k_models") if isinstance(state, dict) else None
        monitor = state.get("monitor") if isinstance(state, dict) else None
        if isinstance(scores, dict) and type(monitor) is str:
            for path, score in scores.items():
                is_own = str(path).replace("\\", "/").rpartition("/")[2] == name
                if is_own and (value := _number(score)) is not None:
                    yield monitor, value


def _number(score: object) -> int | float | None:
    """The value of a score: a number, an array of one element, or one in a file."""
    if getattr(score, "shape", None) == () and hasattr(score, "item"):
        score = score.item()
    if type(score) in (int, float):
        return score  # type: ignore[return-value]
    if not isinstance(score, LazyArray) or score.shape or score.dtype not in _FORMATS:
        return None
    buffer = bytearray(score.nbytes)
    score.read_into(memoryview(buffer), 0)
    value: int | float = struct.unpack(_FORMATS[score.dtype], buffer)[0]
    return value


def _plain(value: Any, depth: int = 0) -> Any:
    """A hyperparameter as JSON; what JSON does not know, or much of it, as a short text."""
    is_small = depth < DEPTH_MAX and hasattr(value, "__len__") and len(value) <= ITEMS_MAX
    if isinstance(value, dict) and is_small:
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple) and is_small:
        return [_plain(item, depth + 1) for item in value]
    is_number = (isinstance(value, int) and abs(value) < INT_MAX) or (
        isinstance(value, float) and isfinite(value)
    )
    is_text = type(value) is str and len(value) <= TEXT_MAX
    return value if value is None or is_number or is_text else shown(value)
