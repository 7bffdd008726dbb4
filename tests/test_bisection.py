"""The search for the first bad checkpoint of a chain."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.bisection import bisection
from ckptstore.errors import InvalidInputError


def searched(count, first_bad, *, broken=(), gone=()):
    """The state at the end of a search among `count` checkpoints, and the ids that were tested.

    The checkpoint 0 is good, and those from `first_bad` on are bad. `broken`: those whose test
    gives no answer. `gone`: those that are known to be untestable.
    """
    chain = [f"{number:064x}" for number in range(count)]
    untestable = {chain[number] for number in gone}
    answers = [(chain[-1], "bad"), (chain[0], "good")]
    tested = []
    while (id := (state := bisection(chain, answers, untestable=untestable)).next) is not None:
        place = chain.index(id)
        assert place not in gone
        assert place not in tested
        tested.append(place)
        answer = "bad" if place >= first_bad else "good"
        answers.append((id, "skip" if place in broken else answer))
    return [chain.index(id) for id in state.suspects], tested, state


@pytest.mark.parametrize("count", range(2, 130))
def test_every_position_is_found_in_as_many_tests_as_halving_needs(count):
    for first_bad in range(1, count):
        suspects, tested, state = searched(count, first_bad)
        assert suspects == [first_bad]
        assert state.found == state.bad
        between = count - 2
        assert len(tested) <= between.bit_length()  # ceil(log2(between + 1))


def check(count, first_bad, *, broken=(), gone=()):
    suspects, tested, state = searched(count, first_bad, broken=broken, gone=gone)
    dead = {*broken, *gone}
    good = max(place for place in range(first_bad) if place not in dead or place == 0)
    bad = min(place for place in range(first_bad, count) if place not in dead or place == count - 1)
    assert suspects == list(range(good + 1, bad + 1))
    assert (state.found is not None) == (len(suspects) == 1)
    skips = len({*tested} & {*broken})
    between = count - 2 - len({*gone} - {0, count - 1})
    halvings = between.bit_length()
    assert len(tested) <= (2 * halvings + 2 * skips if skips else halvings)


def test_with_any_two_that_cannot_be_tested_the_suspects_are_those_that_no_test_can_tell_apart():
    for count in range(2, 14):
        for first_bad in range(1, count):
            for broken in combinations(range(1, count - 1), 2):
                check(count, first_bad, broken=broken)


@given(st.data())
def test_with_any_that_cannot_be_tested(data):
    count = data.draw(st.integers(2, 300))
    places = st.sets(st.integers(0, count - 1), max_size=count)
    first_bad = data.draw(st.integers(1, count - 1))
    gone = data.draw(places)
    broken = data.draw(places) - gone
    start = data.draw(st.integers(0, count - 1))
    block = set(range(start, min(count, start + data.draw(st.integers(0, count))))) - gone
    check(count, first_bad, broken=broken | block, gone=gone)


def test_a_block_in_the_middle_that_cannot_be_tested_is_left_in_few_tests():
    for first_bad in (1, 20, 200, 349, 651, 800, 999):
        _, tested, _ = searched(1000, first_bad, broken=range(350, 650))
        assert len(tested) <= 40  # not 300


def test_the_last_answer_for_a_checkpoint_counts():
    chain = [f"{number:064x}" for number in range(9)]
    answers = [(chain[8], "bad"), (chain[0], "good"), (chain[4], "bad"), (chain[4], "good")]
    assert bisection(chain, answers).next == chain[6]


def test_a_good_one_that_is_newer_than_a_bad_one_is_refused():
    chain = [f"{number:064x}" for number in range(9)]
    with pytest.raises(InvalidInputError, match="exchange the two words"):
        bisection(chain, [(chain[0], "bad"), (chain[8], "good")])
