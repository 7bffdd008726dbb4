"""Author: the process and the user behind an operation, a note or an expiry.

See docs/adr/0044, and section 8 of docs/reference/format.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from ckptstore.documents.canonical import Fields

AUTHOR_LENGTH_MAX = 256  # characters of each text of an author
PID_MAX = 2**63 - 1

# The roles of authors (ADR 0044). Later versions may have others.
HAND = "hand"  # a person, by a command of the program or a handle opened with by_hand
CALL = "call"  # a program that makes or deletes a name, or changes a setting
SAVE = "save"  # a program that commits
TRAINING = "training"  # a CheckpointManager or callback, with any operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """The process that appended an operation, and the user it belongs to.

    Attributes:
        role: `HAND`, `CALL`, `SAVE`, `TRAINING`, or a text of a later version.
        user: The name of the user; "" if the user has no name.
        host: The name of the machine; "" if it has no name.
        program: The name of the program, such as "train.py".
        pid: The id of the process.
    """

    role: str
    user: str = ""
    host: str = ""
    program: str = ""
    pid: int = 0

    @property
    def who(self) -> str:
        """The program, its process, user and machine, as one text; "" if none is recorded."""
        if not self.program:
            return ""
        place = "@".join(part for part in (self.user, self.host) if part)
        return f"{self.program}[{self.pid}] {place}".rstrip()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form inside an operation."""
        return {
            "role": self.role,
            "user": self.user,
            "host": self.host,
            "program": self.program,
            "pid": self.pid,
        }

    @classmethod
    def from_json(cls, document: object, *, name: str) -> Self:
        """Check every field."""
        fields = Fields(document, name=name)
        role, user, host, program = (
            fields.text(key, length_max=AUTHOR_LENGTH_MAX)
            for key in ("role", "user", "host", "program")
        )
        return cls(
            role=role,
            user=user,
            host=host,
            program=program,
            pid=fields.integer("pid", high=PID_MAX),
        )
