"""Repage: pages of stored arrays under the same or other paths. No array is read or written.

New pages list the existing chunks and refer to the existing bundles. A page has one bundle, so in
addition to the rule of section 10.4 of docs/reference/format.md, a page ends before a small array
of another bundle (section 10.3).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from ckptstore.documents.manifest import PAGES_MAX
from ckptstore.documents.page import Page, cut
from ckptstore.errors import CorruptError, InvalidInputError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ckptstore.documents.page import ArrayEntry, Bundle


def repage(pages: Sequence[Page], names: Mapping[str, str]) -> list[Page]:
    """The pages of the arrays that have a new name, under that name. Their objects are reused."""
    placed = sorted(
        (
            (replace(entry, path=names[entry.path]), page.bundle)
            for page in pages
            for entry in page.entries
            if entry.path in names
        ),
        key=lambda pair: pair[0].path,
    )
    if len(placed) != len(names):
        listed = {entry.path for page in pages for entry in page.entries}
        missing = next(path for path in names if path not in listed)
        raise CorruptError(
            f"The structure names {shown(missing)}, which no page lists. Run verify."
        )
    by_rule = cut([(entry.path, len(entry.digests)) for entry, _ in placed])
    result = list(chain.from_iterable(_by_bundle(placed[part]) for part in by_rule))
    if len(result) > PAGES_MAX:
        raise InvalidInputError(
            f"Under these names the arrays need {len(result)} pages, and a checkpoint has at most "
            f"{PAGES_MAX}: small arrays of many different bundles would become neighbours. Check "
            "out the source, rename the arrays, and commit them."
        )
    return result


def _by_bundle(placed: Sequence[tuple[ArrayEntry, Bundle | None]]) -> Iterator[Page]:
    """As few pages as there can be when each has one bundle at most."""
    entries: list[ArrayEntry] = []
    held: Bundle | None = None
    for entry, bundle in placed:
        needed = None if entry.offset is None else bundle
        if held and needed and needed != held:
            yield Page(entries=tuple(entries), bundle=held)
            entries, held = [], None
        entries.append(entry)
        held = held or needed
    yield Page(entries=tuple(entries), bundle=held)
