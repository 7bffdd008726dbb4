"""Pages of Zarr nodes: what is encoded is decoded, and what no writer makes is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.digest import Digest
from ckptstore.documents import canonical
from ckptstore.documents.page import Bundle, reached
from ckptstore.documents.zarr_page import (
    NodePage,
    Value,
    ZarrNode,
    check_key,
    segments,
)
from ckptstore.errors import CorruptError, InvalidInputError

SEGMENT = 64 << 10
KEYS = st.lists(
    st.text(
        st.characters(codec="utf-8", exclude_characters="/", exclude_categories=["Cc"]),
        min_size=1,
        max_size=5,
    ),
    min_size=1,
    max_size=3,
).map("/".join)


def digest(number: int) -> Digest:
    return Digest.of(b"%d" % number)


@st.composite
def pages(draw: st.DrawFn) -> NodePage:
    nodes = []
    end = 0
    for path in sorted(draw(st.sets(KEYS | st.just(""), min_size=1, max_size=5))):
        values = []
        for key in sorted(draw(st.sets(KEYS, min_size=1, max_size=4))):
            if draw(st.booleans()):
                size = draw(st.integers(1, 500))
                values.append((key, Value(size, (digest(end),), end)))
                end += size
            else:
                size = draw(st.integers(0, 5 * SEGMENT))
                count = -(-size // SEGMENT)
                values.append((key, Value(size, tuple(digest(size + n) for n in range(count)))))
        nodes.append(ZarrNode(path, tuple(values)))
    bundle = Bundle(digest=digest(-1), size=end) if end else None
    return NodePage(nodes=tuple(nodes), segment_bytes=SEGMENT, bundle=bundle)


@given(pages())
def test_a_page_comes_back_and_says_what_it_reaches(page: NodePage) -> None:
    data = page.encode()
    assert NodePage.decode(data, name="it") == page
    listed = {found for found, _ in page.digests()}
    assert listed <= reached(data, name="it", decode=NodePage.decode)
    for node in page.nodes:
        for _, value in node.values:
            if value.offset is None:
                assert sum(size for _, size in segments(value, SEGMENT)) == value.size
    for _, found, place in page.bundled():
        assert found
        assert page.bundle
        assert 0 <= place.start < place.stop <= page.bundle.size


GOOD: dict[str, Any] = {
    "nodes": [
        {
            "path": "a",
            "values": [
                ["c/0", 70_000, None, digest(0), digest(1)],
                ["zarr.json", 10, 5, digest(2)],
            ],
        },
        {"path": "b", "values": [["x", 0, None]]},
    ],
    "segment_bytes": SEGMENT,
    "bundle": {"digest": digest(3), "size": 20},
}


def changed(change: Any) -> bytes:
    document = json.loads(json.dumps(GOOD))
    change(document)
    return canonical.encode(document)


def test_the_example_is_taken() -> None:
    assert NodePage.decode(changed(lambda document: None), name="it").nbytes == 70_010


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["nodes"].clear(),
        lambda d: d["nodes"].reverse(),
        lambda d: d["nodes"].extend(d["nodes"]),
        lambda d: d["nodes"].extend(
            {"path": f"n{i:04}", "values": [["x", 0, None]]} for i in range(600)
        ),
        lambda d: d["nodes"][0].update(path="a//b"),
        lambda d: d["nodes"][0].update(path="a\x00"),
        lambda d: d["nodes"][0].update(path=5),
        lambda d: d["nodes"][0].update(values=[]),
        lambda d: d["nodes"][0]["values"].reverse(),
        lambda d: d["nodes"][0]["values"].append(d["nodes"][0]["values"][-1]),
        lambda d: d["nodes"][0]["values"][0].pop(),
        lambda d: d["nodes"][0]["values"][0].append(digest(9)),
        lambda d: d["nodes"][0]["values"][0].__setitem__(0, "/c"),
        lambda d: d["nodes"][0]["values"][0].__setitem__(0, 7),
        lambda d: d["nodes"][0]["values"][0].__setitem__(1, -1),
        lambda d: d["nodes"][0]["values"][0].__setitem__(1, 2**45),
        lambda d: d["nodes"][0]["values"][0].__setitem__(1, 70_000.0),
        lambda d: d["nodes"][0]["values"][0].__setitem__(3, "0" * 63),
        lambda d: d["nodes"][0]["values"][1].__setitem__(2, 11),
        lambda d: d["nodes"][0]["values"][1].__setitem__(2, -1),
        lambda d: d["nodes"][0]["values"][1].__setitem__(1, 0),
        lambda d: d["nodes"][0]["values"][1].append(digest(9)),
        lambda d: d["nodes"][0]["values"].__setitem__(1, ["zarr.json", 10]),
        lambda d: d["nodes"][0]["values"].__setitem__(1, {"zarr.json": 10}),
        lambda d: d.pop("bundle"),
        lambda d: d.pop("segment_bytes"),
        lambda d: d.update(segment_bytes=1),
        lambda d: d.update(segment_bytes=2**40),
        lambda d: d.update(nodes={}),
        lambda d: d["bundle"].update(size=14),
    ],
    ids=[f"change {number}" for number in range(30)],
)
def test_what_no_writer_makes_is_refused(change: Any) -> None:
    with pytest.raises(CorruptError):
        NodePage.decode(changed(change), name="it")


@pytest.mark.parametrize(
    "key", ["", "/", "a/", "/a", "a//b", "a\x00", "a\n", "a/\ud800", "x" * 4097]
)
def test_no_other_text_is_a_key(key: str) -> None:
    with pytest.raises(InvalidInputError, match="key of a Zarr store"):
        check_key(key)


@given(KEYS)
def test_keys_may_have_any_characters_that_print(key: str) -> None:
    assert check_key(key) == key
