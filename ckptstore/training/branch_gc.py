"""BranchGc: applies the policy of a training's branch after its commits.

The policy is saved in the repository for the branch, so that any other gc obeys it.
"""

from __future__ import annotations

import logging
import shlex
from math import inf, isfinite
from typing import TYPE_CHECKING

from ckptstore.errors import CkptStoreError, InvalidInputError, NotFoundError, shown
from ckptstore.metric_names import quoted
from ckptstore.retention import (
    KeepBest,
    KeepEveryNHours,
    KeepEveryNSteps,
    MaxToKeep,
    Policy,
    Union,
    savable,
)

if TYPE_CHECKING:
    from ckptstore.checkpoint import Checkpoint
    from ckptstore.repository import Repository

_log = logging.getLogger(__name__)


class BranchGc:
    """The gc of one manager. An error of it never fails a save.

    Args:
        repository: The repository.
        policy: The policy of the manager; None applies the one saved for the branch.
        keep_seeds: Whether checkpoints stay because other branches were started from them.
        every: The number of commits for each gc, which comes after the first of them.
        has_mirror: Whether what is not mirrored yet has to stay.

    Attributes:
        policy: The policy of the manager.
        holds_warnings: Whether warnings wait, as where no metric can be there yet.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        policy: Policy | None,
        keep_seeds: bool,
        every: int,
        has_mirror: bool = False,
    ) -> None:
        self.policy, self.holds_warnings = policy, False
        self._repository, self._keep_seeds, self._every = repository, keep_seeds, every
        self._has_mirror = has_mirror
        self._unmirrored = ""  # a branch that has no mirror any more
        self._commits = 0
        self._saved_for: str | None = None  # the branch for which the policy was saved
        self._warning = ""  # of the last gc
        self._failures: set[type[Exception]] = set()  # the kinds of errors of its gcs

    def after_commit(self, branch: str, *, keeps_all: bool) -> None:
        """Count a commit, and expire what the policy of the branch does not keep.

        Args:
            branch: The branch.
            keeps_all: Whether nothing is to expire now.
        """
        self._commits += 1
        if (self._commits - 1) % self._every == 0 and not keeps_all:
            self.run(branch)

    def run(self, branch: str) -> None:
        """Expire what the policy of the branch does not keep."""
        try:
            self._expire(branch)
        except Exception as error:  # noqa: BLE001  whatever it is, the checkpoint is saved
            self._warn_of(error)

    def _expire(self, branch: str) -> None:
        """Save the policy of the manager, and apply the policy of the branch."""
        if not (self._has_mirror or self._unmirrored == branch):
            self._repository._set_mirror(branch, None)  # noqa: SLF001 - of an earlier run
            self._unmirrored = branch
        policy, saved = self.policy, self._repository.retention(branch)
        if policy is not None and not (self._saved_for == branch and saved):
            self._save_policy(policy, branch)  # again where a rename took it along
            self._saved_for = branch
        if policy is not None or self._has_saved_policy(branch):
            is_by_code = policy is not None and savable(policy) != policy
            saved = self._repository.retention(branch) if is_by_code else None
            self._gc(policy if policy is not None and saved == savable(policy) else None, branch)

    def _has_saved_policy(self, branch: str) -> bool:
        """Whether the repository has a policy for the branch."""
        return (self._repository.retention(branch) or self._repository.retention()) is not None

    def _save_policy(self, policy: Policy, branch: str) -> None:
        """Save the policy in the repository, for every gc there.

        One that holds a function is saved as a note that only this program applies it. Other gcs
        then leave the branch alone.
        """
        made = savable(policy)
        saved = self._repository.retention(branch)
        if saved is None or saved.to_json() != made.to_json():
            self._repository.set_retention(made, branch=branch)
            if saved is not None:
                _log.warning(
                    "The policy of branch %s was: %s This run has replaced it: %s",
                    branch,
                    saved,
                    made,
                )

    def _gc(self, policy: Policy | None, branch: str) -> None:
        """Apply a policy, or the saved one, and log each new warning of the gc."""
        report = self._repository.gc(
            policy, branches=[branch], keep_seeds=self._keep_seeds, leftovers=False
        )
        if self.holds_warnings:
            return
        if report.warning and report.warning != self._warning:
            _log.warning("%s", report.warning)
        self._warning = report.warning

    def _warn_of(self, error: Exception) -> None:
        """Log that a gc failed, once for each kind of error. The checkpoint is saved anyway."""
        if type(error) not in self._failures:
            self._failures.add(type(error))
            is_foreseen = isinstance(error, CkptStoreError)
            _log.warning(
                "The checkpoint is saved, but the gc after it failed: %s Checkpoints that no "
                "policy keeps stay until a gc succeeds. To try by hand: ckptstore -r %s gc",
                error if is_foreseen else f"{type(error).__name__}: {error}.",
                shlex.quote(self._repository.url),
                exc_info=None if is_foreseen else error,
            )


def joined(
    policy: Policy | None,
    *,
    max_to_keep: int | None,
    keep_best: KeepBest | None,
    keep_every_n_hours: float | None,
    keep_every_n_steps: int | None,
) -> Policy | None:
    """Return the union of the policies that were passed; None without any.

    Raises:
        InvalidInputError: One of them is invalid.
    """
    if policy is not None and not isinstance(policy, Policy):
        raise InvalidInputError(f"policy is {shown(policy)}; MaxToKeep(3), say, is expected.")
    policies = (
        policy,
        None if max_to_keep is None else MaxToKeep(max_to_keep),
        keep_best,
        None if keep_every_n_hours is None else KeepEveryNHours(keep_every_n_hours),
        None if keep_every_n_steps is None else KeepEveryNSteps(keep_every_n_steps),
    )
    parts = [part for part in policies if part is not None]
    return Union(tuple(parts)) if len(parts) > 1 else next(iter(parts), None)


def parsed_best(text: str | KeepBest | None) -> KeepBest | None:
    """Return the KeepBest that `keep_best` means; InvalidInputError if it is none."""
    if text is None or isinstance(text, KeepBest):
        return text
    if not isinstance(text, str):
        raise InvalidInputError(
            f"keep_best is {shown(text)}; a metric such as 'val_loss' is expected."
        )
    best = KeepBest.parse(text)
    if best is None:
        raise InvalidInputError(f"keep_best is {shown(text)}; METRIC[:MODE[:N]] is expected.")
    return best


def first_best(policy: Policy | None) -> KeepBest | None:
    """Return the first KeepBest of a policy, if any."""
    parts = policy.parts if policy is not None else ()
    return next((part for part in parts if isinstance(part, KeepBest)), None)


def stored_best(repository: Repository, branch: str, best: KeepBest) -> Checkpoint | None:
    """Return the best stored checkpoint of a branch by a metric; None if none has it."""
    metric, mode = quoted(best.metric), best.mode
    found: Checkpoint | None
    try:
        found = repository.resolve(f"{branch}@best:{metric}:{mode}")
    except NotFoundError:
        return None
    if found.expired:  # as where a note corrected a value after a better one had expired
        stored = repository.log(branch, own=True, expired=False, sort=f"{metric}:{mode}", limit=1)
        found = next((c for c in stored if isfinite(c.metrics.get(best.metric, inf))), None)
    return found
