"""Checkout: a checkpoint's structure and pages become a state, in fresh memory or in what the caller has already."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ckptstore.arrays import source as arrays
from ckptstore.arrays.memory import check_memory
from ckptstore.checkout.placement import place
from ckptstore.checkout.reader import read_fresh, read_into
from ckptstore.documents.structure import ZARR, Node, array_path, tag_of
from ckptstore.errors import CheckoutMismatchError, CorruptError, Incompatible, InvalidInputError
from ckptstore.python_gc import paused_collector
from ckptstore.state import codecs
from ckptstore.state import tree as state

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptstore.checkout.opener import ArrayOpener
    from ckptstore.documents.page import Page
    from ckptstore.store.objects import ObjectStore


def fresh(
    root: Node,
    pages: list[Page],
    *,
    objects: ObjectStore,
    opener: ArrayOpener,
    device: Any = None,
) -> Any:
    """Build a new state in memory of its own. opener: of the same checkpoint's arrays."""
    made = read_fresh(pages, _kinds(root), objects=objects)
    encoded = {
        node[tag_of(node)]: opener.open(node[tag_of(node)], tag_of(node))
        for _, node in state.leaves(root)
        if array_path(node) is not None and tag_of(node) in ZARR
    }
    check_memory(array.nbytes for array in encoded.values())

    def array(path: str, kind: str) -> Any:
        if kind in ZARR:
            return encoded[path][...]
        if path not in made:
            raise CorruptError(
                f"The structure names the {kind} {path!r}, which no page lists. Run verify."
            )
        return made[path] if device is None else arrays.to_device(made[path], device)

    with paused_collector():
        return state.unflatten(root, array=array, decode=codecs.decode)


def lazy(root: Node, opener: ArrayOpener) -> Any:
    """Build a new state whose arrays are read as they are indexed."""
    with paused_collector():
        return state.unflatten(root, array=opener.open, decode=codecs.decode)


def fill(
    root: Node,
    pages: list[Page],
    into: object,
    *,
    objects: ObjectStore,
    opener: ArrayOpener,
    strict: bool,
    complete: bool,
    path: str = "",
) -> Incompatible:
    """Fill an existing destination, and return what did not fit.

    path: of the root in the checkpoint, where it is a part of it. complete: the structure is a whole checkpoint, so that what the destination has beyond it counts as missing.
    """
    entries = {
        **opener.encoded_entries(),
        **{entry.path: entry for page in pages for entry in page.entries},
    }
    placement = place(root, into, entries, path=path)
    found = placement.incompatible if complete else replace(placement.incompatible, missing=())
    if strict and found:
        raise CheckoutMismatchError(
            f"The checkpoint does not fit: {found}. Nothing was changed. {_way_out(into, found)}",
            found,
        )
    read_into(pages, placement.targets, objects=objects)
    for load in placement.loads:
        _hand_over(fresh(load.node, pages, objects=objects, opener=opener), load.assign)
    return found


def _hand_over(value: Any, assign: Callable[[Any], object]) -> None:
    """Give an object what is its own; its load_state_dict may refuse that in any way it likes."""
    try:
        assign(value)
    except Exception as error:
        raise InvalidInputError(
            f"A load_state_dict refused what the checkpoint holds for it ({type(error).__name__}: {error}). "
            "Tensors were filled before it was asked."
        ) from error


def _kinds(root: Node) -> dict[str, str]:
    """The arrays to read: tensor or ndarray, by path; a tied array only under its first name."""
    nodes = (
        node
        for _, node in state.leaves(root)
        if array_path(node) is not None and tag_of(node) not in ZARR
    )
    return {node.get("tied", node[tag_of(node)]): tag_of(node) for node in nodes}


def _way_out(into: object, found: Incompatible) -> str:
    """What a user most likely wants to do about a misfit."""
    tops = sorted({path.split("/")[0] for path in found.unexpected})
    if arrays.is_module(into) and found.missing:
        first = found.missing[0]
        homes = [top for top in tops if f"{top}/{first}" in found.unexpected]
        if homes:
            return f"The names lie under {homes[0]!r}: pass part={homes[0]!r}."
    if isinstance(into, dict) and tops and not found.missing and not found.mismatched:
        return f"Pass exclude={tops!r} to leave these out, or strict=False to do what can be done."
    return "Pass strict=False to do what can be done."
