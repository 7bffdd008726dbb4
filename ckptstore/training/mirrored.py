"""Mirrored: the part of a manager that has a mirror, or none. `mirror` does the work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from ckptstore.errors import InvalidInputError, shown
from ckptstore.retention import Policy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.repository import Repository
    from ckptstore.training.mirror import Mirror, MirrorState
    from ckptstore.training.place import Place

MIRROR_SECONDS = 300.0  # to wait for a mirror, unless the caller sets another time
TIMEOUT_SECONDS_MAX = 1e6  # threads cannot wait for many years


class MirroredRun(ABC):
    """A run whose branch may be pushed to a mirror."""

    branch: str
    repository: Repository
    _place: Place
    _mirror: Mirror | None = None

    @property
    @abstractmethod
    def latest(self) -> Checkpoint | None:
        """The newest checkpoint of the branch in the repository."""

    @abstractmethod
    def _agreed(self, decide: Callable[[], Any]) -> Any:
        """Return what is decided; on all ranks of a group what rank 0 decides."""

    @abstractmethod
    def wait(self) -> Checkpoint | None:
        """Wait for the save in flight."""

    def latest_durable(self, where: str = "local") -> Checkpoint | None:
        """Return the newest checkpoint of the branch that is durable in a place. Asks no server.

        Args:
            where: "local" for the repository of the manager, "mirror" or the URL of the mirror.

        Returns:
            The checkpoint, None if there is none. The arrays of one in the mirror may have expired
            here.

        Raises:
            InvalidInputError: There is no mirror, or none of this URL.
        """
        mirror = self._mirror
        if isinstance(where, str) and where == "local":
            return self.latest
        if isinstance(where, str) and mirror and where in ("mirror", mirror.url, mirror.place):
            return mirror.durable(self.branch)
        known = f"'local', 'mirror' or {mirror.place!r}" if mirror else "'local'"
        raise InvalidInputError(f"where is {shown(where)}; {known} is expected.")

    @property
    def mirror_state(self) -> MirrorState | None:
        """How far the mirror is: what it has and what it lacks; None without a mirror."""
        return None if self._mirror is None else self._mirror.state(self.branch)

    def wait_for_mirror(self, timeout: float | None = MIRROR_SECONDS) -> bool:
        """Wait for the save in flight, and then until all of the branch is in the mirror.

        Args:
            timeout: The most seconds to wait for the mirror; None for no limit.

        Returns:
            Whether all is there; True without a mirror.

        Raises:
            CkptStoreError: The save failed.
        """
        seconds = checked_timeout(timeout)
        self.wait()
        return self._mirror is None or self._mirror.wait(seconds)

    def _start_mirror(
        self,
        url: str | Path | None,
        retention: Policy | None,
        *,
        keep_seeds: bool,
        gc_every: int,
    ) -> None:
        """Make the mirror if one is asked for, and fetch from it what the branch lacks here."""
        if url is None:
            return
        from ckptstore.training.mirror import Mirror

        def start() -> None:
            self._place.hold(self.branch)
            mirror = Mirror(
                self.repository, url, retention=retention, keep_seeds=keep_seeds, gc_every=gc_every
            )
            mirror.start(self.branch)
            self._mirror = mirror

        self._agreed(start)  # rank 0 alone pushes, and fetches what all ranks then restore


def checked_retention(policy: object, mirror: object) -> Policy | None:
    """Return the policy of a mirror.

    Raises:
        InvalidInputError: It is none, or there is no mirror.
    """
    if policy is None:
        return None
    if not isinstance(policy, Policy):
        raise InvalidInputError(
            f"mirror_retention is {shown(policy)}; a policy such as KeepBest('loss', 'min', 5) is "
            "expected."
        )
    if mirror is None:
        raise InvalidInputError("mirror_retention is the policy of a mirror. Pass mirror, too.")
    return policy


def checked_timeout(timeout: object, *, name: str = "timeout") -> float:
    """Return the seconds to wait; InvalidInputError if they are none."""
    if timeout is None:
        return TIMEOUT_SECONDS_MAX
    if isinstance(timeout, int | float) and not isinstance(timeout, bool) and timeout >= 0:
        return float(min(timeout, TIMEOUT_SECONDS_MAX))
    raise InvalidInputError(
        f"{name} is {shown(timeout)}; a number of seconds of 0 or more is expected."
    )
