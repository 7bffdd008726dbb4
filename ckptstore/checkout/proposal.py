"""Proposal: the arguments with which a checkpoint would fit a destination that it does not fit.

Keys are matched by their names and by whether what is below them fits, arrays as in `matching`.
Each proposal is tried on the structure before it is made; no array of the checkpoint is read. See
docs/adr/0056.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from glob import escape
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.frameworks import (
    is_array,
    is_keras,
    is_model,
    is_module,
    is_uninitialized,
)
from ckptstore.arrays.keras import ModelState
from ckptstore.arrays.modules import loads_itself, named_state, plain_name, unwrapped
from ckptstore.checkout.matching import matches, patterns, replacement
from ckptstore.checkout.optimizers import Recorded, renamed_record
from ckptstore.checkout.placement import is_stateful, place
from ckptstore.documents.names import escape_key, unescape_key
from ckptstore.documents.nodes import DictNode
from ckptstore.documents.structure import DEPTH_MAX
from ckptstore.errors import CkptStoreError
from ckptstore.state.paths import children, join
from ckptstore.state.rename import Names, Rename
from ckptstore.state.selection import Selection
from ckptstore.state.tree import arrays, stem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ckptstore.checkout.placement import Placement
    from ckptstore.checkout.stored_state import StoredState
    from ckptstore.documents.nodes import Node
    from ckptstore.errors import Incompatible

    Judge = Callable[[Placement], Incompatible]

ARGUMENT_LENGTH_MAX = 1_200  # characters of a rename in a message; longer ones are in the error
LEFT_OVER_MAX = 5  # arrays of a model's part that a proposal leaves out
KEYS_MAX = 50  # of a dict that are compared with one another


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """Arguments of a checkout.

    Attributes:
        rename: The whole argument.
        exclude: The whole argument; empty if it stays as it is.
        part: The argument; None if it stays as it is.
        fitting: How many of the missing arrays and objects would fit.
        missing: The number of missing arrays and objects.
        names: The number of missing names that the error lists; one may have many arrays below it.
        fits: Whether nothing would differ any more.
    """

    rename: Mapping[str, str]
    exclude: tuple[str, ...] = ()
    part: str | None = None
    fitting: int
    missing: int
    names: int
    fits: bool

    def __str__(self) -> str:
        pairs = (f"{_literal(old)}: {_literal(new)}" for old, new in self.rename.items())
        text, note = f"{{{', '.join(pairs)}}}", ""
        if len(text) > ARGUMENT_LENGTH_MAX:
            text, note = "error.rename", f", where `error` is this error ({len(self.rename)} names)"
        arguments = [] if self.part is None else [f"part={_literal(self.part)}"]
        arguments += [f"rename={text}"] if self.rename else []
        if self.exclude:
            arguments.append(f"exclude=[{', '.join(map(_literal, self.exclude))}]")
        result = "everything fits"
        if not self.fits:
            are_names = self.missing == self.names
            what = "missing names" if are_names else "arrays and objects below the missing names"
            result = f"{self.fitting} of the {self.missing} {what} fit"
        return f"Pass {', '.join(arguments)}{note}: then {result}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """The text to add to an error, empty if nothing was found, and the `rename` in it.

    fits: whether everything would fit.
    """

    text: str = ""
    rename: Mapping[str, str] = field(default_factory=dict)
    fits: bool = False


def remedy(stored: StoredState, into: object, misfit: Incompatible, judge: Judge) -> Remedy:
    """Return the arguments with which a checkpoint would fit, as far as they are clear.

    Args:
        stored: What was to be restored.
        into: The destination.
        misfit: Its differences.
        judge: Returns those of any placement, of which each is an error.
    """
    if is_model(into) and misfit.missing:
        tops = sorted({path.split("/")[0] for path in misfit.unexpected})
        for top in tops:
            if f"{top}/{misfit.missing[0]}" in misfit.unexpected:
                return Remedy(text=f"The names are under {top!r}: pass part={top!r}.", fits=True)
    try:
        search = _Search(stored, into, judge, names=len(misfit.missing))
        found = search.of_parts() if is_model(into) and not stored.path else search.best(None)
    except CkptStoreError:  # such as two names that would become one
        found = None
    if found is None:
        return Remedy()
    return Remedy(text=str(found), rename=found.rename, fits=found.fits)


class _Search:
    """The search for one destination."""

    def __init__(self, stored: StoredState, into: Any, judge: Judge, *, names: int) -> None:
        self.stored, self.into, self.judge, self.names = stored, into, judge, names
        self.part = unescape_key(stored.path) if stored.path else None

    def of_parts(self) -> Proposal | None:
        """The best for a module: that of the only part of the checkpoint in which all would fit."""
        tops = [key for key, _, node in _items(self.stored.root, "") if isinstance(node, DictNode)]
        if not tops:
            return self.best(None)
        found = []
        for top in tops[:KEYS_MAX]:
            try:
                proposal = self.best(top)
            except CkptStoreError:
                continue
            if proposal is not None and proposal.fits:
                found.append(replace(proposal, part=top))
        return found[0] if len(found) == 1 else None

    def best(self, part: str | None) -> Proposal | None:
        """The proposal for one part, or for what there is."""
        part = self.part if part is None else part
        before = self.again(self.stored.rename, self.stored.selection, part)
        missing = self.missing(before)
        keys = self.keys(before)
        rename = Rename.of(keys | self.stored.rename.to_dict())
        moved = self.again(rename, self.stored.selection, part) if keys else before
        pairs = self.arrays(moved)
        rename = Rename.of(pairs | rename.to_dict())
        if not (keys or pairs) and part == self.part:
            return None
        after = self.again(rename, self.stored.selection, part)
        proposal = Proposal(
            rename=rename.to_dict(),
            fitting=len(missing) - len(self.missing(after)),
            missing=len(missing),
            names=self.names,
            fits=not self.misfit(after),
        )
        if not proposal.fits and (exclude := self.left_over(after)):
            selection = Selection.of(
                self.stored.selection.include, [*self.stored.selection.exclude, *exclude]
            )
            if not self.misfit(self.again(rename, selection, part)):
                return replace(proposal, exclude=selection.exclude, fits=True)
        return proposal if proposal.fits or proposal.fitting > 0 else None

    def again(self, rename: Rename, selection: Selection, part: str | None) -> StoredState:
        """The stored state under other names."""
        return self.stored.again(rename=rename, selection=selection, part=part)

    def misfit(self, stored: StoredState) -> bool:
        """Whether something of the destination would not fit."""
        into = self.into
        if isinstance(into, dict):
            names = Names(arrays=_names_between(self.stored, stored))
            into = {
                key: replace(item, saved=renamed_record(item.saved, names))
                if isinstance(item, Recorded)
                else item
                for key, item in into.items()
            }
        placement = place(stored, into)
        differs = any(handover.differences for handover in placement.handovers)
        return bool(self.judge(placement) or placement.empty or differs)

    def missing(self, stored: StoredState) -> set[str]:
        """The arrays of the destination that nothing goes into, and the objects without any."""
        wanted = _wanted(self.into, stored).keys()
        absent = {path for _, path, _, _ in self.absent(stored)}
        return wanted | {
            path for path in absent if not any(name.startswith(f"{path}/") for name in wanted)
        }

    def absent(self, stored: StoredState) -> Iterator[tuple[str, str, Any, DictNode]]:
        """The keys of the destination that the checkpoint lacks, with what is to be filled."""
        root = stored.root
        if isinstance(self.into, dict) and isinstance(root, DictNode):
            for key, target in self.into.items():
                if isinstance(key, str) and key not in root.items and _is_filled(target):
                    yield key, join(stored.path, escape_key(key)), target, root

    def keys(self, stored: StoredState) -> dict[str, str]:
        """The rename of keys with everything below them."""
        absent = [*self.absent(stored)][:KEYS_MAX]
        others = [
            (key, path, node)
            for key, path, node in _items(stored.root, stored.path)
            if isinstance(self.into, dict) and key not in self.into
        ][:KEYS_MAX]
        found: dict[str, str] = {}
        for key, path, _, _ in absent:
            named = [where for other, where, _ in others if stem(other) == stem(key)]
            alike = [name for name, _, _, _ in absent if stem(name) == stem(key)]
            if len(named) == len(alike) == 1:
                found[named[0]] = path
        left = [item for item in absent if item[1] not in found.values()]
        fitting = {
            path: [
                where
                for _, where, node in others
                if where not in found and self.fits(stored, node, target, where)
            ]
            for _, path, target, _ in left
        }
        every = [where for listed in fitting.values() for where in listed]
        found |= {
            listed[0]: path
            for path, listed in fitting.items()
            if len(listed) == 1 and every.count(listed[0]) == 1
        }
        names = stored.names.keys if stored.names is not None else {}
        origins = {new: old for old, new in names.items()}
        return {re.escape(origins.get(old, old)): replacement(new) for old, new in found.items()}

    def fits(self, stored: StoredState, node: Node, target: Any, path: str) -> bool:
        """Whether everything below a key of the checkpoint fits a target."""
        if isinstance(target, Recorded):
            target = replace(target, saved={})
        everything = Selection()
        placement = place(replace(stored, root=node, path=path, selection=everything), target)
        if placement.incompatible or placement.empty or not [*placement.restored()]:
            return False
        if any(handover.differences for handover in placement.handovers):
            return False
        return not is_stateful(target) or _has_keys(target, node)

    def arrays(self, stored: StoredState) -> dict[str, str]:
        """The rename of arrays."""
        wanted, entries = _wanted(self.into, stored), stored.entries()
        known = _destination(self.into, stored.path)
        unexpected = {
            node.path: entries[node.path]
            for node in arrays(stored.root)
            if node.path in entries and not known.keys() & {node.path, _plain(node.path)}
        }
        origins = _origins(stored)
        found = matches(unexpected, wanted)
        moves = {origins.get(path, path): new for path, new in found.items()}
        others = [*stored.names.arrays] if stored.names is not None else []
        return patterns(moves, [path for path in others if path not in moves])

    def left_over(self, stored: StoredState) -> list[str]:
        """The globs that leave out what has no place, if nothing else differs and it is little."""
        placement = place(stored, self.into)
        misfit = self.judge(placement)
        if misfit.missing or misfit.mismatched or placement.empty or not misfit.unexpected:
            return []
        origins, found = _origins(stored), dict.fromkeys(misfit.unexpected)
        if isinstance(self.into, dict):
            tops = [path for key, path, _ in _items(stored.root, stored.path) if key in self.into]
            if any(path.startswith(f"{top}/") for top in tops for path in found):
                return []
            below = len(stored.path.split("/")) if stored.path else 0
            found = dict.fromkeys("/".join(path.split("/")[: below + 1]) for path in found)
        elif len(found) > LEFT_OVER_MAX:
            return []
        return [escape(origins.get(path, path)) for path in found]


def _items(root: Node, path: str) -> Iterator[tuple[str, str, Node]]:
    """The keys of a dict that are text, each with its path and its node."""
    if isinstance(root, DictNode):
        for key, (where, node) in zip(root.items, children(root, path), strict=True):
            if isinstance(key, str):
                yield key, where, node


def _is_filled(target: object) -> bool:
    """True for what a checkout fills, rather than replaces."""
    kinds = is_array(target) or is_model(target) or is_stateful(target)
    return kinds or isinstance(target, dict | list | tuple)


def _destination(target: Any, path: str, depth: int = 0) -> dict[str, Any]:
    """The arrays of a destination by path; those that an object keeps to itself are not known."""
    items: Any = ()
    if is_array(target):
        return {} if is_uninitialized(target) else {path: target}
    if is_keras(target):
        items = ModelState(target).targets().items()
    elif is_module(target):
        inner = unwrapped(target)
        state = named_state(inner, keep_vars=not loads_itself(inner))
        items = state.items() if isinstance(state, dict) else ()
    elif is_stateful(target) or depth > DEPTH_MAX:
        return {}
    elif isinstance(target, dict):
        items = target.items()
    elif isinstance(target, list | tuple):
        items = enumerate(target)
    found: dict[str, Any] = {}
    for key, item in items:
        found |= _destination(item, join(path, escape_key(str(key))), depth + 1)
    return found


def _wanted(target: Any, stored: StoredState) -> dict[str, Any]:
    """The arrays of a destination that the checkpoint lacks."""
    there = {name for node in arrays(stored.root) for name in (node.path, _plain(node.path))}
    known = _destination(target, stored.path)
    return {path: array for path, array in known.items() if path not in there}


def _plain(path: str) -> str:
    """A path without the prefixes of torch.compile, through which a checkout sees."""
    above, slash, last = path.rpartition("/")
    return f"{above}{slash}{plain_name(last)}"


def _origins(stored: StoredState) -> dict[str, str]:
    """The stored path of each array, by the path that it has."""
    names = {} if stored.names is None else stored.names.arrays
    return {new: old for old, new in names.items()}


def _names_between(one: StoredState, other: StoredState) -> dict[str, str]:
    """The path of each array in another view of the same checkpoint."""
    names = {} if other.names is None else other.names.arrays
    return {old if one.names is None else one.names.of(old): new for old, new in names.items()}


def _has_keys(target: Any, node: Node) -> bool:
    """Whether an object has a state with the same keys. Data loaders are not asked for theirs."""
    target = target.target if isinstance(target, Recorded) else target
    if not isinstance(node, DictNode) or (
        hasattr(target, "__iter__") and hasattr(target, "dataset")
    ):
        return False
    try:
        state = target.state_dict()
    except Exception:  # noqa: BLE001  a state_dict may raise anything
        return False
    return isinstance(state, dict) and {*map(str, state)} == {*map(str, node.items)}


def _literal(text: str) -> str:
    """A text as Python writes it, with as few backslashes as possible."""
    if not text.isprintable() or '"' in text or text.endswith("\\"):
        return repr(text)
    return f'r"{text}"' if "\\" in text else f'"{text}"'
