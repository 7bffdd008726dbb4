"""Placement: where the arrays and values of a stored state go in an existing destination.

A destination is an nn.Module, a Keras model, or a nested structure of dicts, lists and tuples that
holds tensors, arrays, plain values, models and other objects with load_state_dict (optimizers,
schedulers, ...). Matching comes first and lists every difference; nothing is read or changed here.
See docs/adr/0023 for how checkout and followers carry a placement out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.dtensor import Layout, is_sharded, local_of
from ckptstore.arrays.frameworks import (
    copy,
    form_of,
    is_array,
    is_keras,
    is_model,
    is_module,
    is_uninitialized,
    unwritable,
)
from ckptstore.arrays.keras import ModelState
from ckptstore.arrays.modules import loads_itself, named_state, plain_name, unwrapped
from ckptstore.arrays.pytrees import Fields, Items, PytreeState, Slot, Tree
from ckptstore.checkout.boxes import Wanted
from ckptstore.checkout.handover import Handover
from ckptstore.checkout.modules import is_counter_of_old_file, load_module
from ckptstore.checkout.opener import unlisted
from ckptstore.checkout.optimizers import (
    Recorded,
    differences,
    layouts,
    loader,
    record,
    renamed_parameters,
)
from ckptstore.checkout.slots import number_for, place_slot, take_number
from ckptstore.documents.names import escape_key
from ckptstore.documents.nodes import ArrayNode, CodecNode, DictNode, ListNode, TupleNode
from ckptstore.errors import CheckoutMismatchError, Incompatible, shown
from ckptstore.state.classes import is_class
from ckptstore.state.paths import children, join
from ckptstore.state.tree import arrays, leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping, Sized

    from ckptstore.checkout.stored_state import StoredState
    from ckptstore.documents.entry import Entry
    from ckptstore.documents.nodes import Key, Node


@dataclass(slots=True, kw_only=True)
class Placement:
    """The plan of filling a destination.

    targets: existing arrays by the path of what goes into them. boxes: the same for DTensors, of
    which this rank holds a box. slots: those of JAX, which are made anew; pytrees: the objects that
    get pytrees of them. handovers: nodes that are read as a
    fresh state and handed to a function: plain values, optimizers, what a module computes rather
    than stores. empty: the modules and objects that nothing goes into. is_whole: what the
    destination has beyond the stored state counts as missing.
    """

    is_whole: bool = True
    targets: dict[str, Any] = field(default_factory=dict)
    boxes: dict[str, list[Wanted]] = field(default_factory=dict)
    slots: dict[str, Slot] = field(default_factory=dict)
    pytrees: list[tuple[PytreeState, Tree]] = field(default_factory=list)
    handovers: list[Handover] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    @property
    def incompatible(self) -> Incompatible:
        """Every difference that was found."""
        return Incompatible(
            missing=tuple(self.missing) if self.is_whole else (),
            unexpected=tuple(self.unexpected),
            mismatched=tuple(self.mismatched),
        )

    @property
    def objects(self) -> list[Handover]:
        """The objects that load their states by themselves, in the order in which they are asked.

        Those that cannot be put back come last.
        """
        return sorted(
            (handover for handover in self.handovers if handover.may_refuse),
            key=lambda handover: handover.is_last,
        )

    @property
    def values(self) -> list[Handover]:
        """The handovers that only put a value in its place, which nothing can refuse."""
        return [handover for handover in self.handovers if not handover.may_refuse]

    def restored(self) -> Iterator[str]:
        """The paths of the checkpoint of all that goes into the destination."""
        yield from self.targets
        yield from self.boxes
        yield from self.slots
        for handover in self.handovers:
            yield from (path for path, _ in leaves(handover.node, handover.path))


def place(
    stored: StoredState,
    destination: object,
    entries: Mapping[str, Entry] | None = None,
    *,
    strict: bool = True,
    leaves_values: bool = False,
) -> Placement:
    """Match a stored state with a destination.

    Args:
        stored: The stored state.
        destination: The destination.
        entries: Those of the stored state, if they are at hand.
        strict: Whether modules that load themselves raise an error where something does not fit.
        leaves_values: Whether such modules are spared plain values that they do not know.
    """
    walk = _Place(
        stored,
        stored.entries() if entries is None else entries,
        strict=strict,
        leaves_values=leaves_values,
    )
    walk.node(stored.root, destination, stored.path, None)
    return walk.placement


def misfit_error(
    misfit: Incompatible, *, hint: str = "", rename: Mapping[str, str] | None = None
) -> CheckoutMismatchError:
    """The error for a destination that does not fit, before anything was read into it."""
    message = f"The checkpoint does not fit: {misfit}. Nothing was changed. {hint}"
    return CheckoutMismatchError(message.rstrip(), misfit, rename)


class _Place:
    """The walk of one destination."""

    def __init__(
        self,
        stored: StoredState,
        entries: Mapping[str, Entry],
        *,
        strict: bool,
        leaves_values: bool = False,
    ) -> None:
        self.stored, self.entries, self.root = stored, entries, stored.path
        self.strict, self.leaves_values = strict, leaves_values
        self.placement = Placement(is_whole=stored.is_whole)
        self.first: dict[int, tuple[str, Any]] = {}  # by id: what fills it first, and the array
        self.unfit: set[str] = set()  # paths of arrays of another dtype or shape
        self.casts: dict[str, str] = {}  # what differs for those of the same shape, by path
        self.plain: set[int] = set()  # ids of what was found to hold nothing to fill

    def node(
        self, node: Node, target: Any, path: str, assign: Callable[[Any], object] | None
    ) -> None:
        """Match one node with its counterpart. assign: replaces that; None where it cannot be."""
        name, target = path or "the state", unwrapped(target)
        if isinstance(target, Fields) and isinstance(node, CodecNode) and is_class(node.type):
            node = node.value  # the fields of a namedtuple or a dataclass
        if isinstance(target, Slot):
            self.slot(node, target, name)
        elif isinstance(target, PytreeState):
            tree, before = target.tree(), self.filled()
            self.placement.pytrees.append((target, tree))
            self.node(node, tree.target, path, tree.put)
            self.note_empty(range(tree.leaves), before, path)
        elif is_keras(target):
            self.keras(node, target, path)
        elif is_module(target):
            self.module(node, target, path)
        elif is_stateful(target):
            self.stateful(node, target, name)
        elif isinstance(node, ArrayNode) or is_array(target):
            self.array(node, target, name)
        elif path != self.root and not any(arrays(node)) and self.is_plain(target):
            self.value(node, name, assign)
        elif isinstance(target, dict) and isinstance(node, DictNode):
            self.dict(node, target, path)
        elif isinstance(target, list | tuple) and isinstance(node, ListNode | TupleNode):
            self.items(node, target, path)
        else:
            self.placement.mismatched.append(
                f"{name} (checkpoint: {_kind(node)}, destination: {type(target).__name__})"
            )

    def stateful(self, node: Node, target: Any, name: str) -> None:
        """Have an object load its own state, if it is one of such an object."""
        recorded = target
        if not isinstance(target, Recorded):
            recorded = Recorded(target=target, saved={}, now=record(target, {}))
        if self.stored.names is not None:
            node = renamed_parameters(node, self.stored.names)
        found = differences(recorded, node, self.entries)
        if found:
            self.placement.mismatched.append(f"{name} ({'; '.join(found)})")
            return
        assign = loader(recorded, self.entries)
        self.placement.handovers.append(
            Handover(
                node=node,
                path=name,
                assign=assign,
                owner=recorded.target,
                layouts=layouts(recorded.target, node, self.entries),
            )
        )

    def is_plain(self, value: object) -> bool:
        """True when nothing in a destination, which may hold itself, could be filled in place."""
        seen: set[int] = set()
        left = [value]
        while left:
            item = left.pop()
            if isinstance(item, (dict, list, tuple)):
                key = id(item)
                if key not in seen and key not in self.plain:
                    seen.add(key)
                    left.extend(item.values() if isinstance(item, dict) else item)
                if isinstance(item, Fields | Items):
                    return False
            elif is_array(item) or hasattr(item, "load_state_dict"):
                return False
        self.plain |= seen
        return True

    def value(self, node: Node, name: str, assign: Callable[[Any], object] | None) -> None:
        """Replace plain values by those of the checkpoint."""
        if assign is None:
            self.placement.mismatched.append(
                f"{name} (a plain value inside a tuple, which cannot be exchanged)"
            )
        else:
            self.placement.handovers.append(Handover(node=node, path=name, assign=assign))

    def dict(self, node: DictNode, target: dict[Any, Any], path: str) -> None:
        """Match key by key."""
        missing = {join(path, _text(key)): key for key in target if key not in node.items}
        self.placement.missing += missing
        self.placement.empty += [
            name
            for name, key in missing.items()
            if self.stored.is_asked_for(name)
            and (is_model(target[key]) or is_stateful(target[key]))
        ]
        for key, inner, item in _items(node, path):
            if key in target:
                self.node(item, target[key], inner, _setter(target, key))
            else:
                self.unexpected(item, inner)

    def items(self, node: ListNode | TupleNode, target: Any, path: str) -> None:
        """Match position by position."""
        missing = range(len(node.items), len(target))
        self.placement.missing += [join(path, str(position)) for position in missing]
        for position, (inner, item) in enumerate(children(node, path)):
            if position >= len(target):
                self.unexpected(item, inner)
            elif isinstance(target, list):
                self.node(item, target[position], inner, _setter(target, position))
            else:
                self.node(item, target[position], inner, None)

    def unexpected(self, node: Node, path: str) -> None:
        """Note everything in a node that the destination has no place for."""
        self.placement.unexpected += [name for name, _ in leaves(node, path)] or [path]

    def array(self, node: Node, target: Any, name: str) -> None:
        """Match an array with an array of the same dtype and shape."""
        is_filled = is_array(target) and not is_uninitialized(target)
        if not isinstance(node, ArrayNode) or not is_filled:
            stored = "array" if isinstance(node, ArrayNode) else "plain value"
            actual = "array" if is_filled else type(target).__name__
            self.placement.mismatched.append(
                f"{name} (checkpoint: {stored}, destination: {actual})"
            )
            return
        path = node.path
        entry = self.entries.get(path)
        if entry is None:
            raise unlisted(path)
        first, _ = self.first.setdefault(id(target), (path, target))
        dtype, shape = form_of(target)
        if (entry.dtype, entry.shape) != (dtype, shape):
            text = (
                f"{name} (checkpoint: {entry.dtype} {list(entry.shape)}, "
                f"destination: {dtype} {list(shape)})"
            )
            self.placement.mismatched.append(text)
            self.unfit.add(name)
            if entry.shape == shape:
                self.casts[name] = text
        elif (reason := unwritable(target)) is not None:
            self.placement.mismatched.append(f"{name} (the destination {reason})")
        elif first != path and self.entries[first].content != entry.content:
            self.placement.mismatched.append(
                f"{name} (tied to {first} in the destination, but not equal to it in the "
                "checkpoint)"
            )
        elif node.is_zarr and isinstance(target, Slot):
            take = partial(place_slot, target)
            self.placement.handovers.append(Handover(node=node, path=name, assign=take))
        elif isinstance(target, Slot):
            self.placement.slots[path] = target
        elif node.is_zarr:
            self.placement.handovers.append(Handover(node=node, path=name, assign=_copier(target)))
        elif is_sharded(target):
            wanted = Wanted(Layout.of(target).box, local_of(target))
            self.placement.boxes.setdefault(path, []).append(wanted)
        else:
            self.placement.targets[path] = target

    def slot(self, node: Node, slot: Slot, name: str) -> None:
        """Match an array, a random key or a number with its place in a pytree."""
        if slot.codec is not None and isinstance(node, CodecNode) and node.type == slot.codec:
            node = node.value
        elif slot.codec is not None or (isinstance(node, CodecNode) and not slot.is_number):
            there = slot.codec or f"{slot.dtype} {list(slot.shape)}"
            self.placement.mismatched.append(
                f"{name} (checkpoint: {_kind(node)}, destination: {there})"
            )
            return
        entry = self.entries.get(node.path) if isinstance(node, ArrayNode) else None
        if slot.is_number and entry is not None and not entry.shape:
            slot.dtype = str(entry.dtype)  # a number that became an array of one element
        elif slot.is_number or _is_number_for(slot, node):
            if any(arrays(node)):
                self.placement.mismatched.append(
                    f"{name} (checkpoint: {_kind(node)}, destination: number)"
                )
            else:
                take = partial(take_number, slot)
                self.placement.handovers.append(Handover(node=node, path=name, assign=take))
            return
        self.array(node, slot, name)

    def module(self, node: Node, module: Any, path: str) -> None:
        """Match a module's own names, whose tensors are filled in place, or have it load itself."""
        if not isinstance(node, DictNode):
            self.refuse_names(node, path)
        elif loads_itself(module):
            self.loading(node, module, path)
        else:
            before, expected = self.filled(), named_state(module, keep_vars=True)
            names = set()
            owned = set()  # the tensors that get an array, under whichever of their names
            for key, inner, item in _items(node, path):
                name = str(key) if key in expected else plain_name(str(key))
                names.add(name)
                if name in expected:
                    self.array(item, expected[name], inner)
                    if is_array(expected[name]):
                        owned.add(id(expected[name]))
                else:
                    self.unexpected(item, inner)
            self.placement.missing += [
                join(path, escape_key(name))
                for name, tensor in expected.items()
                if name not in names
                and id(tensor) not in owned  # of tied ones Hugging Face saves the first
                and not is_counter_of_old_file(node, module, name)
            ]
            self.note_empty(expected, before, path)

    def loading(self, node: DictNode, module: Any, path: str) -> None:
        """Have a module load its own state; what does not seem to fit is left to its judgement.

        Only dtypes are not: torch would convert the arrays in silence.
        """
        expected = named_state(module)
        items = {_own_key(key, expected): item for key, item in node.items.items()}
        node = replace(node, items=items)
        if self.leaves_values:
            items = {
                key: item
                for key, item in node.items.items()
                if key in expected or any(arrays(item))
            }
            node = replace(node, items=items)
        trial = _Place(self.stored, self.entries, strict=self.strict)
        trial.dict(node, dict(expected), path)
        found, casts = trial.placement, trial.casts.values()
        unfit = {key for key, inner, _ in _items(node, path) if inner in trial.unfit}
        self.placement.mismatched += casts
        if not self.strict:
            if expected and not trial.filled():
                self.placement.missing += found.missing
                self.placement.unexpected += found.unexpected
                self.placement.mismatched += found.mismatched
                self.placement.empty.append(path or "the state")
                return
            cast = {key for key, inner, _ in _items(node, path) if inner in trial.casts}
            node = replace(
                node, items={key: item for key, item in node.items.items() if key not in cast}
            )
        seeming = replace(
            found.incompatible,
            mismatched=tuple(text for text in found.mismatched if text not in casts),
        )
        assign = partial(
            load_module,
            module,
            path=path,
            strict=self.strict,
            is_whole=found.is_whole,
            differences=seeming,
            unfit=unfit,
        )
        self.placement.handovers.append(
            Handover(
                node=node,
                path=path,
                assign=assign,
                owner=module,
                differences=seeming,
                layouts={
                    item.first: Layout.of(expected[key])
                    for key, item in node.items.items()
                    if isinstance(item, ArrayNode)
                    and key in expected
                    and is_sharded(expected[key])
                    and not item.is_zarr
                },
            )
        )

    def keras(self, node: Node, model: Any, path: str) -> None:
        """Match the variables of a Keras model by the names that checkpoints have for them."""
        if isinstance(node, DictNode):
            forms = {
                str(key): (entry.dtype, tuple(entry.shape))
                for key, item in node.items.items()
                if isinstance(item, ArrayNode) and (entry := self.entries.get(item.path))
            }
            before, expected = self.filled(), ModelState(model).targets(forms)
            self.dict(node, expected, path)
            self.note_empty(expected, before, path)
        else:
            self.refuse_names(node, path)

    def note_empty(self, expected: Sized, before: int, path: str) -> None:
        """Note a model that nothing goes into. before: `filled` before it was matched."""
        if len(expected) and before == self.filled():
            self.placement.empty.append(path or "the state")

    def filled(self) -> int:
        """The number of arrays and values that have a place so far."""
        found = self.placement
        return len(found.targets) + len(found.boxes) + len(found.slots) + len(found.handovers)

    def refuse_names(self, node: Node, path: str) -> None:
        """Note that a model was met where the checkpoint has no names."""
        self.placement.mismatched.append(
            f"{path or 'the state'} (checkpoint: {_kind(node)}, destination: module)"
        )


def is_stateful(target: object) -> bool:
    """True for an object that loads a state of its own."""
    return isinstance(target, Recorded) or (
        hasattr(target, "load_state_dict") and not isinstance(target, type)
    )


def _setter(target: Any, key: Any) -> Callable[[Any], object]:
    def assign(value: Any) -> None:
        target[key] = value

    return assign


def _copier(target: Any) -> Callable[[Any], object]:
    """Return a function that copies an array of the same dtype and shape into this one."""

    return partial(copy, target)


def _items(node: DictNode, path: str) -> Iterator[tuple[Key, str, Node]]:
    """The keys of a dict, each with the path and the node of its value."""
    return ((key, *child) for key, child in zip(node.items, children(node, path), strict=True))


def _is_number_for(slot: Slot, node: Node) -> bool:
    """True for a number that becomes the only element of an array without being another one."""
    is_number = type(node) in (bool, int, float, complex) and not slot.shape
    return is_number and number_for(slot, node) is not None


def _kind(node: Node) -> str:
    """The kind of a node, for messages."""
    if isinstance(node, ArrayNode | CodecNode):
        return node.kind if isinstance(node, ArrayNode) else node.type
    return {ListNode: "list", TupleNode: "tuple", DictNode: "dict"}.get(type(node), "plain value")


def _own_key(key: Key, expected: Container[object]) -> Key:
    """A key without the prefixes of wrappers, unless it is expected with them."""
    return key if key in expected or not isinstance(key, str) else plain_name(key)


def _text(key: object) -> str:
    return key if isinstance(key, str) else shown(key)
