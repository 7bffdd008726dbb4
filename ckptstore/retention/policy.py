"""Policies: pure values that decide from manifests alone which checkpoints of one branch stay.

A policy decides about the live checkpoints that were committed on one branch, its own chain. Its
choice does not depend on checkpoints that it does not keep, so the result is the same however
often gc runs.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ckptstore.documents.facts import STEP_MAX
from ckptstore.documents.names import check_metric_name
from ckptstore.errors import InvalidInputError, check_choice, shortened, shown
from ckptstore.metric_names import known_names, mode_of, parse_choice, quoted, quoting
from ckptstore.retention.reason import Reason
from ckptstore.revisions import ranked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Self, TypeGuard

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest

    Chain = Sequence[tuple[Digest, Manifest]]
    Choices = Iterator["Choice"]

NUMBER_MAX = STEP_MAX
STEPS_MAX = 100_000  # in one KeepSteps
MEMBERS_MAX = 10_000  # of a union
PENDING = 2
NAME_LENGTH_MAX = 60  # characters of a function's name that a reason quotes

# The ranks of reasons: where space is limited, the lowest gives way first (see MaxBytes).
ANY, PERIODIC, WITHIN, NEWEST, BEST, CHOSEN, ALWAYS = range(7)


class Choice(NamedTuple):
    """A checkpoint that a policy keeps, and why. rank: one of the ranks of this module."""

    id: Digest
    reason: Reason
    rank: int


class Policy:
    """Decides which checkpoints of a branch stay. Join policies with `|`; any of them can keep one.

    Example:
        >>> from ckptstore.retention import KeepBest, MaxToKeep
        >>> print(MaxToKeep(3) | KeepBest("val_acc"))
        Keep the newest 3 of each branch and the best by val_acc (max).
    """

    kind: ClassVar[str]

    def __or__(self, other: object) -> Policy:
        if not isinstance(other, Policy):
            return NotImplemented
        parts = dict.fromkeys([*self.parts, *other.parts])
        return Union(tuple(parts)) if len(parts) > 1 else next(iter(parts))

    def __str__(self) -> str:
        return f"Keep {self.phrase}."

    @property
    def parts(self) -> tuple[Policy, ...]:
        """The policies joined in this one."""
        return (self,)

    @property
    def phrase(self) -> str:
        """The kept checkpoints, as a part of a sentence."""
        raise NotImplementedError

    @property
    def metrics(self) -> frozenset[str]:
        """The metrics by which it decides."""
        return frozenset()

    @property
    def keeps_all(self) -> bool:
        """True if no checkpoint expires by it."""
        return any(isinstance(part, KeepAll) for part in self.parts)

    def keep(self, chain: Chain) -> Choices:
        """Choose the checkpoints that stay.

        Args:
            chain: The live checkpoints that were committed on one branch, each with its manifest,
                newest first.

        Yields:
            A reason for each checkpoint that stays.
        """
        raise NotImplementedError

    def passed_over(self, chain: Chain) -> Choices:  # noqa: ARG002
        """Explain checkpoints that the policy does not keep, where the reason is not obvious.

        Args:
            chain: As for `keep`.

        Returns:
            A reason for each of these; usually none.
        """
        return iter(())

    def note(self, chain: Chain) -> str:  # noqa: ARG002
        """Describe metrics that are still missing.

        Args:
            chain: As for `keep`.

        Returns:
            Sentences; usually an empty text.
        """
        return ""

    def to_json(self) -> dict[str, Any]:
        """Return the policy as plain JSON, which `from_json` takes back.

        Raises:
            InvalidInputError: The policy holds a function.
        """
        # Each policy is a dataclass.
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True)
class KeepAll(Policy):
    """Keeps everything."""

    kind: ClassVar[str] = "keep_all"

    @property
    def phrase(self) -> str:
        """The kept checkpoints, as a part of a sentence."""
        return "every checkpoint of every branch"

    def keep(self, chain: Chain) -> Choices:
        """Keep all of them."""
        reason = Reason(kind=self.kind, text="everything is kept", policy=self)
        return (Choice(id, reason, ANY) for id, _ in chain)


@dataclass(frozen=True, slots=True)
class MaxToKeep(Policy):
    """Keeps the newest n checkpoints of each branch.

    It is not a limit: other policies may keep more. Of several checkpoints of one step only the
    newest counts.

    Attributes:
        n: How many, at least 1.
    """

    n: int
    kind: ClassVar[str] = "max_to_keep"

    def __post_init__(self) -> None:
        check_count(self.n, "MaxToKeep")

    @property
    def phrase(self) -> str:
        """The kept checkpoints, as a part of a sentence."""
        return f"the newest {self.n} of each branch" if self.n > 1 else "the newest of each branch"

    def keep(self, chain: Chain) -> Choices:
        """Keep the first n steps, and of each the newest."""
        for place, (id, _) in enumerate(islice(once_a_step(chain), self.n), 1):
            rank = ALWAYS if place == 1 else NEWEST
            text = f"newest {place} of {self.n}"
            yield Choice(id, Reason(kind=self.kind, text=text, policy=self, place=place), rank)


@dataclass(frozen=True, slots=True)
class KeepBest(Policy):
    """Keeps the n best checkpoints of each branch by a metric.

    NaN and infinity never win, and of equal values the newest does. Of several checkpoints of one
    step only the best counts. A metric may come after the checkpoint: while no checkpoint has it,
    all stay, and later the newest ones without it, one for each step.

    Attributes:
        metric: The name of the metric.
        mode: "min" or "max". With "auto" the words of the name decide ("val_loss", "val_f1_macro");
            a name that does not say its direction is an error.
        n: How many, at least 1.
        pending: How many checkpoints without the metric stay, among those newer than the newest
            one with it; 0 or more.
    """

    metric: str
    mode: str = "auto"
    n: int = 1
    pending: int = PENDING
    kind: ClassVar[str] = "keep_best"

    def __post_init__(self) -> None:
        check_metric_name(self.metric)
        check_choice(self.mode, ("auto", "min", "max"), name="KeepBest: the mode")
        check_count(self.n, "KeepBest")
        if not is_integer(self.pending) or self.pending < 0:
            raise InvalidInputError(
                f"KeepBest: pending is {shown(self.pending)}; an integer of 0 or more is expected."
            )
        if self.mode == "auto":
            object.__setattr__(self, "mode", mode_of(self.metric))

    @classmethod
    def from_saved(
        cls, metric: str, mode: str = "auto", n: int = 1, pending: int = PENDING
    ) -> Self:
        """Return a policy that was read from a repository.

        Older repositories may hold "auto" with a name that does not say its direction. Such a
        policy stays valid, and keeps the n least as well as the n greatest values.

        Args:
            metric: As in the policy.
            mode: As in the policy, or "auto".
            n: As in the policy.
            pending: As in the policy.

        Raises:
            InvalidInputError: An argument is illegal.
        """
        try:
            return cls(metric, mode, n, pending)
        except InvalidInputError:
            if mode != "auto":
                raise
            either = cls(metric, "min", n, pending)
            object.__setattr__(either, "mode", "auto")
            return either

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse METRIC, METRIC:MODE or METRIC:MODE:N.

        Args:
            text: For example "val_loss", "val_acc:max" or "val_acc:max:2". A name that contains
                ":" is quoted, as in '"mAP@.5:.95":max'.

        Returns:
            The policy, or None for text of another form.

        Raises:
            InvalidInputError: The mode or the number is illegal, or the name does not say its
                direction.
        """
        chosen = parse_choice(text)
        try:
            return None if chosen is None else cls(*chosen)
        except InvalidInputError as error:
            raise InvalidInputError(f"{error}{quoting(text)}") from error

    @property
    def phrase(self) -> str:
        """The kept checkpoints, as a part of a sentence."""
        number = f"{self.n} " if self.n > 1 else ""
        if self.mode == "auto":
            name = quoted(self.metric)
            return (
                f"the {number}least and the {number}greatest by {self.metric} (saved without a "
                f"direction: save the policy again, with {name}:min or {name}:max)"
            )
        return f"the {number}best by {self.metric} ({self.mode})"

    @property
    def metrics(self) -> frozenset[str]:
        """The one metric."""
        return frozenset({self.metric})

    def keep(self, chain: Chain) -> Choices:
        """Keep those with the n least or greatest numbers, and those that wait for one."""
        waiting = self._waiting(chain)
        if len(waiting) == len(chain):
            first = self._reason("waiting", f"waiting for the first {self.metric}")
            yield from (Choice(id, first, BEST) for id, _ in chain)
            return
        newest = chain[len(waiting)][0]
        is_finite = False
        for mode in ("min", "max") if self.mode == "auto" else (self.mode,):
            best = islice(once_a_step(ranked(chain, self.metric, mode)), self.n)
            for place, (id, manifest) in enumerate(best, 1):
                is_finite = True
                value = manifest.metrics[self.metric]
                text = f"best {place} of {self.n} by {self.metric} ({mode}) = {value:.4g}"
                reason = self._reason(self.kind, text, mode=mode, place=place, value=value)
                yield Choice(id, reason, ALWAYS if place == 1 else BEST)
        if not is_finite:  # proof for later gcs that the metric existed
            reason = self._reason(self.kind, f"the newest value of {self.metric}")
            yield Choice(newest, reason, BEST)
        pending = self._reason("waiting", f"waiting for {self.metric}")
        for id, _ in islice(once_a_step(waiting), self.pending):
            yield Choice(id, pending, BEST)

    def passed_over(self, chain: Chain) -> Choices:
        """Explain those without the metric that are older than one with it (ADR 0043)."""
        waiting = self._waiting(chain)
        for id, manifest in chain[len(waiting) + 1 :]:
            if self.metric not in manifest.metrics:
                newer = chain[len(waiting)]
                step = "" if newer[1].step is None else f" (step {newer[1].step})"
                text = f"no {self.metric}, which the newer {newer[0].short}{step} has"
                yield Choice(id, self._reason("no_metric", text), ANY)

    def note(self, chain: Chain) -> str:
        """Return a sentence where no checkpoint has the metric, or none a finite value."""
        values = [manifest.metrics.get(self.metric) for _, manifest in chain]
        given = [value for value in values if value is not None]
        if chain and not given:
            known = sorted({name for _, manifest in chain for name in manifest.metrics})
            return (
                f"No checkpoint has the metric {shown(self.metric)} yet, so none of them expires. "
                f"{known_names(self.metric, known, what='metrics')}"
            )
        if given and not any(map(math.isfinite, given)):
            nan = sum(map(math.isnan, given))
            counts = {"NaN": nan, "infinite": len(given) - nan, "missing": values.count(None)}
            listed = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
            return f"No checkpoint has a finite {self.metric} ({listed})."
        return ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields; those unknown to earlier versions only if needed."""
        fields: dict[str, Any] = {"kind": self.kind, **asdict(self)}
        if self.pending == PENDING:
            del fields["pending"]
        return fields

    def _reason(
        self,
        kind: str,
        text: str,
        *,
        mode: str | None = None,
        place: int | None = None,
        value: int | float | None = None,
    ) -> Reason:
        return Reason(
            kind=kind,
            text=text,
            policy=self,
            metric=self.metric,
            mode=mode or (None if self.mode == "auto" else self.mode),
            place=place,
            value=value,
        )

    def _waiting(self, chain: Chain) -> Chain:
        """Return the newest checkpoints, down to the first one that has the metric."""
        has = (number for number, (_, item) in enumerate(chain) if self.metric in item.metrics)
        return chain[: next(has, len(chain))]


@dataclass(frozen=True, slots=True, init=False)
class KeepSteps(Policy):
    """Keeps the checkpoints of these steps.

    Attributes:
        steps: The steps.
    """

    steps: frozenset[int]
    kind: ClassVar[str] = "keep_steps"

    def __init__(self, steps: Iterable[int]) -> None:
        try:
            listed: list[object] = list(islice(steps, STEPS_MAX + 1))
        except TypeError:
            listed = []
        wrong = [step for step in listed if not is_integer(step)]
        if wrong or not 0 < len(listed) <= STEPS_MAX or isinstance(steps, str | bytes):
            raise InvalidInputError(
                f"KeepSteps: {shown(steps)} is not a set of steps; 1 to {STEPS_MAX} integers of at "
                "most 63 bits are expected."
            )
        object.__setattr__(self, "steps", frozenset(listed))

    @property
    def phrase(self) -> str:
        """The kept checkpoints, as a part of a sentence."""
        listed = sorted(self.steps)
        some = ", ".join(map(str, listed[:10])) + (", …" if len(listed) > 10 else "")
        return f"the step{'s' if len(listed) > 1 else ''} {some}"

    def keep(self, chain: Chain) -> Choices:
        """Keep those whose step is one of them."""
        for id, item in chain:
            if item.step in self.steps:
                text = f"step {item.step} was chosen"
                yield Choice(id, Reason(kind=self.kind, text=text, policy=self), CHOSEN)

    def to_json(self) -> dict[str, Any]:
        """Return the kind and the sorted steps."""
        return {"kind": self.kind, "steps": sorted(self.steps)}


@dataclass(frozen=True, slots=True)
class KeepIf(Policy):
    """Keeps the checkpoints for which a function returns a true value.

    Such a policy cannot be saved in a repository.

    Attributes:
        predicate: Called with the manifest of a checkpoint, which has the attributes `step`,
            `metrics`, `message`, `created` (microseconds since 1970) and `meta`.

    Example:
        >>> from ckptstore.retention import KeepIf, MaxToKeep
        >>> policy = MaxToKeep(2) | KeepIf(lambda manifest: "release" in manifest.message)
    """

    predicate: Callable[[Manifest], object]
    kind: ClassVar[str] = "keep_if"

    def __post_init__(self) -> None:
        if not callable(self.predicate):
            raise InvalidInputError(
                f"KeepIf: {shown(self.predicate)} cannot be called; a function of a manifest is "
                "expected."
            )

    @property
    def phrase(self) -> str:
        """The kept checkpoints, as a part of a sentence."""
        name = getattr(self.predicate, "__name__", None)
        if not isinstance(name, str) or not name.isprintable():
            name = "a function"
        return f"those that {shortened(name, NAME_LENGTH_MAX)} accepts"

    def keep(self, chain: Chain) -> Choices:
        """Keep those that the function accepts."""
        text = "the function of KeepIf accepts it"
        reason = Reason(kind=self.kind, text=text, policy=self)
        for id, manifest in chain:
            try:
                chosen = bool(self.predicate(manifest))
            except Exception as error:
                raise InvalidInputError(
                    f"KeepIf: the function failed on checkpoint {id.short} "
                    f"({type(error).__name__}: {error})."
                ) from error
            if chosen:
                yield Choice(id, reason, CHOSEN)

    def to_json(self) -> dict[str, Any]:
        """Raise InvalidInputError: a function has no JSON form."""
        raise InvalidInputError(
            "KeepIf cannot be saved, because a function has no JSON form. Pass the policy to gc "
            "each time, or save another one."
        )


@dataclass(frozen=True, slots=True)
class Union(Policy):
    """Keeps what any of its policies keeps; `|` makes it.

    Attributes:
        members: The policies, at least 2. A union among them is replaced by its own members.
    """

    members: tuple[Policy, ...]
    kind: ClassVar[str] = "union"

    def __post_init__(self) -> None:
        listed = self.members if isinstance(self.members, tuple) else (self.members,)
        wrong = [member for member in listed if not isinstance(member, Policy)]
        if wrong:
            raise InvalidInputError(
                f"Union: {shown(wrong[0])} is not a retention policy; a tuple of them is expected."
            )
        members = tuple(part for member in listed for part in member.parts)
        if not 2 <= len(members) <= MEMBERS_MAX:
            raise InvalidInputError(
                f"A union of {len(members)} policies was asked for; 2 to {MEMBERS_MAX} are allowed."
            )
        object.__setattr__(self, "members", members)

    @property
    def parts(self) -> tuple[Policy, ...]:
        """The joined policies."""
        return self.members

    @property
    def phrase(self) -> str:
        """The kept checkpoints, as a part of a sentence."""
        phrases = [member.phrase for member in self.members]
        comma = "," if len(phrases) > 2 else ""
        return f"{', '.join(phrases[:-1])}{comma} and {phrases[-1]}"

    @property
    def metrics(self) -> frozenset[str]:
        """The metrics of all of them."""
        return frozenset().union(*(member.metrics for member in self.members))

    def keep(self, chain: Chain) -> Choices:
        """Yield what each keeps, one policy after the other."""
        for member in self.members:
            yield from member.keep(chain)

    def passed_over(self, chain: Chain) -> Choices:
        """Yield the explanations of each, one policy after the other."""
        for member in self.members:
            yield from member.passed_over(chain)

    def note(self, chain: Chain) -> str:
        """Join the sentences of all of them."""
        return " ".join(filter(None, (member.note(chain) for member in self.members)))

    def to_json(self) -> dict[str, Any]:
        """Return the kind and the JSON of each member."""
        return {"kind": self.kind, "members": [member.to_json() for member in self.members]}


def once_a_step(chain: Chain) -> Iterator[tuple[Digest, Manifest]]:
    """Yield the first checkpoint of each step, and all those without a step."""
    seen: set[int] = set()
    for id, manifest in chain:
        if manifest.step is None:
            yield id, manifest
        elif manifest.step not in seen:
            seen.add(manifest.step)
            yield id, manifest


def not_a_policy(value: object) -> InvalidInputError:
    """Return the error for a value that is not a policy."""
    return InvalidInputError(
        f"{shown(value)} is not a retention policy such as MaxToKeep(3) | KeepBest('val_loss')."
    )


def check_count(number: object, what: str) -> None:
    """Raise InvalidInputError unless a number is an integer of 1 or more."""
    if not is_integer(number) or number < 1:
        raise InvalidInputError(
            f"{what}: {shown(number)} is not an integer of 1 or more, and of at most 63 bits."
        )


def is_integer(number: object) -> TypeGuard[int]:
    """Return True for an integer of at most 63 bits, which a saved policy can hold."""
    return isinstance(number, int) and not isinstance(number, bool) and abs(number) <= NUMBER_MAX
