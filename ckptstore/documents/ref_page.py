"""Ref pages: the branches, or the tags, of an operation, cut so that a change rewrites one page.

An operation holds up to `REFS_INLINE_MAX` branches, and as many tags, itself. More are in pages
beside the operations, which later operations share while they do not change
(docs/reference/format.md, section 8.1; docs/adr/0031).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING

from ckptstore.digest import Digest
from ckptstore.documents import canonical
from ckptstore.documents.canonical import Fields, check_digest, legal
from ckptstore.documents.names import check_ref_name
from ckptstore.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    Refs = Mapping[str, Digest]

REFS_INLINE_MAX = 256  # some 25 KB in every operation
PAGE_REFS_MAX = 256
REF_PAGE_BYTES_MAX = 1 << 20  # names of 200 characters that are not ASCII need .6 MB
PAGES_SPARE = 4  # times the pages that there must be: then all are cut afresh

_NAME = re.compile(r"([0-9]{12})-([0-9a-f]{64})")


def encode(refs: Refs) -> bytes:
    """Encode a page."""
    document = {"format": 1, "refs": refs}
    return canonical.encode(document, name="The page of refs", bytes_max=REF_PAGE_BYTES_MAX)


def decode(data: bytes, *, kind: str, name: str, file: str) -> Refs:
    """Decode a page, by ascending names. kind: "branch" or "tag". name: of the page."""
    if page_name(seq_of(name), data) != name:
        raise CorruptError(f"{file} is damaged: its content does not match its name.")
    fields = Fields(canonical.decode(data, name=file, bytes_max=REF_PAGE_BYTES_MAX), name=file)
    fields.version()
    refs = decode_refs(fields.object("refs"), kind=kind, name=file)
    if not 0 < len(refs) <= PAGE_REFS_MAX or list(refs) != sorted(refs):
        raise CorruptError(f"{file} is not a page of 1 to {PAGE_REFS_MAX} refs in order.")
    return refs


def decode_refs(document: Mapping[str, object], *, kind: str, name: str) -> dict[str, Digest]:
    """Check the names and ids of refs."""
    return {
        legal(check_ref_name, ref, kind=kind, name=name): check_digest(id, name=name)
        for ref, id in document.items()
    }


def page_name(seq: int, data: bytes) -> str:
    """Return the name of a page that an operation of this number is the first to have."""
    return f"{seq:012}-{Digest.of(data)}"


def check_page_name(text: object, *, name: str) -> str:
    """Return the name of a page that a document lists."""
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise CorruptError(f"{name}: a page of refs has no legal name.")
    return text


def is_page_name(text: str) -> bool:
    """Return True for the name of a page."""
    return _NAME.fullmatch(text) is not None


def seq_of(name: str) -> int:
    """Return the number of the operation that was the first to have a page."""
    return int(name[:12])


def joined(pages: Iterable[Refs], *, name: str) -> dict[str, Digest]:
    """Return the refs of all pages of one kind."""
    refs: dict[str, Digest] = {}
    last = ""
    for page in pages:
        if next(iter(page)) <= last:
            raise CorruptError(f"{name}: its pages of refs do not follow one another.")
        refs.update(page)
        last = next(reversed(refs))
    return refs


def repage(
    refs: Refs, *, before: Refs, pages: Sequence[tuple[str, Refs]]
) -> list[tuple[str | None, Refs]]:
    """Return the pages of some refs, with the names of those that did not change.

    before: the refs of the operation before. pages: its pages, none if it held the refs itself. The
    result is empty if few refs are left.
    """
    if len(refs) <= REFS_INLINE_MAX:
        return []
    if not pages or len(pages) > PAGES_SPARE * ceil(len(refs) / PAGE_REFS_MAX):
        return [(None, part) for part in _cut(refs, sorted(refs), size=PAGE_REFS_MAX // 2)]
    firsts = [next(iter(page)) for _, page in pages]
    changed: dict[int, set[str]] = {}
    for name, _ in refs.items() ^ before.items():
        changed.setdefault(max(0, bisect_right(firsts, name) - 1), set()).add(name)
    result: list[tuple[str | None, Refs]] = []
    for position, (page_name, page) in enumerate(pages):
        if position in changed:
            names = sorted({*page, *changed[position]} & refs.keys())
            result += ((None, part) for part in _cut(refs, names, size=PAGE_REFS_MAX))
        else:
            result.append((page_name, page))
    return result


def _cut(refs: Refs, names: Sequence[str], *, size: int) -> Iterator[Refs]:
    """Cut refs of these names into parts of about equal size, none larger than `size`."""
    count = ceil(len(names) / size)
    waiting = iter(names)
    for part in range(count):
        here = (part + 1) * len(names) // count - part * len(names) // count
        yield {name: refs[name] for name in islice(waiting, here)}
