from hypothesis import given
from hypothesis import strategies as st

from ckptstore_cli.graph import draw, order


def drawn(**parents):
    return [f"{line} {id or ''}".rstrip() for line, id in draw(parents)]


def test_one_line_of_descent():
    assert drawn(c="b", b="a", a="") == ["* c", "* b", "* a"]


def test_a_fork_joins_where_it_began():
    assert drawn(d="b", c="b", b="a", a="") == ["* d", "| * c", "|/", "* b", "* a"]


def test_a_branch_is_drawn_in_one_run_whatever_the_times():
    assert drawn(f="d", e="c", d="b", c="b", b="") == [
        "* f",
        "* d",
        "| * e",
        "| * c",
        "|/",
        "* b",
    ]


def test_a_lane_crosses_those_between():
    assert drawn(n="f", g="e", h="f", f="e", e="") == [
        "* n",
        "| * g",
        "| | * h",
        "| |/",
        "|/|",
        "* | f",
        "|/",
        "* e",
    ]


def test_several_parents_open_lanes():
    assert drawn(m="xy", x="r", y="r", r="") == ["* m", "|\\", "* | x", "| * y", "|/", "* r"]


def test_unrelated_histories_stand_apart():
    assert drawn(b="", a="") == ["* b", "* a"]


def test_a_lane_that_ends_lets_those_right_of_it_move_left():
    assert drawn(d="c", c="ba", b="", a="") == ["* d", "* c", "|\\", "* | b", " /", "* a"]


def test_a_lane_whose_parent_is_not_shown_stays_open():
    assert drawn(c="b", x="w") == ["* c", "| * x"]


def test_nothing_draws_nothing():
    assert drawn() == []


@st.composite
def histories(draw_from, *, parents_max):
    """Ids newest first, each with some parents among the older ones."""
    count = draw_from(st.integers(0, 12))
    return {
        str(id): draw_from(st.lists(st.integers(0, id - 1).map(str), max_size=parents_max))
        if id
        else []
        for id in reversed(range(count))
    }


@given(histories(parents_max=4))
def test_each_checkpoint_is_drawn_once_above_its_parents(parents):
    ids = [id for _, id in draw(parents) if id is not None]
    assert sorted(ids) == sorted(parents)
    assert ids == order(parents)
    for id, own in parents.items():
        assert all(ids.index(id) < ids.index(parent) for parent in own)


@given(histories(parents_max=2))
def test_every_line_follows_the_lanes_of_the_one_before(parents):
    above: set[int] = set()
    for line, id in draw(parents):
        here = {position for position, mark in enumerate(line) if mark != " "}
        assert line == line.rstrip()
        assert line.count("*") == (id is not None)
        for position in here:
            if line[position] not in "*_":
                assert {position - 1, position, position + 1} & above, (line, position)
        above = here
