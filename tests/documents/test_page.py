"""Page ends: the same arrays are cut in the same places, whatever surrounds them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.digest import Digest
from ckptstore.documents.page import (
    PAGE_ARRAYS_MAX,
    PAGE_CHUNKS_MAX,
    ArrayEntry,
    Bundle,
    Page,
    cut,
    reached,
)
from ckptstore.errors import CorruptError


def paths(count: int, prefix: str = "model/layer") -> list[tuple[str, int]]:
    return sorted((f"{prefix}.{number}.weight", 1) for number in range(count))


@given(st.integers(0, 3000))
def test_the_parts_are_the_list(count: int) -> None:
    listed = paths(count)
    parts = cut(listed)
    assert [item for part in parts for item in listed[part]] == listed
    assert all(0 < part.stop - part.start <= PAGE_ARRAYS_MAX for part in parts)


def test_pages_hold_about_180_arrays() -> None:
    parts = cut(paths(20_000))
    assert 150 < 20_000 / len(parts) < 210


@given(st.integers(0, 500))
def test_arrays_added_in_front_leave_the_later_pages_as_they_were(added: int) -> None:
    before, extra = paths(3000), paths(added, prefix="a")
    pages = {tuple(before[part]) for part in cut(before)}
    both = sorted([*before, *extra])
    again = {tuple(both[part]) for part in cut(both)}
    assert len(pages - again) <= 3


def test_a_page_ends_when_its_chunk_list_is_long() -> None:
    parts = cut([(f"{number:04}", PAGE_CHUNKS_MAX // 4) for number in range(40)])
    assert max(part.stop - part.start for part in parts) == 4


SMALL = ArrayEntry(path="a", dtype="float32", shape=(3,), digests=(Digest.of(b"x"),), offset=8)
LARGE = ArrayEntry(
    path="b",
    dtype="uint16",
    shape=(5, 40_000),
    chunk_shape=(2, 40_000),
    digests=tuple(Digest.of(bytes([n])) for n in range(3)),
)
EMPTY = ArrayEntry(path="c", dtype="bool", shape=(0, 7), chunk_shape=(1, 7))
PAGE = Page(entries=(SMALL, LARGE, EMPTY), bundle=Bundle(digest=Digest.of(b"bundle"), size=20))


def test_a_page_comes_back_from_its_bytes() -> None:
    assert Page.decode(PAGE.encode(), name="page") == PAGE
    assert [size for _, size in LARGE.sized_digests()] == [160_000, 160_000, 80_000]
    assert list(SMALL.sized_digests()) == [(SMALL.digests[0], 12)]
    assert list(EMPTY.sized_digests()) == []
    assert list(PAGE.digests()) == [(Digest.of(b"bundle"), 20), *LARGE.sized_digests()]
    assert PAGE.objects() == {digest for digest, _ in PAGE.digests()}
    assert PAGE.array_bytes == 12 + 400_000


def test_an_entry_may_list_chunks_that_are_not_contiguous() -> None:
    entry = replace(LARGE, chunk_shape=(5, 16_000))
    page = replace(PAGE, entries=(SMALL, entry, EMPTY))
    assert Page.decode(page.encode(), name="page") == page
    assert [size for _, size in entry.sized_digests()] == [160_000, 160_000, 80_000]
    assert (entry.cut, LARGE.cut) == ((5, 16_000), (2, 40_000))
    assert entry.content != LARGE.content  # the same digests stand for other elements


@pytest.mark.parametrize(
    "entry",
    [
        replace(SMALL, offset=9),
        replace(SMALL, shape=(0,)),
        replace(SMALL, shape=(1 << 14,)),
        replace(SMALL, dtype="float3"),
        replace(LARGE, digests=LARGE.digests[:2]),
        replace(LARGE, chunk_shape=(2, 39_999)),
        replace(LARGE, chunk_shape=(2, 40_001)),
        replace(LARGE, chunk_shape=(5, 20_000, 1)),
        replace(LARGE, shape=(5, -40_000)),
        replace(LARGE, shape=(1,) * 65),
        replace(EMPTY, chunk_shape=(0, 7)),
        replace(LARGE, shape=(1 << 62, 4), chunk_shape=(1 << 62, 4), digests=LARGE.digests[:1]),
    ],
    ids=[
        "beyond its bundle",
        "small and empty",
        "small and large",
        "unknown dtype",
        "too few digests",
        "a chunk too few",
        "chunks longer than the array",
        "chunks of other dimensions",
        "negative length",
        "too many dimensions",
        "chunks without length",
        "more bytes than there are",
    ],
)
def test_an_entry_that_cannot_be_is_refused(entry: ArrayEntry) -> None:
    with pytest.raises(CorruptError, match="page"):
        Page.decode(replace(PAGE, entries=(entry,)).encode(), name="page")


DIGESTS = st.sampled_from([Digest.of(bytes([n])) for n in range(9)])
PATHS = st.text(
    st.characters(categories=("L", "N", "P"), exclude_characters="/", codec="utf-8"),
    min_size=1,
    max_size=9,
)


@st.composite
def pages(draw: st.DrawFn) -> Page:
    """Pages whose small arrays share digests with chunks, and whose paths look like digests."""
    named = draw(st.sets(st.one_of(PATHS, DIGESTS), min_size=1, max_size=6))
    entries, end = [], 0
    for path in sorted(named):
        if draw(st.booleans()):
            digests = (draw(DIGESTS),)
            entries.append(replace(SMALL, path=path, digests=digests, offset=end))
            end += SMALL.nbytes
        else:
            digests = tuple(draw(st.tuples(DIGESTS, DIGESTS, DIGESTS)))
            entries.append(replace(LARGE, path=path, digests=digests))
    bundle = Bundle(digest=draw(DIGESTS), size=end) if end else None
    return Page(entries=tuple(entries), bundle=bundle)


@given(pages())
def test_what_a_page_reaches_is_found_in_its_bytes(page: Page) -> None:
    data = page.encode()
    assert Page.decode(data, name="page") == page
    exact = {digest for digest, _ in page.digests()}
    assert page.objects() == exact
    found = reached(data, name="page", decode=Page.decode)
    assert exact <= found <= exact | {entry.path for entry in page.entries}


def test_a_digest_that_is_spelled_in_another_way_is_found() -> None:
    data = PAGE.encode().decode()
    first = LARGE.digests[0]
    spelled = data.replace(first, f"\\u{ord(first[0]):04x}{first[1:]}").encode()
    assert Page.decode(spelled, name="page") == PAGE
    assert reached(spelled, name="page", decode=Page.decode) == {
        digest for digest, _ in PAGE.digests()
    }


def test_a_page_out_of_order_is_refused() -> None:
    for entries in ((LARGE, SMALL), (SMALL, SMALL)):
        with pytest.raises(CorruptError, match="page"):
            Page.decode(replace(PAGE, entries=entries).encode(), name="page")
