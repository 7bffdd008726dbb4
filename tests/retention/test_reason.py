"""Reasons: their attributes are what their words say."""

from __future__ import annotations

import json
import math
import pickle
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore.retention import KeepBest, KeepIf, MaxBytes, MaxToKeep, Policies, Policy, Reason
from tests.helpers.policy_graph import EVERY, Graph
from tests.retention.test_retention_properties import graphs

if TYPE_CHECKING:
    from ckptstore.retention import Verdict

POLICIES = [*EVERY, KeepBest("loss", n=2), MaxToKeep(2) | KeepBest("val_acc", "max", 3)]


def words(reason: Reason) -> set[str]:
    """The texts that may go with the attributes of a reason."""
    on = f" on {reason.branch}"
    of = f"{reason.place} of {getattr(reason.policy, 'n', None)}"
    value = math.nan if reason.value is None else reason.value
    best = f"best {of} by {reason.metric} ({reason.mode}) = {value:.4g}"
    older = f"no {reason.metric}, which the newer "
    return {
        "head": {f"head of {reason.branch}"},
        "seed": {f"seed of {reason.branch}"},
        "tag": {f"tag {reason.tag}"},
        "nothing": {"nothing keeps it"},
        "history": {f"in the history of {reason.branch}"},
        "max_to_keep": {f"newest {of}{on}"},
        "keep_best": {best + on, f"the newest value of {reason.metric}{on}"},
        "waiting": {f"waiting for {the}{reason.metric}{on}" for the in ("", "the first ")},
        "no_metric": {older + reason.text.removeprefix(older)},
    }.get(reason.kind, {f"{reason.text.removesuffix(on)}{on}"})


@given(graphs(), st.sampled_from(POLICIES))
def test_the_words_follow_from_the_attributes(graph: Graph, policy: Policy) -> None:
    for verdict in graph.verdicts(Policies(default=policy)):
        assert verdict.reasons
        for reason in verdict.reasons:
            assert str(reason) in words(reason)
            check(reason, verdict, policy)


def check(reason: Reason, verdict: Verdict, policy: Policy) -> None:
    assert (reason.policy is None) == (reason.kind in ("head", "seed", "tag", "nothing", "history"))
    if reason.policy is not None:
        assert reason.policy in policy.parts
        assert reason.kind in (reason.policy.kind, "waiting", "no_metric")
        assert verdict.kept == (reason.branch in verdict.branches)
        assert reason.metric == getattr(reason.policy, "metric", None)
    if reason.value is not None:
        assert reason.metric is not None
        assert reason.value == verdict.manifest.metrics[reason.metric]
        assert reason.mode in ("min", "max")
    document = json.loads(json.dumps(reason.to_json(), allow_nan=False))
    assert document["text"] == str(reason)
    assert document.get("branch") == reason.branch
    assert document.get("value") == reason.value
    assert document.get("policy") == (None if reason.policy is None else str(reason.policy))
    assert pickle.loads(pickle.dumps(reason)) == reason
    assert {reason, reason} == {reason}


def test_python_gets_the_metric_its_direction_and_the_place() -> None:
    repo = ckptstore.init("memory://")
    for step, loss in enumerate((0.5, 0.25, 0.75)):
        repo.commit({"n": step}, step=step, metrics={"val_loss": loss})
    repo.set_retention(KeepBest("val_loss", n=2))
    repo.tag("reading", "main~1", ttl="6h")
    lease, best = repo.resolve("main~1").why
    assert (lease.kind, lease.tag, lease.until) == ("lease", "reading", repo.leases()["reading"])
    assert best == Reason(
        kind="keep_best",
        text="best 1 of 2 by val_loss (min) = 0.25 on main",
        branch="main",
        policy=KeepBest("val_loss", n=2),
        metric="val_loss",
        mode="min",
        place=1,
        value=0.25,
    )
    assert best.to_json() == {
        "kind": "keep_best",
        "text": "best 1 of 2 by val_loss (min) = 0.25 on main",
        "branch": "main",
        "policy": "Keep the 2 best by val_loss (min).",
        "metric": "val_loss",
        "mode": "min",
        "place": 1,
        "value": 0.25,
    }
    assert best.beside("main") == "best 1 of 2 by val_loss (min) = 0.25"
    assert best.beside(None) == str(best)


class Chosen:
    """A function that has no hash."""

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, manifest: Any) -> bool:
        return bool(manifest.step)


def test_the_function_of_a_policy_needs_no_hash() -> None:
    graph = Graph()
    graph.add()
    newest = graph.add()
    policy = KeepIf(Chosen())
    (verdict, _) = graph.verdicts(policy)
    assert verdict.id == newest
    assert [reason.kind for reason in verdict.reasons] == ["head", "keep_if"]
    assert verdict.reasons[1].policy is policy
    assert verdict.reasons[1].to_json()["policy"] == str(policy)


def test_why_one_expires_is_told_by_attributes_too() -> None:
    repo = ckptstore.init("memory://")
    made = [repo.commit({"n": step}, step=step) for step in range(3)]
    repo.branch("side", "main~1")
    repo.commit({"n": 9}, branch="side")
    repo.delete_branch("side")
    limit = MaxBytes(1)
    verdicts = {verdict.id: verdict for verdict in repo.plan_gc(limit).verdicts}
    (over,) = verdicts[made[0].id].reasons
    assert (over.kind, over.policy) == ("over_limit", limit)
    (let_go,) = next(v for v in verdicts.values() if v.manifest.branch == "side").reasons
    assert (let_go.kind, let_go.branch) == ("let_go", "side")
    repo.gc(MaxToKeep(1))
    (expired,) = repo.resolve(made[0].id).why
    assert expired.kind == "expired"
