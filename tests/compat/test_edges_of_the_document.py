"""Edge cases of docs/reference/format.md that the code once got wrong."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import ckptstore
from ckptstore.digest import Digest
from ckptstore.documents import canonical, sealed, structure
from ckptstore.documents.operation import Condemned, Operation
from ckptstore.storage import LocalStorage, MemoryStorage
from ckptstore.store.oplog import Oplog

if TYPE_CHECKING:
    from pathlib import Path


def test_an_array_without_elements_has_a_chunk_shape_without_zeros(tmp_path: Path) -> None:
    """Section 10.2. A chunk shape of (2097152, 0) would make a page that is refused when read."""
    ckptstore.init(tmp_path / "store").commit({"none": np.empty((3_000_000, 0), dtype=np.float32)})
    found = ckptstore.open(tmp_path / "store").checkout()
    assert found["none"].shape == (3_000_000, 0)


def test_an_operation_whose_number_was_pruned_meanwhile_is_no_success() -> None:
    """Section 8, gaps. A writer stopped before its create must not report a lost commit."""
    storage = MemoryStorage()
    slow, others = Oplog(storage), Oplog(storage)

    def decide(newest: Operation) -> Operation:
        while newest.seq == 0 and others.newest().seq < 1100:
            others.append(lambda operation: operation)
        return replace(newest, done="mine")

    try:
        slow.append(decide)
    except ckptstore.ConflictError:
        return
    assert others.newest().done == "mine"


def test_an_operation_that_undoes_itself_or_a_later_one_is_refused() -> None:
    """Section 8, undo. Two such operations would keep undo busy for ever."""
    data = replace(Operation(), seq=2, undoes=3).encode()
    with pytest.raises(ckptstore.CorruptError):
        Operation.decode(data, name="this")


@pytest.mark.parametrize("field", ["digests", "checkpoints", "why", "owner", "since"])
@pytest.mark.parametrize("value", [-5, ["x"], None])
def test_condemned_with_a_field_of_another_kind_is_refused(field: str, value: Any) -> None:
    """Section 8. A commit looks at them."""
    operation = replace(Operation(), seq=1, condemned=Condemned(owner="me", since=1))
    document = canonical.decode(operation.encode(), name="")["operation"]
    assert Operation.decode(sealed.seal("operation", document), name="this") == operation
    document["condemned"][field] = value
    with pytest.raises(ckptstore.CorruptError):
        Operation.decode(sealed.seal("operation", document), name="this")


@pytest.mark.parametrize(
    "fields",
    [
        {"owner": "me"},
        {"since": 1},
        {"owner": "", "since": 1},
        {"owner": "x" * 65, "since": 1},
        {"owner": "me", "since": 0},
        {"owner": "me", "since": 3},
        {"owner": "me", "since": True},
        {"owner": "me", "since": "1"},
    ],
)
def test_an_owner_and_the_number_since_which_it_holds_come_together(fields: Any) -> None:
    """Section 8. No later operation than the one that carries them can have condemned it."""
    document = canonical.decode(Operation(seq=2, condemned=Condemned()).encode(), name="")
    document["operation"]["condemned"] |= fields
    with pytest.raises(ckptstore.CorruptError):
        Operation.decode(sealed.seal("operation", document["operation"]), name="this")


def test_condemned_of_an_earlier_version_is_carried_over_as_it_is() -> None:
    """Section 8. It has neither owner nor since, and gets none."""
    condemned = Condemned(digests=(Digest.of(b"x"),), why="Because.")
    assert set(condemned.to_json()) == {"digests", "checkpoints", "why"}
    operation = Operation(seq=7, condemned=condemned)
    assert Operation.decode(operation.encode(), name="this") == operation


@pytest.mark.parametrize(
    "meta",
    [{"\ud83d\ude00": 1, "\U0001f600": 2}, {"text": "," * 1_000_001}],
    ids=["surrogates that become one character", "more values than a reader takes"],
)
def test_meta_that_could_not_be_read_again_is_refused(meta: dict[str, Any]) -> None:
    """Sections 9 and 4. Otherwise the branch would become unreadable."""
    repo = ckptstore.init("memory://")
    with pytest.raises(ckptstore.InvalidInputError):
        repo.commit({}, meta=meta)


def test_a_dict_with_the_same_key_in_two_forms_is_refused() -> None:
    """Section 12.1."""
    data = canonical.encode({"structure": {"dict": [[5, 1], [{"int": "5"}, 2]]}})
    with pytest.raises(ckptstore.CorruptError):
        structure.decode(data, name="this")


def test_arrays_in_the_metadata_of_an_ordered_dict_come_out() -> None:
    """Section 12.1."""
    state = OrderedDict(a=1)
    state._metadata = {"scale": np.ones(2)}  # type: ignore[attr-defined]
    repo = ckptstore.init("memory://")
    repo.commit(state)
    assert repo.checkout()._metadata["scale"].tolist() == [1, 1]


@pytest.mark.parametrize("key", [2**64, -(2**63) - 1, 10**4400], ids=["2^64", "-2^63-1", "10^4400"])
def test_an_integer_key_of_more_than_64_bits_is_no_key_of_the_structure(key: int) -> None:
    """Section 12.1. A codec has a list of such keys."""
    repo = ckptstore.init("memory://")
    repo.commit({key: 1})
    assert repo.checkout() == {key: 1}


@pytest.mark.parametrize("key", [{"int": "10000000000000000"}, 2**64], ids=["tagged", "plain"])
def test_a_structure_with_an_integer_key_of_more_than_64_bits_is_refused(key: Any) -> None:
    """Section 12.1. No writer makes one, and its path could not be written."""
    data = canonical.encode({"structure": {"dict": [[key, 1]]}})
    with pytest.raises(ckptstore.CorruptError):
        structure.decode(data, name="this")


@pytest.mark.parametrize("change", [1, 2, 3])
def test_a_small_array_that_changes_during_its_commit_is_noticed(
    monkeypatch: pytest.MonkeyPatch, change: int
) -> None:
    """Section 14. Its digest and the bundle's have to be of the same moment."""
    repo, array = ckptstore.init("memory://"), np.zeros(3)
    real, calls = Digest.of, itertools.count(1)

    def train_then_hash(data: Any) -> Digest:
        if next(calls) == change:
            array[0] += 1
        return real(data)

    monkeypatch.setattr(Digest, "of", train_then_hash)
    try:
        repo.commit({"a": array})
    except ckptstore.InvalidInputError:
        return
    assert next(calls) > change
    assert repo.verify().problems == ()


def test_an_object_that_had_to_be_put_again_is_flushed_though_the_parent_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Section 14, step 3: only the parent's objects and those found in place are durable."""
    repo = ckptstore.init(tmp_path / "store")
    state = {"a": np.arange(50_000), "b": 1}
    repo.commit(state)
    for path in (tmp_path / "store" / "objects").glob("*/*"):
        if path.stat().st_size == 400_000:
            path.unlink()
    before = keys(tmp_path / "store")
    flushed: set[str] = set()
    real_fsync = LocalStorage._fsync

    def noting_fsync(self: LocalStorage, parts: tuple[str, ...], **options: Any) -> None:
        flushed.add("/".join(parts))
        real_fsync(self, parts, **options)

    monkeypatch.setattr(LocalStorage, "_fsync", noting_fsync)
    repo.commit({**state, "b": 2})
    put = keys(tmp_path / "store") - before
    assert len(put) == 4  # the array, the structure, the manifest and the operation
    assert {key.rpartition("/")[0] for key in put} <= flushed


def keys(root: Path) -> set[str]:
    """The keys of the files in a repository."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
