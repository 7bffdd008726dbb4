"""Pages of refs: they hold what they are given, and a change of a few refs changes few of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore import CorruptError
from ckptstore.digest import Digest
from ckptstore.documents import ref_page
from ckptstore.documents.ref_page import PAGE_REFS_MAX, REFS_INLINE_MAX, joined, page_name, repage

A, B = Digest.of(b"a"), Digest.of(b"b")
changes = st.lists(st.tuples(st.integers(0, 2_000), st.sampled_from([A, B, None])), max_size=8)


def name(number: int) -> str:
    return f"tag-{number * 7919 % 100_003:06}"


def named(pages: list[tuple[str | None, ref_page.Refs]]) -> list[tuple[str, ref_page.Refs]]:
    """The pages once they were stored."""
    return [(old or page_name(1, ref_page.encode(page)), page) for old, page in pages]


@pytest.mark.property
@given(start=st.integers(0, 1_500), rounds=st.lists(changes, max_size=12))
def test_pages_hold_all_refs_in_order_and_change_where_these_do(
    start: int, rounds: list[list[tuple[int, Digest | None]]]
) -> None:
    refs: dict[str, Digest] = {name(number): A for number in range(start)}
    pages = named(repage(refs, before={}, pages=[]))
    for changed in rounds:
        before, old = dict(refs), pages
        for number, id in changed:
            if id is None:
                refs.pop(name(number), None)
            else:
                refs[name(number)] = id
        made = repage(refs, before=before, pages=old)
        pages = named(made)
        assert bool(pages) == (len(refs) > REFS_INLINE_MAX)
        if pages:
            assert joined([page for _, page in pages], name="test") == refs
            assert all(0 < len(page) <= PAGE_REFS_MAX for _, page in pages)
            assert {old_name for old_name, _ in made if old_name} <= {each for each, _ in old}
        if old and pages:
            assert sum(old_name is None for old_name, _ in made) <= 2 * len(changed)
        for page, content in pages:
            data = ref_page.encode(content)
            assert ref_page.decode(data, kind="tag", name=page, file="test") == content


def test_many_deletions_do_not_leave_many_small_pages() -> None:
    refs = {name(number): A for number in range(20_000)}
    pages = named(repage(refs, before={}, pages=[]))
    while len(refs) > 600:
        before = dict(refs)
        for each in list(refs)[::2]:
            del refs[each]
        pages = named(repage(refs, before=before, pages=pages))
    assert len(pages) <= 12


def test_a_page_that_is_not_one_is_refused() -> None:
    data = ref_page.encode({"a": A, "b": B})
    whole = page_name(7, data)
    for wrong, file in ((whole, data[:-1] + b" "), (page_name(7, b"{}"), b"{}"), (whole, b"")):
        with pytest.raises(CorruptError):
            ref_page.decode(file, kind="tag", name=wrong, file="test")
    many = ref_page.encode({f"{number:04}": A for number in range(PAGE_REFS_MAX + 1)})
    with pytest.raises(CorruptError, match="1 to 256"):
        ref_page.decode(many, kind="tag", name=page_name(7, many), file="test")
    with pytest.raises(CorruptError, match="do not follow"):
        joined([{"b": A}, {"a": A}], name="test")
