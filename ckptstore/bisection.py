"""Bisection: the first bad checkpoint of a chain, found by testing few of its checkpoints.

Pure. Between a good checkpoint and a bad one made from it, the middle of those that can be tested
is tested next, so each answer halves them. Checkpoints that could not be tested are often
neighbours: those between two of them come last, and after each of them the next one is chosen 1, 2,
4, … places away from the middle, on either side in turn. See docs/adr/0058.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from ckptstore.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

Answer = Literal["good", "bad", "skip"]
Id = TypeVar("Id", bound=str)

ID_DIGITS = 8
DOUBLINGS_MAX = 60  # 2 ** 60 places are beyond the end of any chain


@dataclass(frozen=True, slots=True, kw_only=True)
class Bisection(Generic[Id]):
    """The state of a search.

    Attributes:
        good: The newest checkpoint that is known to be good.
        suspects: The checkpoints of which one is the first bad one, oldest first. The last of them
            is known to be bad.
        left: The suspects that can be tested, without the last.
        next: The checkpoint to test next; None when no test can tell more.
    """

    good: Id
    suspects: tuple[Id, ...]
    left: tuple[Id, ...]
    next: Id | None

    @property
    def bad(self) -> Id:
        """The oldest checkpoint that is known to be bad."""
        return self.suspects[-1]

    @property
    def found(self) -> Id | None:
        """The first bad checkpoint, if it is known."""
        return self.bad if len(self.suspects) == 1 else None

    @property
    def steps(self) -> int:
        """The most tests that are left, unless some checkpoints cannot be tested."""
        return len(self.left).bit_length()


def bisection(
    chain: Sequence[Id],
    answers: Sequence[tuple[Id, Answer]],
    *,
    untestable: Collection[Id] = (),
) -> Bisection[Id]:
    """Return the state of a search after some answers.

    Args:
        chain: Checkpoints in the order in which they were made, each from the one before it.
        answers: The answers in the order in which they came, each for a checkpoint of the chain,
            with a good and a bad one among them. The last answer for a checkpoint counts.
        untestable: Checkpoints that cannot be tested, such as expired ones.

    Raises:
        InvalidInputError: A good checkpoint is newer than a bad one.
    """
    places = {id: place for place, id in enumerate(chain)}
    latest: Mapping[Id, Answer] = dict(answers)
    good = max(places[id] for id, answer in latest.items() if answer == "good")
    bad = min(places[id] for id, answer in latest.items() if answer == "bad")
    if good > bad:
        raise InvalidInputError(
            f"Checkpoint {chain[good][:ID_DIGITS]} is called good, but is newer than "
            f"{chain[bad][:ID_DIGITS]}, which is called bad. A bisect finds where good became bad; "
            "for the other way round, exchange the two words in all answers."
        )
    suspects = tuple(chain[good + 1 : bad + 1])
    skipped = [place for place, id in enumerate(suspects) if latest.get(id) == "skip"]
    left = [
        place
        for place, id in enumerate(suspects[:-1])
        if place not in skipped and id not in untestable
    ]
    between = range(skipped[0], skipped[-1]) if skipped else ()
    outside = [place for place in left if place not in between]
    in_a_row = takewhile(lambda answer: answer[1] == "skip", reversed(answers))
    return Bisection(
        good=chain[good],
        suspects=suspects,
        left=tuple(suspects[place] for place in left),
        next=suspects[_chosen(outside or left, len(list(in_a_row)))] if left else None,
    )


def _chosen(places: Sequence[int], skips: int) -> int:
    """Return which of the places to test next, after so many tests in a row without an answer."""
    middle = (len(places) - 1) // 2
    distance = 1 << min(skips - 1, DOUBLINGS_MAX) if skips else 0
    at = middle + (distance if skips % 2 else -distance)
    return places[min(max(at, 0), len(places) - 1)]
