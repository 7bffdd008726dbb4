from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import printable
from ckptstore_cli import text

NOW = datetime(2030, 5, 17, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (12_345_678, "12.3 MB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (5_400_000_000, "5.4 GB"),
        (10**21, "1000.0 EB"),
    ],
)
def test_sizes(size_bytes, shown):
    assert text.size(size_bytes) == shown


@pytest.mark.parametrize(
    ("ago", "shown"),
    [
        (timedelta(seconds=0), "just now"),
        (timedelta(seconds=-30), "just now"),
        (timedelta(seconds=59), "59 s ago"),
        (timedelta(minutes=3, seconds=59), "3 min ago"),
        (timedelta(hours=23), "23 h ago"),
        (timedelta(days=1), "1 day ago"),
        (timedelta(days=30), "30 days ago"),
        (timedelta(days=31), "2030-04-16"),
        (timedelta(days=-2), "2030-05-19"),
    ],
)
def test_ages(ago, shown):
    assert text.age(NOW - ago, NOW) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "1 min"), (61, "2 min"), (3600, "60 min"), (7201, "3 h"), (172801, "3 days")],
)
def test_durations_are_rounded_up(seconds, shown):
    assert text.duration(seconds) == shown
    assert text.duration(1e308).endswith("days")


def test_numbers():
    assert text.metrics({"a": 1, "b": 0.123456789, "c": float("-inf")}) == "a=1 b=0.123457 c=-inf"
    assert text.count(1, "branch", "branches") == "1 branch"
    assert text.count(1204, "branch", "branches") == "1,204 branches"
    assert (text.step(None), text.step(0)) == ("-", "0")
    assert (text.shape(()), text.shape((2, 3))) == ("scalar", "2 x 3")
    assert text.first_line("\n one \ntwo") == "one"


def test_plain_keeps_what_people_write_and_shows_what_steers():
    assert printable("größer ✓ 漢字 👩‍🚀") == "größer ✓ 漢字 👩‍🚀"
    assert printable("a\x1b[2Jb\u202e\x9b\ud800\n") == "a\\x1b[2Jb\\u202e\\x9b\\ud800\\n"


@given(st.text(st.characters()))
def test_plain_text_is_printable_and_stays_as_it_is(value):
    shown = printable(value)
    assert (
        shown.replace("\u200c", "").replace("\u200d", "").isprintable() or not value.isprintable()
    )
    assert printable(shown) == shown
    shown.encode()


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3)), max_size=6), st.integers(0, 200))
def test_columns_give_way_in_turn_and_never_more_than_needed(columns, room):
    widths = [width for width, _ in columns]
    turns = [turn for _, turn in columns]
    fitted = text.fit(widths, giving_way=turns, room=room)
    for width, turn, now in zip(widths, turns, fitted, strict=True):
        assert now == width or (turn and min(width, 12) <= now < width)
    assert sum(fitted) >= min(room, sum(widths))
    cut = [turn for width, turn, now in zip(widths, turns, fitted, strict=True) if now < width]
    if cut:
        earlier = [now for turn, now in zip(turns, fitted, strict=True) if 0 < turn < max(cut)]
        assert all(now <= 12 for now in earlier)


def test_columns_that_drop_are_left_out_one_turn_after_another_until_the_rest_fits():
    widths, dropping = [10, 8, 6, 4], [0, 2, 1, 0]
    assert text.staying(widths, dropping=dropping, room=34, gap=2) == [0, 1, 2, 3]
    assert text.staying(widths, dropping=dropping, room=33, gap=2) == [0, 1, 3]
    assert text.staying(widths, dropping=dropping, room=20, gap=2) == [0, 3]


def test_a_path_breaks_after_slashes_and_not_inside_names():
    assert text.break_paths("model/0.weight", 8) == "model/\n0.weight"
    assert text.break_paths("a/b/c -> d", 4) == "a/b/\nc -> d"
    assert text.break_paths("short", 8) == "short"
    assert text.break_paths("//x", 2) == "//\nx"
