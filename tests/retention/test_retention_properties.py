"""Retention does not depend on when gc ran; unions keep what their parts keep."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.retention import (
    KeepBest,
    KeepEveryNHours,
    KeepEveryNSteps,
    KeepWithin,
    MaxToKeep,
    Policies,
    Policy,
)
from tests.helpers.policy_graph import EVERY, HOUR, Graph

VALUES = [0.0, 1.0, 2.0, 3.0, float("nan"), float("inf"), -float("inf")]
FACTS = st.fixed_dictionaries(
    {
        "created": st.integers(0, 200).map(lambda tenths: tenths * HOUR // 10),
        "step": st.none() | st.integers(-5, 40),
        "metrics": st.fixed_dictionaries(
            {}, optional={name: st.sampled_from(VALUES) for name in ("loss", "val_acc")}
        ),
    }
)
COMMITS = st.lists(FACTS, min_size=1, max_size=25)
BRANCHES = ["main", "side", "other"]
POLICIES = [
    KeepEveryNHours(1.5),
    KeepEveryNSteps(4),
    KeepWithin(3),
    KeepBest("loss", n=2),
    KeepBest("loss", "max", pending=0),
    MaxToKeep(3),
    MaxToKeep(2) | KeepBest("loss") | KeepEveryNHours(3) | KeepEveryNSteps(7),
]


def judged(policy: Policy) -> Policies:
    """A policy as a repository holds it, by whatever metric there may be."""
    return Policies(default=policy)


def survivors(policy: Policy, commits: list[dict[str, Any]], runs: set[int]) -> list[int]:
    """What is left when gc runs after some of the commits, and once more at the end."""
    graph = Graph()
    for number, facts in enumerate(commits):
        graph.add(**facts)
        if number in runs or number == len(commits) - 1:
            graph.collect(judged(policy))
    return graph.left()


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@given(commits=COMMITS, runs=st.sets(st.integers(0, 24)))
def test_the_same_stay_however_often_gc_runs(
    policy: Policy, commits: list[dict[str, Any]], runs: set[int]
) -> None:
    """Also with clocks that jump back and forward."""
    once = survivors(policy, commits, set())
    assert survivors(policy, commits, runs) == once
    assert survivors(policy, commits, set(range(25))) == once


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["commit", "commit", "commit", "fork", "delete", "tag"]),
        st.sampled_from(BRANCHES),
        st.sampled_from(BRANCHES),
        FACTS,
    ),
    min_size=1,
    max_size=30,
)


def after(policy: Policy, actions: list[Any], runs: set[int]) -> list[int]:
    """What is left when branches come and go for good, and gc runs after some of the actions."""
    graph = Graph()
    gone: set[str] = set()
    for number, (action, branch, other, facts) in enumerate(actions):
        if action == "commit" and branch not in gone:
            graph.add(branch, **facts)
        elif action == "fork" and branch in graph.heads and other not in {*graph.heads, *gone}:
            graph.heads[other] = graph.heads[branch]
        elif action == "delete" and len(graph.heads) > 1 and branch in graph.heads:
            del graph.heads[branch]
            gone.add(branch)
        elif action == "tag" and branch in graph.heads:
            graph.tags[other] = graph.heads[branch]
        if number in runs:
            graph.collect(judged(policy))
    graph.collect(judged(policy))
    return graph.left()


@pytest.mark.property
@pytest.mark.parametrize("policy", POLICIES, ids=str)
@given(actions=ACTIONS, runs=st.sets(st.integers(0, 29)))
def test_the_same_stay_of_several_branches(
    policy: Policy, actions: list[Any], runs: set[int]
) -> None:
    once = after(policy, actions, set())
    assert after(policy, actions, runs) == once
    assert after(policy, actions, set(range(30))) == once


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Some branches that fork from each other, some tags, some that have expired already."""
    graph = Graph()
    for facts in draw(COMMITS):
        branch = draw(st.sampled_from(BRANCHES))
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
    joined = set(graph.kept(judged(one | other)))
    assert joined == {*graph.kept(judged(one)), *graph.kept(judged(other))}
    named = {graph.numbers[id] for id in (*graph.heads.values(), *graph.tags.values())}
    assert named <= joined
    verdicts = graph.verdicts(judged(one | other))
    assert not graph.expired & {verdict.id for verdict in verdicts}
    assert len({verdict.id for verdict in verdicts}) == len(verdicts)
    assert all(verdict.reasons for verdict in verdicts)


@given(graphs(), st.sampled_from(EVERY))
def test_a_gc_right_after_a_gc_finds_nothing(graph: Graph, policy: Policy) -> None:
    graph.collect(judged(policy))
    decision = graph.decide(judged(policy))
    assert all(verdict.kept for verdict in decision.verdicts)
    assert not decision.unowned


@given(graphs(), st.sampled_from(EVERY), st.data())
def test_a_tag_changes_one_verdict_at_most(graph: Graph, policy: Policy, data: Any) -> None:
    live = [id for id in graph.manifests if id not in graph.expired]
    before = {verdict.id: verdict.reasons for verdict in graph.verdicts(judged(policy))}
    kept = set(graph.kept(judged(policy)))
    id = data.draw(st.sampled_from(live))
    graph.tags["new"] = id
    assert set(graph.kept(judged(policy))) == {*kept, graph.numbers[id]}
    others = {verdict.id: verdict.reasons for verdict in graph.verdicts(judged(policy))}
    assert {key: others[key] for key in before if key != id} == {
        key: value for key, value in before.items() if key != id
    }


@given(graphs(), st.sampled_from([MaxToKeep(2), KeepBest("loss"), KeepEveryNHours(2)]))
def test_one_branch_is_judged_whatever_the_others_are(graph: Graph, policy: Policy) -> None:
    """But for the seeds of branches that were started from it, and their heads."""

    def of(name: str) -> set[int]:
        return {
            graph.numbers[verdict.id]
            for verdict in graph.verdicts(judged(policy))
            if verdict.branches == (name,)
            and any(reason.branch == name and reason.policy for reason in verdict.reasons)
        }

    name = min(graph.heads)
    kept = of(name)
    for other in [other for other in graph.heads if other != name]:
        del graph.heads[other]
    assert of(name) == kept
