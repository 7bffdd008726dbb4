"""Diff: what two checkpoints hold differently, from their pages and structures alone. Pure: both are loaded by functions.

A page that both list is the same arrays under the same paths, and is not loaded; equal structure digests mean that all
plain values are equal. So the cost follows what differs. Only with a selection are equal pages loaded, once, as nothing
else tells which of their arrays are chosen. What changed inside an array is for `ckptstore.diff.numeric` to measure.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ckptstore.documents.entry import StoredArray
from ckptstore.documents.nodes import ArrayNode, DictNode, ListNode, TupleNode
from ckptstore.documents.page import ArrayEntry, Page, chunk_sizes
from ckptstore.documents.structure import is_same
from ckptstore.documents.zarr_page import EncodedEntry
from ckptstore.state.paths import children, key_segments
from ckptstore.state.tree import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest, PageRef
    from ckptstore.documents.nodes import Inner, Node
    from ckptstore.state.selection import Selection

ArrayKind = Literal["added", "removed", "moved", "retyped", "changed", "undecided"]
ValueKind = Literal["added", "removed", "changed"]

SUFFIX_PARTS_MAX = 16  # of a path's end, when arrays of the same bytes are paired as moved


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One of the two checkpoints, and how to load what its manifest lists."""

    manifest: Manifest
    load_pages: Callable[[Sequence[PageRef]], Iterable[Page]]
    load_structure: Callable[[], Node]
    load_encoded: Callable[[], Mapping[str, EncodedEntry]] = dict


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """How far an array moved, over the elements that are finite on both sides; a complex one counts by its modulus.

    relative_l2: norm of the difference by the norm before; inf when that was 0. max_abs: the largest change of an element.
    cosine: similarity of both as vectors (of complex ones the real part); NaN when a norm is 0. changed_share: of the
    elements, those whose bits changed. new_nan, new_inf: elements that are NaN, or infinite, only afterwards.
    """

    relative_l2: float
    max_abs: float
    cosine: float
    changed_share: float
    new_nan: int
    new_inf: int
    norm_before: float
    norm_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayChange:
    """One array that differs.

    kind: "added", "removed"; "moved": the same bytes, dtype and shape under another path; "retyped": another dtype or
    shape; "changed": other bytes; "undecided": cut into other chunks, so that only its bytes could tell.
    shared_bytes: how much of `after` lies in chunks that the first checkpoint has as well.
    """

    kind: ArrayKind
    before: StoredArray | None
    after: StoredArray | None
    shared_bytes: int = 0
    numbers: Numbers | None = None

    @property
    def path(self) -> str:
        """Its path in the second checkpoint; of one that was removed, in the first."""
        found = self.after or self.before
        assert found
        return found.path


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueChange:
    """One plain value, or empty container, that differs; `before` or `after` is None where there was none."""

    path: str
    kind: ValueKind
    before: object = None
    after: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """What two checkpoints hold differently, each list in path order.

    rearranged: paths of dicts, lists and tuples that changed their kind, the order or type of keys that both have, or
    their _metadata, and of arrays that changed between tensor and ndarray or are tied to others; "" is the state itself.
    shared_bytes: of `bytes_after`, what lies in chunks that the first checkpoint has as well, as far as the loaded pages
    tell.
    """

    arrays: tuple[ArrayChange, ...]
    values: tuple[ValueChange, ...]
    rearranged: tuple[str, ...]
    unchanged: int
    bytes_before: int
    bytes_after: int
    shared_bytes: int

    @property
    def is_empty(self) -> bool:
        """True when nothing differs."""
        return not (self.arrays or self.values or self.rearranged)

    @property
    def shared(self) -> float:
        """The share of the second checkpoint's array bytes that the first one has as well; 1 when it has no arrays."""
        return self.shared_bytes / self.bytes_after if self.bytes_after else 1.0

    def of_kind(self, kind: ArrayKind) -> tuple[ArrayChange, ...]:
        """The arrays that differ in this way."""
        return tuple(change for change in self.arrays if change.kind == kind)

    @property
    def added(self) -> tuple[ArrayChange, ...]:
        """Arrays that only the second checkpoint has."""
        return self.of_kind("added")

    @property
    def removed(self) -> tuple[ArrayChange, ...]:
        """Arrays that only the first checkpoint has."""
        return self.of_kind("removed")

    @property
    def moved(self) -> tuple[ArrayChange, ...]:
        """Arrays that have another path and are the same otherwise."""
        return self.of_kind("moved")

    @property
    def retyped(self) -> tuple[ArrayChange, ...]:
        """Arrays that have another dtype or shape."""
        return self.of_kind("retyped")

    @property
    def changed(self) -> tuple[ArrayChange, ...]:
        """Arrays of the same dtype and shape that hold other bytes."""
        return self.of_kind("changed")

    @property
    def undecided(self) -> tuple[ArrayChange, ...]:
        """Arrays that both cut into chunks in different ways; a numeric diff decides them."""
        return self.of_kind("undecided")

    def with_numbers(self, found: Mapping[str, Numbers]) -> Diff:
        """The same with these numbers, by path; what was undecided is now changed or unchanged."""
        arrays: list[ArrayChange] = []
        unchanged, shared_bytes = self.unchanged, self.shared_bytes
        for change in self.arrays:
            numbers = found.get(change.path)
            if numbers is None or change.kind not in ("changed", "undecided"):
                arrays.append(change)
            elif change.kind == "undecided" and not numbers.changed_share:
                assert change.after
                unchanged += 1
                shared_bytes += change.after.nbytes - change.shared_bytes
            else:
                arrays.append(replace(change, kind="changed", numbers=numbers))
        return replace(self, arrays=tuple(arrays), unchanged=unchanged, shared_bytes=shared_bytes)


def compare(
    a: Source,
    b: Source,
    selection: Selection,
    *,
    decode: Callable[[str, object], object],
) -> Diff:
    """What b holds differently from a, among what is selected. decode: makes a value of what its type's codec stored."""
    common = {ref.digest for ref in a.manifest.pages} & {ref.digest for ref in b.manifest.pages}
    equal = [ref for ref in a.manifest.pages if ref.digest in common]
    unchanged, unchanged_bytes = _count(equal, a, selection)
    before, after = (_arrays(source, common, selection) for source in (a, b))
    held = {digest for found in before.values() for digest, _ in _sizes(found.entry)}
    shared = {path: _shared(found.entry, held) for path, found in after.items()}
    arrays, same = _array_changes(before, after, shared)
    values, rearranged = _structure_changes(a, b, selection, decode)
    return Diff(
        arrays=arrays,
        values=values,
        rearranged=rearranged,
        unchanged=unchanged + same,
        bytes_before=unchanged_bytes + sum(found.nbytes for found in before.values()),
        bytes_after=unchanged_bytes + sum(found.nbytes for found in after.values()),
        shared_bytes=unchanged_bytes + sum(shared.values()),
    )


def _count(refs: Sequence[PageRef], source: Source, selection: Selection) -> tuple[int, int]:
    """How many arrays of pages that both have are chosen, and their bytes."""
    if selection.is_everything:
        return sum(ref.arrays for ref in refs), sum(ref.bytes for ref in refs)
    pages = source.load_pages(refs)
    sizes = [entry.nbytes for page in pages for entry in page.entries if selection(entry.path)]
    return len(sizes), sum(sizes)


def _arrays(source: Source, common: set[Digest], selection: Selection) -> dict[str, StoredArray]:
    """The chosen arrays of the pages that only this side has."""
    refs = [ref for ref in source.manifest.pages if ref.digest not in common]
    found = {
        entry.path: StoredArray(entry=entry, bundle=page.bundle)
        for page in source.load_pages(refs)
        for entry in page.entries
        if selection(entry.path)
    }
    encoded = source.load_encoded().items()
    return found | {path: StoredArray(entry=entry) for path, entry in encoded if selection(path)}


def _array_changes(
    before: Mapping[str, StoredArray], after: Mapping[str, StoredArray], shared: Mapping[str, int]
) -> tuple[tuple[ArrayChange, ...], int]:
    """The arrays that differ, in path order, and how many do not."""
    gone = [found for path, found in before.items() if path not in after]
    new = [found for path, found in after.items() if path not in before]
    origin = _moves(gone, new)
    moved_away = {found.path for found in origin.values()}
    changes = [
        ArrayChange(kind="removed", before=found, after=None)
        for found in gone
        if found.path not in moved_away
    ]
    same = 0
    for path, found in after.items():
        old = before.get(path) or origin.get(path)
        kind = _kind(old, found)
        if kind is None:
            same += 1
        else:
            changes.append(
                ArrayChange(kind=kind, before=old, after=found, shared_bytes=shared[path])
            )
    return tuple(sorted(changes, key=lambda change: change.path)), same


def _kind(before: StoredArray | None, after: StoredArray) -> ArrayKind | None:
    """How an array differs; None when it does not."""
    if before is None:
        return "added"
    if before.path != after.path:
        return "moved"
    if (before.dtype, before.shape) != (after.dtype, after.shape):
        return "retyped"
    if before.entry.digests == after.entry.digests and is_cut_alike(before.entry, after.entry):
        return None
    return "changed" if is_cut_alike(before.entry, after.entry) else "undecided"


def is_cut_alike(one: ArrayEntry, other: ArrayEntry) -> bool:
    """True when the digests of two arrays of one shape and dtype stand for the same runs of bytes."""
    return _cut(one) == _cut(other)


def _cut(entry: ArrayEntry) -> tuple[int, ...]:
    if isinstance(entry, EncodedEntry):
        return (-1,)  # as its codecs made it: like no array of a state
    if len(entry.digests) < 2:
        return entry.shape
    return tuple(map(min, entry.shape, entry.chunk_shape))


def _moves(gone: Sequence[StoredArray], new: Sequence[StoredArray]) -> dict[str, StoredArray]:
    """For each new path whose bytes went away from another one: the array there. Equal paths' ends go first."""
    by_content: defaultdict[Any, tuple[list[StoredArray], list[StoredArray]]]
    by_content = defaultdict(lambda: ([], []))
    for side, found in enumerate((gone, new)):
        for array in found:
            if array.entry.digests:
                by_content[array.dtype, _cut(array.entry), array.shape, array.entry.digests][
                    side
                ].append(array)
    origin: dict[str, StoredArray] = {}
    for sources, targets in by_content.values():
        if sources and targets:
            origin |= _paired(sources, targets)
    return origin


def _paired(
    sources: Sequence[StoredArray], targets: Sequence[StoredArray]
) -> dict[str, StoredArray]:
    """Pair as many as can be, those first whose paths have most parts of their ends in common."""
    pairs: dict[str, StoredArray] = {}
    left = {source.path: source for source in sources}
    for length in range(SUFFIX_PARTS_MAX if len(sources) + len(targets) > 2 else 0, -1, -1):
        homes: defaultdict[tuple[str, ...], list[StoredArray]] = defaultdict(list)
        for source in reversed(left.values()):
            homes[_ending(source.path, length)].append(source)
        for target in targets:
            waiting = homes.get(_ending(target.path, length))
            if waiting and target.path not in pairs:
                pairs[target.path] = waiting.pop()
                del left[pairs[target.path].path]
    return pairs


def _ending(path: str, length: int) -> tuple[str, ...]:
    """The last parts of a path, where dots part as slashes do."""
    return tuple(path.replace("/", ".").rsplit(".", length)[1:]) if length else ()


def _sizes(entry: ArrayEntry) -> Iterable[tuple[Digest, int]]:
    """Each digest of an array with its bytes."""
    if isinstance(entry, EncodedEntry):
        return zip(entry.digests, entry.sizes, strict=True)
    if entry.offset is not None:
        return [(entry.digests[0], entry.nbytes)]
    return chunk_sizes(entry)


def _shared(entry: ArrayEntry, held: set[Digest]) -> int:
    return sum(size for digest, size in _sizes(entry) if digest in held)


@dataclass(frozen=True, slots=True)
class _Outline:
    """A structure as what can be compared by path: plain values, containers, and what is said of arrays."""

    values: dict[str, Node] = field(default_factory=dict)
    containers: dict[str, ListNode | TupleNode | DictNode] = field(default_factory=dict)
    arrays: dict[str, tuple[str, str | None]] = field(default_factory=dict)


def _structure_changes(
    a: Source, b: Source, selection: Selection, decode: Callable[[str, object], object]
) -> tuple[tuple[ValueChange, ...], tuple[str, ...]]:
    """The plain values that differ, and the paths of what is arranged differently."""
    if a.manifest.structure == b.manifest.structure:
        return (), ()
    before, after = (_outline(source.load_structure(), selection) for source in (a, b))
    return tuple(_value_changes(before.values, after.values, decode)), _rearranged(before, after)


def _outline(root: Node, selection: Selection) -> _Outline:
    outline = _Outline()

    def add(node: Node, path: str) -> None:
        if isinstance(node, ArrayNode):
            if selection(node.path):
                outline.arrays[node.path] = node.kind, node.tied
            return
        inside = list(children(node, path))
        if selection(path):
            if isinstance(node, ListNode | TupleNode | DictNode):
                outline.containers[path] = node
            if not inside:
                outline.values[path] = node
        for where, item in inside:
            add(item, where)

    add(root, "")
    return outline


def _value_changes(
    before: Mapping[str, Node], after: Mapping[str, Node], decode: Callable[[str, object], object]
) -> Iterator[ValueChange]:
    for path in sorted(before.keys() | after.keys()):
        if path not in before:
            yield ValueChange(path=path, kind="added", after=plain(after[path], decode=decode))
        elif path not in after:
            yield ValueChange(path=path, kind="removed", before=plain(before[path], decode=decode))
        elif not is_same(before[path], after[path]):
            yield ValueChange(
                path=path,
                kind="changed",
                before=plain(before[path], decode=decode),
                after=plain(after[path], decode=decode),
            )


def _rearranged(before: _Outline, after: _Outline) -> tuple[str, ...]:
    """Containers and arrays on both sides that are not the same in themselves."""
    arrays = {path for path, said in before.arrays.items() if after.arrays.get(path, said) != said}
    containers = {
        path
        for path, container in before.containers.items()
        if path in after.containers
        and path not in before.values.keys() & after.values.keys()
        and not _is_arranged_alike(container, after.containers[path])
    }
    return tuple(sorted(arrays | containers))


def _is_arranged_alike(one: Inner, other: Inner) -> bool:
    """True for containers of one kind and metadata that have their common keys in one order."""
    if not isinstance(one, DictNode) or not isinstance(other, DictNode):
        return type(one) is type(other)
    keys, other_keys = (
        dict(zip(key_segments(node.items), node.items, strict=True)) for node in (one, other)
    )
    common = [item for item in keys.items() if item[0] in other_keys]
    return (
        one.is_ordered == other.is_ordered
        and is_same(one.metadata, other.metadata)
        and common == [item for item in other_keys.items() if item[0] in keys]
    )
