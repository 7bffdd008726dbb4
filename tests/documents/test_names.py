"""Names of refs and metrics, and how keys become segments of paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.documents.names import check_metric_name, check_ref_name, escape_key, unescape_key
from ckptstore.errors import InvalidInputError
from ckptstore.state.paths import key_segments
from ckptstore.testing.strategies import keys


@pytest.mark.parametrize(
    "name", ["main", "v1.0", "a/b/c", "_x", "0", "exp-1+2", "A" * 200, "bestish", "abcdef12"]
)
def test_a_ref_may_have_this_name(name: str) -> None:
    assert check_ref_name(name, kind="branch") == name


BAD_REFS = [
    "",
    " ",
    "a b",
    "a~1",
    "a@b",
    "a:b",
    "best:x",
    "latest",
    "best",
    "HEAD",
    "-x",
    ".x",
    "/x",
    "x/",
    "a//b",
    "a/../b",
    "..",
    "a..b",
    "a/.b",
    "a/-b",
    "x.lock",
    "x.",
    "a\n",
    "main\n",
    "a\x00",
    "é",
]


@pytest.mark.parametrize("name", [*BAD_REFS, "A" * 201, None, 3, b"main", ["main"]], ids=repr)
def test_a_ref_may_not_have_this_name(name: object) -> None:
    with pytest.raises(InvalidInputError, match="cannot name a tag"):
        check_ref_name(name, kind="tag")


@pytest.mark.parametrize("name", ["val_loss", "val/acc", "Top-5 (%)", "a:b", "é", "x" * 200])
def test_nearly_every_metric_name_is_legal(name: str) -> None:
    assert check_metric_name(name) == name


@pytest.mark.parametrize("name", ["", "a\n", "\x7f", "\ud800", "x" * 201, 3, None], ids=repr)
def test_these_metric_names_are_not(name: object) -> None:
    with pytest.raises(InvalidInputError, match="cannot name a metric"):
        check_metric_name(name)


@pytest.mark.parametrize(
    ("key", "segment"),
    [
        ("wte.weight", "wte.weight"),
        ("a/b", "a%2Fb"),
        ("100%", "100%25"),
        ("", "%"),
        ("%", "%25"),
        ("é", "é"),
        ("a\nb\x7f", "a%0Ab%7F"),
        ("\ud800", "%ED%A0%80"),
        ("..", ".."),
    ],
)
def test_a_key_is_written_so_that_no_two_read_alike(key: str, segment: str) -> None:
    assert escape_key(key) == segment


@given(st.text(st.characters(codec=None)), st.text(st.characters(codec=None)))
def test_different_keys_have_different_segments(one: str, other: str) -> None:
    assert (escape_key(one) == escape_key(other)) == (one == other)


@given(st.lists(keys(), unique_by=lambda key: (type(key), key)))
def test_the_segments_of_a_dict_differ_and_stand_alone_in_a_path(listed: list[str | int]) -> None:
    segments = key_segments(listed)
    assert len(set(segments)) == len(listed)
    for key, segment in zip(listed, segments, strict=True):
        assert segment
        assert "/" not in segment
        segment.encode("utf-8")
        assert type(key) is str or segment == str(key)


def test_a_string_key_gives_way_to_the_integer_it_reads_like() -> None:
    assert key_segments([0, "0", "1", -5, "-5", "%30"]) == ["0", "%30", "1", "-5", "%2D5", "%2530"]
    assert key_segments(["0", "%30"]) == ["0", "%2530"]


@given(keys=keys())
def test_a_segment_gives_its_key_back(keys: object) -> None:
    if isinstance(keys, str):
        assert unescape_key(escape_key(keys)) == keys


@pytest.mark.parametrize("segment", ["%FF", "a%C3", "%E2%82"])
def test_escapes_that_are_no_characters_are_an_error(segment: str) -> None:
    with pytest.raises(ValueError, match="utf-8"):
        unescape_key(segment)
