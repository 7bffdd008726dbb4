"""LetGo: a checkpoint that lost its name, and when: a gc counts the grace time from then.

Each operation carries these entries along until a gc has done with them (docs/reference/format.md,
section 8; ADR 0045).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from ckptstore.documents.canonical import Fields
from ckptstore.documents.manifest import CREATED_MAX
from ckptstore.errors import CorruptError
from ckptstore.times import to_the_minute

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptstore.digest import Digest

LET_GO_MAX = 500  # entries of 150 bytes each, as every operation carries them along
NAME_LENGTH_MAX = 4096
MISSING = "missing"
WAYS = ("branch deleted", "branch moved", "tag deleted", "tag moved", MISSING, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class LetGo:
    """A checkpoint that lost a name, and with it everything reachable only from there.

    Attributes:
        id: The checkpoint; None in the one entry that stands for all that did not fit.
        name: The branch or tag; "" for a checkpoint that is missing.
        way: One of `WAYS`. `MISSING` is for a checkpoint of the history whose manifest a gc found
            to be missing or damaged.
        time: The time of the operation, in microseconds since 1970, UTC.
    """

    id: Digest | None
    name: str
    way: str
    time: int

    def __str__(self) -> str:
        when = to_the_minute(self.time)
        kind, _, how = self.way.partition(" ")
        return f"{kind} {self.name} was {how} on {when}" if kind else f"let go before {when}"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form inside an operation."""
        return {"id": self.id, "name": self.name, "way": self.way, "time": self.time}

    @classmethod
    def from_json(cls, document: object, *, name: str) -> Self:
        """Check every field."""
        fields = Fields(document, name=name)
        way = fields.text("way", length_max=NAME_LENGTH_MAX)
        if way not in WAYS:
            raise CorruptError(f"{name}: the way {way!r} is unknown.")
        return cls(
            id=None if fields.get("id") is None else fields.digest("id"),
            name=fields.text("name", length_max=NAME_LENGTH_MAX),
            way=way,
            time=fields.integer("time", high=CREATED_MAX),
        )


def let_go(
    before: Mapping[str, Digest], after: Mapping[str, Digest], *, kind: str, time: int
) -> list[LetGo]:
    """Return the checkpoints that refs of one kind ("branch", "tag") no longer name."""
    return [
        LetGo(id=id, name=name, way=f"{kind} {'moved' if name in after else 'deleted'}", time=time)
        for name, id in before.items()
        if after.get(name) != id
    ]


def limited(entries: list[LetGo]) -> tuple[LetGo, ...]:
    """Return at most `LET_GO_MAX` entries, the oldest first; one stands for all older ones."""
    ordered = sorted(entries, key=lambda entry: entry.time)
    if len(ordered) <= LET_GO_MAX:
        return tuple(ordered)
    last = ordered[-LET_GO_MAX].time
    return (LetGo(id=None, name="", way="", time=last), *ordered[-LET_GO_MAX + 1 :])
