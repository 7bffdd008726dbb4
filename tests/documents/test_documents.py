"""Canonical JSON, sealed documents, operations: what is refused; no bit changes unseen."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import ckptstore
from ckptstore.digest import Digest
from ckptstore.documents import canonical
from ckptstore.documents.expiry import Expiry
from ckptstore.documents.manifest import CREATED_MAX, Manifest
from ckptstore.documents.marker import Marker
from ckptstore.documents.operation import Condemned, Operation
from ckptstore.errors import CkptStoreError, CorruptError, Incompatible, InvalidInputError
from ckptstore.storage import MemoryStorage
from ckptstore.store.oplog import Oplog

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON))
def test_a_document_has_one_text_and_comes_back(document: dict[str, Any]) -> None:
    data = canonical.encode(document)
    assert canonical.decode(data, name="this") == document
    assert canonical.encode(dict(reversed(document.items()))) == data
    assert data.isascii()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "5",
        "{",
        '{"a":1,"a":2}',
        '{"a":{"b":1,"b":1}}',
        '{"a":NaN}',
        '{"a":-Infinity}',
        '{"a":1e999}',
        '{"a":-1E+309}',
        '{"b":' + "9" * 309 + ".5}",
        '{"c":' + "2" * 199 + "e150}",
        '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"a":' + "9" * 5000 + "}",
        '{"a":"é"}',
        "\ufeff{}",
        '{"a":[' + "0," * 1_000_001 + "0]}",
    ],
    ids=lambda text: text[:12],
)
def test_what_no_writer_writes_is_refused(text: str) -> None:
    with pytest.raises(CorruptError, match="this"):
        canonical.decode(text.encode("utf-8"), name="this")


# Any number that JSON can write, and among them many that are about as large as a double can be.
NUMBERS = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["", "-"]),
        st.integers(1, 9).map(str),
        st.integers(0, 320).map("7".__mul__),
        st.integers(0, 320).map("3".__mul__).map(lambda digits: digits and f".{digits}"),
        st.just("")
        | st.tuples(
            st.sampled_from(["e", "E", "e+", "E+", "e-"]),
            st.integers(0, 3).map("0".__mul__),
            (st.integers(0, 99) | st.integers(280, 330)).map(str),
        ).map("".join),
    ),
)


@given(st.lists(NUMBERS, min_size=1, max_size=3))
@example(["1e309"])
@example(["1E309"])
@example(["-1e+309"])
@example(["1E+0309"])
@example(["7" * 310 + ".5"])
@example(["7" * 210 + "." + "3" * 10 + "e99"])
def test_a_number_that_is_infinite_is_refused_among_few_and_among_many(texts: list[str]) -> None:
    """Where there are many, numbers are only looked at when one of them may be too large."""
    data = f'{{"a":[{",".join(texts)}]}}'.encode()
    found: list[Any] = []
    for many in (canonical.MANY_FLOATS, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(canonical, "MANY_FLOATS", many)
            try:
                found.append(canonical.decode(data, name="this"))
            except CorruptError:
                found.append(None)
    expected = json.loads(data)
    is_infinite = any(value in (float("inf"), -float("inf")) for value in expected["a"])
    assert found == [None if is_infinite else expected] * 2


def test_a_large_number_among_many_is_refused() -> None:
    many = b"0.5," * (canonical.MANY_FLOATS + 1)
    assert canonical.decode(b'{"a":[' + many + b"0.5]}", name="this")["a"][-1] == 0.5
    with pytest.raises(CorruptError, match="this"):
        canonical.decode(b'{"a":[' + many + b"1e309]}", name="this")


def test_a_document_over_its_limit_is_refused_on_both_sides() -> None:
    with pytest.raises(CorruptError, match="20 bytes"):
        canonical.decode(b'{"a":"0123456789ab"}', name="this", bytes_max=19)
    with pytest.raises(InvalidInputError):
        canonical.encode({"a": "0123456789ab"}, bytes_max=19)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Operation, {"time": CREATED_MAX + 1}),
        (Operation, {"done": "x" * 70_000}),
        (Operation, {"heads": {"not legal": Digest.of(b"a")}}),
        (Operation, {"condemned": Condemned(why="x" * 70_000)}),
        (Operation, {"undoes": 1}),
        (Expiry, {"time": CREATED_MAX + 1}),
        (Expiry, {"why": "x" * 70_000}),
        (Manifest, {"created": CREATED_MAX + 1}),
        (Manifest, {"message": "x" * 70_000}),
        (Manifest, {"metrics": {"": 1}}),
        (Manifest, {"step": 2**63}),
        (Manifest, {"meta": {"a": 2**64}}),
        (Manifest, {"branch": "best"}),
    ],
    ids=lambda part: part.__name__ if isinstance(part, type) else next(iter(part)),
)
def test_a_document_that_no_reader_accepts_is_not_encoded_for_a_put(
    kind: Any, fields: dict[str, Any]
) -> None:
    needed: dict[Any, dict[str, Any]] = {
        Operation: {"seq": 1},
        Expiry: {"time": 1, "why": ""},
        Manifest: {"pages": (), "structure": Digest.of(b"a")},
    }
    canonical.readable(kind(**needed[kind]), name="that")
    document = kind(**needed[kind] | fields)
    document.encode()
    with pytest.raises(InvalidInputError, match="no reader accepts it: that"):
        canonical.readable(document, name="that")


def test_a_document_that_is_too_large_names_what_fills_it() -> None:
    settings = {"a": "x" * (5 << 20)}
    with pytest.raises(InvalidInputError, match="Most of it is 'settings', with 524"):
        Operation(seq=1, tags={"v": Digest.of(b"a")}, settings=settings).encode()


OPERATION = Operation(
    seq=7,
    nonce="n",
    time=5,
    heads={"main": Digest.of(b"a")},
    tags={"v": Digest.of(b"b")},
    done="x",
    undoes=3,
)


@pytest.mark.parametrize(
    ("data", "decode"),
    [(OPERATION.encode(), Operation.decode), (Marker(store="s").encode(), Marker.decode)],
    ids=["operation", "marker"],
)
def test_any_flipped_bit_and_any_truncation_of_a_sealed_document_is_found(
    data: bytes, decode: Any
) -> None:
    decode(data, name="this")
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(CorruptError):
                decode(bytes(damaged), name="this")
        with pytest.raises(CorruptError):
            decode(data[:position], name="this")


def test_an_operation_comes_back() -> None:
    assert Operation.decode(OPERATION.encode(), name="this") == OPERATION


def test_whoever_comes_second_decides_anew() -> None:
    """Ten thousand counted up by two logs in turn, each decision made on what the other did."""
    storage = MemoryStorage()
    logs = [Oplog(storage), Oplog(storage)]
    interfered: list[int] = []

    def count(operation: Operation) -> Operation:
        if operation.seq % 3 == 0 and operation.seq not in interfered:
            interfered.append(operation.seq)
            logs[1].append(lambda newest: Operation(done=str(int(newest.done or 0) + 1)))
        return Operation(done=str(int(operation.done or 0) + 1))

    for _ in range(30):
        logs[0].append(count)
    assert logs[0].newest().done == str(30 + len(interfered))
    assert logs[0].newest().seq == 30 + len(interfered)


def test_old_operations_are_pruned_and_undo_says_when_it_cannot_go_back() -> None:
    log = Oplog(MemoryStorage())
    for _ in range(1150):
        log.append(lambda operation: operation)
    assert min(log.seqs()) == 101
    with pytest.raises(ckptstore.NotFoundError):
        log.read(100)


def test_errors_are_one_family_that_pickles() -> None:
    family = [getattr(ckptstore, name) for name in ckptstore.__all__ if name.endswith("Error")]
    for error in family:
        assert issubclass(error, CkptStoreError)
        more = {
            ckptstore.CheckoutMismatchError: [Incompatible(missing=("a",))],
            ckptstore.RankError: [{1: TimeoutError("b")}],
        }
        made = error("text", *more.get(error, ()))
        again = pickle.loads(pickle.dumps(made))
        assert (type(again), str(again)) == (error, "text")
    assert pickle.loads(
        pickle.dumps(ckptstore.CheckoutMismatchError("x", Incompatible(missing=("a",))))
    ).incompatible.missing == ("a",)
    failures = pickle.loads(pickle.dumps(ckptstore.RankError("x", {1: TimeoutError("b")}))).failures
    assert str(failures[1]) == "b"
    assert issubclass(ckptstore.InvalidInputError, ValueError)


def test_the_public_names_are_there_and_are_all() -> None:
    for name in ckptstore.__all__:
        assert getattr(ckptstore, name).__module__.startswith("ckptstore")
    assert sorted(ckptstore.__all__) == ckptstore.__all__
    assert {*ckptstore.__all__, "__version__"} == set(dir(ckptstore))
    with pytest.raises(AttributeError, match="module 'ckptstore' has no attribute 'nothing'"):
        ckptstore.nothing  # noqa: B018


def test_metrics_of_any_kind_of_number_are_kept() -> None:
    repo = ckptstore.init("memory://")
    made = repo.commit(
        {}, metrics={"nan": float("nan"), "inf": -float("inf"), "int": 3, "big": 2**60}
    )
    again = json.dumps(repo.resolve(made.id).metrics)
    assert again == '{"big": 1152921504606846976, "inf": -Infinity, "int": 3, "nan": NaN}'
