"""Checkout: a stored state becomes a state again, in fresh memory or in an existing destination.

Reading bytes is the reader's job, and matching with a destination is placement's.
See docs/adr/0005 (existing arrays are filled through a verified buffer) and 0023 (one fill).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptstore.arrays import codecs
from ckptstore.arrays import frameworks as arrays
from ckptstore.arrays.memory_limit import check_memory
from ckptstore.checkout.opener import unlisted
from ckptstore.checkout.placement import misfit_error, place
from ckptstore.checkout.reader import read_fresh, read_into
from ckptstore.documents.nodes import ZARR
from ckptstore.errors import shown
from ckptstore.python_gc import paused_collector
from ckptstore.state.flatten import unflatten
from ckptstore.state.tree import arrays as arrays_of

if TYPE_CHECKING:
    from ckptstore.checkout.stored_state import StoredState
    from ckptstore.documents.nodes import Node
    from ckptstore.errors import Incompatible


def fresh(stored: StoredState, node: Node, *, device: Any = None) -> Any:
    """Build the state of a node of the structure, in memory of its own."""
    kinds, encoded = {}, {}
    for item in arrays_of(node):
        if item.is_zarr:
            encoded[item.path] = stored.opener.open(item.path, item.kind)
        else:
            kinds[item.first] = item.kind
    fresh_arrays = read_fresh(stored.pages, kinds, objects=stored.objects) if kinds else {}
    for zarr_array in encoded.values():
        zarr_array.check_whole()
    check_memory(zarr_array.nbytes for zarr_array in encoded.values())

    def array(path: str, kind: str) -> Any:
        if kind in ZARR:
            return encoded[path][...]
        if path not in fresh_arrays:
            raise unlisted(path)
        value = fresh_arrays[path]
        return value if device is None else arrays.to_device(value, device)

    with paused_collector():
        return unflatten(node, array=array, decode=codecs.decode)


def lazy(stored: StoredState) -> Any:
    """Build a state whose arrays are read when they are indexed."""
    with paused_collector():
        listed = {entry.path: (entry, page) for page in stored.pages for entry in page.entries}

        def array(path: str, kind: str) -> Any:
            if path not in listed or kind in ZARR:
                return stored.opener.open(path, kind)
            return stored.opener.listed(*listed[path], kind)

        return unflatten(stored.root, array=array, decode=codecs.decode)


def fill(stored: StoredState, into: object, *, strict: bool) -> Incompatible:
    """Fill an existing destination, and return what did not fit."""
    placement = place(stored, into)
    misfit = placement.incompatible
    if strict and misfit:
        raise misfit_error(misfit, hint=_way_out(into, misfit))
    read_into(stored.pages, placement.targets, objects=stored.objects)
    for handover in placement.handovers:
        handover.give(fresh(stored, handover.node), note="Tensors were filled before it was asked.")
    return misfit


def _way_out(into: object, misfit: Incompatible) -> str:
    """Suggest the most likely remedy for a misfit."""
    tops = sorted({path.split("/")[0] for path in misfit.unexpected})
    if arrays.is_module(into) and misfit.missing:
        first = misfit.missing[0]
        homes = [top for top in tops if f"{top}/{first}" in misfit.unexpected]
        if homes:
            return f"The names are under {homes[0]!r}: pass part={homes[0]!r}."
    matching = "strict=False to load only the parts that match."
    if isinstance(into, dict):
        absent = [name for name in misfit.missing if name in into]
        others = [top for top in tops if top not in into]
        if absent and others:
            keys = f"The checkpoint has the keys {shown(others, 200)}, not {shown(absent, 200)}."
            return f"{keys} Rename them, or pass {matching}"
        if tops and not misfit.missing and not misfit.mismatched:
            return f"Pass exclude={shown(tops, 200)} to leave these out, or {matching}"
    return f"Pass {matching}"
