"""Saved: policies as JSON in a repository, and the one that applies to each branch.

One policy is for all branches; a branch may have one of its own in its place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ckptstore.documents import canonical
from ckptstore.documents.settings import BRANCH_RETENTION, branch_groups, parts, with_part
from ckptstore.errors import InvalidInputError, shortened, shown
from ckptstore.retention.max_bytes import MaxBytes
from ckptstore.retention.periodic import KeepEveryNHours, KeepEveryNSteps, KeepWithin
from ckptstore.retention.policy import (
    ANY,
    Choice,
    KeepAll,
    KeepBest,
    KeepIf,
    KeepSteps,
    MaxToKeep,
    Policy,
    Union,
    not_a_policy,
)
from ckptstore.retention.reason import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import Self

    from ckptstore.retention.policy import Chain, Choices

RETENTION = "retention"  # the setting of the policy for all branches
SENTENCE_LENGTH_MAX = 1000  # of a policy that only its program can apply
SAVED_BYTES_MAX = 256 << 10  # of a saved policy, as every operation carries it along


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftAlone(Policy):
    """Keeps everything, in place of a saved policy that this process cannot apply.

    Attributes:
        reason: The reason for each checkpoint.
        explanation: The reason as the second part of a sentence.
        document: The JSON form in the repository.
    """

    reason: str
    explanation: str
    document: Any = field(hash=False)
    kind: ClassVar[str] = "by_program"

    @classmethod
    def by_program(cls, sentence: str) -> Self:
        """Return the stand-in for a policy with a function, which only its program can apply.

        Args:
            sentence: The policy.
        """
        return cls(
            reason="left to the program whose function decides (KeepIf)",
            explanation=f"its program alone applies a policy with a function ({sentence})",
            document={"kind": cls.kind, "sentence": sentence},
        )

    @classmethod
    def unknown(cls, document: object) -> Self:
        """Return the stand-in for a policy of a later version.

        Args:
            document: The JSON form.
        """
        return cls(
            reason="this version does not know the saved policy",
            explanation=f"this version does not know the saved policy {shown(document)}",
            document=document,
        )

    @property
    def phrase(self) -> str:
        """The kept checkpoints, as a part of a sentence."""
        return f"everything: {self.explanation}"

    @property
    def keeps_all(self) -> bool:
        """True."""
        return True

    def keep(self, chain: Chain) -> Choices:
        """Keep all of them."""
        reason = Reason(kind=self.kind, text=self.reason, policy=self)
        return (Choice(id, reason, ANY) for id, _ in chain)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form in the repository."""
        document: dict[str, Any] = self.document
        return document


def saved(policy: object) -> dict[str, Any]:
    """Return the JSON form of a policy for a repository, checked with `from_json`.

    Raises:
        InvalidInputError: The value is not a policy, holds a function, or is too large, as every
            operation carries it along.
    """
    if not isinstance(policy, Policy):
        raise not_a_policy(policy)
    data = canonical.encode(policy.to_json(), name="The policy", bytes_max=SAVED_BYTES_MAX)
    document = canonical.decode(data, name="The policy")
    from_json(document)
    return document


def savable(policy: Policy) -> Policy:
    """Return a policy, or what stands for it in a repository if it holds a function."""
    if not any(isinstance(part, KeepIf) for part in policy.parts):
        return policy
    return LeftAlone.by_program(shortened(str(policy).removesuffix("."), SENTENCE_LENGTH_MAX))


def from_json(document: object) -> Policy:
    """Return the policy that `Policy.to_json` wrote.

    Args:
        document: A JSON object, as parsed.


    Raises:
        InvalidInputError: The document is not that of a policy known to this version.
    """
    try:
        fields = dict(document)  # type: ignore[call-overload]
        kind = fields.pop("kind")
        if kind == LeftAlone.kind:
            return LeftAlone.by_program(shortened(str(fields["sentence"]), SENTENCE_LENGTH_MAX))
        if kind == Union.kind:
            return Union(tuple(from_json(member) for member in fields["members"]))
        make = KeepBest.from_saved if kind == KeepBest.kind else _KINDS[kind]
        return make(**fields)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(
            f"{shown(document)} is not a retention policy that this version knows."
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """The policy of each branch.

    Attributes:
        default: The policy of branches without one of their own; None: they keep everything.
        by_branch: The policies of single branches.
        only: The branches that a gc is about; None: all. The others are left alone.
        is_given: Whether the policy was passed by the caller, not saved in the repository.
        keep_seeds: Whether the checkpoint that a branch was started from always stays.
    """

    default: Policy | None = None
    by_branch: Mapping[str, Policy] = field(default_factory=dict)
    only: Collection[str] | None = None
    is_given: bool = False
    keep_seeds: bool = True

    @classmethod
    def of(cls, settings: Mapping[str, Any], *, only: Collection[str] | None) -> Policies:
        """Return the policies in the settings of a repository."""
        try:
            by_branch = branch_policies(settings)
        except InvalidInputError:  # groups in the form of a later version: any may have a policy
            return cls(default=LeftAlone.unknown(settings[BRANCH_RETENTION]), only=only)
        return cls(default=saved_policy(settings, None), by_branch=by_branch, only=only)

    @classmethod
    def given(cls, policy: object, *, only: Collection[str] | None) -> Policies:
        """Return a policy that was passed, for all branches.

        Raises:
            InvalidInputError: It is not a policy.
        """
        if not isinstance(policy, Policy):
            raise not_a_policy(policy)
        return cls(default=policy, only=only, is_given=True)

    def judges(self, branch: str) -> bool:
        """Return True for a branch that the gc is about."""
        return self.only is None or branch in self.only

    def of_branch(self, branch: str) -> Policy:
        """Return the policy of a branch; KeepAll without one."""
        return self.by_branch.get(branch) or self.default or KeepAll()

    def metrics(self, branches: Collection[str]) -> frozenset[str]:
        """Return the metrics by which these branches are judged.

        Args:
            branches: The branches there are.
        """
        judged = (self.of_branch(name) for name in branches if self.judges(name))
        return frozenset().union(*(policy.metrics for policy in judged))

    def sentences(self, branches: Collection[str]) -> list[str]:
        """Describe the policies in sentences: that of all branches, then those of single ones.

        Args:
            branches: The existing branches.
        """
        judged = sorted(name for name in branches if self.judges(name))
        own = [name for name in judged if name in self.by_branch]
        texts = [str(self.default or KeepAll())] if len(own) < len(judged) or not judged else []
        return texts + [f"{name}: {self.by_branch[name]}" for name in own]


def branch_policies(settings: Mapping[str, Any]) -> dict[str, Policy]:
    """Return the policies of single branches in the settings of a repository."""
    return {
        name: policy
        for group in branch_groups(settings)
        for policy in [_read(group["policy"])]
        for name in group["branches"]
    }


def saved_policy(settings: Mapping[str, Any], branch: str | None) -> Policy | None:
    """Return the policy of a branch, or of all branches, in the settings."""
    if branch is not None:
        return branch_policies(settings).get(branch)
    document = settings.get(RETENTION)
    return None if document is None else _read(document)


def policy_parts(settings: Mapping[str, Any], branches: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the parts of settings with which other settings have the same policies.

    Args:
        settings: With saved policies.
        branches: The names of branches there by their names here, which each get the policy that
            applies to them here; None for every policy that is saved.
    """
    known = {
        name: document
        for name, document in parts(settings).items()
        if name.partition("/")[0] in (RETENTION, BRANCH_RETENTION)
    }
    if branches is None:
        return known
    default = known.get(RETENTION)
    applying = {
        f"{BRANCH_RETENTION}/{name}": known.get(f"{BRANCH_RETENTION}/{branch}", default)
        for branch, name in branches.items()
    }
    return {name: document for name, document in applying.items() if document is not None}


def _read(document: object) -> Policy:
    """Return a saved policy. One that this version does not know keeps everything."""
    try:
        return from_json(document)
    except InvalidInputError:
        return LeftAlone.unknown(document)


def with_policy(
    settings: Mapping[str, Any], branch: str | None, policy: Policy | None
) -> dict[str, Any]:
    """Return settings with a new policy of a branch, or of all branches; None removes it."""
    name = RETENTION if branch is None else f"{BRANCH_RETENTION}/{branch}"
    return with_part(settings, name, None if policy is None else saved(policy))


_KINDS: dict[str, Callable[..., Policy]] = {
    policy.kind: policy
    for policy in (
        KeepAll,
        MaxToKeep,
        KeepBest,
        KeepEveryNHours,
        KeepEveryNSteps,
        KeepSteps,
        KeepWithin,
        MaxBytes,
    )
}
