"""Policies: what each keeps and why, how they join, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ckptstore.errors import InvalidInputError
from ckptstore.retention import (
    KeepAll,
    KeepBest,
    KeepEveryNHours,
    KeepEveryNSteps,
    KeepIf,
    KeepSteps,
    KeepWithin,
    MaxBytes,
    MaxToKeep,
    Policies,
    Policy,
    Union,
    from_json,
)
from tests.helpers.policy_graph import EVERY, HOUR, Graph


def line(*facts: dict[str, Any]) -> Graph:
    graph = Graph()
    for each in facts:
        graph.add(**each)
    return graph


def words(verdict: Any) -> tuple[str, ...]:
    return tuple(map(str, verdict.reasons))


def losses(*values: float | None) -> Graph:
    return line(*({} if value is None else {"metrics": {"loss": value}} for value in values))


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (KeepAll(), [0, 1, 2, 3, 4, 5, 6]),
        (MaxToKeep(1), [6]),
        (MaxToKeep(3), [4, 5, 6]),
        (MaxToKeep(100), [0, 1, 2, 3, 4, 5, 6]),
        (KeepEveryNHours(2), [0, 2, 4, 6]),
        (KeepEveryNHours(2.5), [0, 3, 6]),
        (KeepEveryNHours(0.001), [0, 1, 2, 3, 4, 5, 6]),
        (KeepEveryNSteps(4), [0, 4, 6]),
        (KeepSteps({1, 3, 99}), [1, 3, 6]),
        (KeepIf(lambda manifest: manifest.step % 3 == 1), [1, 4, 6]),
        (MaxToKeep(2) | KeepSteps([0]), [0, 5, 6]),
    ],
    ids=str,
)
def test_what_each_keeps_of_seven(policy: Policy, kept: list[int]) -> None:
    assert line(*[{}] * 7).kept(policy) == kept


@pytest.mark.parametrize(
    ("values", "policy", "kept"),
    [
        ((3.0, 1.0, 2.0), KeepBest("loss"), [1, 2]),
        ((3.0, 1.0, 2.0), KeepBest("loss", "max"), [0, 2]),
        ((3.0, 1.0, 2.0), KeepBest("loss", n=2), [1, 2]),
        ((1.0, 1.0, 2.0), KeepBest("loss"), [1, 2]),
        ((math.nan, 5.0, None), KeepBest("loss"), [1, 2]),
        ((math.nan, -math.inf, 1.0), KeepBest("loss"), [2]),
        ((math.inf, 2.0, 1.0), KeepBest("loss", "max"), [1, 2]),
        ((math.nan, math.nan, math.nan), KeepBest("loss"), [2]),
        ((1.0, None, None, None, None), KeepBest("loss"), [0, 3, 4]),
        ((1.0, None, None, None, None), KeepBest("loss", pending=0), [0, 4]),
        ((None, 1.0, None, None), KeepBest("loss", pending=5), [1, 2, 3]),
        ((math.nan, None, None, None), KeepBest("loss", pending=1), [0, 3]),
    ],
)
def test_the_best_by_a_metric(values: Any, policy: Policy, kept: list[int]) -> None:
    assert losses(*values).kept(policy) == kept


def test_auto_tells_by_the_name_of_the_metric() -> None:
    graph = line({"metrics": {"val_acc": 0.9}}, {"metrics": {"val_acc": 0.1}}, {})
    assert graph.kept(KeepBest("val_acc")) == [0, 2]
    assert str(KeepBest("val_acc")) == "Keep the best by val_acc (max)."


def test_the_direction_is_decided_when_the_policy_is_made() -> None:
    assert KeepBest("val_acc") == KeepBest("val_acc", "max")
    assert KeepBest("val_acc").to_json()["mode"] == "max"


@pytest.mark.parametrize("metric", ["anything", "loss_accuracy"])
def test_a_metric_of_unknown_direction_makes_no_policy(metric: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{metric}:max or {metric}:min"):
        KeepBest(metric)
    assert KeepBest(metric, "max").mode == "max"


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("val_acc", KeepBest("val_acc", "max")),
        ("anything:max:2", KeepBest("anything", "max", 2)),
        ("recall@10:max", KeepBest("recall@10", "max")),
        ('"mAP@.5:.95":max:3', KeepBest("mAP@.5:.95", "max", 3)),
        ('"mAP@.5:.95"', KeepBest("mAP@.5:.95", "max")),
        (r'"a \"loss\""', KeepBest('a "loss"', "min")),
        ("val_loss:min:x", None),
        ("val_loss:min:2:3", None),
        (":min", None),
    ],
)
def test_a_policy_by_metric_mode_and_number(text: str, policy: Policy | None) -> None:
    assert KeepBest.parse(text) == policy


def test_a_saved_policy_of_unknown_direction_keeps_both_ends_and_says_so() -> None:
    document = {"kind": "keep_best", "metric": "depth", "mode": "auto", "n": 1}
    policy = from_json(document)
    graph = line(*[{"metrics": {"depth": value}} for value in (2.0, 1.0, 4.0, 3.0, 2.5)])
    assert graph.kept(policy) == [1, 2, 4]
    assert "save the policy again, with depth:min or depth:max" in str(policy)
    assert policy.to_json() == document
    assert from_json({**document, "metric": "val_dice"}) == KeepBest("val_dice", "max")
    joined = from_json({"kind": "union", "members": [document, {"kind": "max_to_keep", "n": 1}]})
    assert joined.metrics == {"depth"}


def test_heads_and_tags_stay_and_every_reason_is_told() -> None:
    graph = losses(1.0, 2.0, 3.0)
    graph.tags["v1"] = next(iter(graph.manifests))
    newest, middle, oldest = graph.verdicts(MaxToKeep(1) | KeepBest("loss"))
    assert words(newest) == ("head of main", "newest 1 of 1 on main")
    assert words(oldest) == ("tag v1", "best 1 of 1 by loss (min) = 1 on main")
    assert (middle.kept, words(middle)) == (False, ("nothing keeps it",))
    assert newest.branches == ("main",)


def test_each_branch_is_judged_by_its_own_checkpoints() -> None:
    graph = line(*[{}] * 4)
    graph.heads["side"] = list(graph.manifests)[1]
    graph.add("side")
    assert graph.kept(MaxToKeep(2)) == [1, 2, 3, 4]
    verdicts = {graph.numbers[verdict.id]: verdict for verdict in graph.verdicts(MaxToKeep(1))}
    assert words(verdicts[1]) == ("seed of side",)
    assert [verdicts[number].branches for number in (1, 4)] == [("main",), ("side",)]


def test_checkpoints_that_record_no_branch_are_judged_on_each_that_reaches_them() -> None:
    graph = line(*[{"is_recorded": False}] * 4)
    graph.heads["side"] = list(graph.manifests)[1]
    graph.add("side", is_recorded=False)
    assert graph.kept(MaxToKeep(2)) == [1, 2, 3, 4]
    shared = next(v for v in graph.verdicts(MaxToKeep(2)) if graph.numbers[v.id] == 0)
    assert shared.branches == ("main", "side")


def test_a_policy_for_some_branches_leaves_the_others_alone() -> None:
    graph = line(*[{}] * 4)
    graph.heads["side"] = list(graph.manifests)[1]
    for _ in range(3):
        graph.add("side")
    assert graph.kept(MaxToKeep(1), ["main"]) == [1, 3, 4, 5, 6]
    assert graph.kept(MaxToKeep(1), ["side"]) == [0, 1, 2, 3, 6]
    assert graph.kept(MaxToKeep(1), ["main", "side"]) == [1, 3, 6]
    assert graph.kept(MaxToKeep(1)) == [1, 3, 6]
    reasons = words(graph.verdicts(MaxToKeep(1), ["main"])[0])
    assert reasons == ("head of side", "on side, which is left alone")


def test_a_branch_may_have_a_policy_of_its_own() -> None:
    graph = line(*[{}] * 4)
    graph.heads["side"] = list(graph.manifests)[1]
    for _ in range(3):
        graph.add("side")
    policies = Policies(default=MaxToKeep(1), by_branch={"side": MaxToKeep(2)})
    assert graph.kept(policies) == [1, 3, 5, 6]
    assert policies.sentences(["main", "side"]) == [
        "Keep the newest of each branch.",
        "side: Keep the newest 2 of each branch.",
    ]
    assert graph.kept(Policies(by_branch={"side": MaxToKeep(2)})) == [0, 1, 2, 3, 5, 6]


def test_a_derived_checkpoint_is_the_seed_of_its_branch_and_its_source_is_not() -> None:
    graph = line(*[{}] * 3)
    graph.heads["side"] = list(graph.manifests)[1]
    for _ in range(3):
        meta = {"seed": {"include": ["model/**"]}} if len(graph.manifests) == 3 else {"seed": 7}
        graph.add("side", meta=meta)
    assert graph.kept(MaxToKeep(1)) == [2, 3, 5]


def test_seeds_are_left_to_the_policy_of_their_own_branch_on_demand() -> None:
    graph = line(*[{}] * 4)
    for name, start, meta in (("side", 1, {}), ("derived", 3, {"seed": {"include": ["**"]}})):
        graph.heads[name] = list(graph.manifests)[start]
        graph.add(name, meta=meta)
        graph.add(name)
    assert graph.kept(Policies(default=MaxToKeep(1))) == [1, 3, 5, 6, 7]
    without = Policies(default=MaxToKeep(1), keep_seeds=False)
    assert graph.kept(without) == [3, 5, 7]
    assert graph.kept(Policies(default=MaxToKeep(3), keep_seeds=False)) == [1, 2, 3, 4, 5, 6, 7]
    graph.tags["v1"] = list(graph.manifests)[1]
    assert graph.kept(without) == [1, 3, 5, 7]


def test_what_a_deleted_branch_had_belongs_to_nothing() -> None:
    """Unless a branch that keeps everything was started from it."""
    graph = line(*[{}] * 3)
    graph.heads["side"] = graph.heads.pop("main")
    graph.add("side")
    decision = graph.decide(MaxToKeep(2))
    assert [graph.numbers[id] for id in decision.unowned] == [1, 0]
    assert graph.kept(MaxToKeep(2)) == [2, 3]
    assert graph.kept(KeepAll()) == [0, 1, 2, 3]
    assert words(graph.verdicts(KeepAll())[-1]) == ("in the history of side",)
    graph.heads["other"] = list(graph.manifests)[1]
    graph.add("other")
    assert graph.kept(MaxToKeep(2), ["side"]) == [0, 1, 2, 3, 4]
    graph.tags["v1"] = graph.heads.pop("side")
    assert graph.kept(MaxToKeep(2)) == [1, 3, 4]


def test_of_many_branches_that_continue_from_a_deleted_one_none_is_named() -> None:
    graph = line(*[{}] * 3)
    head = graph.heads.pop("main")
    for number in range(30):
        graph.heads[f"side-{number}"] = head
        graph.add(f"side-{number}")
    reasons = [words(verdict) for verdict in graph.verdicts(KeepAll())[-2:]]
    assert reasons == [("in the history of one of 30 branches",)] * 2
    assert graph.kept(MaxToKeep(1)) == list(range(2, 33))


def test_what_only_a_tag_reaches_needs_a_tag_of_its_own() -> None:
    graph = line(*[{}] * 3)
    graph.tags["v1"] = graph.heads.pop("main")
    assert graph.kept(KeepAll()) == [2]


def test_what_has_expired_has_no_verdict_and_is_not_counted() -> None:
    graph = line(*[{}] * 4)
    graph.expired.add(list(graph.manifests)[2])
    assert [graph.numbers[verdict.id] for verdict in graph.verdicts(KeepAll())] == [3, 1, 0]
    assert graph.kept(MaxToKeep(2)) == [1, 3]


def test_clocks_that_go_back_count_as_no_time() -> None:
    graph = line(*({"created": hour * HOUR} for hour in (100, 101, 52, 53, 106, 107)))
    assert graph.kept(KeepEveryNHours(5)) == [0, 4, 5]
    assert graph.kept(KeepWithin(1)) == [4, 5]
    assert graph.kept(KeepWithin(54)) == [3, 4, 5]


def test_time_is_counted_over_what_expired() -> None:
    """One of those between was of a clock that was ahead."""
    graph = line(*({"created": hour * HOUR} for hour in (0, 50, 2, 3, 4, 5, 6)))
    graph.expired = set(list(graph.manifests)[1:3])
    assert graph.kept(KeepEveryNHours(10)) == [0, 3, 6]


def test_times_of_earlier_versions_are_compared_with_each_other() -> None:
    facts = ({"created": hour * HOUR, "elapsed": None} for hour in (0, 2, 5, 3, 4, 9))
    assert line(*facts).kept(KeepEveryNHours(5)) == [0, 2, 5]


def test_buckets_of_steps_and_of_negative_ones() -> None:
    graph = line(*({"step": step} for step in (-5, -4, -1, 0, 3, 4, 9, 2)))
    assert graph.kept(KeepEveryNSteps(4)) == [0, 1, 3, 5, 6, 7]


def test_of_several_checkpoints_of_a_step_the_newest_counts() -> None:
    graph = line(*({"step": step} for step in (1, 2, 2, 3, 3, None, None)))
    assert graph.kept(MaxToKeep(4)) == [2, 4, 5, 6]


@pytest.mark.parametrize(
    ("saves", "policy", "kept"),
    [
        ([(1, 0.5), (2, 0.9), (2, 0.9), (3, 0.4)], KeepBest("acc", n=2), [0, 2, 3]),
        ([(1, 0.5), (2, 0.9), (2, 0.7), (3, 0.4)], KeepBest("acc", n=2), [0, 1, 3]),
        ([(1, 0.5), (2, 0.9), (2, None), (3, 0.4)], KeepBest("acc", n=2), [0, 1, 3]),
        ([(1, 0.5), (None, 0.9), (None, 0.9), (3, 0.4)], KeepBest("acc", n=2), [1, 2, 3]),
        ([(1, 0.5), (2, None), (3, None), (3, None), (4, None)], KeepBest("acc"), [0, 3, 4]),
        ([(1, 0.5), (2, None), (3, None), (3, None)], KeepBest("acc"), [0, 1, 3]),
    ],
)
def test_the_best_counts_a_step_that_was_saved_twice_once(
    saves: list[tuple[int | None, float | None]], policy: Policy, kept: list[int]
) -> None:
    graph = line(
        *(
            {"step": step, "metrics": {} if value is None else {"acc": value}}
            for step, value in saves
        )
    )
    assert graph.kept(policy) == kept


def test_a_limit_of_bytes_lets_the_least_important_go_first() -> None:
    graph = line(*({"metrics": {"loss": abs(4.0 - number)}} for number in range(9)))
    graph.sizes = dict.fromkeys(range(9), 10)
    policy = MaxToKeep(3) | KeepBest("loss", n=2) | KeepEveryNSteps(3) | KeepWithin(3)
    assert graph.kept(policy) == [0, 3, 4, 5, 6, 7, 8]
    assert {limit: graph.kept(policy | MaxBytes(limit)) for limit in (70, 69, 50, 40, 30, 1)} == {
        70: [0, 3, 4, 5, 6, 7, 8],
        69: [3, 4, 5, 6, 7, 8],
        50: [4, 5, 6, 7, 8],
        40: [4, 5, 7, 8],
        30: [4, 5, 8],
        1: [4, 8],
    }
    assert graph.kept(MaxBytes(35)) == [6, 7, 8]
    gone = graph.verdicts(policy | MaxBytes(69))[-1]
    assert (gone.kept, words(gone)) == (False, ("over the limit of 69 B",))


def test_what_a_name_keeps_stays_over_a_limit_of_bytes() -> None:
    graph = line(*[{}] * 4)
    graph.sizes = dict.fromkeys(range(9), 10)
    graph.tags["v1"] = next(iter(graph.manifests))
    graph.heads["side"] = list(graph.manifests)[1]
    graph.add("side")
    assert graph.kept(MaxBytes(1)) == [0, 1, 3, 4]


def test_the_step_may_be_missing() -> None:
    graph = line({"step": None}, {"step": 5}, {"step": None}, {"step": 9}, {})
    assert graph.kept(KeepEveryNSteps(4)) == [1, 3, 4]


MEANINGLESS: list[Any] = [
    *(lambda n=n: MaxToKeep(n) for n in (0, -1, True, 1.5, "3", None)),
    *(lambda n=n: KeepEveryNSteps(n) for n in (0, False, 2.5)),
    *(lambda n=n: KeepEveryNHours(n) for n in (0, -1, math.nan, math.inf, "x", True)),
    lambda: KeepBest("loss", "upwards"),
    lambda: KeepBest("loss", n=0),
    lambda: KeepBest(""),
    lambda: KeepBest(None),  # type: ignore[arg-type]
    lambda: KeepBest("loss", pending=-1),
    *(lambda n=n: KeepWithin(n) for n in (0, -1, math.nan, math.inf, "24h", True)),
    *(lambda n=n: MaxBytes(n) for n in (0, -1, 1.5, "1GB")),
    lambda: KeepSteps([]),
    lambda: KeepSteps([1, True]),
    lambda: KeepSteps("12"),  # type: ignore[arg-type]
    lambda: KeepSteps(5),  # type: ignore[arg-type]
    lambda: KeepIf("x"),  # type: ignore[arg-type]
    lambda: Union(()),
    lambda: Union((KeepAll(),)),
]


@pytest.mark.parametrize("make", MEANINGLESS, ids=range(len(MEANINGLESS)))
def test_policies_that_mean_nothing_are_refused(make: Any) -> None:
    with pytest.raises(InvalidInputError):
        make()


def test_a_metric_that_no_checkpoint_has_is_named_with_those_there_are() -> None:
    graph = line({"metrics": {"val_loss": 1.0}}, {"metrics": {"lr": 0.1}})
    with pytest.raises(InvalidInputError, match=r"'val_los'\. Known metrics: lr, val_loss"):
        graph.verdicts(MaxToKeep(1) | KeepBest("val_los", "min"))
    assert Graph().verdicts(KeepBest("anything", "min")) == ()


def test_a_saved_policy_by_a_metric_that_may_still_come_expires_nothing() -> None:
    graph = line({"metrics": {"val_loss": 1.0}}, {}, {})
    decision = graph.decide(Policies(default=MaxToKeep(1) | KeepBest("val_los", "min")))
    assert all(verdict.kept for verdict in decision.verdicts)
    assert words(decision.verdicts[-1]) == ("waiting for the first val_los on main",)
    (note,) = decision.notes
    assert note == (
        "Branch main: No checkpoint has the metric 'val_los' yet, so none of them expires. Known "
        "metrics: val_loss. Did you mean val_loss?"
    )


def test_values_that_are_not_finite_are_counted_in_a_note() -> None:
    graph = losses(math.nan, math.inf, math.nan, None)
    (note,) = graph.decide(KeepBest("loss")).notes
    assert note == "Branch main: No checkpoint has a finite loss (2 NaN, 1 infinite, 1 missing)."
    assert losses(1.0, math.nan).decide(KeepBest("loss")).notes == ()


def test_what_is_no_policy_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="not a retention policy"):
        Graph().verdicts("MaxToKeep(3)")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        _ = MaxToKeep(1) | 3  # type: ignore[operator]


def test_a_function_that_fails_is_told_with_its_checkpoint() -> None:
    graph = line({})
    with pytest.raises(InvalidInputError, match="ZeroDivisionError") as caught:
        graph.verdicts(KeepIf(lambda manifest: 1 // 0))
    assert next(iter(graph.manifests)).short in str(caught.value)


def test_a_policy_that_earlier_versions_know_is_saved_in_their_words() -> None:
    assert KeepBest("loss").to_json().keys() == {"kind", "metric", "mode", "n"}
    assert KeepBest("loss", pending=0).to_json()["pending"] == 0


@pytest.mark.parametrize("policy", [*EVERY, MaxBytes(9)], ids=str)
def test_policies_come_back_from_json_and_are_values(policy: Policy) -> None:
    again = from_json(policy.to_json())
    assert again == policy
    assert hash(again) == hash(policy)
    assert str(again) == str(policy)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"kind": "keep_if"},
        {"kind": "max_to_keep"},
        {"kind": "max_to_keep", "n": 0},
        {"kind": "max_to_keep", "n": 1, "more": 2},
        {"kind": ["x"]},
        {"kind": "union", "members": []},
        {"kind": "union", "members": 5},
        {"kind": "keep_best", "metric": 5},
    ],
)
def test_json_that_is_no_policy_is_refused(document: object) -> None:
    with pytest.raises(InvalidInputError):
        from_json(document)


def test_a_function_is_no_data() -> None:
    with pytest.raises(InvalidInputError, match="cannot be saved"):
        (MaxToKeep(1) | KeepIf(bool)).to_json()


def test_joined_policies_are_flat_and_hold_each_once() -> None:
    joined = MaxToKeep(1) | KeepAll() | (MaxToKeep(1) | KeepSteps([1]))
    assert joined.parts == (MaxToKeep(1), KeepAll(), KeepSteps([1]))
    assert (MaxToKeep(2) | MaxToKeep(2)) == MaxToKeep(2)


def test_a_policy_reads_as_a_sentence() -> None:
    policy = MaxToKeep(3) | KeepBest("val_acc", "max") | KeepEveryNHours(6)
    assert str(policy) == (
        "Keep the newest 3 of each branch, the best by val_acc (max), and one every 6 hours."
    )
    assert str(MaxToKeep(2) | KeepWithin(24) | MaxBytes(1_500_000_000)) == (
        "Keep the newest 2 of each branch, the last 24 hours, and at most 1.5 GB of each branch."
    )
    assert str(MaxToKeep(2) | KeepBest("loss", n=2)) == (
        "Keep the newest 2 of each branch and the 2 best by loss (min)."
    )
