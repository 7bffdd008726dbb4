"""Revisions against a naive reading of what they say, over random histories."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.digest import Digest
from ckptstore.documents.manifest import Manifest
from ckptstore.errors import InvalidInputError, NotFoundError
from ckptstore.revisions import Names, resolve

METRICS = ("val_loss", "val_acc", "Top-1 (%)")
STEPS = st.integers(-1, 2)
VALUES = st.sampled_from([0.25, 0.5, 1, -1, math.nan, math.inf, -math.inf])
BRANCHES, TAGS = ("main", "side/a"), ("v1.0", "abcdef")


@dataclass
class History:
    """Checkpoints by number, the higher the newer; refs by name."""

    parents: list[list[int]] = field(default_factory=list)
    steps: list[int | None] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    branches: list[str | None] = field(default_factory=list)
    heads: dict[str, int] = field(default_factory=dict)
    tags: dict[str, int] = field(default_factory=dict)

    def names(self) -> Names:
        manifests = {
            name(n): Manifest(
                pages=(),
                structure=name(-1),
                parents=tuple(map(name, self.parents[n])),
                step=self.steps[n],
                metrics=self.metrics[n],
                branch=self.branches[n],
                created=n,
            )
            for n in range(len(self.parents))
        }
        return Names(
            heads={ref: name(n) for ref, n in self.heads.items()},
            tags={ref: name(n) for ref, n in self.tags.items()},
            lookup=manifests.get,
            ids=lambda prefix: [id for id in manifests if id.startswith(prefix)],
        )

    def history(self, number: int) -> list[int]:
        """A checkpoint and all it was made from, newest first."""
        found = {number}
        for n in range(number, -1, -1):
            if n in found:
                found.update(self.parents[n])
        return sorted(found, reverse=True)

    def own(self, number: int, branch: str | None) -> list[int]:
        """A checkpoint and its first parents, while they are those of a branch or of none."""
        found = []
        while self.branches[number] in (branch, None):
            found.append(number)
            if not self.parents[number]:
                break
            number = self.parents[number][0]
        return found


def name(number: int) -> Digest:
    return Digest.of(str(number).encode())


@st.composite
def histories(draw: st.DrawFn) -> History:
    made = History()
    for number in range(draw(st.integers(0, 9))):
        older = st.integers(max(0, number - 3), number - 1)
        made.parents.append(draw(st.lists(older, max_size=2, unique=True)) if number else [])
        made.steps.append(draw(st.none() | STEPS))
        made.metrics.append(draw(st.dictionaries(st.sampled_from(METRICS), VALUES)))
        made.branches.append(draw(st.sampled_from([*BRANCHES, None])))
    if made.parents:
        numbers = st.integers(0, len(made.parents) - 1)
        newest = st.just(len(made.parents) - 1)
        made.heads = draw(st.dictionaries(st.sampled_from(BRANCHES), newest | numbers))
        made.tags = draw(st.dictionaries(st.sampled_from(TAGS), numbers))
    return made


BEST = st.builds(
    "best:{}{}".format, st.sampled_from(METRICS), st.sampled_from(["", ":min", ":max"])
)
ODD = st.sampled_from([*BRANCHES, *TAGS, "nope", "abcdef00", name(3)[:5]])


def bases(history: History) -> st.SearchStrategy[str]:
    """Mostly what names a checkpoint of this history."""
    ids = [name(n)[:length] for n in range(len(history.parents)) for length in (6, 12, 64)]
    known = st.sampled_from([*history.heads, *history.tags, *ids, "latest"])
    return st.one_of(known, known, BEST, ODD)


SUFFIXES = st.one_of(
    st.integers(0, 3).map("~{}".format),
    st.just("~"),
    STEPS.map("@step={}".format),
    BEST.map("@{}".format),
)


def naive(base: str, suffixes: list[str], history: History) -> int | None:
    """What a revision names, said the long way; None for nothing."""
    if base.startswith("best:"):
        suffixes, base = [f"@{base}", *suffixes], "main"
    refs = {**history.tags, **history.heads}
    count = len(history.parents)
    if base == "latest":
        found = max(history.heads.values(), default=None)
    elif base in refs:
        found = refs[base]
    else:
        ids = [n for n in range(count) if len(base) >= 6 and name(n).startswith(base)]
        found = ids[0] if ids else None
    branch: str | None = base
    for suffix in suffixes:
        if found is None:
            return None
        line = history.history(found)
        branch = branch if branch in history.heads else history.branches[found]
        if suffix.startswith("~"):
            for _ in range(int(suffix[1:] or 1)):
                found = next(iter(history.parents[found]), None) if found is not None else None
        elif suffix.startswith("@step="):
            found = next((n for n in line if history.steps[n] == int(suffix[6:])), None)
        else:
            found = best(suffix.removeprefix("@best:"), history.own(found, branch), history)
        branch = None
    return found


def best(text: str, line: list[int], history: History) -> int | None:
    metric, _, mode = text.partition(":")
    most = max if (mode or ("max" if metric == "val_acc" else "min")) == "max" else min
    values: dict[int, Any] = {n: history.metrics[n].get(metric, math.nan) for n in line}
    real = {n: value for n, value in values.items() if math.isfinite(value)}
    winners = [n for n, value in real.items() if value == most(real.values())]
    return max(winners, default=None)


@given(histories(), st.data(), st.lists(SUFFIXES, max_size=2))
def test_a_revision_names_what_a_naive_reading_says(
    history: History, data: st.DataObject, suffixes: list[str]
) -> None:
    base = data.draw(bases(history))
    expected = naive(base, suffixes, history)
    revision = base + "".join(suffixes)
    if expected is None:
        with pytest.raises(NotFoundError) as error:
            resolve(revision, history.names())
        assert len(str(error.value)) < 600
    else:
        assert resolve(revision, history.names()) == name(expected)


@given(histories(), st.text(st.sampled_from("main~@:best=step0123 latest{}v.loss/"), max_size=25))
def test_any_text_names_a_checkpoint_or_is_refused(history: History, text: str) -> None:
    try:
        found: Digest | None = resolve(text, history.names())
    except (NotFoundError, InvalidInputError) as error:
        found, said = None, str(error)
    else:
        said = "."
    assert said.endswith(".")
    assert found is None or found in {name(n) for n in range(len(history.parents))}
