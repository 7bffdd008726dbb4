"""What two checkpoints hold differently, and what has to be loaded to tell."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

import ckptstore
from ckptstore.diff.changes import Diff, Numbers
from ckptstore.diff.compare import Source, compare
from ckptstore.digest import Digest
from ckptstore.documents import structure
from ckptstore.documents.manifest import Manifest
from ckptstore.documents.page import ArrayEntry, Page
from ckptstore.state.flatten import flatten
from ckptstore.state.selection import Selection
from ckptstore.store.reach import page_ref

ALL = Selection()
MODEL = Selection.of("model", None)
NO_NUMBERS = Numbers(
    relative_l2=0.0,
    max_abs=0.0,
    cosine=1.0,
    changed_share=0.0,
    new_nan=0,
    new_inf=0,
    norm_before=1.0,
    norm_after=1.0,
)


class Loaded:
    """A checkpoint of these pages and this state, which notes what is loaded of it."""

    def __init__(self, *pages: Page, state: object = None) -> None:
        self.pages = {Digest.of(page.encode()): page for page in pages}
        self.root = flatten(state, describe=lambda v: None, encode=lambda v: None).root
        self.loaded: list[str] = []
        self.read = 0
        refs = tuple(page_ref(page, digest) for digest, page in self.pages.items())
        manifest = Manifest(pages=refs, structure=Digest.of(structure.encode(self.root)))
        self.source = Source(
            manifest=manifest, load_pages=self.load_pages, load_structure=self.load_structure
        )

    def load_pages(self, refs: Any) -> Any:
        for ref in refs:
            self.loaded.append(ref.first)
            yield self.pages[ref.digest]

    def load_structure(self) -> Any:
        self.read += 1
        return self.root


def entry(
    path: str,
    content: str,
    *,
    shape: tuple[int, ...] = (40_000,),
    dtype: str = "float32",
    chunk: int = 20_000,
) -> ArrayEntry:
    """An array whose chunks hold the letters of `content`."""
    return ArrayEntry(
        path=path,
        dtype=dtype,
        shape=shape,
        chunk_shape=(chunk, *shape[1:]),
        digests=tuple(Digest.of(letter.encode()) for letter in content),
    )


def page(*entries: ArrayEntry) -> Page:
    return Page(entries=tuple(sorted(entries, key=lambda found: found.path)))


def diff(one: Loaded, other: Loaded, selection: Selection = ALL) -> Diff:
    return compare(one.source, other.source, selection, decode=lambda name, value: value)


def kinds(found: Diff) -> dict[str, str]:
    return {change.path: change.kind for change in found.arrays}


def between(one: object, other: object, **options: Any) -> Diff:
    """The diff of two states."""
    repo = ckptstore.init("memory://", chunk_size=1 << 16)
    first = repo.commit(one).id
    return repo.diff(first, repo.commit(other).id, **options)


def values(found: Diff) -> dict[str, tuple[object, object]]:
    return {change.path: (change.before, change.after) for change in found.values}


SAME = page(entry("a", "xy"), entry("b", "xy"))


def test_pages_that_both_list_are_not_loaded_and_equal_structures_are_not_read() -> None:
    one = Loaded(SAME, page(entry("c", "xy")), page(entry("d", "xy")))
    other = Loaded(SAME, page(entry("c", "xz")), page(entry("d", "xy")))
    found = diff(one, other)
    assert kinds(found) == {"c": "changed"}
    assert found.unchanged == 3
    assert (one.loaded, other.loaded) == (["c"], ["c"])
    assert (one.read, other.read) == (0, 0)


def test_only_a_selection_loads_equal_pages_and_only_once() -> None:
    one = Loaded(page(entry("model", "xy"), entry("other", "xy")))
    other = Loaded(page(entry("model", "xy"), entry("other", "xy")))
    found = diff(one, other, MODEL)
    assert (found.unchanged, found.bytes_after, found.shared) == (1, 160_000, 1.0)
    assert len(one.loaded) + len(other.loaded) == 1


def test_the_same_checkpoint_differs_in_nothing_and_nothing_of_it_is_loaded() -> None:
    one = Loaded(SAME, state={"lr": 1e-3})
    found = diff(one, one)
    assert found.is_empty
    assert (found.unchanged, found.bytes_before, found.shared_bytes) == (2, 320_000, 320_000)
    assert (one.loaded, one.read) == ([], 0)


def test_arrays_are_added_removed_changed_retyped_or_the_same() -> None:
    one = Loaded(
        page(
            entry("a", "ab"),
            entry("b", "cd"),
            entry("c", "ef"),
            entry("d", "gh"),
            entry("e", "ij", shape=(40_000, 1)),
        )
    )
    other = Loaded(
        page(
            entry("a", "ab"),
            entry("c", "eX"),
            entry("d", "gh", dtype="int32"),
            entry("e", "ij"),
            entry("f", "kl"),
        )
    )
    found = diff(one, other)
    assert kinds(found) == {
        "b": "removed",
        "c": "changed",
        "d": "retyped",
        "e": "retyped",
        "f": "added",
    }
    assert found.unchanged == 1
    assert [change.path for change in found.removed] == ["b"]
    assert found.removed[0].after is None
    assert found.added[0].before is None
    (changed,) = found.changed
    assert (changed.before.nbytes, changed.shared_bytes) == (160_000, 80_000)


def test_the_share_counts_chunks_that_the_first_one_has_anywhere_in_its_loaded_pages() -> None:
    found = diff(
        Loaded(SAME, page(entry("c", "ab"))),
        Loaded(SAME, page(entry("c", "bX"), entry("d", "YZ"))),
    )
    assert (found.bytes_before, found.bytes_after) == (480_000, 640_000)
    assert found.shared_bytes == 320_000 + 80_000
    assert found.shared == 400_000 / 640_000


def test_two_checkpoints_without_arrays_share_everything() -> None:
    assert diff(Loaded(), Loaded()).shared == 1.0


def test_an_array_under_another_path_is_moved_only_with_the_same_dtype_and_shape() -> None:
    one = Loaded(page(entry("a", "ab"), entry("b", "cd"), entry("c", "ef")))
    other = Loaded(
        page(entry("x", "ab"), entry("y", "cd", dtype="int32"), entry("z", "ef", shape=(40_000, 1)))
    )
    found = diff(one, other)
    assert kinds(found) == {
        "b": "removed",
        "c": "removed",
        "x": "moved",
        "y": "added",
        "z": "added",
    }
    assert found.moved[0].before.path == "a"


def test_a_copy_beside_its_original_is_added_but_its_bytes_are_shared() -> None:
    found = diff(Loaded(page(entry("a", "ab"))), Loaded(page(entry("a", "ab"), entry("b", "ab"))))
    assert kinds(found) == {"b": "added"}
    assert found.shared == 1.0


def test_moved_arrays_of_the_same_bytes_are_paired_by_how_their_paths_end() -> None:
    layers = [f"{layer}.{norm}.bias" for layer in range(20) for norm in ("norm1", "norm2")]
    one = Loaded(page(*(entry(f"model/backbone.{layer}", "00") for layer in layers)))
    renamed = [f"encoder{99 - position}/trunk.{layer}" for position, layer in enumerate(layers)]
    other = Loaded(page(*(entry(path, "00") for path in renamed)))
    found = diff(one, other)
    assert len(found.moved) == len(found.arrays) == 40
    for change in found.moved:
        layer = change.before.path.removeprefix("model/backbone.")
        assert change.path.endswith(f"/trunk.{layer}")


def test_of_more_copies_than_there_were_the_others_are_added() -> None:
    one = Loaded(page(entry("a", "00"), entry("b", "00")))
    other = Loaded(page(*(entry(name, "00") for name in "wxyz")))
    assert sorted(kinds(diff(one, other)).values()) == ["added", "added", "moved", "moved"]
    assert sorted(kinds(diff(other, one)).values()) == ["moved", "moved", "removed", "removed"]


def test_empty_arrays_are_never_moved() -> None:
    one = Loaded(page(entry("a", "", shape=(0,))))
    other = Loaded(page(entry("b", "", shape=(0,))))
    assert kinds(diff(one, other)) == {"a": "removed", "b": "added"}


def test_an_array_that_is_cut_otherwise_is_undecided_until_it_is_measured() -> None:
    one = Loaded(page(entry("a", "ab")))
    other = Loaded(page(entry("a", "abcd", chunk=10_000)))
    found = diff(one, other)
    assert kinds(found) == {"a": "undecided"}
    same = found.with_numbers({"a": NO_NUMBERS})
    assert (same.is_empty, same.unchanged, same.shared) == (True, 1, 1.0)
    differs = found.with_numbers({"a": ckptstore.Numbers(**_with(changed_share=0.5))})
    assert kinds(differs) == {"a": "changed"}
    assert differs.changed[0].numbers.changed_share == 0.5


def _with(**fields: float) -> Any:
    return {name: getattr(NO_NUMBERS, name) for name in Numbers.__slots__} | fields


def test_one_chunk_is_the_same_in_a_bundle_as_by_itself() -> None:
    digest = Digest.of(b"small")
    bundled = ArrayEntry(path="a", dtype="uint8", shape=(5,), digests=(digest,), offset=0)
    alone = ArrayEntry(path="a", dtype="uint8", shape=(5,), chunk_shape=(9,), digests=(digest,))
    one, other = Loaded(page(alone)), Loaded(page(alone, entry("b", "ab")))
    other.pages = {
        digest: Page(entries=(bundled, *found.entries[1:])) for digest, found in other.pages.items()
    }
    found = diff(one, other)
    assert kinds(found) == {"b": "added"}
    assert found.unchanged == 1


def test_plain_values_are_told_by_path_with_both_values() -> None:
    one = {"lr": 1e-3, "betas": (0.9, 0.999), "gone": "x"}
    other = {"lr": 1e-4, "betas": (0.9, 0.99), "new": None}
    found = between(one, other)
    assert values(found) == {
        "betas/1": (0.999, 0.99),
        "gone": ("x", None),
        "lr": (1e-3, 1e-4),
        "new": (None, None),
    }
    assert [change.kind for change in found.values] == ["changed", "removed", "changed", "added"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        ("1", 1),
        (b"x", bytearray(b"x")),
        (b"x", "x"),
        (None, False),
        ([], ()),
        ([], {}),
        ({}, OrderedDict()),
        (1.0, 1 + 0j),
        (torch.float32, "float32"),
        (torch.Size([2]), [2]),
        (np.float32(1), np.float64(1)),
        (2**70, 2**70 + 1),
        (float("nan"), -float("nan")),
    ],
    ids=repr,
)
def test_values_that_python_may_call_equal_are_different(one: object, other: object) -> None:
    assert not between({"x": one}, {"x": other}).is_empty
    assert between({"x": one}, {"x": one}).is_empty
    assert between([{"x": one}], [{"x": one}, 1]).values[0].path == "1"


def test_a_value_that_became_an_array_is_removed_and_added() -> None:
    found = between({"x": 1.0}, {"x": np.ones(3)})
    assert kinds(found) == {"x": "added"}
    assert [(change.path, change.kind) for change in found.values] == [("x", "removed")]


def test_empty_containers_count_as_values() -> None:
    found = between({"a": {}, "b": [1]}, {"a": {"c": 1}, "b": [1], "d": ()})
    assert [(change.path, change.kind) for change in found.values] == [
        ("a", "removed"),
        ("a/c", "added"),
        ("d", "added"),
    ]
    assert values(found)["d"] == (None, ())


def _ordered(metadata: object) -> Any:
    made = OrderedDict(a=1)
    vars(made)["_metadata"] = metadata
    return made


WEIGHT = np.arange(3.0)


@pytest.mark.parametrize(
    ("one", "other", "paths"),
    [
        ([1, 2], (1, 2), [""]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, [""]),
        ({"x": {0: 1}}, {"x": {"0": 1}}, ["x"]),
        ({"x": {"a": 1}}, {"x": OrderedDict(a=1)}, ["x"]),
        ({"x": [{"a": 1}]}, {"x": [OrderedDict(a=1)]}, ["x/0"]),
        ({"x": _ordered({"version": 1})}, {"x": _ordered({"version": 2})}, ["x"]),
        ({"x": np.ones(3)}, {"x": torch.ones(3, dtype=torch.float64)}, ["x"]),
        ({"x": WEIGHT, "y": WEIGHT}, {"x": WEIGHT, "y": WEIGHT.copy()}, ["y"]),
        ({"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3}, []),
        ({"a": 1, "b": 2, "c": 3}, {"a": 1, "c": 3}, []),
        ({"a": 1, "b": 2, "c": 3}, {"c": 3, "a": 1}, [""]),
        ({"x": []}, {"x": ()}, []),
    ],
)
def test_what_is_only_arranged_otherwise_is_told_by_its_path(
    one: object, other: object, paths: list[str]
) -> None:
    found = between(one, other)
    assert list(found.rearranged) == paths
    assert not found.is_empty
    assert not found.arrays


def test_a_selection_chooses_arrays_values_and_containers() -> None:
    one = {"model": {"w": np.ones(3)}, "lr": 1, "optimizer": {"w": np.ones(3), "n": [1]}}
    other = {"model": {"w": np.zeros(3)}, "lr": 2, "optimizer": {"w": np.zeros(3), "n": (1,)}}
    found = between(one, other, include="model")
    assert kinds(found) == {"model/w": "changed"}
    assert (found.values, found.rearranged, found.bytes_before) == ((), (), 24)
    found = between(one, other, exclude=["model", "optimizer/w"])
    assert (kinds(found), values(found)) == ({}, {"lr": (1, 2)})
    assert found.rearranged == ("optimizer/n",)


class Rate:
    def __init__(self, value: float) -> None:
        self.value = value


def test_a_type_without_a_codec_in_this_process_is_told_in_its_plain_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ckptstore.state.codecs._registered", {})
    ckptstore.register_codec(Rate, lambda rate: [rate.value], lambda form: Rate(*form))
    repo = ckptstore.init("memory://")
    repo.commit({"rate": Rate(1e-3)})
    repo.commit({"rate": Rate(1e-4)})
    (change,) = repo.diff("main~1", "main").values
    assert (change.before.value, change.after.value) == (1e-3, 1e-4)
    monkeypatch.setattr("ckptstore.state.codecs._registered", {})
    assert values(repo.diff("main~1", "main")) == {"rate": ([1e-3], [1e-4])}


def test_a_seed_under_other_names_is_moved_and_shares_all_its_bytes() -> None:
    repo = ckptstore.init("memory://", chunk_size=1 << 16)
    rng = np.random.default_rng(0)
    model = {f"backbone.{i}": rng.standard_normal(20_000 if i % 2 else 7) for i in range(40)}
    repo.commit({"model": {**model, "head.w": np.ones(5)}})
    repo.branch(
        "seed", include="model", exclude="model/head.*", rename={"(.*)backbone(.*)": r"\1trunk\2"}
    )
    found = repo.diff("main", "seed")
    assert len(found.moved) == 40
    assert [change.path for change in found.removed] == ["model/head.w"]
    assert found.shared == 1.0


def test_two_repositories_are_compared_by_content() -> None:
    one, other = (ckptstore.init("memory://", chunk_size=1 << 16) for _ in range(2))
    state = {"w": np.arange(50_000.0), "b": np.arange(5.0), "lr": 1}
    one.commit(state)
    other.commit({**state, "b": np.zeros(5)})
    found = one.diff("main", "main", other=other)
    assert kinds(found) == {"b": "changed"}
    assert found.shared == 400_000 / 400_040


def test_a_state_is_compared_without_being_stored() -> None:
    repo = ckptstore.init("memory://", chunk_size=1 << 16)
    state = {"w": torch.arange(50_000), "lr": 1}
    repo.commit(state)
    before = repo.usage()
    assert repo.diff("main", state).is_empty
    state["w"][3] = 0
    assert kinds(repo.diff("main", state)) == {"w": "changed"}
    assert repo.usage() == before
    with pytest.raises(ckptstore.InvalidInputError, match="a state"):
        repo.diff("main", state, other=repo)
    with pytest.raises(ckptstore.UnsupportedValueError, match="object"):
        repo.diff("main", {"x": object()})


@pytest.mark.parametrize("numeric", [False, True])
def test_of_a_state_only_what_the_checkpoint_does_not_have_is_held(
    monkeypatch: pytest.MonkeyPatch, numeric: bool
) -> None:
    from ckptstore.storage import BesideStorage

    held: list[int] = []
    put = BesideStorage.put

    def noted(self: BesideStorage, key: str, data: Any, **options: Any) -> None:
        held.append(len(memoryview(data)))
        put(self, key, data, **options)

    monkeypatch.setattr(BesideStorage, "put", noted)
    repo = ckptstore.init("memory://", chunk_size=1 << 16)
    state = {"w": np.arange(500_000.0), "small": np.arange(50.0), "lr": 1}
    repo.commit(state)
    repo.commit({**state, "w": -state["w"]})
    assert repo.diff("main~1", state, numeric=numeric).is_empty
    assert sum(held) < 1000
    state["w"] = state["w"].copy()
    state["w"][100_000] = 0
    assert kinds(repo.diff("main~1", state, numeric=numeric)) == {"w": "changed"}
    assert 65536 <= sum(held) < 65536 + 10_000
    assert kinds(repo.diff("main", state, numeric=numeric)) == {"w": "changed"}


def test_a_state_may_hold_what_the_checkpoint_has_in_another_place() -> None:
    repo = ckptstore.init("memory://", chunk_size=1 << 16)
    one, other = np.arange(50_000.0), np.ones(50_000)
    repo.commit({"x": one, "y": other, "small": np.ones(3)})
    found = repo.diff("main", {"x": other, "y": one, "small": np.ones(3)}, numeric=True)
    assert found.shared == 1.0
    assert [change.numbers.norm_after for change in found.changed] == pytest.approx(
        [float(np.linalg.norm(array)) for array in (other, one)]
    )


def test_what_lies_beside_a_storage_reads_there_what_it_does_not_hold() -> None:
    from ckptstore.storage import BesideStorage, MemoryStorage

    there = MemoryStorage()
    for key in ("a", "b", "c"):
        there.put(key, b"there")
    beside = BesideStorage(there, {"a", "b"})
    beside.put("b", b"here!")
    buffer = memoryview(bytearray(5))
    assert [beside.size(key) for key in ("a", "b", "c")] == [5, 5, None]
    for key, data in (("a", b"there"), ("b", b"here!")):
        beside.read_into(key, buffer)
        assert bytes(buffer) == beside.get(key, bytes_max=5) == data
    with pytest.raises(ckptstore.NotFoundError):
        beside.get("c", bytes_max=5)


@pytest.mark.parametrize("numeric", [False, True])
def test_an_expired_checkpoint_cannot_be_compared_on_either_side(numeric: bool) -> None:
    from ckptstore.retention import MaxToKeep

    repo = ckptstore.init("memory://")
    for step in range(3):
        repo.commit({"w": np.full(5, float(step))}, step=step)
    repo.gc(MaxToKeep(1), grace=0)
    for sides in (("main~1", "main"), ("main", "main~1"), ("main~1", "main~2")):
        with pytest.raises(ckptstore.ExpiredError, match="its arrays were deleted on"):
            repo.diff(*sides, numeric=numeric)
    with pytest.raises(ckptstore.ExpiredError, match="its arrays were deleted on"):
        repo.diff("main~1", {"w": np.zeros(5)}, numeric=numeric)


def test_one_that_expires_while_it_is_compared_is_said_to_have_expired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ckptstore.diff import compare as diff
    from ckptstore.retention import MaxToKeep
    from ckptstore.store import catalog

    url = "memory://expires-while-compared"
    repo = ckptstore.init(url)
    for step in range(2):
        repo.commit({"w": np.full(5, float(step))}, step=step)
    real = diff.compare

    def compare_after_gc(*args: Any, **options: Any) -> Diff:
        ckptstore.open(url).gc(MaxToKeep(1), grace=0)
        return real(*args, **options)

    monkeypatch.setattr(diff, "compare", compare_after_gc)
    monkeypatch.setattr(catalog, "CACHED_PAGES", 0)
    with pytest.raises(ckptstore.ExpiredError):
        ckptstore.open(url).diff("main~1", "main")
