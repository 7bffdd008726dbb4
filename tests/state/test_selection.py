"""Patterns over paths."""

from __future__ import annotations

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import InvalidInputError
from ckptstore.state.selection import Selection, matches

PARTS = st.sampled_from(["a", "b", "ab", "w.0", "w.1"])
PATHS = st.lists(PARTS, min_size=1, max_size=5).map("/".join)
PATTERNS = st.lists(
    PARTS | st.sampled_from(["*", "**", "a*", "?", "w.[01]"]), min_size=1, max_size=5
)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("model/**", "model/wte.weight", True),
        ("model", "model/wte.weight", True),
        ("model/", "model/wte.weight", True),
        ("model", "model2/wte.weight", False),
        ("model/head.*", "model/head.weight", True),
        ("model/head.*", "model/headless", False),
        ("*/wte.weight", "model/wte.weight", True),
        ("*.weight", "model/wte.weight", False),
        ("**/*.weight", "model/deep/wte.weight", True),
        ("**", "x", True),
        ("optimizer/state/*/exp_avg", "optimizer/state/12/exp_avg", True),
        ("optimizer/state/*/exp_avg", "optimizer/state/12/exp_avg_sq", False),
        ("model/layer.[0-3].*", "model/layer.2.bias", True),
        ("a/**/z", "a/z", True),
        ("a/**/z", "a/b/c/z", True),
        ("a/**/z", "a/b/c", False),
    ],
)
def test_known_patterns(pattern: str, path: str, expected: bool) -> None:
    assert matches(pattern, path) is expected


@given(PATTERNS, PATHS)
def test_patterns_match_as_the_regular_expression_of_their_meaning(
    pattern: list[str], path: str
) -> None:
    parts = [
        "(?:[^/]+/)*"
        if part == "**"
        else fnmatch.translate(part)[4:-3].replace(".*", "[^/]*") + "/"
        for part in pattern
    ]
    parts = [
        part.replace("(?s:", "").replace(".", "[^/]") if part == "./" else part for part in parts
    ]
    expected = re.match("".join(parts), f"{path}/") is not None
    assert matches("/".join(pattern), path) is expected


def test_include_and_exclude_together() -> None:
    chosen = Selection.of(["model/**", "step"], "model/head.*")
    assert [path for path in ("model/body", "model/head.w", "step", "other") if chosen(path)] == [
        "model/body",
        "step",
    ]
    assert Selection.of(None, None).is_everything
    assert not Selection.of((), None)("anything")


@pytest.mark.parametrize("bad", ["", "/", ["a", ""], ["x" * 5000], [3]])
def test_what_is_no_pattern_is_refused(bad: object) -> None:
    with pytest.raises(InvalidInputError):
        Selection.of(bad, None)  # type: ignore[arg-type]


def test_a_pattern_made_to_be_slow_is_not() -> None:
    """A thousand stars against a long path."""
    assert not matches("/".join(["**"] * 1000) + "/z", "/".join("a" * 2000))
    assert not matches("*a" * 1000 + "b", "a" * 4000)
