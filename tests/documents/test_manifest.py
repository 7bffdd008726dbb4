"""Manifests survive a round trip with unknown fields; every wrong field is refused."""

from __future__ import annotations

import json
import math
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore.digest import Digest
from ckptstore.documents import canonical
from ckptstore.documents.facts import (
    MESSAGE_LENGTH_MAX,
    STEP_MAX,
    check_meta,
    check_metrics,
    check_step,
)
from ckptstore.documents.manifest import CREATED_MAX, ORDERED_FORMAT, Manifest, PageRef
from ckptstore.documents.names import REF_NAME_LENGTH_MAX
from ckptstore.errors import CorruptError, InvalidInputError

DIGESTS = st.binary(max_size=2).map(Digest.of)
TEXT = st.text(st.characters(codec="utf-8"), max_size=10)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | TEXT | st.just(-0.0),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
METRIC_NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=20
)
MANIFESTS = st.builds(
    Manifest,
    pages=st.just(()) | st.just((PageRef(first="a", digest=Digest.of(b""), arrays=1, bytes=4),)),
    structure=DIGESTS,
    parents=st.lists(DIGESTS, max_size=3).map(tuple),
    branch=st.none() | st.sampled_from(["main", "runs/7", "a" * REF_NAME_LENGTH_MAX]),
    step=st.none() | st.integers(-STEP_MAX, STEP_MAX),
    metrics=st.dictionaries(
        METRIC_NAMES, st.integers(-STEP_MAX, STEP_MAX) | st.floats(allow_nan=False), max_size=3
    ),
    message=TEXT,
    created=st.integers(0, CREATED_MAX),
    new_bytes=st.integers(0, 2**63 - 1),
    meta=st.dictionaries(TEXT, JSON, max_size=3),
    other=st.dictionaries(st.sampled_from(["later", "field"]), JSON, max_size=2),
)


@given(MANIFESTS)
def test_a_manifest_comes_back_from_its_bytes_with_what_later_versions_added(
    manifest: Manifest,
) -> None:
    again = Manifest.decode(manifest.encode(), name="this")
    assert again == manifest
    assert again.encode() == manifest.encode()


def test_a_metric_that_is_not_finite_comes_back() -> None:
    metrics = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": -0.0}
    manifest = Manifest(pages=(), structure=Digest.of(b""), metrics=metrics)
    again = Manifest.decode(manifest.encode(), name="this").metrics
    assert math.isnan(again["a"])
    assert (again["b"], again["c"]) == (math.inf, -math.inf)
    assert math.copysign(1, again["d"]) == -1


GOOD = json.loads(
    Manifest(
        pages=(PageRef(first="a", digest=Digest.of(b"p"), arrays=1, bytes=4),),
        structure=Digest.of(b"s"),
        parents=(Digest.of(b"m"),),
        step=3,
        metrics={"loss": 0.5},
        message="x",
        created=7,
    ).encode()
)
WRONG: dict[str, list[Any]] = {
    "format": [0, "1", None, True],
    "pages": [None, {}, [5], [{}], [{**GOOD["pages"][0], "arrays": 0}]],
    "structure": [None, "x", GOOD["structure"].upper()],
    "parents": [None, ["x"], [GOOD["structure"]] * 17],
    "step": [True, 1.0, "1", 2**63],
    "metrics": [None, [], {"loss": None}, {"loss": True}, {"loss": "NaN"}, {"loss": []}],
    "message": [None, 5, "x" * (MESSAGE_LENGTH_MAX + 1)],
    "created": [None, -1, 1.5, CREATED_MAX + 1],
    "new_bytes": [None, -1, "1"],
    "meta": [None, [], "x"],
}


BRANCHES: list[Any] = [
    None, 5, "", [], ["main"], {}, True, "a b", "-x", "a//b", "../x", "latest", "a.lock", "x\0",
    "a" * (REF_NAME_LENGTH_MAX + 1),
]  # fmt: skip


@pytest.mark.parametrize("branch", BRANCHES, ids=lambda value: repr(value)[:20])
def test_a_branch_that_no_repository_could_have_is_refused(branch: Any) -> None:
    with pytest.raises(CorruptError, match="this"):
        Manifest.decode(canonical.encode({**GOOD, "branch": branch}), name="this")


def test_a_manifest_made_before_branches_were_recorded_keeps_its_bytes() -> None:
    assert "branch" not in GOOD
    manifest = Manifest.decode(canonical.encode(GOOD), name="this")
    assert manifest.branch is None
    assert manifest.encode() == canonical.encode(GOOD)


@pytest.mark.parametrize("field", WRONG)
def test_a_field_that_is_missing_or_wrong_is_refused_by_name(field: str) -> None:
    without = {key: value for key, value in GOOD.items() if key != field}
    for document in (without, *({**GOOD, field: value} for value in WRONG[field])):
        with pytest.raises(CorruptError, match="this"):
            Manifest.decode(canonical.encode(document), name="this")


def test_a_newer_format_is_no_damage() -> None:
    with pytest.raises(InvalidInputError, match="newer ckptstore"):
        Manifest.decode(canonical.encode({**GOOD, "format": 3}), name="this")


def test_a_checkpoint_with_arrays_in_another_order_has_format_2() -> None:
    data = canonical.encode({**GOOD, "format": 2})
    manifest = Manifest.decode(data, name="this")
    assert manifest.format == ORDERED_FORMAT
    assert manifest.encode() == data


class Epoch(IntEnum):
    FIRST = 1


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (None, None),
        (0, 0),
        (-5, -5),
        (np.int64(7), 7),
        (torch.tensor(8), 8),
        (Epoch.FIRST, 1),
        (True, 1),
        (STEP_MAX, STEP_MAX),
    ],
    ids=repr,
)
def test_any_integer_is_a_step_and_comes_out_as_a_plain_one(
    step: Any, expected: int | None
) -> None:
    found = check_step(step)
    assert (type(found), found) == (type(expected), expected)
    repo = ckptstore.init("memory://")
    repo.commit({}, step=step)
    assert ckptstore.open(repo.url).resolve("main").step == expected


@pytest.mark.parametrize("step", [1.0, "1", 2**63, -(2**63), torch.tensor(1.0), [1]], ids=repr)
def test_anything_else_is_no_step(step: Any) -> None:
    with pytest.raises(InvalidInputError, match="The step is"):
        check_step(step)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        (0.5, 0.5),
        (np.float32(0.5), 0.5),
        (np.int8(3), 3),
        (np.float64(2), 2.0),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.tensor([[7]]), 7),
        (Epoch.FIRST, 1),
        (np.array([0.25]), 0.25),
        (torch.nn.Parameter(torch.tensor(1.5)), 1.5),
    ],
    ids=repr,
)
def test_any_one_number_is_a_metric(value: object, expected: float) -> None:
    (found,) = check_metrics({"m": value}).values()
    assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize(
    "value",
    [True, None, "0.5", [0.5], 1j, 2**63, torch.ones(2), torch.tensor(True), np.zeros(0)],
    ids=repr,
)
def test_anything_else_is_no_metric_and_is_named(value: object) -> None:
    with pytest.raises(InvalidInputError, match="'val_loss'"):
        check_metrics({"val_loss": value})


@pytest.mark.parametrize(
    "meta",
    [
        5,
        [],
        {1: 2},
        {"a": (1,)},
        {"a": {"b": {1}}},
        {"a": math.nan},
        {"a": [math.inf]},
        {"a": 2**64},
        {"a": b""},
        {"\ud800": 1},
        {"a": "\ud800"},
        {"a": np.float64(1)},
    ],
    ids=repr,
)
def test_meta_that_would_not_come_back_from_json_is_refused(meta: object) -> None:
    with pytest.raises(InvalidInputError, match="meta"):
        check_meta(meta)


def test_meta_that_is_too_deep_or_holds_itself_is_refused() -> None:
    meta: dict[str, Any] = {}
    meta["a"] = [meta]
    with pytest.raises(InvalidInputError, match="nested deeper"):
        check_meta(meta)
