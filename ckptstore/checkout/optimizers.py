"""Optimizers: whether the state of one fits another, and loading it bit for bit.

torch's `Optimizer.load_state_dict` compares numbers of groups and parameters and nothing else: it
takes the state of another class, of parameters in another order, and casts what it is given to the
dtype of the parameter. So everything is compared here first. Optimizers with a load_state_dict or
hooks of their own may convert states, and are only asked. See docs/adr/0053.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.dtensor import Layout, is_sharded
from ckptstore.checkout.handover import is_optimizer, loads_as_torch
from ckptstore.documents.names import escape_key, unescape_key
from ckptstore.documents.nodes import ArrayNode, DictNode, ListNode, TupleNode
from ckptstore.errors import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ckptstore.documents.entry import Entry
    from ckptstore.documents.nodes import Node
    from ckptstore.state.rename import Names

CLASS, PARAMETERS = "class", "parameters"
EXCHANGED_MAX = 3  # parameters in a message
_FLAT, _APART = "_flat_param", "use_orig_params=True"  # of torch's FullyShardedDataParallel
# Hyperparameters that learning rate schedulers add to the groups of an optimizer.
_OF_SCHEDULERS = frozenset(
    {"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr"}
)
# Hyperparameters of later versions of torch, with defaults where an old state lacks them.
_OPTIONAL = frozenset(
    {"foreach", "maximize", "capturable", "differentiable", "fused", "amsgrad", "nesterov"}
    | {"decoupled_weight_decay", "params", "param_names"}
)
# The states of torch's own optimizers that have the shape of their parameter.
_OF_PARAMETER_SHAPE = frozenset(
    {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg"}
    | {"grad_avg", "acc_delta", "sum", "ax", "prev"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """An object to fill, with what was recorded of the object that was saved.

    saved, now: what `record` returned then and for the target; empty where that is unknown.
    """

    target: Any
    saved: Mapping[str, Any]
    now: Mapping[str, Any]


def record(value: object, names: Mapping[int, str]) -> dict[str, Any]:
    """Return the facts about an optimizer or scheduler that its state lacks; {} for other objects.

    Args:
        value: The object.
        names: The paths of parameters by id.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.optim.lr_scheduler.LRScheduler):
        return {CLASS: type(value).__name__}
    if not is_optimizer(value):
        return {}
    parameters = [names.get(id(parameter), "") for parameter in _parameters(value)]
    facts = {CLASS: type(value).__name__}
    # One string: a list would be as many values of the checkpoint as the model has parameters.
    return facts | ({PARAMETERS: "\n".join(parameters)} if any(parameters) else {})


def renamed_record(facts: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """The recorded facts about an object after a rename, which names parameters otherwise."""
    return {
        key: "\n".join(map(names.of, _names(facts))) if key == PARAMETERS else value
        for key, value in facts.items()
    }


def renamed_parameters(node: Node, names: Names) -> Node:
    """The state of an optimizer after a rename: its groups may list the names of parameters.

    These are without the key of the module, and stay as they are where two modules would differ.
    """
    groups = node.items.get("param_groups") if isinstance(node, DictNode) else None
    if not (isinstance(node, DictNode) and isinstance(groups, ListNode)):
        return node
    found: dict[str, set[str]] = {}
    for old, new in names.arrays.items():
        found.setdefault(old.partition("/")[2], set()).add(new.partition("/")[2])

    def renamed(group: Node) -> Node:
        listed = group.items.get("param_names") if isinstance(group, DictNode) else None
        if not (isinstance(group, DictNode) and isinstance(listed, ListNode)):
            return group
        new = [found.get(escape_key(str(name)), set()) for name in listed.items]
        items = tuple(
            unescape_key(*paths) if len(paths) == 1 and "" not in paths else name
            for name, paths in zip(listed.items, new, strict=True)
        )
        return replace(group, items={**group.items, "param_names": ListNode(items)})

    moved = ListNode(tuple(map(renamed, groups.items)))
    return replace(node, items={**node.items, "param_groups": moved})


def loader(recorded: Recorded, entries: Mapping[str, Entry]) -> Callable[[Any], object]:
    """The method of an object that loads its state."""
    optimizer = recorded.target
    if not (is_optimizer(optimizer) and loads_as_torch(optimizer)):
        return optimizer.load_state_dict  # type: ignore[no-any-return]
    kept = _kept(recorded, entries)

    def load(state: Any) -> None:
        held = [_dtypes(optimizer.state.get(item)) for item in _parameters(optimizer)]
        optimizer.load_state_dict(state)
        _uncast(optimizer, state, held, kept)

    return load


def layouts(optimizer: Any, node: Node, entries: Mapping[str, Entry]) -> dict[str, Layout]:
    """The layouts of the arrays in the state of an optimizer whose parameters are DTensors.

    torch makes such a state beside its parameter, so what has the shape of one has its layout.
    """
    states = node.items.get("state") if isinstance(node, DictNode) else None
    if not (is_optimizer(optimizer) and isinstance(states, DictNode)):
        return {}
    found = {}
    for number, parameter in enumerate(_parameters(optimizer)):
        state = states.items.get(number)
        if is_sharded(parameter) and isinstance(state, DictNode):
            layout = Layout.of(parameter)
            for item in state.items.values():
                if isinstance(item, ArrayNode) and not item.is_zarr:
                    entry = entries.get(item.first)
                    if entry is not None and tuple(entry.shape) == layout.shape:
                        found[item.first] = layout
    return found


def differences(recorded: Recorded, node: Node, entries: Mapping[str, Entry]) -> list[str]:
    """Return the differences between a stored state and its destination, as parts of a sentence."""
    saved, now = recorded.saved, recorded.now
    if saved.get(CLASS, now.get(CLASS)) != now.get(CLASS):
        return [f"checkpoint: {shown(saved[CLASS])}, destination: {shown(now[CLASS])}"]
    if not (is_optimizer(recorded.target) and loads_as_torch(recorded.target)):
        return []
    if not isinstance(node, DictNode):
        return ["the checkpoint holds no state of an optimizer"]
    groups, states = node.items.get("param_groups"), node.items.get("state")
    if not (isinstance(groups, ListNode) and isinstance(states, DictNode)):
        return ["the checkpoint holds no state of an optimizer"]
    return _Comparison(recorded, groups, states, entries).differences()


class _Comparison:
    """A stored state and an optimizer side by side."""

    def __init__(
        self, recorded: Recorded, groups: ListNode, states: DictNode, entries: Mapping[str, Entry]
    ) -> None:
        self.recorded, self.optimizer, self.entries = recorded, recorded.target, entries
        self.groups = [item.items for item in groups.items if isinstance(item, DictNode)]
        self.states = states.items
        numbers = (_items(group.get("params")) for group in self.groups)
        self.numbers = list(chain.from_iterable(numbers))
        self.names = _names(recorded.now)

    def differences(self) -> list[str]:
        """Every difference; those that follow from an earlier one are left out."""
        live = self.optimizer.param_groups
        if len(self.groups) != len(live):
            return [
                f"parameter groups in the checkpoint: {len(self.groups)}, "
                f"in the destination: {len(live)}"
            ]
        return self.sizes(live) or self.keys(live) or [*self.order(live)] or [*self.tensors()]

    def sizes(self, live: Sequence[Mapping[str, Any]]) -> list[str]:
        """Groups with another number of parameters."""
        flat = any(_FLAT in name for name in (*_names(self.recorded.saved), *self.names))
        note = f", as FullyShardedDataParallel joins them without {_APART}" if flat else ""
        return [
            f"group {number} has {old} parameters in the checkpoint, {new} in the destination{note}"
            for number, (group, here) in enumerate(zip(self.groups, live, strict=True))
            if (old := len(_items(group.get("params")))) != (new := len(here["params"]))
        ]

    def keys(self, live: Sequence[Mapping[str, Any]]) -> list[str]:
        """Hyperparameters that only one side has."""
        said = []
        for number, (group, here) in enumerate(zip(self.groups, live, strict=True)):
            passed_over = _OPTIONAL | _OF_SCHEDULERS
            old, new = {*map(str, group)} - passed_over, {*map(str, here)} - passed_over
            for keys, there, absent in (
                (new - old, "destination", "checkpoint"),
                (old - new, "checkpoint", "destination"),
            ):
                if keys:
                    listed = ", ".join(map(shown, sorted(keys)))
                    said.append(f"group {number}: only the {there} has {listed}, not the {absent}")
        return said

    def order(self, live: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """Parameters in the places of others."""
        saved, here = _names(self.recorded.saved), self.names
        for old, new in zip(self.groups, live, strict=True):
            names = [str(name) for name in _items(old.get("param_names"))]
            if names and new.get("param_names"):
                yield from _exchanged(names, list(new["param_names"]))
                return
        if len(saved) == len(here):
            yield from _exchanged(saved, here)

    def tensors(self) -> Iterator[str]:
        """States of another shape, and those that would be cast."""
        kept = _kept(self.recorded, self.entries)
        places = list(zip_longest(self.numbers, _parameters(self.optimizer), self.names))
        for position, (number, parameter, name) in enumerate(places):
            state = self.states.get(number)
            if not isinstance(state, DictNode):
                continue
            held = self.optimizer.state.get(parameter, {})
            for key, node in state.items.items():
                entry = self.entries.get(node.path) if isinstance(node, ArrayNode) else None
                if entry is None or key == "step":
                    continue
                what = f"{key} of {shown(name) if name else f'parameter {position}'}"
                yield from self.tensor(
                    what, entry, parameter, held.get(key), key=key, is_kept=position in kept
                )

    def tensor(
        self, what: str, entry: Entry, parameter: Any, held: Any, *, key: object, is_kept: bool
    ) -> Iterator[str]:
        """One state of one parameter. held: what the optimizer has under the same key."""
        dtype, shape = str(entry.dtype), tuple(entry.shape)
        torch = sys.modules["torch"]
        is_held = isinstance(held, torch.Tensor)
        expected = None
        if is_held:
            expected = tuple(held.shape)
        elif key in _OF_PARAMETER_SHAPE and type(self.optimizer).__module__.startswith("torch."):
            expected = tuple(parameter.shape)
        if expected is not None and expected != shape:
            yield f"{what} has shape {list(shape)} in the checkpoint, {list(expected)} here"
        here = _dtype(held if is_held else parameter)
        is_cast = is_held or (parameter.is_floating_point() and not is_kept)
        if is_cast and dtype != here:
            owner = "the destination has" if is_held else "the dtype of its parameter, is"
            yield f"{what} is {dtype} in the checkpoint, and {owner} {here}"


def _kept(recorded: Recorded, entries: Mapping[str, Entry]) -> set[int]:
    """The positions of parameters whose states keep their dtypes, whatever torch casts them to.

    These parameters had the dtype when they were saved that they have now, so their states are what
    this optimizer makes beside such parameters.
    """
    saved = _names(recorded.saved)
    return {
        position
        for position, parameter in enumerate(_parameters(recorded.target))
        if position < len(saved)
        and (entry := entries.get(saved[position])) is not None
        and entry.dtype == _dtype(parameter)
    }


def _uncast(optimizer: Any, state: Any, held: Sequence[Mapping[Any, str]], kept: set[int]) -> None:
    """Replace states that torch has cast by what the checkpoint holds.

    Args:
        optimizer: The optimizer, which has loaded the state.
        state: The state.
        held: The dtypes that the optimizer's own states had, for each parameter.
        kept: The positions of parameters whose states keep their dtypes.
    """
    numbers = chain.from_iterable(group["params"] for group in state["param_groups"])
    for position, (number, parameter, before) in enumerate(
        zip(numbers, _parameters(optimizer), held, strict=True)
    ):
        values, loaded = state["state"].get(number, {}), optimizer.state.get(parameter, {})
        cast = _dtypes(loaded)
        for key, dtype in _dtypes(values).items():
            is_kept = position in kept or before.get(key) == dtype
            if is_kept and cast.get(key, dtype) != dtype:
                loaded[key] = values[key].to(device=loaded[key].device)


def _parameters(optimizer: Any) -> Iterator[Any]:
    return chain.from_iterable(group["params"] for group in optimizer.param_groups)


def _names(recorded: Mapping[str, Any]) -> list[str]:
    text = recorded.get(PARAMETERS)
    return text.split("\n") if isinstance(text, str) else []


def _items(node: object) -> Sequence[Any]:
    return node.items if isinstance(node, ListNode | TupleNode) else ()


def _exchanged(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    """The places with another parameter than before, as far as both are known."""
    places = [
        (number, was, name)
        for number, (was, name) in enumerate(zip(old, new, strict=False))
        if was and name and was != name
    ]
    for number, was, name in places[:EXCHANGED_MAX]:
        yield f"parameter {number} was {shown(was)} and is {shown(name)}"
    if len(places) > EXCHANGED_MAX:
        yield f"and {len(places) - EXCHANGED_MAX} more in the places of others"


def _dtypes(state: Any) -> dict[Any, str]:
    """The dtypes of the tensors in the state of one parameter, without those that torch chooses."""
    is_tensor = sys.modules["torch"].is_tensor
    items = state.items() if isinstance(state, dict) else ()
    # Where torch computes on a GPU it casts the number of steps itself.
    return {key: _dtype(value) for key, value in items if is_tensor(value) and key != "step"}


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")
