"""Zarr nodes with too many values for a page: where they are cut, and that reads agree."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore.documents import zarr_page as node_page
from ckptstore.documents.page import cut
from ckptstore.documents.zarr_page import Weighed, cut_nodes
from tests.compat.plain_reader import PlainReader

if TYPE_CHECKING:
    from pathlib import Path

KEYS = st.lists(st.text("ab/é", min_size=1, max_size=70), unique=True, max_size=60).map(sorted)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of some 8 values."""
    monkeypatch.setattr(node_page, "PART_WEIGHT_MAX", 20)
    monkeypatch.setattr(node_page, "PART_WEIGHT_MIN", 3)
    monkeypatch.setattr(node_page, "PART_CUT_MODULUS", 5)


@st.composite
def weighed(draw: st.DrawFn) -> list[Weighed]:
    paths = sorted(draw(st.sets(st.text("xyz", max_size=3), max_size=8)))
    listed = [draw(KEYS.filter(bool)) for _ in paths]
    return [
        Weighed(path, keys, [node_page.weight(key, draw(st.integers(0, 9))) for key in keys])
        for path, keys in zip(paths, listed, strict=True)
    ]


@given(weighed())
def test_every_value_is_on_one_page_and_only_large_nodes_are_cut(nodes: list[Weighed]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(node_page, "PART_WEIGHT_MAX", 20)
        patched.setattr(node_page, "PART_WEIGHT_MIN", 3)
        patched.setattr(node_page, "PART_CUT_MODULUS", 5)
        pages = list(cut_nodes(nodes))
        cuts = [
            node_page.ends_part(nodes[number].keys[part.stop - 1], sum(nodes[number].weights[part]))
            for number, part in (page[-1] for page in pages)
        ]
    found = [
        (number, position)
        for page in pages
        for number, part in page
        for position in range(part.start, part.stop)
    ]
    assert found == [(n, i) for n, node in enumerate(nodes) for i in range(len(node.keys))]
    for page in pages:
        parts = [
            (number, part) for number, part in page if part != slice(0, len(nodes[number].keys))
        ]
        assert not parts or len(page) == 1
        for number, _ in parts:
            assert sum(nodes[number].weights) > 20
    for is_cut, (page, after) in zip(cuts[:-1], pairwise(pages), strict=True):
        assert is_cut or page[-1][0] != after[0][0]


@given(weighed())
def test_smaller_nodes_end_their_pages_as_arrays_do(nodes: list[Weighed]) -> None:
    expected = cut([(node.path, sum(node.weights)) for node in nodes])
    assert [[number for number, _ in page] for page in cut_nodes(nodes)] == [
        list(range(part.start, part.stop)) for part in expected
    ]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_large_node_is_like_any_other(tmp_path: Path, zarr_format: int) -> None:
    repo = ckptstore.init(tmp_path / "store", chunk_size=64 << 10)
    values = np.arange(500)
    with repo.session("main") as session:
        group = zarr.open_group(session.store, mode="w", zarr_format=zarr_format)
        for name in ("a", "w", "z"):
            count = 500 if name == "w" else 3
            group.create_array(name, data=values[:count], chunks=(2,))
        first = session.commit()
        group = zarr.open_group(session.store)
        group["w"][300] = -1
        group["w"].append([7, 8])
        second = session.commit()
    expected = np.append(values, [7, 8])
    expected[300] = -1
    one, two = (found._manifest.hierarchy for found in (first, second))
    assert one is not None
    assert two is not None
    assert len([ref for ref in one if ref.first == "w"]) > 10
    assert sum(ref.arrays for ref in two) == 3
    # the chunk that changed, the one that came, and the document
    assert len({ref.digest for ref in two} - {ref.digest for ref in one}) <= 3
    np.testing.assert_array_equal(first.zarr()["w"][:], values)
    np.testing.assert_array_equal(second.zarr()["w"][:], expected)
    np.testing.assert_array_equal(repo.checkout("main")["w"], expected)
    np.testing.assert_array_equal(second.array("w")[290:310], expected[290:310])
    assert [change.path for change in repo.diff(first.id, second.id).arrays] == ["w"]
    repo.branch("seed", rename={"w": "moved"}, include=["w"])
    np.testing.assert_array_equal(repo.checkout("seed")["moved"], expected)
    assert repo.verify().ok
    plain = PlainReader(tmp_path / "store")
    held = plain.values(plain.manifest(second.id))
    assert len([key for key in held if key.startswith("w/")]) >= 251


@pytest.mark.usefixtures("small_parts")
def test_parts_out_of_order_or_twice_are_refused(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store")
    with repo.session("main") as session:
        zarr.open_group(session.store, mode="w").create_array("w", data=np.arange(99), chunks=(1,))
        made = session.commit()._manifest
    refs = list(made.hierarchy or ())
    assert len(list(repo._catalog.node_pages(made))) == len(refs) > 4
    swapped = [*refs[:2], refs[3], refs[2], *refs[4:]]
    for wrong in (swapped, [*refs[:3], *refs[2:]], refs[::-1]):
        with pytest.raises(ckptstore.CorruptError, match="does not follow"):
            list(repo._catalog.node_pages(replace(made, hierarchy=tuple(wrong))))
