"""Reason: why a checkpoint stays, or why it does not."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

    from ckptstore.retention.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a checkpoint stays, or why it does not. `str` gives it in words.

    Attributes:
        kind: What kind of reason it is.
            Whatever the policies: "head", "tag", "lease", "seed" (a branch was started from it),
            "resumed" (a run was resumed from it), "unmirrored" (not in the mirror of its training).
            A policy: its kind in JSON, such as "max_to_keep" or "keep_best"; "waiting" for a metric
            that may still come; "history" of a branch that keeps everything; "left_alone" with its
            branch.
            Why it expires: "nothing" keeps it, "no_metric" (a newer one has the metric),
            "over_limit" of bytes, "by_hand", "let_go" by the operation that took its name away
            (before the grace time ends it stays for that), "unowned", "unreached", "repeated" on
            its branch after it lost a race; "expired" already.
            Why it stays though nothing names it: "new", "lost" (its operations are missing),
            "incomplete" (a part of the history is missing), "not_chosen" to expire.
        text: The reason in words.
        branch: The branch it is the head or the seed of, whose policy decided, or that was deleted.
        tag: The tag or lease.
        until: The end of a lease, in UTC.
        policy: The policy that decided.
        metric: The metric by which it decided, or that is missing.
        mode: "min" or "max": whether less or more of the metric is better.
        place: The place among the best or the newest, from 1.
        value: The value of the metric.
    """

    kind: str
    text: str
    branch: str | None = None
    tag: str | None = None
    until: datetime | None = None
    policy: Policy | None = field(default=None, hash=False)  # a function may have no hash
    metric: str | None = None
    mode: str | None = None
    place: int | None = None
    value: int | float | None = None

    def __str__(self) -> str:
        return self.text

    def on(self, branch: str) -> Reason:
        """Return the reason of a policy, for the branch that it judged.

        Args:
            branch: The name of the branch.
        """
        return replace(self, text=f"{self.text} on {branch}", branch=branch)

    def beside(self, branch: str | None) -> str:
        """Return the text for a place that names the branch already.

        Args:
            branch: The branch that the place names; None for none.
        """
        return self.text if branch is None else self.text.removesuffix(f" on {branch}")

    def to_json(self) -> dict[str, Any]:
        """Return the attributes that are set, as plain JSON; the policy as its sentence."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        if self.until is not None:
            values["until"] = self.until.isoformat()
        if self.policy is not None:
            values["policy"] = str(self.policy)
        return {name: value for name, value in values.items() if value is not None}
