"""Conditions and orders over checkpoints."""

import math
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore import InvalidInputError
from ckptstore.query import CONDITION_DEPTH_MAX, Query, parse


@dataclass
class Item:
    step: int | None = None
    metrics: dict = field(default_factory=dict)
    branch: str | None = None
    message: str = ""
    meta: dict = field(default_factory=dict)


ITEM = Item(
    step=1500,
    metrics={
        "val_loss": 0.125,
        "recall@10": 0.5,
        "step": 7,
        'q"\\': 1,
        "bad": math.nan,
        "n": 2**60 + 1,
    },
    branch="runs/3",
    message="warm up",
    meta={"host": "box", "lr": "0.1", "seed": 4, "amp": True},
)


@pytest.mark.parametrize(
    "text",
    [
        "val_loss<0.2 and step>1000",
        "val_loss < .2 and (step = 3 or step == 1500)",
        "step = 3 and step = 4 or step = 1500",  # "and" binds tighter
        "step = 1500 or step = 3 and step = 4",
        "recall@10 >= 5e-1",
        "'recall@10' <= 0.5",
        r'"q\"\\" = 1',
        '"step" = 7',  # quoted: the metric
        "branch = runs/3 and message = 'warm up'",
        "branch != main",
        "bad = nan",
        "val_loss != nan",
        "meta.host = box and meta.lr < 0.2 and meta.seed = 4 and meta.amp = true",
        "n > 1152921504606846976",
        "val_loss < inf",
    ],
)
def test_true(text):
    assert parse(text).matches(ITEM)


@pytest.mark.parametrize(
    "text",
    [
        "val_loss<0.125",
        "(step = 3 or step = 1500) and step = 4",
        "missing < 1 or missing > 1 or missing != 1 or missing = 1",
        "bad < 1 or bad > 1 or bad >= nan or bad != nan or bad = 1",
        "meta.host = 1",
        "meta.missing != x",
        "branch = runs/30",
    ],
)
def test_false(text):
    assert not parse(text).matches(ITEM)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "at its end"),
        ("val_loss", "at its end"),
        ("val_loss <", "at its end"),
        ("val_loss < 1 and", "at its end"),
        ("(val_loss < 1", "at its end"),
        ("val_loss < 1)", r"at '\)'"),
        ("val_loss < 1 step > 3", "at 'step > 3'"),
        ("0.1 < val_loss < 1", "at '0.1 < val_loss < 1'"),
        ("val_loss < 1 < 2", "at '< 2'"),
        ("and < 1", "at 'and < 1'"),
        ("a ( 1", r"at '\( 1'"),
        ("val_loss < 'x", 'at "\'x"'),
        ("val_loss < low", "is text"),
        ("val_loss = low", "not a number"),
        ("step = 'x'", "not a number"),
        ("branch < main", "is text"),
        ("__import__('os').system('x')", "is not understood"),
        ("(" * (CONDITION_DEPTH_MAX + 1) + "a=1" + ")" * (CONDITION_DEPTH_MAX + 1), "parentheses"),
        ("a=1 or " * 10_000 + "a=1", "a condition is expected"),
        (3, "a condition is expected"),
    ],
)
def test_what_is_no_condition_is_an_error_that_shows_where(text, said):
    with pytest.raises(InvalidInputError, match=said):
        parse(text)


NUMBERS = st.integers(-3, 3)
COMPARISONS = st.tuples(
    st.sampled_from("abc"), st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), NUMBERS
).map(lambda parts: f"{parts[0]} {parts[1]} {parts[2]}")
CONDITIONS = st.recursive(
    COMPARISONS,
    lambda part: st.one_of(
        st.tuples(part, st.sampled_from(["and", "or"]), part).map(" ".join),
        part.map(lambda text: f"({text})"),
    ),
    max_leaves=12,
)


@pytest.mark.property
@given(text=CONDITIONS, metrics=st.fixed_dictionaries(dict.fromkeys("abc", NUMBERS)))
def test_it_reads_as_python_does(text, metrics):
    expected = eval(text, {"__builtins__": {}}, metrics)
    assert parse(text).matches(Item(metrics=metrics)) == expected


@pytest.mark.property
@given(text=st.text(alphabet="ab <>=!()'\"or nd.1@", max_size=30))
def test_any_text_is_a_condition_or_refused(text):
    with suppress(InvalidInputError):
        assert parse(text).matches(ITEM) in (True, False)


def select(values, **query):
    items = [Item(step=step, metrics=metrics) for step, metrics in values]
    query = {"where": None, "sort": None, "limit": None} | query
    return [item.step for item in Query.of(**query).select(items)]


LOSSES = [
    (5, {"val_loss": 0.5}),
    (4, {"val_loss": math.nan}),
    (3, {"val_loss": 0.1, "quality": 9}),
    (2, {"val_loss": -math.inf}),
    (1, {}),
    (0, {"val_loss": 0.1, "quality": 2}),
]


def test_the_best_come_first_the_newest_of_equal_ones_and_none_without_a_finite_number():
    assert select(LOSSES, sort="val_loss") == [3, 0, 5, 4, 2, 1]
    assert select(LOSSES, sort="val_loss:max", limit=2) == [5, 3]
    assert select(LOSSES, sort="quality:min", limit=3) == [0, 3, 5]
    assert select(LOSSES, sort="step:min", where="val_loss < 1") == [0, 2, 3, 5]
    assert select([(1, {"step": 1}), (2, {"step": 2})], sort='"step":min') == [1, 2]
    assert select([*reversed(LOSSES)], sort="step", limit=2) == [5, 4]


def test_a_limit_ends_the_walk():
    seen = []

    def walk():
        for step in range(100):
            seen.append(step)
            yield Item(step=step)

    query = Query.of(where="step > 10", sort=None, limit=3)
    assert [item.step for item in query.select(walk())] == [11, 12, 13]
    assert len(seen) == 14


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"where": "val_los < 1"}, "has 'val_los'.*Known metrics: qua.*Did you mean val_loss?"),
        ({"sort": "val_acc"}, "has 'val_acc'"),
        ({"where": "val_loss < 1 or lr < 1"}, "has 'lr'"),
        ({"where": "meta.host = x"}, "has 'meta.host'.*There are no keys of meta"),
        ({"sort": "message"}, "step or a metric"),
        ({"sort": 3}, "sort is 3"),
        ({"sort": "val_loss:max:2"}, "METRIC:max is expected"),
        ({"sort": "val_loss:low"}, "METRIC:max is expected"),
        ({"sort": "odd"}, "odd:max or odd:min"),
        ({"limit": -1}, "limit is -1"),
    ],
)
def test_a_name_that_no_checkpoint_has_is_an_error(query, said):
    with pytest.raises(InvalidInputError, match=said):
        select(LOSSES, **query)


def test_nothing_is_unknown_where_there_is_nothing():
    assert select([], where="val_loss < 1", sort="val_loss") == []
