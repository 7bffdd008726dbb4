"""Refusing what a format cannot hold before anything is written: plain values, unknown dtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.documents.nodes import ArrayNode
from ckptstore.errors import InvalidInputError
from ckptstore.state.tree import leaves

if TYPE_CHECKING:
    from collections.abc import Collection

    from ckptstore.arrays.source import ArraySource
    from ckptstore.state.flatten import Flat

NAMED_MAX = 5  # in a message


def check_values(flat: Flat[ArraySource], *, form: str, drop_values: bool) -> None:
    """Refuse a state with plain values, unless they are dropped. form: as in "A .npz file"."""
    values = [
        name or "the state" for name, node in leaves(flat.root) if not isinstance(node, ArrayNode)
    ]
    if values and not drop_values:
        raise InvalidInputError(
            f"{form} holds arrays only, and the state has {_count(values, 'plain value')} "
            f"({_some(values)}). Leave them out (drop_values=True), choose arrays (include), or "
            "write a .zarr or .pt."
        )


def check_dtypes(
    flat: Flat[ArraySource], known: Collection[str], *, form: str, safetensors: Collection[str] = ()
) -> None:
    """Refuse a state with arrays of dtypes that a format has no name for.

    Args:
        flat: The state.
        known: The dtypes that the format has names for.
        form: The format, as in "A .npz file".
        safetensors: The dtypes of safetensors, which the error recommends if they are enough.
    """
    others = [
        f"{name} ({source.dtype})"
        for name, source in flat.arrays.items()
        if source.dtype not in known
    ]
    if others:
        is_held = all(source.dtype in safetensors for source in flat.arrays.values())
        wider = "a .safetensors, .zarr or .pt" if is_held else "a .zarr or .pt"
        raise InvalidInputError(
            f"{form} cannot hold the dtype of {_count(others, 'array')}: {_some(others)}. "
            f"Choose other arrays (include), or write {wider}."
        )


def _count(names: list[str], noun: str) -> str:
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'}"


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:NAMED_MAX])}{', …' if len(names) > NAMED_MAX else ''}"
