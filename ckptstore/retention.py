"""Retention: which checkpoints stay. Policies are pure values that decide from manifests alone.

A policy is asked about the live checkpoints of each branch, and a checkpoint stays if the policy of
any branch keeps it. The head of every branch and every tagged checkpoint stay in any case. A policy
looks only at live checkpoints, and those that it does not keep have no influence on those that it
keeps. So the same checkpoints stay however often gc runs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar

from ckptstore.documents import canonical
from ckptstore.documents.facts import STEP_MAX
from ckptstore.documents.names import check_metric_name
from ckptstore.errors import InvalidInputError, shortened, shown
from ckptstore.metric_names import known_names, mode_of, parse_choice, quoted
from ckptstore.revisions import ranked

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from typing import Self, TypeGuard

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest

    Live = Sequence[tuple[Digest, Manifest]]
    Reasons = Iterator[tuple[Digest, str]]

__all__ = [
    "KeepAll",
    "KeepBest",
    "KeepEveryNHours",
    "KeepEveryNSteps",
    "KeepIf",
    "KeepSteps",
    "MaxToKeep",
    "Policy",
    "Union",
    "Verdict",
    "from_json",
]

HOUR_MICROSECONDS = 3_600_000_000
NUMBER_MAX = STEP_MAX
STEPS_MAX = 100_000  # of KeepSteps
MEMBERS_MAX = 10_000  # of a union
SAVED_BYTES_MAX = 256 << 10  # of a policy that is saved, as every operation carries it along
NAME_LENGTH_MAX = 60  # characters of a function's name that a reason quotes


class Policy:
    """Decides what stays of one branch. Join policies with `|`: what any of them keeps stays.

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
        """The policies that are joined in this one."""
        return (self,)

    @property
    def phrase(self) -> str:
        """The kept checkpoints, as a part of a sentence."""
        raise NotImplementedError

    @property
    def metrics(self) -> frozenset[str]:
        """The metrics by which it decides."""
        return frozenset()

    def keep(self, live: Live) -> Reasons:
        """Choose what stays.

        Args:
            live: The live checkpoints of one branch with their manifests, newest first.

        Yields:
            The id of each checkpoint that stays, and why.
        """
        raise NotImplementedError

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

    def keep(self, live: Live) -> Reasons:
        """Keep all of them."""
        return ((id, "everything is kept") for id, _ in live)


@dataclass(frozen=True, slots=True)
class MaxToKeep(Policy):
    """Keeps the newest n checkpoints of each branch.

    Attributes:
        n: How many, at least 1.
    """

    n: int
    kind: ClassVar[str] = "max_to_keep"

    def __post_init__(self) -> None:
        _check_count(self.n, "MaxToKeep")

    @property
    def phrase(self) -> str:
        """The kept checkpoints, as a part of a sentence."""
        return f"the newest {self.n} of each branch" if self.n > 1 else "the newest of each branch"

    def keep(self, live: Live) -> Reasons:
        """Keep the first n."""
        return ((id, f"one of the newest {self.n}") for id, _ in live[: self.n])


@dataclass(frozen=True, slots=True)
class KeepBest(Policy):
    """Keeps the n best checkpoints of each branch by a metric.

    NaN and infinity never win, and of equal ones the newest does.

    Attributes:
        metric: The name of the metric.
        mode: "min" or "max". With "auto" the words of the name decide ("val_loss", "val_f1_macro");
            a name that does not say its direction is an error.
        n: How many, at least 1.
    """

    metric: str
    mode: str = "auto"
    n: int = 1
    kind: ClassVar[str] = "keep_best"

    def __post_init__(self) -> None:
        check_metric_name(self.metric)
        if not isinstance(self.mode, str) or self.mode not in ("auto", "min", "max"):
            raise InvalidInputError(
                f"KeepBest: the mode is {shown(self.mode)}; auto, min or max is expected."
            )
        _check_count(self.n, "KeepBest")
        if self.mode == "auto":
            object.__setattr__(self, "mode", mode_of(self.metric))

    @classmethod
    def from_saved(cls, metric: str, mode: str = "auto", n: int = 1) -> Self:
        """Return a policy as a repository holds it.

        Repositories of before may hold "auto" with a name that does not say its direction. Such a
        policy remains, and keeps the n least as well as the n greatest.

        Args:
            metric: As in the policy.
            mode: As in the policy, or "auto".
            n: As in the policy.

        Raises:
            InvalidInputError: One of them is illegal.
        """
        try:
            return cls(metric, mode, n)
        except InvalidInputError:
            if mode != "auto":
                raise
            either = cls(metric, "min", n)
            object.__setattr__(either, "mode", "auto")
            return either

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the policy that METRIC, METRIC:MODE or METRIC:MODE:N names.

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
        return None if chosen is None else cls(*chosen)

    @property
    def phrase(self) -> str:
        """The kept checkpoints, as a part of a sentence."""
        number = f"{self.n} " if self.n > 1 else ""
        if self.mode == "auto":
            name = quoted(self.metric)
            return (
                f"the {number}least and the {number}greatest by {self.metric} (which of them are "
                f"better is not saved: save the policy again, with {name}:min or {name}:max)"
            )
        return f"the {number}best by {self.metric} ({self.mode})"

    @property
    def metrics(self) -> frozenset[str]:
        """The one metric."""
        return frozenset({self.metric})

    def keep(self, live: Live) -> Reasons:
        """Keep those with the n least or greatest numbers."""
        for mode in ("min", "max") if self.mode == "auto" else (self.mode,):
            best = ranked(live, self.metric, mode)[: self.n]
            for place, (id, manifest) in enumerate(best, start=1):
                order = "best" if place == 1 else f"number {place}"
                value = manifest.metrics[self.metric]
                yield id, f"{order} by {self.metric} ({mode}), {value:.6g}"


@dataclass(frozen=True, slots=True)
class KeepEveryNHours(Policy):
    """Keeps the first checkpoint of each branch, and one whenever n more hours have passed.

    Attributes:
        n: Hours since the time of the last one that was kept; any number above 0, up to 2^63 - 1.
    """

    n: float
    kind: ClassVar[str] = "keep_every_n_hours"

    def __post_init__(self) -> None:
        is_number = isinstance(self.n, int | float) and not isinstance(self.n, bool)
        if not is_number or not 0 < self.n <= NUMBER_MAX:
            raise InvalidInputError(
                f"KeepEveryNHours: {shown(self.n)} is not a number of hours above 0, and of at "
                "most 63 bits."
            )

    @property
    def phrase(self) -> str:
        """The kept checkpoints, as a part of a sentence."""
        return "one every hour" if self.n == 1 else f"one every {self.n:g} hours"

    def keep(self, live: Live) -> Reasons:
        """Decide by the times of the manifests, oldest first."""
        reason = f"{self.n:g} h after the last one kept for good"
        kept = _spaced(live, self.n * HOUR_MICROSECONDS, attrgetter("created"))
        return ((id, reason) for id in kept)


@dataclass(frozen=True, slots=True)
class KeepEveryNSteps(Policy):
    """Keeps the first checkpoint with a step, and one whenever n more steps have passed.

    Attributes:
        n: Steps since the last one that was kept, at least 1.
    """

    n: int
    kind: ClassVar[str] = "keep_every_n_steps"

    def __post_init__(self) -> None:
        _check_count(self.n, "KeepEveryNSteps")

    @property
    def phrase(self) -> str:
        """The kept checkpoints, as a part of a sentence."""
        return f"one every {self.n} steps" if self.n > 1 else "one of every step"

    def keep(self, live: Live) -> Reasons:
        """Decide by the steps of the manifests, oldest first, ignoring those without a step."""
        reason = f"{self.n} steps after the last one kept for good"
        return ((id, reason) for id in _spaced(live, self.n, attrgetter("step")))


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
        wrong = [step for step in listed if not _is_integer(step)]
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

    def keep(self, live: Live) -> Reasons:
        """Keep those whose step is one of them."""
        return ((id, "its step was chosen") for id, item in live if item.step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Return the kind and the sorted steps."""
        return {"kind": self.kind, "steps": sorted(self.steps)}


@dataclass(frozen=True, slots=True)
class KeepIf(Policy):
    """Keeps the checkpoints for which a function returns something true.

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

    def keep(self, live: Live) -> Reasons:
        """Keep those that the function accepts."""
        for id, manifest in live:
            try:
                chosen = bool(self.predicate(manifest))
            except Exception as error:
                raise InvalidInputError(
                    f"KeepIf: the function failed on checkpoint {id.short} "
                    f"({type(error).__name__}: {error})."
                ) from error
            if chosen:
                yield id, "the function of KeepIf accepts it"

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
                f"Union: {shown(wrong[0])} is not a retention policy; a tuple of some is expected."
            )
        members = tuple(part for member in listed for part in member.parts)
        if not 2 <= len(members) <= MEMBERS_MAX:
            raise InvalidInputError(
                f"A union of {len(members)} policies was asked for; 2 to {MEMBERS_MAX} are allowed."
            )
        object.__setattr__(self, "members", members)

    @property
    def parts(self) -> tuple[Policy, ...]:
        """The policies that are joined."""
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

    def keep(self, live: Live) -> Reasons:
        """Yield what each keeps, one policy after the other."""
        for member in self.members:
            yield from member.keep(live)

    def to_json(self) -> dict[str, Any]:
        """Return the kind and the JSON of each member."""
        return {"kind": self.kind, "members": [member.to_json() for member in self.members]}


def saved(policy: object) -> dict[str, Any]:
    """Return the JSON form of a policy for a repository, once `from_json` takes it back.

    Raises:
        InvalidInputError: It is not a policy, holds a function, or is too large for something that
            every operation carries along.
    """
    if not isinstance(policy, Policy):
        raise _not_a_policy(policy)
    data = canonical.encode(policy.to_json(), name="The policy", bytes_max=SAVED_BYTES_MAX)
    document = canonical.decode(data, name="The policy")
    from_json(document)
    return document


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


_KINDS: dict[str, Callable[..., Policy]] = {
    policy.kind: policy
    for policy in (KeepAll, MaxToKeep, KeepBest, KeepEveryNHours, KeepEveryNSteps, KeepSteps)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a checkpoint stays, and every reason why.

    Attributes:
        id: The checkpoint.
        manifest: Its manifest.
        branches: The branches whose history contains it.
        kept: True when it stays.
        reasons: Why it stays, or that nothing keeps it.
    """

    id: Digest
    manifest: Manifest
    branches: tuple[str, ...]
    kept: bool
    reasons: tuple[str, ...]

    @classmethod
    def of(
        cls, id: Digest, manifest: Manifest, branches: Sequence[str], reasons: Iterable[str]
    ) -> Self:
        """Return the verdict that follows from these reasons: kept if there is any."""
        distinct = tuple(dict.fromkeys(reasons))
        return cls(
            id=id,
            manifest=manifest,
            branches=tuple(branches),
            kept=bool(distinct),
            reasons=distinct or ("nothing keeps it",),
        )


def decide(
    policy: Policy,
    *,
    heads: Mapping[str, Digest],
    tags: Mapping[str, Digest],
    reached: Callable[[Iterable[Digest]], Iterable[tuple[Digest, Manifest]]],
    branches: Collection[str] | None = None,
) -> tuple[Verdict, ...]:
    """Return verdicts on all live checkpoints that a branch or a tag reaches, newest first.

    reached: gives the live checkpoints that are reachable from some, newest first. branches: those
    that the policy applies to; what others, or only tags, reach stays. None: all.
    InvalidInputError for a policy by a metric that no live checkpoint of any branch has.
    """
    if not isinstance(policy, Policy):
        raise _not_a_policy(policy)
    live = dict(reached([*heads.values(), *tags.values()]))
    reasons = _for_names(live, heads, tags)
    reached_from: dict[Digest, list[str]] = {id: [] for id in live}
    known: set[str] = set()
    for head, names in _by_head(heads).items():
        history = list(reached([head]))
        others = [] if branches is None else [name for name in names if name not in branches]
        for id, found in history:
            reached_from[id] += names
            known.update(found.metrics)
            reasons[id] += (f"on {name}, which is left alone" for name in others)
        if branches is None or len(others) < len(names):
            for id, reason in policy.keep(history):
                reasons[id].append(reason)
    if branches is not None:
        for id, names in reached_from.items():
            if not names:
                reasons[id].append("reached by a tag, not by a branch")
    _check_metrics(policy, known, live)
    return tuple(
        Verdict.of(id, manifest, reached_from[id], reasons[id]) for id, manifest in live.items()
    )


def _for_names(
    live: Mapping[Digest, Manifest], heads: Mapping[str, Digest], tags: Mapping[str, Digest]
) -> dict[Digest, list[str]]:
    """Return why each checkpoint stays whatever the policy: branches and tags that name it."""
    reasons: dict[Digest, list[str]] = {id: [] for id in live}
    for kind, names in (("head of", heads), ("tag", tags)):
        for name, id in sorted(names.items()):
            if id in reasons:
                reasons[id].append(f"{kind} {name}")
    return reasons


def _by_head(heads: Mapping[str, Digest]) -> dict[Digest, list[str]]:
    """Return the names of the branches at each head, so that each history is walked once."""
    names: dict[Digest, list[str]] = {}
    for name, id in sorted(heads.items()):
        names.setdefault(id, []).append(name)
    return names


def _spaced(
    live: Live, distance: float, place: Callable[[Manifest], int | None]
) -> Iterator[Digest]:
    """Yield the oldest checkpoint that has a place, and each so far from the last one yielded."""
    last: int | None = None
    for id, manifest in reversed(live):
        here = place(manifest)
        if here is not None and (last is None or here - last >= distance):
            last = here
            yield id


def _check_metrics(policy: Policy, known: set[str], live: Mapping[Digest, Manifest]) -> None:
    unknown = sorted(policy.metrics - known)
    if unknown and live:
        there = known_names(unknown[0], sorted(known), what="metrics")
        raise InvalidInputError(f"No checkpoint has the metric {shown(unknown[0])}. {there}")


def _not_a_policy(value: object) -> InvalidInputError:
    return InvalidInputError(
        f"{shown(value)} is not a retention policy such as MaxToKeep(3) | KeepBest('val_loss')."
    )


def _check_count(number: object, what: str) -> None:
    if not _is_integer(number) or number < 1:
        raise InvalidInputError(
            f"{what}: {shown(number)} is not an integer of 1 or more, and of at most 63 bits."
        )


def _is_integer(number: object) -> TypeGuard[int]:
    """Return True for an integer of at most 63 bits, which a saved policy can hold."""
    return isinstance(number, int) and not isinstance(number, bool) and abs(number) <= NUMBER_MAX
