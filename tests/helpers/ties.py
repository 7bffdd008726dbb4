"""The arrays of a state, and whether two states tie the same ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def arrays_of(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [leaf for value in state.values() for leaf in arrays_of(value)]
    if isinstance(state, list | tuple):
        return [leaf for value in state for leaf in arrays_of(value)]
    return [state] if isinstance(state, torch.Tensor | np.ndarray) else []


def literal(path: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in path)


def same_ties(before: list[Any], after: list[Any]) -> bool:
    """Whether the same pairs are one array; those without elements may be two."""
    return all(
        (a is b) == (x is y)
        for a, x in zip(before, after, strict=True)
        for b, y in zip(before, after, strict=True)
        if 0 not in a.shape
    )
