"""A structure whose arrays go, become Zarr arrays or are new, for random changes."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import assume, given
from hypothesis import strategies as st

import ckptstore
from ckptstore.documents import structure, zarr_document
from ckptstore.documents.names import escape_key
from ckptstore.documents.nodes import (
    ZARR,
    ArrayNode,
    CodecNode,
    DictNode,
    InnerNode,
    ListNode,
    parts,
)
from ckptstore.documents.structure import DEPTH_MAX, is_same
from ckptstore.state.flatten import flatten
from ckptstore.state.paths import ROOT
from ckptstore.testing.strategies import keys, states
from ckptstore.zarr.graft import graft
from tests.helpers.equality import difference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hypothesis.strategies import DrawFn


@dataclass(frozen=True)
class Array:
    """Stands for an array; equal numbers are the same memory."""

    number: int
    kind: str

    @property
    def identity(self) -> object:
        return self.number


@dataclass(frozen=True)
class Pair:
    """What a codec makes of two values."""

    first: Any
    second: Any


ARRAYS = st.builds(Array, st.integers(0, 9), st.sampled_from(["tensor", "ndarray"]))
LEAVES = ARRAYS | st.none() | st.integers(0, 3) | st.builds(Pair, ARRAYS, ARRAYS | st.integers())
NAMES = st.sampled_from(
    ["a", "b", "0", "1", "%", "%30", "a%b", "a%25b", "%2F", "%252F", "..", "__a", "é", "a_2", ROOT]
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@dataclass
class Change:
    """What a session made of a state."""

    root: Any
    kept: set[str]
    converted: dict[str, str]
    arrays: set[str]
    groups: set[str]

    def made(self, root: Any = None) -> Any:
        return graft(
            self.root if root is None else root,
            kept=self.kept,
            converted=self.converted,
            arrays=self.arrays,
            groups=self.groups,
        )

    @property
    def seen(self) -> set[str]:
        """The nodes that are arrays and do not lie below others."""
        return {
            path
            for path in self.arrays
            if not any(path.startswith(f"{other}/") for other in self.arrays)
        }


@st.composite
def changes(draw: DrawFn) -> Change:
    """A random state, the fate of each of its arrays, and nodes with similar names."""
    state = draw(states(leaves=LEAVES))
    flat = flatten(
        state,
        describe=lambda value: value if isinstance(value, Array) else None,
        encode=lambda value: (
            ("pair", [value.first, value.second]) if isinstance(value, Pair) else None
        ),
    )
    fate = {
        path: draw(st.sampled_from(["kept", "kept", "converted", "gone"])) for path in flat.arrays
    }
    kept = {path for path, what in fate.items() if what == "kept"}
    converted = {
        path: zarr_document.node_path(path) for path, what in fate.items() if what == "converted"
    }
    own = {zarr_document.node_path(path) for path in flat.arrays}
    beside = st.sampled_from(sorted(own)) if own else PATHS
    others = PATHS | beside | st.builds("{}/{}".format, beside, NAMES)
    taken = kept | {zarr_document.node_path(path) for path in kept}
    new = draw(st.sets(others, max_size=5)) - taken
    groups = draw(st.sets(others, max_size=4)) - taken - new - set(converted.values())
    return Change(flat.root, kept, converted, new | set(converted.values()), groups)


def places(node: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every leaf, with the keys that lead to it."""
    if isinstance(node, DictNode):
        for key, item in node.items.items():
            yield from places(item, (*place, key))
    elif isinstance(node, InnerNode):
        for position, item in enumerate(parts(node)):
            yield from places(item, (*place, position))
    else:
        yield place, node


def arrays(root: Any) -> dict[str, tuple[tuple[Any, ...], str]]:
    """Where each array is, and its kind, by path."""
    leaves = [(place, leaf) for place, leaf in places(root) if isinstance(leaf, ArrayNode)]
    listed = [(leaf.path, (place, leaf.kind)) for place, leaf in leaves]
    assert len(dict(listed)) == len(listed), "an array is there twice"
    return dict(listed)


@given(changes())
def test_the_structure_can_be_read_and_names_exactly_the_arrays_there_are(change: Change) -> None:
    made = change.made()
    assert is_same(structure.decode(structure.encode(made), name="made"), made)
    named = arrays(made)
    zarrs = {path for path, (_, tag) in named.items() if tag in ZARR}
    assert change.seen <= zarrs <= change.arrays
    assert named.keys() - zarrs <= change.kept
    for _, leaf in places(made):
        if isinstance(leaf, ArrayNode):
            assert leaf.tied is None or leaf.tied in change.kept, "tied to an array that is gone"


@given(changes())
def test_arrays_that_nobody_touched_are_where_they_were(change: Change) -> None:
    before, after = arrays(change.root), arrays(change.made())
    gone = before.keys() - change.kept - change.converted.keys()
    for path, (place, tag) in before.items():
        if path in change.kept and path in after:
            assert after[path] in ((place, tag), ((ROOT, *place), tag))
            assert after[path][0] == place or not isinstance(change.root, DictNode)
        node = change.converted.get(path)
        if node in after:
            assert after[node][1] in ZARR
        if not gone:
            assert path in after or node in after


@given(changes())
def test_what_is_grafted_once_more_stays_as_it_is(change: Change) -> None:
    once = change.made()
    names = set("/".join([*change.arrays, *change.groups, *arrays(once)]).split("/"))
    assume(not any(escape_key(name) in names - {name} for name in names))  # one may be the other
    assert is_same(change.made(once), once)


@given(changes())
def test_with_no_change_nothing_changes(change: Change) -> None:
    listed = {path for path, _ in arrays(change.root).items()}
    made = graft(change.root, kept=listed, converted={}, arrays=(), groups=())
    assert is_same(made, change.root)


@given(changes(), st.sets(PATHS, max_size=4))
def test_groups_alone_take_no_value_away(change: Change, groups: set[str]) -> None:
    kept = set(arrays(change.root))
    made = graft(change.root, kept=kept, converted={}, arrays=(), groups=groups)
    after = [(place, repr(leaf)) for place, leaf in places(made)]
    assert after == [(place, repr(leaf)) for place, leaf in places(change.root)]


def test_groups_that_lie_too_deep_are_refused_by_name() -> None:
    path = "/".join("g" * DEPTH_MAX)
    with pytest.raises(ckptstore.InvalidInputError, match="groups"):
        graft(DictNode({}), kept=(), converted={}, arrays=[path], groups=())


@pytest.mark.parametrize(
    "state",
    [torch.arange(4.0), [torch.arange(3.0), 5], (np.arange(2),), 7, None, {}, [], {"a": [1, 2]}],
    ids=str,
)
def test_a_session_that_changes_nothing_leaves_any_state_as_it_is(
    state: Any, tmp_path: Path
) -> None:
    repo = ckptstore.init(tmp_path / "store")
    repo.commit(state)
    with repo.session() as session:
        session.commit()
    assert difference(repo.checkout(), state) is None


def test_attributes_of_the_group_that_shows_a_list_leave_the_list_as_it_is(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store")
    state = {"layers": [torch.zeros(2), torch.ones(3)], "both": (np.arange(3), 1), "lr": 0.5}
    repo.commit(state)
    with repo.session() as session:
        group = zarr.open_group(session.store)
        group["layers"].attrs["unit"] = "nat"
        group["both"].attrs["unit"] = "nat"
        group.create_group("lr")
        session.commit()
    assert difference(repo.checkout(), state) is None
    assert repo.resolve("main").zarr()["layers"].attrs["unit"] == "nat"


@given(st.lists(keys().filter(lambda key: isinstance(key, str)), max_size=4, unique=True))
def test_groups_and_arrays_of_any_name_can_be_committed_again_and_again(names: list[str]) -> None:
    repo = ckptstore.init(f"memory://{uuid.uuid4().hex}")
    nodes = []
    for name in names:
        node = name.replace("/", "")
        if (
            "\\" not in node
            and node.isprintable()
            and node.strip(".")
            and not node.startswith("__")
        ):
            nodes.append(node)
    for number in range(3):
        with repo.session() as session:
            group = zarr.open_group(session.store)
            for node in nodes:
                group.require_group(node).create_array(f"a{number}", data=np.arange(number))
            session.commit()
    state = repo.checkout()
    for node in nodes:
        assert [len(state[node][f"a{number}"]) for number in range(3)] == [0, 1, 2]
    assert repo.verify().ok


def test_a_zarr_array_cannot_take_the_path_of_another_array(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store")
    repo.commit({"__x": np.arange(3), "..": np.arange(4)})  # nodes "%5F_x" and "%2E."
    with repo.session() as session:
        zarr.create_array(session.store, name="__x", data=np.arange(5))
        with pytest.raises(ckptstore.InvalidInputError, match="'__x'"):
            session.commit()
    assert len(repo.log()) == 1


def test_what_a_codec_made_of_arrays_stays_when_one_was_written_to() -> None:
    arrays = ListNode((ArrayNode("tensor", "p/0"), ArrayNode("tensor", "p/1")))
    root = DictNode({"p": CodecNode("pair", arrays)})
    once = graft(root, kept={"p/0"}, converted={"p/1": "p/1"}, arrays={"p/1"}, groups=())
    arrays = ListNode((ArrayNode("tensor", "p/0"), ArrayNode("zarr_tensor", "p/1")))
    assert once == DictNode({"p": CodecNode("pair", arrays)})
    assert graft(once, kept={"p/0"}, converted={}, arrays={"p/1"}, groups=()) == once
    assert graft(once, kept={"p/0"}, converted={}, arrays=(), groups=()) == DictNode({})


def test_an_array_in_a_group_that_has_lost_its_document_keeps_its_place() -> None:
    root = DictNode({"g": DictNode({}), "h": DictNode({})})
    made = graft(root, kept=(), converted={}, arrays=["g/x"], groups=(), gone=["g", "h", "i/j"])
    assert made == DictNode({"g": DictNode({"x": ArrayNode("zarr", "g/x")})})


def test_what_lies_under_a_name_that_zarr_shows_otherwise_stays_together(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store")
    repo.commit({"..": {"a": np.arange(3)}, "__x": {"a": np.arange(3)}})
    with repo.session() as session:
        group = zarr.open_group(session.store)
        for name in group:
            group[name].create_array("b", data=np.arange(4))
        session.commit()
    assert {key: sorted(part) for key, part in repo.checkout().items()} == {
        "..": ["a", "b"],
        "__x": ["a", "b"],
    }
