"""The answers of a bisect, in a file of the user who looks for the first bad checkpoint.

The file is not in the repository: a bisect changes nothing there, works where nothing can be
written, and is no matter of other users. See docs/adr/0058.
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

from ckptstore import Digest
from ckptstore.bisection import Answer
from ckptstore.errors import (
    CkptStoreError,
    ConflictError,
    CorruptError,
    InvalidInputError,
    NotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

VARIABLE = "XDG_STATE_HOME"
DEFAULT = "~/.local/state"
FORMAT = 1
NAME_DIGITS = 32
BYTES_MAX = 64 << 20
_WORDS = get_args(Answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The answers so far, oldest first.

    Attributes:
        url: The repository.
        given: The checkpoints, each with the answer.
    """

    url: str
    given: tuple[tuple[Digest, Answer], ...] = ()

    @classmethod
    def load(cls, url: str) -> Self:
        """Read those of a repository.

        Raises:
            NotFoundError: No bisect is under way.
            CorruptError: The file is damaged.
        """
        path = _path(url)
        try:
            with path.open("rb") as file:
                document = json.loads(file.read(BYTES_MAX))
            return cls(url=url, given=tuple(_parsed(document)))
        except FileNotFoundError:
            raise NotFoundError(
                "No bisect is under way. Begin one with: ckptstore bisect start BAD GOOD"
            ) from None
        except (ValueError, TypeError, KeyError, RecursionError, CkptStoreError):
            raise CorruptError(
                f"{path} is damaged. To begin anew: ckptstore bisect reset"
            ) from None

    def plus(self, ids: Iterable[Digest], answer: Answer) -> Answers:
        """Return these answers, and the same one for some more checkpoints."""
        return replace(self, given=(*self.given, *((id, answer) for id in ids)))

    def of(self, answer: Answer) -> list[Digest]:
        """Return the checkpoints with an answer, in the order in which they got it."""
        return [id for id, given in self.given if given == answer]

    def save(self, *, is_new: bool = False) -> None:
        """Write the file.

        Args:
            is_new: Whether the bisect begins.

        Raises:
            ConflictError: A bisect of this repository is under way, and `is_new` is set.
            InvalidInputError: The file cannot be written.
        """
        path = _path(self.url)
        beside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        given = [[id, answer] for id, answer in self.given]
        document = {"format": FORMAT, "repository": self.url, "answers": given}
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            beside.write_text(json.dumps(document, indent=1), encoding="utf-8")
            if is_new:
                os.link(beside, path)
            else:
                os.replace(beside, path)
        except FileExistsError:
            raise ConflictError(
                "A bisect of this repository is under way already. Its answers so far: ckptstore "
                "bisect log. To end it and forget them: ckptstore bisect reset"
            ) from None
        except OSError as error:
            raise InvalidInputError(
                f"{path} cannot be written ({error.strerror}). Set {VARIABLE} to a folder of yours."
            ) from None
        finally:
            with suppress(OSError):
                beside.unlink()


def forget(url: str) -> bool:
    """Remove the answers about a repository, and return whether there were any."""
    try:
        _path(url).unlink()
    except FileNotFoundError:
        return False
    return True


def _path(url: str) -> Path:
    """The file for a repository, in the folder that the XDG specification gives to such files."""
    folder = os.environ.get(VARIABLE, "")
    if not os.path.isabs(folder):  # the specification ignores others
        folder = os.path.expanduser(DEFAULT)
    if not os.path.isabs(folder):
        raise InvalidInputError(f"You have no home folder. Set {VARIABLE} to a folder of yours.")
    place = os.path.realpath(url) if os.path.isdir(url) else url
    name = sha256(os.fsencode(place)).hexdigest()[:NAME_DIGITS]
    return Path(folder) / "ckptstore" / "bisect" / f"{name}.json"


def _parsed(document: Any) -> list[tuple[Digest, Answer]]:
    """The answers in a document. Any error means that it is damaged."""
    if document["format"] != FORMAT:
        raise ValueError
    given: list[tuple[Digest, Answer]] = []
    for id, answer in document["answers"]:
        given.append((Digest.parse(id), _WORDS[_WORDS.index(answer)]))
    return given
