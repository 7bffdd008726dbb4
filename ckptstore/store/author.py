"""Author: the process and the user that append operations (docs/adr/0044).

Undo takes back operations of this user. So an operation records its user, its process, and whether
a person ran a command, a program called the library, or a training saved.
"""

from __future__ import annotations

import os
import pwd
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING

from ckptstore.documents.author import AUTHOR_LENGTH_MAX, CALL, HAND, SAVE, TRAINING, Author
from ckptstore.errors import printable, shortened
from ckptstore.this_run import program

if TYPE_CHECKING:
    from collections.abc import Iterator

_is_training: ContextVar[bool] = ContextVar("is_training", default=False)


@contextmanager
def as_training() -> Iterator[None]:
    """Attribute the operations of this block to a training, for every handle."""
    token = _is_training.set(True)
    try:
        yield
    finally:
        _is_training.reset(token)


def author(*, by_hand: bool, is_commit: bool = False) -> Author:
    """Return this process as the author of an operation.

    by_hand: whether a person makes each call of the handle.
    """
    role = SAVE if is_commit else CALL
    if by_hand:
        role = HAND
    if _is_training.get():
        role = TRAINING
    return replace(_process(), role=role)


def _process() -> Author:
    """This process as an author without a role."""
    return Author(
        role="",
        user=_text(_user()),
        host=_text(os.uname().nodename),
        program=_text(program()),
        pid=os.getpid(),
    )


def _user() -> str:
    with suppress(KeyError):  # a container may have users without names
        return pwd.getpwuid(os.geteuid()).pw_name
    return str(os.geteuid())


def _text(text: str) -> str:
    """A name as valid text for a document: file names may hold any bytes."""
    return shortened(printable(text), AUTHOR_LENGTH_MAX)
