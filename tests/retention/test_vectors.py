"""Histories of which other tools keep the wrong checkpoints, each with what has to stay."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import ckptstore
from ckptstore import ExpiredError, InvalidInputError
from ckptstore.retention import (
    KeepAll,
    KeepBest,
    KeepEveryNHours,
    KeepEveryNSteps,
    KeepWithin,
    MaxToKeep,
    Policies,
    Union,
    from_json,
)
from tests.helpers.policy_graph import EVERY, HOUR, Graph

if TYPE_CHECKING:
    from ckptstore.retention import Policy

NAN = math.nan


def valued(metric: str, *values: float | None) -> Graph:
    """A branch whose checkpoints have these values, None for none."""
    graph = Graph()
    for value in values:
        graph.add(metrics={} if value is None else {metric: value})
    return graph


@pytest.mark.parametrize(
    ("graph", "policy", "kept"),
    [
        (valued("loss", NAN, 0.9, 0.5, 0.3), KeepBest("loss", "min"), [3]),
        (valued("loss", 0.9, 0.3, 0.7, 0.8, NAN), KeepBest("loss"), [1, 4]),
        (valued("loss", 0.1, 0.2, 0.3, 0.4, 0.5), KeepBest("loss", "min", 3), [0, 1, 2, 4]),
        (valued("val_acc", 0.1, 0.2, 0.9), KeepBest("val_acc"), [2]),
        (valued("loss", 0.9, 0.4, 0.7), KeepBest("loss"), [1, 2]),
        (valued("loss", 0.5, 0.5, 0.5, 0.6), KeepBest("loss"), [2, 3]),
        (valued("loss", 0.9, None, None, 0.7, None), KeepBest("loss", pending=2), [3, 4]),
    ],
    ids=[
        "a: a NaN comes first",
        "b: a NaN comes last",
        "c: the head is the worst",
        "d: more is better",
        "e: a run goes on after its best",
        "p: equal ones",
        "k: some have no value",
    ],
)
def test_the_best_and_the_head_stay(graph: Graph, policy: Policy, kept: list[int]) -> None:
    assert graph.kept(policy) == kept
    graph.collect(policy)
    assert graph.left() == kept


def test_f_a_branch_has_a_best_of_its_own_and_its_seed_stays() -> None:
    graph = valued("val_acc", 0.5, 0.99)
    graph.heads["task-b"] = graph.heads["main"]
    for value in (0.60, 0.71, 0.65):
        graph.add("task-b", metrics={"val_acc": value})
    for _ in range(2):
        graph.add(metrics={"val_acc": 0.7})
    assert graph.kept(MaxToKeep(1) | KeepBest("val_acc"), ["task-b"]) == [0, 1, 3, 4, 5, 6]
    assert graph.kept(MaxToKeep(1) | KeepBest("val_acc")) == [1, 3, 4, 6]


def test_g_the_newest_are_those_committed_last_not_those_of_the_highest_step() -> None:
    graph = Graph()
    for step in range(100, 1000, 100):
        graph.add(step=step)
    graph.heads["main"] = list(graph.manifests)[3]
    for step in (500, 600):
        graph.add(step=step)
    assert graph.kept(MaxToKeep(2)) == [9, 10]


def test_h_a_clock_that_jumps_keeps_one_more_at_most() -> None:
    graph = Graph()
    for hour in range(18):
        graph.add(created=(hour + (720 if hour == 4 else 0)) * HOUR)
    assert graph.kept(KeepEveryNHours(6)) == [0, 4, 11, 17]


def test_i_an_age_is_counted_from_the_newest_checkpoint() -> None:
    graph = Graph()
    for _ in range(48):
        graph.add()
    assert graph.kept(KeepWithin(24)) == list(range(23, 48))


MEANINGLESS: list[Any] = [
    lambda: MaxToKeep(0),
    lambda: Union(()),
    lambda: from_json({"kind": "union", "members": []}),
    lambda: KeepBest("loss", n=0),
]


@pytest.mark.parametrize("make", MEANINGLESS, ids=range(len(MEANINGLESS)))
def test_j_a_policy_that_keeps_nothing_is_refused(make: Any) -> None:
    with pytest.raises(InvalidInputError):
        make()


def test_l_a_run_that_starts_from_another_leaves_it_untouched() -> None:
    graph = valued("loss", 0.3, 0.2, 0.1)
    graph.heads["run2"] = graph.heads["main"]
    for _ in range(3):
        graph.add("run2")
        graph.collect(Policies(by_branch={"run2": MaxToKeep(1)}))
    assert graph.left() == [0, 1, 2, 5]


@pytest.mark.parametrize("policy", EVERY, ids=str)
def test_m_a_tag_keeps_its_checkpoint_and_changes_nothing_else(policy: Policy) -> None:
    graph = Graph()
    for number in range(9):
        graph.add(metrics={"loss": number % 4, "val_acc": number % 3})
    kept = graph.kept(policy)
    for number, id in enumerate(graph.manifests):
        graph.tags = {"v1": id}
        assert graph.kept(policy) == sorted({*kept, number})


def test_n_a_reader_gets_all_bytes_or_an_error() -> None:
    repo = ckptstore.init("memory://")
    readers = []
    for step in range(5):
        state = {name: np.full(20_000, step) for name in "ab"}
        repo.commit(state, step=step)
        readers.append((repo.checkout("main", lazy=True), repo.resolve("main")))
        repo.gc(MaxToKeep(1), grace=0)
    for step, (state, checkpoint) in enumerate(readers[:-1]):
        with pytest.raises(ExpiredError):
            _ = state["a"][:]
        with pytest.raises(ExpiredError):
            checkpoint.array("b")[:]
        assert checkpoint.step == step
    assert {name: array[:].tolist() for name, array in readers[-1][0].items()} == {
        name: [4] * 20_000 for name in "ab"
    }


def test_o_steps_that_never_fall_on_a_multiple() -> None:
    graph = Graph()
    for step in range(3, 22, 3):
        graph.add(step=step)
    steps = [manifest.step for manifest in graph.manifests.values()]
    assert [steps[number] for number in graph.kept(KeepEveryNSteps(4))] == [3, 6, 9, 12, 18, 21]


def test_q_a_metric_that_is_missing_deletes_nothing() -> None:
    graph = valued("val_loss", 0.3, 0.2, 0.4)
    with pytest.raises(InvalidInputError, match="Did you mean val_loss"):
        graph.decide(MaxToKeep(1) | KeepBest("val_los", "min"))
    decision = graph.decide(Policies(default=MaxToKeep(1) | KeepBest("val_los", "min")))
    assert decision.notes
    assert all(verdict.kept for verdict in decision.verdicts)
    assert graph.kept(KeepAll()) == [0, 1, 2]
