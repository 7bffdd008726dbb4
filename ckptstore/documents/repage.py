"""Repage: pages of arrays that are there, under the same or other paths. No array is read or written.

New pages list the chunks that are there, and point into the bundles that are there. A page has one bundle, so besides
where the rule ends a page, one ends before a small array that lies in another bundle than those before it.
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
    """The pages of those arrays that have a new name, under that name; their bytes stay where they are."""
    placed = sorted(
        (
            (replace(entry, path=names[entry.path]), page.bundle)
            for page in pages
            for entry in page.entries
            if entry.path in names
        ),
        key=lambda found: found[0].path,
    )
    if len(placed) != len(names):
        listed = {entry.path for page in pages for entry in page.entries}
        missing = next(path for path in names if path not in listed)
        raise CorruptError(
            f"The structure names {shown(missing)}, which no page lists. Run verify."
        )
    by_rule = cut([(entry.path, len(entry.digests)) for entry, _ in placed])
    made = list(chain.from_iterable(_by_bundle(placed[part]) for part in by_rule))
    if len(made) > PAGES_MAX:
        raise InvalidInputError(
            f"Under these names the arrays need {len(made)} pages, and a checkpoint has {PAGES_MAX} at most: small ones "
            "that were stored far apart would lie next to each other. Check the source out, and commit it renamed."
        )
    return made


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
