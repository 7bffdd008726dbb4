"""Settings: named values that operations carry along, split into the parts that undo moves. Pure.

Undo moves most settings as a whole. A setting with an entry for each branch or tag is moved entry
by entry, so that an undo of one leaves the others alone (docs/reference/format.md, section 8).
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptstore.digest import Digest
from ckptstore.errors import InvalidInputError, shown
from ckptstore.times import seconds_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

GRACE = "grace_seconds"  # the grace time of every gc that is not given another
LEASES = "leases"  # the end of each tag that is a lease
RENAMED = "renamed"  # the earlier names of each renamed branch
BEGUN = "begun"  # where the own checkpoints of a branch begin, if its names do not tell
RESUMED = "resumed"  # what the run on each branch was resumed from, if its history does not tell
BRANCH_RETENTION = "branch_retention"  # groups of branches that share a policy
REMOTES = "remotes"  # the URL of each other repository that has a name here
MIRRORED = "mirrored"  # what of each branch is in the mirror that its training pushes to
_BY_NAME = (LEASES, RENAMED, BEGUN, RESUMED, REMOTES, MIRRORED)
GRACE_SECONDS = 86_400.0  # in which what was let go can be brought back, unless set otherwise
_DIVIDED = (*_BY_NAME, BRANCH_RETENTION)
TTL_SECONDS_MAX = 100 * 366 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The rule that tells which checkpoints in the history of a branch are its own.

    Attributes:
        names: The name of the branch, and those that it had before it was renamed.
        begun: Checkpoints where the own part of the history ends; neither they nor their ancestors
            belong to the branch. None: it ends at the first checkpoint that records another name.
    """

    names: tuple[str, ...]
    begun: tuple[Digest, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrored:
    """The mirror of a branch, and how far it has come.

    Attributes:
        url: The URL of the mirror. Nothing is ever pushed because it is here.
        id: The newest checkpoint of the branch that is there; None for none.
    """

    url: str
    id: Digest | None = None

    @property
    def place(self) -> str:
        """The URL without options, for messages."""
        return self.url.partition("?")[0]

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the setting."""
        return {"url": self.url, "id": self.id}


def mirrored_of(settings: Mapping[str, Any]) -> dict[str, Mirrored]:
    """Return the mirrors by branch, without entries in the form of a later version."""
    found: dict[str, Mirrored] = {}
    for branch, entry in sorted(by_name(settings, MIRRORED).items()):
        if isinstance(entry, dict) and isinstance(entry.get("url"), str):
            with suppress(InvalidInputError):
                id = entry.get("id")
                digest = None if id is None else Digest.parse(id)
                found[branch] = Mirrored(url=entry["url"], id=digest)
    return found


def parts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by name. Entries for single refs are separate, by `NAME/REF`."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        entries = _entries(key, value)
        result.update({key: value} if entries is None else entries)
    return result


def with_part(settings: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Return settings with a new value for a part, or without the part for None.

    Raises:
        InvalidInputError: The setting is in a form that only a later version knows.
    """
    key, _, ref = name.partition("/")
    if key not in _DIVIDED:
        key, ref = name, ""
    others = {other: item for other, item in settings.items() if other != key}
    if not ref:
        return others if value is None else {**others, key: value}
    changed: Any
    if key == BRANCH_RETENTION:
        changed = _regrouped(branch_groups(settings), ref, value)
    else:
        entries = settings.get(key, {})
        if not isinstance(entries, dict):
            raise _not_known(key, entries)
        changed = {other: item for other, item in entries.items() if other != ref}
        if value is not None:
            changed[ref] = value
    return {**others, key: changed} if changed else others


def branch_groups(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the groups of branches that share a policy, each an object of these two.

    Raises:
        InvalidInputError: The setting is in a form that only a later version knows.
    """
    groups: list[dict[str, Any]] = settings.get(BRANCH_RETENTION, [])
    if not _are_groups(groups):
        raise _not_known(BRANCH_RETENTION, groups)
    return groups


def by_name(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the entries of a setting that has one for each ref or remote, by its name."""
    entries = settings.get(key)
    return dict(entries) if isinstance(entries, dict) else {}


def renamed(settings: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """Return settings after a rename: entries of the branch move, and its old name is recorded."""
    names = [*former_names(settings, old), old]
    earlier = [name for name in dict.fromkeys(names) if name != new]
    result = with_part(settings, f"{RENAMED}/{old}", None)
    result = with_part(result, f"{RENAMED}/{new}", earlier or None)
    known = parts(settings)
    for key in (BEGUN, RESUMED, MIRRORED, BRANCH_RETENTION):
        result = with_part(result, f"{key}/{old}", None)
        result = with_part(result, f"{key}/{new}", known.get(f"{key}/{old}"))
    return result


def without_branch(settings: Mapping[str, Any], branch: str) -> Mapping[str, Any]:
    """Return settings without what they say of the run on a branch that is deleted."""
    for key in (RESUMED, MIRRORED):
        settings = with_part(settings, f"{key}/{branch}", None)
    return settings


def former_names(settings: Mapping[str, Any], branch: str) -> tuple[str, ...]:
    """Return the names that a branch had before it was renamed, which its manifests record."""
    names = by_name(settings, RENAMED).get(branch)
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def names_before(
    settings: Mapping[str, Any], branches: Iterable[str]
) -> dict[str, tuple[str, ...]]:
    """Return the earlier names of renamed branches, without those that a branch has now.

    branches: the branches that exist.
    """
    existing = set(branches)
    found = {name: former_names(settings, name) for name in sorted(existing)}
    return {
        name: tuple(former for former in names if former not in existing)
        for name, names in found.items()
        if names
    }


def claim_of(settings: Mapping[str, Any], branch: str) -> Claim:
    """Return which checkpoints in the history of a branch are its own."""
    ids = by_name(settings, BEGUN).get(branch)
    names = (branch, *former_names(settings, branch))
    return Claim(names=names, begun=tuple(_digests(ids)) if isinstance(ids, list) else None)


def _digests(items: list[Any]) -> Iterator[Digest]:
    for item in items:
        with suppress(InvalidInputError):
            yield Digest.parse(item)


def grace_of(settings: Mapping[str, Any]) -> float:
    """Return the saved grace time in seconds; a day if there is none, or it is no such number."""
    try:
        return checked_grace(settings.get(GRACE))
    except InvalidInputError:
        return GRACE_SECONDS


def checked_grace(seconds: object) -> float:
    """Return a grace time in seconds, which JSON can hold.

    Raises:
        InvalidInputError: It is not a number of 0 or more.
    """
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not seconds >= 0:
        raise InvalidInputError(
            f"grace is {shown(seconds)}; a number of seconds of 0 or more is expected."
        )
    return float(min(seconds, sys.float_info.max))


def ttl_seconds(ttl: object) -> float:
    """Return the seconds that a lease lasts, from a number or a text such as "90min" or "6h".

    Raises:
        InvalidInputError: The value is neither, or out of range.
    """
    seconds = seconds_of(ttl) if isinstance(ttl, str) else ttl
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or not 0 < seconds <= TTL_SECONDS_MAX
    ):
        raise InvalidInputError(
            f"The ttl is {shown(ttl)}; a number of seconds or a text such as '90min', '6h' or '2d' "
            "is expected, up to 100 years."
        )
    return float(seconds)


def _entries(key: str, value: Any) -> dict[str, Any] | None:
    """Return the parts of a setting; None if it is moved as a whole."""
    if key in _BY_NAME and isinstance(value, dict):
        return {f"{key}/{ref}": item for ref, item in value.items()}
    if key == BRANCH_RETENTION and _are_groups(value):
        return {f"{key}/{ref}": item["policy"] for item in value for ref in item["branches"]}
    return None


def _not_known(key: str, value: object) -> InvalidInputError:
    return InvalidInputError(
        f"The setting {key} is {shown(value)}, which this version does not know."
    )


def _are_groups(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict)
        and item.keys() == {"branches", "policy"}
        and isinstance(item["branches"], list)
        and all(isinstance(ref, str) for ref in item["branches"])
        for item in value
    )


def _regrouped(groups: list[dict[str, Any]], ref: str, policy: Any) -> list[dict[str, Any]]:
    """Return groups in which a branch has a new policy, or no policy.

    Equal policies are stored once with the names of their branches, as every operation carries the
    settings along.
    """
    result: list[dict[str, Any]] = []
    for group in groups:
        refs = {*group["branches"]} - {ref}
        if group["policy"] == policy:
            refs.add(ref)
            policy = None
        if refs:
            result.append({"branches": sorted(refs), "policy": group["policy"]})
    if policy is not None:
        result.append({"branches": [ref], "policy": policy})
    return result
