"""Retention does not depend on when gc ran; unions keep what their parts keep."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.retention import KeepBest, KeepEveryNHours, KeepEveryNSteps, MaxToKeep, Policy
from tests.helpers.policy_graph import EVERY, HOUR, Graph

FACTS = st.fixed_dictionaries(
    {
        "created": st.integers(0, 200).map(lambda tenths: tenths * HOUR // 10),
        "step": st.none() | st.integers(-5, 40),
        "metrics": st.sampled_from([0.0, 1.0, 2.0, 3.0, float("nan")]).map(
            lambda value: {"loss": value, "val_acc": value}
        ),
    }
)
COMMITS = st.lists(FACTS, min_size=1, max_size=25)


def survivors(policy: Policy, commits: list[dict[str, Any]], runs: set[int]) -> list[int]:
    """What is left when gc runs after some of the commits, and once more at the end."""
    graph = Graph()
    for number, facts in enumerate(commits):
        graph.add(**facts)
        if number in runs or number == len(commits) - 1:
            graph.expired |= {v.id for v in graph.verdicts(policy) if not v.kept}
    return [number for id, number in graph.numbers.items() if id not in graph.expired]


@pytest.mark.parametrize(
    "policy",
    [
        KeepEveryNHours(1.5),
        KeepEveryNSteps(4),
        KeepBest("loss", n=2),
        KeepBest("loss", "max"),
        MaxToKeep(3),
        MaxToKeep(2) | KeepBest("loss") | KeepEveryNHours(3) | KeepEveryNSteps(7),
    ],
    ids=str,
)
@given(commits=COMMITS, runs=st.sets(st.integers(0, 24)))
def test_the_same_stay_however_often_gc_runs(
    policy: Policy, commits: list[dict[str, Any]], runs: set[int]
) -> None:
    """Also with clocks that jump back and forward."""
    once = survivors(policy, commits, set())
    assert survivors(policy, commits, runs) == once
    assert survivors(policy, commits, set(range(25))) == once


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Some branches that fork from each other, some tags, some that have expired already."""
    graph = Graph()
    for facts in draw(COMMITS):
        branch = draw(st.sampled_from(["main", "side", "other"]))
        if graph.manifests and branch not in graph.heads:
            graph.heads[branch] = draw(st.sampled_from(list(graph.manifests)))
        graph.add(branch, **facts)
    for name in draw(st.sets(st.sampled_from(["v1", "v2"]))):
        graph.tags[name] = draw(st.sampled_from(list(graph.manifests)))
    named = {*graph.heads.values(), *graph.tags.values()}
    others = [id for id in graph.manifests if id not in named]
    if others:
        graph.expired = draw(st.sets(st.sampled_from(others)))
    return graph


@given(graphs(), st.sampled_from(EVERY), st.sampled_from(EVERY))
def test_joined_policies_keep_what_any_of_them_keeps_and_names_always_count(
    graph: Graph, one: Policy, other: Policy
) -> None:
    joined = set(graph.kept(one | other))
    assert joined == {*graph.kept(one), *graph.kept(other)}
    named = {graph.numbers[id] for id in (*graph.heads.values(), *graph.tags.values())}
    assert named <= joined
    verdicts = graph.verdicts(one | other)
    assert not graph.expired & {verdict.id for verdict in verdicts}
    assert len({verdict.id for verdict in verdicts}) == len(verdicts)
    assert all(verdict.reasons for verdict in verdicts)
