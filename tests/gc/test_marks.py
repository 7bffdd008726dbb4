"""Counted marks: a multiset of the beginnings of digests."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.digest import Digest
from ckptstore.gc.marks import MARK_DIGITS, Counts, Exclusive, marks_of

if TYPE_CHECKING:
    from ckptstore.gc.marks import MarkArray

DIGESTS = [Digest.of(b"%d" % number) for number in range(12)]
numbers = st.lists(st.integers(0, len(DIGESTS) - 1), max_size=20)


def marks(listed: list[int]) -> MarkArray:
    return marks_of(DIGESTS[number] for number in listed)


@pytest.mark.property
@given(st.lists(st.tuples(numbers, numbers), max_size=6))
def test_marks_are_counted_as_a_counter_counts(changes: list[tuple[list[int], list[int]]]) -> None:
    counts, truth = Counts(), Counter[int]()
    for added, wanted in changes:
        truth.update(added)
        removed = list((Counter(wanted) & truth).elements())
        truth.subtract(removed)
        half = len(added) // 2
        counts.change(added=[marks(added[:half]), marks(added[half:])], removed=[marks(removed)])
        assert counts.of(marks_of(DIGESTS)).tolist() == [truth[n] for n in range(len(DIGESTS))]


def test_digests_that_begin_alike_count_as_one_so_that_what_is_needed_stays() -> None:
    first, second = ("ab" * 8 + letter * 48 for letter in "01")
    assert len(first[:MARK_DIGITS]) == MARK_DIGITS
    counts = Counts()
    counts.change(added=[marks_of([first]), marks_of([second])])
    counts.change(removed=[marks_of([first])])
    assert counts.of(marks_of([first, second])).tolist() == [1, 1]


def test_owners_are_those_of_the_objects_and_none_of_others() -> None:
    ascending = marks([0, 1, 2])
    ascending.sort()
    exclusive = Exclusive(frozenset(), ascending, ascending.argsort())
    assert exclusive.owners_of(marks([3, 4])).tolist() == [-1, -1]
    assert sorted(exclusive.owners_of(marks([2, 0, 1])).tolist()) == [0, 1, 2]
    empty = Exclusive(frozenset(), marks([]), marks([]).argsort())
    assert empty.owners_of(marks([1])).tolist() == [-1]
