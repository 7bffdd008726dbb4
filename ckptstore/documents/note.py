"""Note: metrics or a message added to a checkpoint after its commit. Pure.

A note is an immutable document beside the manifest, which never changes. The newest value of a
metric counts, and a note may withdraw another one (docs/reference/format.md, section 9.1;
docs/adr/0045).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ckptstore.digest import Digest
from ckptstore.documents import canonical
from ckptstore.documents.author import Author
from ckptstore.documents.canonical import Fields
from ckptstore.documents.facts import MESSAGE_LENGTH_MAX
from ckptstore.documents.manifest import CREATED_MAX, metric_to_json, metrics_from_json
from ckptstore.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NOTE_BYTES_MAX = 1 << 20
SEVERAL = "several"  # in an operation in place of a name: it published notes of another repository

_NAME = re.compile(r"([0-9a-f]{64})-([0-9]{12})-([0-9a-f]{64})")


class NoteName(NamedTuple):
    """The name of a note. Sorted names keep the notes of one checkpoint together.

    Attributes:
        checkpoint: The checkpoint of the note.
        seq: The number that the next operation had when the note was written.
        digest: The digest of its bytes.
    """

    checkpoint: Digest
    seq: int
    digest: Digest

    def __str__(self) -> str:
        return f"{self.checkpoint}-{self.seq:012}-{self.digest}"

    @classmethod
    def parse(cls, text: object) -> Self | None:
        """Parse a name; None for any other text."""
        match = _NAME.fullmatch(text) if isinstance(text, str) else None
        return cls(Digest(match[1]), int(match[2]), Digest(match[3])) if match else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """The content of a note.

    Attributes:
        checkpoint: The checkpoint of the note.
        metrics: Numbers by name.
        message: Text for people.
        time: When it was written, in UTC, in microseconds since 1970.
        by: The process that wrote it.
        withdraws: The digest of an earlier note that no longer counts.
    """

    checkpoint: Digest
    metrics: Mapping[str, int | float] = field(default_factory=dict)
    message: str = ""
    time: int = 0
    by: Author
    withdraws: Digest | None = None

    def encode(self) -> bytes:
        """Return the canonical bytes, whose digest is in the name."""
        document: dict[str, Any] = {
            "format": 1,
            "checkpoint": self.checkpoint,
            "metrics": {name: metric_to_json(value) for name, value in self.metrics.items()},
            "message": self.message,
            "time": self.time,
            "by": self.by,
        }
        if self.withdraws is not None:
            document["withdraws"] = self.withdraws
        return canonical.encode(document, name="The note", bytes_max=NOTE_BYTES_MAX)

    @classmethod
    def decode(cls, data: bytes, *, name: str, named: NoteName | None = None) -> Self:
        """Decode a note, and check every field. named: its name, which has to agree."""
        if named is not None and Digest.of(data) != named.digest:
            raise CorruptError(f"{name} is damaged: its content does not match its name.")
        fields = Fields(canonical.decode(data, name=name, bytes_max=NOTE_BYTES_MAX), name=name)
        fields.version()
        checkpoint = fields.digest("checkpoint")
        if named is not None and checkpoint != named.checkpoint:
            raise CorruptError(f"{name} is a note on another checkpoint, {checkpoint.short}.")
        return cls(
            checkpoint=checkpoint,
            metrics=metrics_from_json(fields.object("metrics"), name=name),
            message=fields.text("message", length_max=MESSAGE_LENGTH_MAX),
            time=fields.integer("time", high=CREATED_MAX),
            by=Author.from_json(fields.get("by"), name=f"{name}, by"),
            withdraws=fields.optional("withdraws", fields.digest),
        )


def in_effect(notes: Iterable[tuple[NoteName, Note]]) -> tuple[Note, ...]:
    """Return the notes of one checkpoint that count, oldest first.

    A withdrawn note does not count, unless the withdrawal was withdrawn itself.
    """
    ordered = sorted(notes, key=lambda item: (item[0].seq, item[1].time, item[0].digest))
    withdrawn: set[Digest] = set()
    found: list[Note] = []
    for name, note in reversed(ordered):
        if name.digest in withdrawn:
            continue
        if note.withdraws is not None:
            withdrawn.add(note.withdraws)
        else:
            found.append(note)
    return tuple(reversed(found))


def overlaid(metrics: Mapping[str, int | float], notes: Iterable[Note]) -> dict[str, int | float]:
    """Return metrics updated by those of notes; the newest value counts."""
    result = dict(metrics)
    for note in notes:
        result.update(note.metrics)
    return result
