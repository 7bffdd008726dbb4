"""Report: the result of a verify, and what can be done about each problem."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptstore.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A stored object or document that is damaged or missing.

    Attributes:
        key: The file.
        error: What is wrong with it.
        checkpoints: The ids of the checkpoints that it affects.
        heal: How to restore it, or to go on without it.
    """

    key: str
    error: str
    checkpoints: tuple[Digest, ...] = ()
    heal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreachable:
    """Contents that no branch and no tag reaches, and that a gc deletes once they are old enough.

    Attributes:
        checkpoints: The ids of live checkpoints, newest first. `branch(NAME, at=ID)` brings one
            back.
        objects: How many objects only such checkpoints or none refer to.
        bytes: The bytes of these.
    """

    checkpoints: tuple[Digest, ...] = ()
    objects: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The result of a verify.

    Attributes:
        problems: Everything that is wrong, sorted by key.
        checkpoints: The number of live checkpoints that were checked.
        objects: How many objects were read.
        bytes: The bytes of these.
        stored_objects: The number of stored objects.
        stored_bytes: The bytes of these objects.
        unreachable: Contents that no branch and no tag reaches, which is no problem.
        foreign: Files of other programs in the folders of the repository, which is no problem.
        damaged: The objects that `repair` moves aside.
        missing_operations: How many of the newest 1,000 operations are missing. A power failure
            may leave one out; more show a copy that was cut short.
    """

    problems: tuple[Problem, ...]
    checkpoints: int
    objects: int
    bytes: int
    stored_objects: int
    stored_bytes: int
    unreachable: Unreachable = Unreachable()
    foreign: tuple[str, ...] = ()
    damaged: tuple[Digest, ...] = ()
    missing_operations: int = 0
    _repair: Callable[[], tuple[Digest, ...]] = field(repr=False, compare=False, default=tuple)

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems

    def repair(self) -> tuple[Digest, ...]:
        """Move each damaged object to `damaged/`, so that it can be stored again.

        A commit trusts an object of the right size, so it would rely on a damaged one. Once that
        has been moved aside, a commit of the same arrays stores it again, and a tool that compares
        sizes and times copies it again from another copy of the repository. Nothing is deleted.

        Returns:
            The digests of the objects that were moved. One that is undamaged by now stays.

        Raises:
            CorruptError: The newest operation is damaged. Heal that first.
            StorageError: The storage failed. Call this again.
        """
        return self._repair()
