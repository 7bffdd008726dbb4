"""Checkout: a stored state becomes a state again, in fresh memory or in an existing destination.

Reading bytes is the reader's job, and matching with a destination is placement's.
See docs/adr/0005 (existing arrays are filled through a verified buffer) and 0023 (one fill).
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import chain
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ckptstore.arrays import codecs
from ckptstore.arrays import frameworks as arrays
from ckptstore.arrays.keras import ModelState
from ckptstore.arrays.memory_limit import check_memory
from ckptstore.arrays.pytrees import Tree, is_pytree
from ckptstore.checkout.boxes import Wanted, read_boxes
from ckptstore.checkout.handover import Handing, Refused
from ckptstore.checkout.opener import unlisted
from ckptstore.checkout.placement import misfit_error, place
from ckptstore.checkout.proposal import remedy
from ckptstore.checkout.reader import read_fresh, read_into
from ckptstore.checkout.slots import read_slots
from ckptstore.documents.nodes import ZARR
from ckptstore.errors import Incompatible, InvalidInputError, shown
from ckptstore.python_gc import paused_collector
from ckptstore.state.flatten import unflatten
from ckptstore.state.tree import arrays as arrays_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ckptstore.arrays.dtensor import Layout
    from ckptstore.checkout.placement import Placement
    from ckptstore.checkout.stored_state import StoredState
    from ckptstore.documents.nodes import Node
    from ckptstore.errors import CheckoutMismatchError

PARTS = "pass strict=False to load only the parts that match"
STACK_LEVEL = 5  # of the caller of `Repository.checkout`


def check_destination(into: object, *, device: Any, lazy: bool) -> None:
    """Raise InvalidInputError for choices of `Repository.checkout` that exclude each other."""
    if into is not None and device is not None:
        raise InvalidInputError("Pass into or device: what exists already stays where it is.")
    if lazy and (into is not None or device is not None):
        raise InvalidInputError(
            "Arrays that are read lazily can go neither into a destination nor to a device."
        )


def read(stored: StoredState, *, into: object, strict: bool, device: Any, lazy: bool) -> Any:
    """Read a stored state as `Repository.checkout` does."""
    if lazy:
        return lazily(stored)
    if into is None:
        return fresh(stored, stored.root, device=device)
    if is_pytree(into):
        tree = Tree(into)
        fill(stored, tree.target, strict=strict)
        return tree.result()
    return fill(stored, into, strict=strict)


@arrays.outside_inference_mode()
def fresh(
    stored: StoredState,
    node: Node,
    *,
    device: Any = None,
    layouts: Mapping[str, Layout] = MappingProxyType({}),
) -> Any:
    """Build the state of a node of the structure, in memory of its own.

    layouts: of the arrays, by path, that are to be DTensors. Of these only the boxes that this rank
    holds are read.
    """
    kinds, encoded = {}, {}
    for item in arrays_of(node):
        if item.is_zarr:
            encoded[item.path] = stored.opener.open(item.path, item.kind)
        elif item.first not in layouts:
            kinds[item.first] = item.kind
    fresh_arrays = read_fresh(stored.pages, kinds, objects=stored.objects) if kinds else {}
    if layouts:
        fresh_arrays |= _sharded(stored, layouts)
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


def lazily(stored: StoredState) -> Any:
    """Build a state whose arrays are read when they are indexed."""
    with paused_collector():
        listed = {entry.path: (entry, page) for page in stored.pages for entry in page.entries}

        def array(path: str, kind: str) -> Any:
            if path not in listed or kind in ZARR:
                return stored.opener.open(path, kind)
            return stored.opener.listed(*listed[path], kind)

        return unflatten(stored.root, array=array, decode=codecs.decode)


def _sharded(stored: StoredState, layouts: Mapping[str, Layout]) -> dict[str, Any]:
    """The arrays of which this rank holds boxes, as DTensors."""
    boxes = {
        entry.path: layouts[entry.path].empty(entry.dtype)
        for page in stored.pages
        for entry in page.entries
        if entry.path in layouts
    }
    wanted = {path: [Wanted(layouts[path].box, local)] for path, local in boxes.items()}
    read_boxes(stored.pages, wanted, objects=stored.objects)
    return {path: layouts[path].joined(local) for path, local in boxes.items()}


@arrays.outside_inference_mode()
def fill(stored: StoredState, into: object, *, strict: bool) -> Incompatible:
    """Fill an existing destination, and return what did not fit and what was restored.

    Everything that may be refused comes before the arrays are filled: differences, objects that
    load their own state, values whose type is unknown.
    """
    placement = place(stored, into, strict=strict)
    misfit = placement.incompatible
    if placement.empty or (strict and misfit):
        raise _misfit(stored, placement, into)
    values = [(item, fresh(stored, item.node)) for item in placement.values if not item.is_array]
    handing = Handing()
    try:
        refused = _hand_over(stored, placement, handing, into, strict=strict)
        read_into(stored.pages, placement.targets, objects=stored.objects)
        read_boxes(stored.pages, placement.boxes, objects=stored.objects)
        read_slots(stored.pages, placement.slots, objects=stored.objects)
    except BaseException:
        handing.undo()
        raise
    for handover, value in values:
        handover.assign(value)
    for handover in placement.values:
        if handover.is_array:
            handover.assign(fresh(stored, handover.node))
    for owner, tree in placement.pytrees:
        owner.adopt(tree.result())
    found = [misfit, *handing.left_out]
    unexpected = dict.fromkeys(chain.from_iterable(each.unexpected for each in found))
    misfit = Incompatible(
        missing=tuple(chain.from_iterable(each.missing for each in found)),
        unexpected=tuple(unexpected),
        mismatched=(*chain.from_iterable(each.mismatched for each in found), *refused),
        restored=tuple(path for path in placement.restored() if path not in unexpected),
    )
    if misfit:
        warnings.warn(f"The checkpoint was restored in part: {misfit}.", stacklevel=STACK_LEVEL)
    return misfit


def _hand_over(
    stored: StoredState, placement: Placement, handing: Handing, into: object, *, strict: bool
) -> list[str]:
    """Have objects load their states. Returns what those that refused said, which is no error then.

    CheckoutMismatchError for one that refuses where `strict` is set, and for a model that does.
    """
    said = []
    for handover in placement.objects:
        try:
            state = fresh(stored, handover.node, layouts=handover.layouts)
            handing.give(handover, state)
        except Refused as refused:
            if strict or _is_model(handover.owner):
                found = remedy(stored, into, refused.differences, attrgetter("incompatible"))
                error = handing.refusal(
                    refused, hint=found.text or _choice([PARTS]), rename=found.rename
                )
                raise error from refused.__cause__
            said.append(str(refused))
            placement.handovers.remove(handover)
    return said


def _is_model(owner: object) -> bool:
    """True for what a training is nothing without, so that leaving it as it is is never meant."""
    return arrays.is_model(owner) or isinstance(owner, ModelState)


def _misfit(stored: StoredState, placement: Placement, into: object) -> CheckoutMismatchError:
    """The error for a destination that does not fit, with the most likely remedy."""
    misfit, empty = placement.incompatible, placement.empty
    if empty and not misfit:  # globs left something out, but not these
        misfit = replace(misfit, missing=tuple(empty))
    hints = []
    if empty:
        hints.append(f"Nothing in the checkpoint fits {', '.join(map(shown, empty))}.")
    found = remedy(stored, into, misfit, attrgetter("incompatible"))
    hints.append(found.text)
    if not found.fits:
        hints.append(_way_out(into, misfit, empty, is_renamed=bool(found.rename)))
    return misfit_error(misfit, hint=" ".join(filter(None, hints)), rename=found.rename)


def _way_out(into: object, misfit: Incompatible, empty: Sequence[str], *, is_renamed: bool) -> str:
    """Suggest the most likely remedy for a misfit.

    empty: the objects that would get nothing, which is an error without `strict` as well.
    is_renamed: whether other names were proposed.
    """
    ways = [] if empty else [PARTS]
    if isinstance(into, dict):
        tops = sorted({path.split("/")[0] for path in misfit.unexpected})
        absent = [name for name in misfit.missing if name in into]
        others = [top for top in tops if top not in into]
        if absent and others and not is_renamed:
            keys = f"The checkpoint has the keys {shown(others, 200)}, not {shown(absent, 200)}."
            return " ".join([keys, _choice(["rename them", *ways])])
        if tops and not misfit.missing and not misfit.mismatched:
            ways = [f"pass exclude={shown(tops, 200)} to leave these out", *ways]
        elif empty and all(name in into for name in empty):
            ways = [f"pass exclude={shown(empty, 200)} to leave it as it is"]
    return _choice(ways)


def _choice(ways: Sequence[str]) -> str:
    """A sentence of ways out."""
    text = ", or ".join(ways)
    return f"{text[:1].upper()}{text[1:]}." if text else ""
