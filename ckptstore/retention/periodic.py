"""Periodic: policies by the time and the steps of a branch.

Time is the elapsed time of the branch: the sum of the times between neighbours, where a negative
time counts as 0. Manifests record it since the first checkpoint, so it includes expired ones. A
clock that jumps forward adds to it once, and one that jumps back takes nothing away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ckptstore.errors import InvalidInputError, shown
from ckptstore.retention.policy import (
    NUMBER_MAX,
    PERIODIC,
    WITHIN,
    Choice,
    Policy,
    check_count,
)
from ckptstore.retention.reason import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.retention.policy import Chain, Choices

HOUR_MICROSECONDS = 3_600_000_000


@dataclass(frozen=True, slots=True)
class KeepEveryNHours(Policy):
    """Keeps the first checkpoint of each branch, and one whenever n more hours have passed.

    Hours are counted along the branch, over expired checkpoints too. A pause counts as time.

    Attributes:
        n: Hours since the last kept checkpoint; any number above 0, up to 2^63 - 1.
    """

    n: float
    kind: ClassVar[str] = "keep_every_n_hours"

    def __post_init__(self) -> None:
        check_hours(self.n, "KeepEveryNHours")

    @property
    def phrase(self) -> str:
        """The kept checkpoints, as a part of a sentence."""
        return "one every hour" if self.n == 1 else f"one every {self.n:g} hours"

    def keep(self, chain: Chain) -> Choices:
        """Decide by the elapsed time, oldest first."""
        reason = Reason(kind=self.kind, text=f"every {self.n:g} h", policy=self)
        last: int | None = None
        for id, elapsed in elapsed_times(chain):
            if last is None or elapsed - last >= self.n * HOUR_MICROSECONDS:
                last = elapsed
                yield Choice(id, reason, PERIODIC)


@dataclass(frozen=True, slots=True)
class KeepEveryNSteps(Policy):
    """Keeps the first checkpoint of every n steps: of steps 0 to n - 1, n to 2n - 1, and so on.

    Checkpoints without a step are not considered.

    Attributes:
        n: Steps, at least 1.
    """

    n: int
    kind: ClassVar[str] = "keep_every_n_steps"

    def __post_init__(self) -> None:
        check_count(self.n, "KeepEveryNSteps")

    @property
    def phrase(self) -> str:
        """The kept checkpoints, as a part of a sentence."""
        return f"one every {self.n} steps" if self.n > 1 else "one of every step"

    def keep(self, chain: Chain) -> Choices:
        """Decide by the steps of the manifests, oldest first."""
        reason = Reason(kind=self.kind, text=f"every {self.n} steps", policy=self)
        filled: set[int] = set()
        for id, manifest in reversed(chain):
            if manifest.step is not None and manifest.step // self.n not in filled:
                filled.add(manifest.step // self.n)
                yield Choice(id, reason, PERIODIC)


@dataclass(frozen=True, slots=True)
class KeepWithin(Policy):
    """Keeps the checkpoints of the last hours of each branch.

    Hours are counted back from the newest checkpoint, not from now, so the last hours of a run that
    ended stay.

    Attributes:
        hours: Any number above 0, up to 2^63 - 1.
    """

    hours: float
    kind: ClassVar[str] = "keep_within"

    def __post_init__(self) -> None:
        check_hours(self.hours, "KeepWithin")

    @property
    def phrase(self) -> str:
        """The kept checkpoints, as a part of a sentence."""
        return "the last hour" if self.hours == 1 else f"the last {self.hours:g} hours"

    def keep(self, chain: Chain) -> Choices:
        """Decide by the elapsed time since each checkpoint."""
        text = f"within {self.hours:g} h of the newest"
        reason = Reason(kind=self.kind, text=text, policy=self)
        times = list(elapsed_times(chain))
        for id, elapsed in times:
            if times[-1][1] - elapsed <= self.hours * HOUR_MICROSECONDS:
                yield Choice(id, reason, WITHIN)


def elapsed_times(chain: Chain) -> Iterator[tuple[Digest, int]]:
    """Yield each checkpoint, the oldest first, and the elapsed microseconds since the first one.

    If one of two neighbours does not record the elapsed time, their own times are compared.
    """
    elapsed = 0
    before: Manifest | None = None
    for id, manifest in reversed(chain):
        if before is not None:
            elapsed += max(0, _between(before, manifest))
        yield id, elapsed
        before = manifest


def _between(before: Manifest, manifest: Manifest) -> int:
    start, end = before.known_elapsed, manifest.known_elapsed
    return manifest.created - before.created if start is None or end is None else end - start


def check_hours(number: object, what: str) -> None:
    """Raise InvalidInputError unless a value is a number of hours above 0."""
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if not is_number or not 0 < number <= NUMBER_MAX:  # type: ignore[operator]
        raise InvalidInputError(
            f"{what}: {shown(number)} is not a number of hours above 0, and of at most 63 bits."
        )
