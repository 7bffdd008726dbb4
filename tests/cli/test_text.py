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
    assert text.metrics({"a": 1, "b": 0.123456789, "c": float("-inf")}) == "a=1 b=0.1235 c=-inf"
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


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3), st.integers(1, 20)), max_size=6),
    st.integers(0, 200),
)
def test_columns_give_way_in_turn_and_never_more_than_needed(columns, room):
    widths, turns, least = ([column[part] for column in columns] for part in range(3))
    fitted = text.fit(
        widths, least=least, giving_way=turns, dropping=[0] * len(columns), room=room, gap=0
    )
    assert list(fitted) == list(range(len(columns)))
    for at, width in enumerate(widths):
        assert fitted[at] == width or (turns[at] and min(width, least[at]) <= fitted[at] < width)
    assert sum(fitted.values()) >= min(room, sum(widths))
    narrowed = [turns[at] for at, width in enumerate(widths) if fitted[at] < width]
    for at, turn in enumerate(turns):
        assert not 0 < turn < max(narrowed, default=0) or fitted[at] <= least[at]


@pytest.mark.parametrize(
    ("room", "fitted"),
    [
        (52, {0: 20, 1: 20, 2: 4, 3: 2}),
        (51, {0: 20, 1: 19, 2: 4, 3: 2}),
        (44, {0: 20, 1: 12, 2: 4, 3: 2}),
        (43, {0: 20, 1: 17, 3: 2}),
        (37, {0: 19, 1: 12, 3: 2}),
        (9, {0: 12, 1: 12, 3: 2}),
    ],
)
def test_columns_are_left_out_in_turn_and_what_that_frees_goes_to_the_narrowed_ones(room, fitted):
    columns = {"giving_way": [3, 1, 0, 0], "dropping": [0, 0, 2, 0]}
    assert text.fit([20, 20, 4, 2], least=[12] * 4, room=room, gap=2, **columns) == fitted


def test_a_column_that_folds_is_no_narrower_than_the_names_in_it():
    assert text.least_width(["a/b", "transformer-large/lr"], folds=True) == 18
    assert text.least_width(["transformer-large/lr"], folds=False) == 12
    assert text.least_width(["a/b c"], folds=True) == 12
    assert text.least_width(["x" * 99], folds=True) == 24


def test_a_text_folds_between_words_and_after_slashes_and_not_inside_names():
    assert text.folded("model/0.weight", 8) == "model/\n0.weight"
    assert text.folded("a/b/c -> d", 4) == "a/b/\nc ->\nd"
    assert text.folded("short", 8) == "short"
    assert text.folded("//x", 2) == "//\nx"
    assert text.folded("two words", 5) == "two\nwords"
    assert text.folded("abcdefghij", 5) == "a…hij"


WORDS = st.lists(st.text("ab./", min_size=1, max_size=30), min_size=1, max_size=6).map(" ".join)


@given(WORDS, st.integers(1, 40))
def test_folded_text_fits_and_misses_only_what_an_ellipsis_stands_for(value, width):
    lines = text.folded(value, width).split("\n")
    assert all(len(line) <= width for line in lines)
    if not any("…" in line for line in lines):
        assert "".join(lines).replace(" ", "") == value.replace(" ", "")


QUERY = "model/bert.encoder.layer.11.attention.self.query.weight"


@pytest.mark.parametrize(
    ("path", "width", "shown"),
    [
        (QUERY, 99, QUERY),
        (QUERY, 52, "model/…encoder.layer.11.attention.self.query.weight"),
        (QUERY, 40, "model/…11.attention.self.query.weight"),
        (QUERY, 30, "model/…11.…self.query.weight"),
        (QUERY, 24, "model/…11.…query.weight"),
        (QUERY, 14, "model/…weight"),
        (QUERY, 12, "mod…y.weight"),
        (QUERY, 1, "…"),
        (QUERY, 0, ""),
        ("a" * 30, 9, "aa…aaaaaa"),
        ("model/old.weight -> model/new.weight", 26, "mod….weight -> mod….weight"),
    ],
)
def test_a_path_loses_words_of_its_middle_before_numbers_and_ends(path, width, shown):
    assert text.shorten(path, width) == shown


@given(st.text("ab1./ ->", max_size=60), st.integers(0, 70))
def test_a_shortened_path_fits_and_one_that_fits_stays(path, width):
    shown = text.shorten(path, width)
    assert len(shown) <= width
    assert (shown == path) == (len(path) <= width)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1 / 3, "0.3333"),
        (0.0401616, "0.04016"),
        (0.25, "0.25"),
        (12345.678, "12346"),
        (-4e12, "-4e+12"),
        (12345678, "12345678"),
        (1e-5, "1e-05"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_a_metric_has_four_significant_digits(value, shown):
    assert text.metric(value) == shown


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        (("read", 0, 0, 2), "Read 0 B"),
        (("read", 5000, 0, 2), "Read 5.0 kB, 2.5 kB/s"),
        (("stored", 10**9, 4 * 10**9, 2), "Stored 1.0 GB of 4.0 GB (25 %), 500.0 MB/s, 6 s left"),
        (
            ("verified", 10**6, 10**9, 1),
            "Verified 1.0 MB of 1.0 GB (0 %), 1.0 MB/s, 16:39 min left",
        ),
        (("read", 10**6, 10**12, 1), "Read 1.0 MB of 1.0 TB (0 %), 1.0 MB/s, 277:46 h left"),
        (("deleted", 1500, 3000, 1), "Deleted 1,500 of 3,000 (50 %) objects, 1,500/s, 1 s left"),
        (("read", 7, 7, 1), "Read 7 B of 7 B (100 %), 7 B/s"),
        (("read", 7, 9, 0), "Read 7 B of 9 B (77 %)"),
    ],
)
def test_progress(progress, shown):
    *counts, seconds = progress
    assert text.progress_of(*counts, seconds=seconds) == shown
