"""MaxBytes: a limit on the space of a branch, the only policy that overrides others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ckptstore.retention.policy import ALWAYS, Policy, check_count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ckptstore.digest import Digest
    from ckptstore.retention.policy import Chain, Choices

UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3), ("B", 1))


@dataclass(frozen=True, slots=True)
class MaxBytes(Policy):
    """Limits the bytes that the other policies keep of each branch; alone, those of the branch.

    While the kept checkpoints take more, one after the other expires: first those kept by a
    periodic policy, then by KeepWithin, by MaxToKeep, by KeepBest, and by step or function. Within
    each kind the oldest goes first. Heads, tags, seeds, the newest and the best checkpoint always
    stay.

    Attributes:
        n: Bytes of all objects that the branch's kept checkpoints reach, each object once.
    """

    n: int
    kind: ClassVar[str] = "max_bytes"

    def __post_init__(self) -> None:
        check_count(self.n, "MaxBytes")

    @property
    def phrase(self) -> str:
        """The limit, as a part of a sentence."""
        return f"at most {self.size} of each branch"

    @property
    def size(self) -> str:
        """The number of bytes with a unit."""
        name, unit = next((name, unit) for name, unit in UNITS if self.n >= unit)
        return f"{self.n / unit:.4g} {name}"

    def keep(self, chain: Chain) -> Choices:  # noqa: ARG002
        """Keep nothing by itself."""
        return iter(())


def over_limit(
    limit: int,
    chain: Chain,
    ranks: Mapping[Digest, int],
    freed: Callable[[Sequence[Digest]], Sequence[int]],
) -> tuple[list[Digest], bool]:
    """Return the checkpoints that have to expire to meet a limit, and whether that suffices.

    It may not suffice, as some checkpoints always stay.

    Args:
        limit: Bytes.
        chain: The branch, newest first.
        ranks: The highest rank among the reasons of each kept checkpoint.
        freed: Returns the bytes that each checkpoint frees once those before it have expired.
    """
    kept = [id for id, _ in reversed(chain) if id in ranks]  # the oldest first
    order = sorted(kept, key=lambda id: ranks[id])
    frees = freed(order)
    total = sum(frees)
    gone: list[Digest] = []
    for id, size in zip(order, frees, strict=True):
        if total <= limit or ranks[id] >= ALWAYS:
            break
        gone.append(id)
        total -= size
    return gone, total <= limit
