"""Seeds: what comes out of a branch with filters, what it costs, and what is refused."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import ckptstore
from ckptstore import ConflictError, CorruptError, ExpiredError, InvalidInputError
from ckptstore.documents.operation import Condemned
from ckptstore.retention import MaxToKeep
from ckptstore.state import codecs
from ckptstore.store.catalog import EXPIRED, key_of
from ckptstore.store.objects import key_of as object_key
from ckptstore.testing.faults import Killed, LosingStorage
from tests.compat.neutral import neutral
from tests.compat.plain_reader import PlainReader
from tests.helpers.counting_storage import CountingStorage, array_objects, repository
from tests.helpers.equality import difference

if TYPE_CHECKING:
    from pathlib import Path

    from ckptstore.repository import Repository

SMALL_CHUNKS = 64 << 10
NOON = 1_767_268_800.0  # 2026-01-01 12:00 UTC


def memory() -> Repository:
    return ckptstore.init("memory://", chunk_size=SMALL_CHUNKS, clock=lambda: NOON)


def array(number: float, size: int = 3) -> Any:
    return np.full(size, number)


def seeded(state: object, **options: Any) -> Any:
    """The state of a seed of this state, with everything verified."""
    repo = memory()
    repo.commit(state)
    repo.branch("seed", **options)
    assert repo.verify().ok
    return repo.checkout("seed")


def test_the_example_of_the_docstring() -> None:
    repo = memory()
    model = {"backbone.w": array(1), "backbone.b": array(2, 9000), "head.w": array(3)}
    repo.commit({"model": model, "epoch": 4}, step=1, metrics={"val_loss": 0.1}, meta={"run": 1})
    best = repo.resolve("main")
    repo.commit({"model": model}, step=2, metrics={"val_loss": 0.2})
    made = repo.branch(
        "task-b",
        "main@best:val_loss",
        include=["model/**"],
        exclude=["model/head.*"],
        rename={"model/backbone.(.*)": "model/encoder.\\1"},
    )
    expected = {"model": {"encoder.w": array(1), "encoder.b": array(2, 9000)}}
    assert difference(expected, repo.checkout("task-b")) is None
    assert made == repo.resolve("task-b") == repo.branches()["task-b"]
    assert (made.parents, made.step, made.metrics) == ((best.id,), None, {})
    assert made.message == f"seed from {best.id.short}, step 1"
    assert made.meta == {
        "seed": {
            "include": ["model/**"],
            "exclude": ["model/head.*"],
            "rename": [["model/backbone.(.*)", "model/encoder.\\1"]],
        }
    }
    assert [found.id for found in repo.log("task-b")] == [made.id, best.id]


def test_without_filters_it_is_only_a_ref() -> None:
    repo = memory()
    made = repo.commit({"a": array(1)}, step=1)
    assert repo.branch("one") == repo.branch("two", rename={}, exclude=[], reset=()) == made


@pytest.mark.parametrize(
    ("reset", "step", "metrics"),
    [
        (("step", "metrics"), None, {}),
        (("step",), None, {"loss": 1.0}),
        ("metrics", 7, {}),
        ((), 7, {"loss": 1.0}),
    ],
)
def test_step_and_metrics_are_reset_unless_the_caller_wants_them(
    reset: Any, step: int | None, metrics: dict[str, float]
) -> None:
    repo = memory()
    repo.commit({"a": array(1), "b": 1}, step=7, metrics={"loss": 1.0})
    made = repo.branch("seed", include="a", reset=reset)
    assert (made.step, made.metrics) == (step, metrics)


def test_arrays_move_to_dicts_that_are_there_or_are_made() -> None:
    state = {
        "model": {"backbone": {"x": array(1), "y": array(2)}, "encoder": {"z": array(3)}},
        "lr": 0.1,
    }
    found = seeded(state, rename={"model/backbone/x": "model/encoder/x"})
    expected: Any = {
        "model": {"encoder": {"x": array(1), "z": array(3)}, "backbone": {"y": array(2)}},
        "lr": 0.1,
    }
    assert found["model"]["encoder"].keys() == {"x", "z"}
    assert difference(expected, found) is None
    found = seeded(state, rename={"model/backbone/(.*)": r"new/\1/deep"})
    assert list(found) == ["new", "model", "lr"]
    assert list(found["model"]) == ["encoder"]  # the empty dict is dropped
    assert found["new"]["y"]["deep"].tolist() == [2, 2, 2]


def test_a_renamed_key_keeps_its_place_and_values_stay() -> None:
    state = {"a": array(1), "b": array(2), "lr": 0.1, "c": {"d": array(3), "n": 5}}
    found = seeded(state, rename={"b": "z", "c/d": "c/e"})
    expected = {"a": array(1), "z": array(2), "lr": 0.1, "c": {"e": array(3), "n": 5}}
    assert difference(expected, found) is None


def test_two_arrays_may_swap_their_names() -> None:
    found = seeded({"a": array(1), "b": array(2)}, rename={"a": "b", "b": "a"})
    assert difference({"b": array(1), "a": array(2)}, found) is None


def test_the_first_pattern_that_matches_counts_and_dots_match_whole_paths_only() -> None:
    state = {"a": array(1), "ab": array(2)}
    assert list(seeded(state, rename={"a": "x", "a(?P<rest>.*)": r"y\g<rest>"})) == ["x", "yb"]
    assert list(seeded(state, rename={"a": "x"})) == ["x", "ab"]


def module(**arrays: Any) -> OrderedDict[str, Any]:
    """What torch's state_dict gives."""
    made: Any = OrderedDict(arrays)
    made._metadata = OrderedDict({"": {"version": 1}})
    return made


def test_an_ordered_dict_stays_one_with_its_metadata_also_when_it_moves_whole() -> None:
    state = {"model": module(w=array(1), b=array(2)), "ema": {"model": module(w=array(3))}}
    found = seeded(state, rename={"model/w": "model/v"})
    assert difference({**state, "model": module(v=array(1), b=array(2))}, found) is None
    found = seeded(state, rename={"(.*)model/(.*)": r"\1net/\2"})
    expected = {"net": state["model"], "ema": {"net": state["ema"]["model"]}}
    assert difference(expected, found) is None
    found = seeded(state, include="model", rename={"model/(.*)": r"net/\1_"})
    assert difference({"net": {"w_": array(1), "b_": array(2)}}, found) is None


def test_arrays_in_the_metadata_stay_there() -> None:
    state = {"model": module(w=array(1))}
    state["model"]._metadata["mask"] = array(2)
    found = seeded(state, rename={"model/w": "net/w"})
    assert list(found["net"]) == ["w"]
    assert vars(found["net"]) == {}
    assert found["model"] == OrderedDict()
    assert found["model"]._metadata["mask"].tolist() == [2, 2, 2]
    with pytest.raises(InvalidInputError, match="_metadata of an OrderedDict"):
        seeded(state, rename={"model/_metadata/(.*)": r"x/\1"})


@pytest.mark.parametrize(
    ("state", "rename", "expected"),
    [
        ({"s": {0: array(1)}}, {"s/0": "s/7"}, {"s": {7: array(1)}}),
        ({"s": {0: {"m": array(1)}}}, {"s/(.*)": r"t/\1"}, {"t": {0: {"m": array(1)}}}),
        ({"s": {0: {"m": array(1)}}}, {"s/0/m": "s/m/0"}, {"s": {"m": {0: array(1)}}}),
        ({"s": {0: {"0": array(1)}}}, {"s/0/0": "t/0/0"}, {"t": {0: {"0": array(1)}}}),
        ({"s": {"0": array(1)}}, {"s/0": "t/0"}, {"t": {"0": array(1)}}),
        ({"s": {"a": array(1)}}, {"s/a": "s/0"}, {"s": {"0": array(1)}}),
        ({"s": {"a": array(1), 1: 2}}, {"s/a": "s/0"}, {"s": {0: array(1), 1: 2}}),
        ({"s": {"a": array(1), 0: 2}}, {"s/a": "s/%30"}, {"s": {"0": array(1), 0: 2}}),
        ({"s": {0: array(1)}}, {"s/0": f"s/{2**64}"}, {"s": {str(2**64): array(1)}}),
        ({"s": {0: array(1)}}, {"s/0": f"s/{2**64 - 1}"}, {"s": {2**64 - 1: array(1)}}),
        ({"s": {"a": array(1)}}, {"s/a": "s/-0"}, {"s": {"-0": array(1)}}),
        ({"a": array(1)}, {"a": "x%2Fy/100%25/%/é"}, {"x/y": {"100%": {"": {"é": array(1)}}}}),
        ({"a": array(1)}, {"a": "%0A/%ED%A0%80"}, {"\n": {"\ud800": array(1)}}),
        (array(1), {"array": "model/w"}, {"model": {"w": array(1)}}),
        ({"a": {}, "b": array(1)}, {"b": "a/b"}, {"a": {"b": array(1)}}),
    ],
)
def test_parts_of_a_new_path_become_keys(state: Any, rename: Any, expected: Any) -> None:
    assert difference(expected, seeded(state, rename=rename)) is None


def test_tied_arrays_stay_tied_also_when_the_first_name_is_left_out() -> None:
    for size in (3, 30_000):
        shared = torch.ones(size)
        state = {"a": shared, "b": {"c": shared, "d": torch.ones(size)}, "e": shared}
        found = seeded(state, exclude="a", rename={"b/c": "x", "b/d": "d"})
        assert list(found) == ["x", "d", "e"]
        assert found["x"] is found["e"]
        assert found["d"] is not found["e"]
        assert torch.equal(found["x"], shared)


class Pair:
    """Two values, for which there is a codec."""

    def __init__(self, one: Any, two: Any) -> None:
        self.both = [one, two]


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "_registered", {})
    codecs.register_codec(Pair, lambda pair: pair.both, lambda both: Pair(*both))


def test_what_a_codec_made_is_kept_whole_with_its_ties(pairs: None) -> None:
    """Its arrays may be tied to one that is not chosen, or that has another name now."""
    shared = torch.ones(3)
    state = {"a": shared, "b": shared, "pair": Pair(shared, torch.zeros(2)), "c": torch.ones(1)}
    for options in ({"include": "pair"}, {"exclude": "a", "rename": {"b": "z/b"}}):
        found = seeded(state, **options)
        one, two = found["pair"].both
        assert torch.equal(one, shared)
        assert torch.equal(two, torch.zeros(2))
        assert "z" not in found or found["z"]["b"] is one
    with pytest.raises(InvalidInputError, match="'pair' was made by a codec"):
        seeded(state, rename={"pair/0": "x"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rename": {"nothing": "x"}}, r"'nothing' matches no array that is chosen"),
        ({"include": "m", "rename": {"b": "x"}}, r"'b' matches no array"),
        ({"rename": {"m/.*": "x"}}, r"Two arrays would have the path 'x': 'm/a' and 'm/c'"),
        ({"rename": {"b": "m/a"}}, r"Two arrays would have the path 'm/a': 'm/a' and 'b'"),
        ({"rename": {"b": "a//b"}}, r"'b' cannot be renamed: 'a//b' is not a path"),
        ({"rename": {"b": ""}}, r"'b' cannot be renamed: '' is not a path"),
        ({"rename": {"b": "a\nb"}}, "is not a path of an array"),
        ({"rename": {"b": "50%"}}, r"'50%' of a path is not an escaped key: write %25 for %"),
        ({"rename": {"b": "%zz"}}, "is not an escaped key"),
        ({"rename": {"b": "%61"}}, "is not an escaped key"),
        ({"rename": {"b": "%FF"}}, "is not an escaped key"),
        ({"rename": {"b": "lr"}}, "'b' and 'lr' cannot both be at 'lr'"),
        ({"rename": {"b": "lr/x"}}, "'b' and 'lr' cannot both be at 'lr'"),
        ({"rename": {"b": "m"}}, "'m/a' and 'b' cannot both be at 'm'"),
        ({"rename": {"b": "m/a/x"}}, "'m/a' and 'b' cannot both be at 'm/a'"),
        ({"rename": {"b": "empty"}}, "cannot both be at 'empty'"),
        ({"rename": {"b": "list/2"}}, "'list' cannot both be at 'list'|cannot both be at 'list'"),
        ({"rename": {"list/0": "x"}}, r"'list/0' cannot be renamed to 'x': 'list' is a list"),
        ({"rename": {"tuple/0": "x"}}, r"'tuple' is a tuple, and only keys of dicts can change"),
        ({"rename": {"list/0": "list/1"}}, "'list' is a list"),
        ({"rename": {"b": "/".join("x" * 101)}}, "more than 100 levels deep"),
        ({"rename": {"b": "%31"}}, "'%31' would be a second way to write a key"),
        ({"rename": {"(": "x"}}, "is not a regular expression"),
        ({"rename": {"b": r"\1"}}, "does not fit 'b'"),
        ({"rename": {"b": r"\g<x>"}}, "does not fit 'b'"),
        ({"rename": {"b": 1}}, "is not one of strings"),
        ({"rename": [("b", "x")]}, "a dict of replacements"),
        ({"include": "nothing"}, "Nothing in checkpoint .* matches include 'nothing'"),
        ({"include": "m", "reset": ("step", "created")}, "reset names 'created'"),
        ({"include": "m", "reset": "s"}, "reset names 's'; a derived checkpoint can reset step"),
        ({"reset": ["message"]}, "reset names 'message'"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_changed(
    options: dict[str, Any], said: str
) -> None:
    repo = memory()
    repo.commit(
        {
            "m": {"a": array(1), "c": array(2)},
            "b": array(3),
            "lr": 0.1,
            "empty": {},
            "list": [array(4)],
            "tuple": (array(5),),
            "1": 1,
        }
    )
    objects = repo.usage().objects
    with pytest.raises(InvalidInputError, match=said):
        repo.branch("seed", **options)
    assert list(repo.branches()) == ["main"]
    assert repo.usage().objects == objects


def test_a_name_that_is_taken_is_a_conflict_and_an_expired_source_is_told() -> None:
    storage = CountingStorage()
    repo = repository(storage)
    repo.commit({"a": array(1), "b": 1})
    repo.tag("v1")
    for name in ("main", "v1"):
        with pytest.raises(ConflictError, match=name):
            repo.branch(name, include="a")
    made = repo.commit({"a": array(2)})
    data = storage.get(key_of(made.id), bytes_max=1 << 20)
    storage.delete([key_of(made.id)])
    storage.put(key_of(made.id, EXPIRED), data)
    with pytest.raises(ExpiredError, match="expired"):
        repo.branch("seed", made.id, include="a")


def test_a_branch_that_comes_meanwhile_is_a_conflict() -> None:
    storage = CountingStorage()
    repo, other = repository(storage), repository(storage)
    repo.commit({"a": array(1), "b": 1})
    create = storage.create

    def first(key: str, data: Any, **options: Any) -> bool:
        storage.create = create  # type: ignore[method-assign]
        other.branch("seed")
        return create(key, data, **options)

    storage.create = first  # type: ignore[method-assign]
    with pytest.raises(ConflictError, match="'seed' already exists"):
        repo.branch("seed", include="a")
    assert "b" in repo.checkout("seed")


def condemn(repo: Repository, *digests: Any, checkpoints: tuple[Any, ...] = ()) -> None:
    """What a gc does before it deletes; this one has died since."""
    condemned = Condemned(checkpoints=checkpoints, digests=digests, why="test")
    repo._oplog.append(lambda newest: replace(newest, condemned=condemned))


def condemn_the_first_of_two(repo: Repository) -> None:
    first = repo.resolve("main~1")
    (page,) = repo._catalog.pages(first._manifest)
    condemn(repo, *(digest for digest, _ in page.digests()), checkpoints=(first.id,))


def test_a_seed_never_relies_on_what_a_gc_has_condemned() -> None:
    """It finishes that gc, and finds that its source has expired."""
    repo = memory()
    for number in (1, 2):
        repo.commit({"a": array(number, 9000), "b": array(number)})
    condemn_the_first_of_two(repo)
    with pytest.raises(ExpiredError, match="expired"):
        repo.branch("seed", "main~1", include="a")
    assert list(repo.branches()) == ["main"]
    assert repo.verify().ok


def test_a_seed_never_relies_on_what_a_gc_condemns_meanwhile() -> None:
    """The gc comes between all that a seed writes and its operation."""
    storage = CountingStorage()
    repo, other = repository(storage), repository(storage)
    for number in (1, 2):
        repo.commit({"a": array(number, 9000), "b": array(number)})
    create = storage.create

    def late(key: str, data: Any, **options: Any) -> bool:
        storage.create = create  # type: ignore[method-assign]
        condemn_the_first_of_two(other)
        return create(key, data, **options)

    storage.create = late  # type: ignore[method-assign]
    with pytest.raises(ExpiredError, match="expired"):
        repo.branch("seed", "main~1", include="a")
    assert list(repo.branches()) == ["main"]
    reachable = {checkpoint.id for checkpoint in repo.log()}
    assert all(reachable.isdisjoint(found.checkpoints) for found in repo.verify().problems)


def test_a_seed_keeps_its_arrays_when_its_source_expires() -> None:
    """Also those in a bundle of which it uses only a part."""
    repo = memory()
    for number in (1, 2):
        repo.commit({"a": array(number, 9000), "b": array(number), "c": array(-number)})
    source = repo.resolve("main~1")
    repo.branch("seed", "main~1", exclude="c", rename={"(.*)": r"net/\1"})
    assert repo.gc(MaxToKeep(1), grace=0).expired == (source.id,)
    assert repo.resolve("seed~1").expired
    expected = {"net": {"a": array(1, 9000), "b": array(1)}}
    assert difference(expected, ckptstore.open(repo.url).checkout("seed")) is None
    assert repo.verify().ok


def test_a_seed_that_meets_a_condemned_page_of_its_own_puts_it_again() -> None:
    """The page of an earlier seed, whose branch was deleted."""
    repo = memory()
    repo.commit({"a": array(1, 9000), "b": array(2)})
    made = repo.branch("seed", rename={"a": "x"}, include="a")
    repo.delete_branch("seed")
    condemn(repo, made._manifest.pages[0].digest)
    repo.branch("seed", rename={"a": "x"}, include="a")
    assert difference({"x": array(1, 9000)}, ckptstore.open(repo.url).checkout("seed")) is None
    assert repo.verify().ok


def test_small_arrays_of_several_bundles_meet_in_pages_of_one_bundle_each() -> None:
    repo = memory()
    state = {
        "one": {f"{i:03}": array(i) for i in range(300)},
        "two": {f"{i:03}": array(-i) for i in range(300)},
        "large": {f"{i:03}": array(i, 9000) for i in range(20)},
    }
    source = repo.commit(state)
    bundles = {page.bundle for page in repo._catalog.pages(source._manifest)}
    assert len(bundles) > 2
    made = repo.branch("seed", exclude="one/1*", rename={r"(\w*)/(\d*)": r"all/\2/\1"})
    found = repo.checkout("seed")["all"]
    for kind, arrays in state.items():
        for key, value in arrays.items():
            if kind != "one" or key[0] != "1":
                assert np.array_equal(found[key][kind], value)
    pages = list(repo._catalog.pages(made._manifest))
    assert {page.bundle for page in pages} <= {*bundles, None}
    assert all(
        (page.bundle is not None) == any(e.offset is not None for e in page.entries)
        for page in pages
    )
    assert repo.verify().ok


def test_a_reader_made_from_the_format_document_alone_reads_a_seed(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store", chunk_size=SMALL_CHUNKS)
    shared = torch.arange(5)
    state = {
        kind: {f"{i:03}": array(i * sign) for i in range(200)}
        for kind, sign in (("one", 1), ("two", -1))
    }
    repo.commit({**state, "model": module(w=shared, large=array(7, 20_000)), "tied": [shared]})
    made = repo.branch(
        "seed", exclude="one/1*", rename={r"(one|two)/(.*)": r"all/\2/\1", "model/(.*)": r"net/\1"}
    )
    reader = PlainReader(repo.url)
    assert neutral(reader.state(reader.manifest(made.id))) == neutral(repo.checkout("seed"))


def test_a_commit_on_a_seed_stores_no_chunk_again_and_does_not_trust_its_bundles() -> None:
    """A derived checkpoint's bundle has gaps; the next commit writes one without."""
    repo = memory()
    repo.commit({"m": {"a": array(1), "b": array(2), "large": array(3, 9000)}})
    seed = repo.branch("seed", exclude="m/a", rename={"m/(.*)": r"n/\1"})
    state = repo.checkout("seed")
    made = repo.commit(state, branch="seed")
    assert difference(state, repo.checkout("seed")) is None
    assert made.parents == (seed.id,)
    assert made.new_bytes < 1000
    assert repo.verify().ok


def test_pages_that_come_out_as_they_were_are_not_stored_again() -> None:
    repo = memory()
    source = repo.commit(
        {"a": {f"{i:04}": array(i) for i in range(1000)}, "b": {"w": array(1)}, "c": array(2)}
    )
    made = repo.branch("seed", rename={"c": "d"})
    before = {ref.digest for ref in source._manifest.pages}
    new = [ref for ref in made._manifest.pages if ref.digest not in before]
    assert len(before) > 3
    assert len(new) == 1


@pytest.mark.parametrize("size", [3, 9000])
def test_a_seed_of_1000_arrays_moves_no_array_bytes_and_little_metadata(size: int) -> None:
    """About 320 bytes per renamed array: 240 in a page (64 of digest), 80 in the structure."""
    storage = CountingStorage()
    repo = repository(storage)
    names = [f"backbone.layers.{i}.weight" for i in range(1000)]
    source = repo.commit({"model": {name: array(i, size) for i, name in enumerate(names)}, "lr": 1})
    data = array_objects(source)
    storage.forget()
    repo.branch("seed", rename={r"model/backbone\.(.*)": r"model/encoder.\1"})
    assert not data & storage.touched()
    assert sum(storage.written.values()) < 330 * 1000
    storage.forget()
    repo.branch("part", include="model/backbone.layers.?.weight")
    assert sum(storage.written.values()) < 6000
    assert not data & storage.touched()
    assert repo.verify().ok


@pytest.mark.parametrize("change", range(12))
def test_a_seed_survives_a_kill_and_a_power_failure_or_was_never_there(change: int) -> None:
    storage = LosingStorage()
    repo = repository(storage)
    state = {"a": array(1), "b": array(2, 9000)}
    repo.commit(state)
    storage.changes_left = change
    try:
        repo.branch("seed", rename={"a": "x", "b": "y"})
    except Killed:
        is_made = False
    else:
        is_made = True
    storage.changes_left = None
    left = repository(storage.after_power_failure(lambda key: False))
    assert left.verify().ok
    assert ("seed" in left.branches()) or not is_made
    if "seed" in left.branches():
        assert difference({"x": array(1), "y": array(2, 9000)}, left.checkout("seed")) is None


def test_what_a_page_lacks_is_damage() -> None:
    storage = CountingStorage()
    repo = repository(storage)
    made = repo.commit({"a": array(1), "b": array(2)})
    storage.delete([object_key(made._manifest.pages[0].digest)])
    with pytest.raises(CorruptError, match="is missing"):
        repository(storage).branch("seed", include="a")
