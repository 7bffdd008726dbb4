"""Findings: the checks that failed, each with how to repeat it.

A gc or a commit may run meanwhile, so a failed check is not yet damage: it is repeated at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptstore.errors import CkptStoreError, NotFoundError
from ckptstore.verify import heal

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptstore.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A check that failed.

    Attributes:
        check: Repeats it.
        error: The message of its error.
        heal: How to restore what it concerns.
        is_missing: Nothing is there.
        object: The object that it concerns.
        checkpoint: The checkpoint whose manifest it concerns.
        is_alone: It is damage even if no checkpoint suffers: its bytes are not as written.
    """

    check: Callable[[], object]
    error: str
    heal: str
    is_missing: bool = False
    object: Digest | None = None
    checkpoint: Digest | None = None
    is_alone: bool = False


class Findings:
    """The failed checks of a verify, by the key that each concerns; the first one of a key."""

    def __init__(self) -> None:
        self.by_key: dict[str, Finding] = {}

    def __contains__(self, key: str) -> bool:
        return key in self.by_key

    def attempt(
        self,
        key: str,
        check: Callable[[], object],
        *,
        heal: str,
        checkpoint: Digest | None = None,
    ) -> bool:
        """Run a check; return False, and note the finding, when it raises a CkptStoreError."""
        try:
            check()
        except CkptStoreError as error:
            finding = Finding(check=check, error="", heal=heal, checkpoint=checkpoint)
            self.note(key, finding, error)
            return False
        return True

    def note(self, key: str, finding: Finding, error: CkptStoreError) -> None:
        """Note a finding with the error that its check raised."""
        self.by_key.setdefault(key, _as_raised(finding, error))

    def repeat(self) -> None:
        """Repeat every failed check, and forget those that succeed now."""
        for key, finding in list(self.by_key.items()):
            try:
                finding.check()
            except CkptStoreError as error:
                self.by_key[key] = _as_raised(finding, error)
            else:
                del self.by_key[key]


def _as_raised(finding: Finding, error: CkptStoreError) -> Finding:
    is_missing = isinstance(error, NotFoundError)
    is_lost = is_missing and finding.object is not None
    return replace(
        finding,
        error=str(error),
        is_missing=is_missing,
        heal=heal.MISSING if is_lost else finding.heal,
    )
