"""Compare: what two checkpoints hold differently, from their pages and structures alone.

Pure: pages and structures are loaded by functions passed in. A page that both checkpoints list
holds the same arrays under the same paths and is not loaded, and equal structure digests mean that
all plain values are equal, so the cost depends on what differs. Only with a selection are common
pages loaded, once, to see which of their arrays are chosen. How far an array moved is measured by
`ckptstore.diff.numeric`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptstore.diff.changes import ArrayChange, Diff
from ckptstore.diff.structures import structure_changes
from ckptstore.documents.entry import StoredArray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ckptstore.diff.changes import ArrayKind, ValueChange
    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest, PageRef
    from ckptstore.documents.nodes import Node
    from ckptstore.documents.page import Page
    from ckptstore.documents.zarr_page import EncodedEntry
    from ckptstore.state.selection import Selection

SUFFIX_PARTS_MAX = 16  # of a path's end, when arrays of the same bytes are paired as moved


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One of the two checkpoints, and how to load what its manifest lists."""

    manifest: Manifest
    load_pages: Callable[[Sequence[PageRef]], Iterable[Page]]
    load_structure: Callable[[], Node]
    load_encoded: Callable[[], Mapping[str, EncodedEntry]] = dict


def compare(
    a: Source,
    b: Source,
    selection: Selection,
    *,
    decode: Callable[[str, object], object],
) -> Diff:
    """The differences between two checkpoints.

    Args:
        a: The first checkpoint.
        b: The second checkpoint.
        selection: Which paths are compared.
        decode: Returns the value of a type, by the type's name, from its plain form.
    """
    common = {ref.digest for ref in a.manifest.pages} & {ref.digest for ref in b.manifest.pages}
    equal = [ref for ref in a.manifest.pages if ref.digest in common]
    unchanged, unchanged_bytes = _count(equal, a, selection)
    before, after = (_arrays(source, common, selection) for source in (a, b))
    known = {digest for array in before.values() for digest in array.entry.digests}
    shared = {
        path: sum(size for digest, size in array.entry.sized_digests() if digest in known)
        for path, array in after.items()
    }
    arrays, same = _array_changes(before, after, shared)
    values: tuple[ValueChange, ...] = ()
    rearranged: tuple[str, ...] = ()
    if a.manifest.structure != b.manifest.structure:
        structures = a.load_structure(), b.load_structure()
        values, rearranged = structure_changes(*structures, selection, decode)
    return Diff(
        arrays=arrays,
        values=values,
        rearranged=rearranged,
        unchanged=unchanged + same,
        bytes_before=unchanged_bytes + sum(array.nbytes for array in before.values()),
        bytes_after=unchanged_bytes + sum(array.nbytes for array in after.values()),
        shared_bytes=unchanged_bytes + sum(shared.values()),
    )


def _count(refs: Sequence[PageRef], source: Source, selection: Selection) -> tuple[int, int]:
    """How many arrays of common pages are chosen, and their bytes."""
    if selection.is_everything:
        return sum(ref.arrays for ref in refs), sum(ref.bytes for ref in refs)
    pages = source.load_pages(refs)
    sizes = [entry.nbytes for page in pages for entry in page.entries if selection(entry.path)]
    return len(sizes), sum(sizes)


def _arrays(source: Source, common: set[Digest], selection: Selection) -> dict[str, StoredArray]:
    """The chosen arrays of the pages that only this side has."""
    refs = [ref for ref in source.manifest.pages if ref.digest not in common]
    arrays = {
        entry.path: StoredArray(entry=entry, bundle=page.bundle)
        for page in source.load_pages(refs)
        for entry in page.entries
        if selection(entry.path)
    }
    encoded = source.load_encoded().items()
    return arrays | {path: StoredArray(entry=entry) for path, entry in encoded if selection(path)}


def _array_changes(
    before: Mapping[str, StoredArray], after: Mapping[str, StoredArray], shared: Mapping[str, int]
) -> tuple[tuple[ArrayChange, ...], int]:
    """The arrays that differ, in path order, and how many do not."""
    gone = [array for path, array in before.items() if path not in after]
    new = [array for path, array in after.items() if path not in before]
    origins = _moves(gone, new)
    moved_away = {array.path for array in origins.values()}
    changes = [
        ArrayChange(kind="removed", before=array, after=None)
        for array in gone
        if array.path not in moved_away
    ]
    same = 0
    for path, array in after.items():
        old = before.get(path) or origins.get(path)
        kind = _kind(old, array)
        if kind is None:
            same += 1
        else:
            changes.append(
                ArrayChange(kind=kind, before=old, after=array, shared_bytes=shared[path])
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
    if before.entry.content == after.entry.content:
        return None
    return "changed" if before.entry.cut == after.entry.cut else "undecided"


def _moves(gone: Sequence[StoredArray], new: Sequence[StoredArray]) -> dict[str, StoredArray]:
    """Where each new path's bytes were before, if they were under a path that is gone."""
    by_content: defaultdict[Any, tuple[list[StoredArray], list[StoredArray]]]
    by_content = defaultdict(lambda: ([], []))
    for side, arrays in enumerate((gone, new)):
        for array in arrays:
            if array.entry.digests:
                key = array.dtype, array.shape, array.entry.content
                by_content[key][side].append(array)
    origins: dict[str, StoredArray] = {}
    for sources, targets in by_content.values():
        if sources and targets:
            origins |= _paired(sources, targets)
    return origins


def _paired(
    sources: Sequence[StoredArray], targets: Sequence[StoredArray]
) -> dict[str, StoredArray]:
    """Pair as many as possible, first those whose paths have the longest endings in common."""
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
    """The last parts of a path, which dots separate as slashes do."""
    return tuple(path.replace("/", ".").rsplit(".", length)[1:]) if length else ()
