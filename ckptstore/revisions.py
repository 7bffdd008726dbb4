"""Revisions: text that names a checkpoint.

Pure: refs and manifests come in as values and functions.

main   v1.0   3f9a12c4…          a branch, a tag, an id or a unique prefix of one (6 digits up)
main~2                           two first parents back
main@step=1000                   the newest checkpoint in main's history with that step
main@best:val_loss:min           the best one committed on main by a metric, without those of the
                                 branch that main was started from; NaN and infinity never win,
                                 and of equal ones the newest does; without :min or :max the words
                                 of the name decide (metric_names)
main@best:"recall@10"            the same by a metric whose name contains ":", "@" or "~"
best:val_loss                    the same on the default branch
latest                           the newest over all branches
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptstore.digest import HEX_DIGITS, Digest
from ckptstore.documents.settings import Claim
from ckptstore.errors import CorruptError, InvalidInputError, NotFoundError, shown
from ckptstore.history import ancestors, first_parents, own_chain
from ckptstore.metric_names import QUOTED_OR_PLAIN, known_names, mode_of, quoted, unquoted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from ckptstore.documents.manifest import Manifest
    from ckptstore.history import Lookup, OwnChain

PREFIX_DIGITS_MIN = 6
HINT_DIGITS_MIN = 3  # with so many digits an error names the ids that begin with them
IDS_SHOWN = 5
REVISION_LENGTH_MAX = 1000

_MODE = "(?::(min|max|auto))?"
_BEST = re.compile(f"best:({QUOTED_OR_PLAIN}){_MODE}")
_SUFFIX = re.compile(
    r"~(?P<back>[0-9]{0,9})|@step=(?P<step>-?[0-9]{1,19})"
    rf"|@(?P<best>best:{QUOTED_OR_PLAIN}{_MODE})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The names that revisions may use: refs as of one operation, and checkpoints by id.

    lookup: returns the manifest of an id, or None. ids: returns the ids that begin with the given
    digits. may_be_best: returns False for a checkpoint that best: skips. claim: returns the rule
    that tells which checkpoints are a branch's own.
    """

    heads: Mapping[str, Digest]
    tags: Mapping[str, Digest]
    lookup: Lookup
    ids: Callable[[str], Iterable[Digest]]
    default_branch: str = "main"
    may_be_best: Callable[[Digest], bool] = lambda id: True
    claim: Callable[[str], Claim] = lambda branch: Claim(names=(branch,))


def resolve(revision: str, names: Names) -> Digest:
    """Return the id of the checkpoint that a revision names.

    InvalidInputError for text that is no revision; NotFoundError when there is no such checkpoint;
    CorruptError when it may be behind one that is missing from the history.
    """
    if not isinstance(revision, str) or not 0 < len(revision) <= REVISION_LENGTH_MAX:
        raise InvalidInputError(
            f"{shown(revision)} is not a revision: a branch, tag or id is expected."
        )
    best = _BEST.match(revision)
    end = best.end() if best else _end_of_base(revision)
    suffixes = list(_suffixes(revision, end))
    branch: str | None = names.default_branch if best else revision[:end]
    if best:
        id = _best(_default(names, whole=revision), branch, best, names, whole=revision)
    else:
        id = _base(revision[:end], names)
    for suffix in suffixes:
        id = _follow(id, branch, suffix, names, whole=revision)
        branch = None
    return id


def is_prefix(text: str) -> bool:
    """Return True for text that may be an id, or a prefix of one that is long enough."""
    return re.fullmatch(rf"[0-9a-f]{{{PREFIX_DIGITS_MIN},{HEX_DIGITS}}}", text) is not None


def ranked(
    candidates: Iterable[tuple[Digest, Manifest]], metric: str, mode: str = "auto"
) -> list[tuple[Digest, Manifest]]:
    """Return the checkpoints with a finite value of a metric, the best first.

    Checkpoints with equal values keep their order. InvalidInputError for mode "auto" if the name
    does not say its direction.
    """
    sign = -1 if (mode_of(metric) if mode == "auto" else mode) == "max" else 1
    known = [
        (id, manifest)
        for id, manifest in candidates
        if math.isfinite(manifest.metrics.get(metric, math.nan))
    ]
    return sorted(known, key=lambda pair: sign * pair[1].metrics[metric])


def _suffixes(revision: str, end: int) -> Iterator[re.Match[str]]:
    while end < len(revision):
        suffix = _SUFFIX.match(revision, end)
        if not suffix:
            raise _bad_suffix(revision, end)
        yield suffix
        end = suffix.end()


def _bad_suffix(revision: str, end: int) -> InvalidInputError:
    """Return the error for a revision that cannot be read from `end` on."""
    metric = re.search(rf"best:({QUOTED_OR_PLAIN})(?=(:\w+)?$)", revision[:end])
    rest = revision[end:]
    if metric and rest[0] not in "~@":
        expected = f"After {metric[0]}, only :min or :max may follow"
    else:
        expected = f"{shown(rest)} was found where ~N, @step=N or @best:METRIC was expected"
    name = re.search(f'best:([^"].*?){_MODE}$', revision, re.DOTALL)
    hint = ""
    if name:
        mode = f":{name[2]}" if name[2] else ""
        hint = f" A name that contains ':', '@' or '~' is quoted: best:{quoted(name[1])}{mode}."
    return InvalidInputError(f"{shown(revision)} is not a revision. {expected}.{hint}")


def _end_of_base(revision: str) -> int:
    ends = [position for mark in ("~", "@") if (position := revision.find(mark)) >= 0]
    return min(ends, default=len(revision))


def _base(text: str, names: Names) -> Digest:
    if text == "latest":
        newest = next(iter(ancestors(names.heads.values(), names.lookup)), None)
        if newest is None:
            raise NotFoundError("There is no checkpoint on any branch yet.")
        return newest[0]
    if text in names.heads or text in names.tags:
        return names.heads.get(text) or names.tags[text]
    if is_prefix(text):
        return _by_prefix(text, names)
    if text == "best:":
        raise InvalidInputError("'best:' is not a revision. Name a metric, as in best:val_loss.")
    raise NotFoundError(
        f"{text[:80]!r} is not a branch, tag or checkpoint.{_hint(text, names)} "
        f"{_offer(text, names)}"
    )


def _hint(text: str, names: Names) -> str:
    """Return a hint for text that names nothing; usually empty."""
    if text == "best":
        head = names.heads.get(names.default_branch)
        manifest = names.lookup(head) if head else None
        metric = quoted(min(manifest.metrics)) if manifest and manifest.metrics else "METRIC"
        return f" The best checkpoint is that of a metric: best:{metric}."
    if text.upper() == "HEAD":
        return " A branch names its own newest checkpoint; 'latest' is the newest over all."
    if carets := re.fullmatch(r"([^^]+)(\^+)", text):
        return f" Use {carets[1][:80]}~{len(carets[2])} for that many steps back."
    if not re.fullmatch(r"[0-9a-fA-F]+", text):
        return ""
    digits = text.lower()
    alike = [] if len(digits) < HINT_DIGITS_MIN else sorted(set(names.ids(digits)))[:IDS_SHOWN]
    begin = f" Ids that begin so: {', '.join(id.short for id in alike)}." if alike else ""
    if len(digits) < PREFIX_DIGITS_MIN:
        return f" An id needs at least {PREFIX_DIGITS_MIN} digits.{begin}"
    return f" The digits of ids are lowercase.{begin}" if begin else ""


def _default(names: Names, *, whole: str) -> Digest:
    """Return the id of the default branch, which a revision without a name refers to."""
    name = names.default_branch
    id = names.heads.get(name) or names.tags.get(name)
    if id is None:
        other = next(iter(sorted(names.heads)), None)
        named = f" For another branch: {other}@{whole[:80]}." if other else ""
        raise NotFoundError(
            f"{whole[:80]!r} refers to the branch {name!r}, which does not exist. "
            f"{_offer(name, names)}{named}"
        )
    return id


def _by_prefix(text: str, names: Names) -> Digest:
    if len(text) == HEX_DIGITS:
        if names.lookup(Digest(text)) is None:
            raise NotFoundError(f"Checkpoint {text} is not in this repository.")
        return Digest(text)
    ids = sorted(set(names.ids(text)))
    if not ids:
        raise NotFoundError(
            f"No branch, tag or checkpoint id is or begins with {text!r}. {_offer(text, names)}"
        )
    if len(ids) > 1:
        some = ", ".join(id[: len(text) + 4] for id in ids[:5])
        raise InvalidInputError(f"{len(ids)} ids begin with {text!r} ({some}, …). Add digits.")
    return ids[0]


def _follow(
    id: Digest, branch: str | None, suffix: re.Match[str], names: Names, *, whole: str
) -> Digest:
    if suffix["best"] is not None:
        best = _BEST.fullmatch(suffix["best"])
        assert best is not None  # the same pattern
        return _best(id, branch, best, names, whole=whole)
    if suffix["step"] is not None:
        step = int(suffix["step"])
        history: dict[Digest, Manifest] = {}
        for found, manifest in ancestors([id], names.lookup):
            if manifest.step == step:
                return found
            history[found] = manifest
        _refuse_gaps(history, whole=whole)
        steps = {manifest.step for manifest in history.values() if manifest.step is not None}
        nearest = sorted(steps, key=lambda other: (abs(other - step), other))[:2]
        there = f" The nearest: {', '.join(map(str, sorted(nearest)))}." if nearest else ""
        raise NotFoundError(
            f"{shown(whole)}: no checkpoint in that history has step {step}.{there}"
        )
    back = int(suffix["back"] or 1)
    distance, oldest = 0, {}
    for distance, (found, manifest) in enumerate(first_parents(id, names.lookup)):
        if distance == back:
            return found
        oldest = {found: manifest}
    _refuse_gaps(oldest, whole=whole)
    base = whole[: whole.rfind("~")] if whole.count("~") == 1 else id.short
    checkpoints = "checkpoint" if distance == 1 else "checkpoints"
    raise NotFoundError(
        f"{shown(whole)}: {base[:80]} has only {distance} earlier {checkpoints}."
        if distance
        else f"{shown(whole)}: {base[:80]} has no earlier checkpoint."
    )


def own_of(start: Digest, branch: str | None, names: Names) -> tuple[str | None, OwnChain]:
    """Return the branch of a checkpoint, and its own chain up to the checkpoint.

    branch: the branch that led to `start`. If None or a tag, the branch of its commit.
    """
    if branch not in names.heads:
        manifest = names.lookup(start)
        branch = manifest.branch if manifest else None
    claim = Claim(names=()) if branch is None else names.claim(branch)
    return branch, own_chain(start, claim, names.lookup)


def _best(
    start: Digest, branch: str | None, best: re.Match[str], names: Names, *, whole: str
) -> Digest:
    """Return the best checkpoint of a branch, up to one of its checkpoints.

    branch: the branch that led to `start`. If None or a tag, the branch of its commit.
    """
    metric, mode = unquoted(best[1]), best[2] or "auto"
    branch, chain = own_of(start, branch, names)
    valued = [item for item in chain.checkpoints if metric in item[1].metrics]
    winners = ranked(valued, metric, mode) if valued else []
    winner = next((id for id, _ in winners if names.may_be_best(id)), None)
    if winner is None:
        own = {id: replace(item, parents=item.parents[:1]) for id, item in chain.checkpoints}
        _refuse_gaps(own, whole=whole, known=chain.others)
        known = {quoted(name) for _, manifest in chain.checkpoints for name in manifest.metrics}
        others = "" if valued else f" {known_names(metric, sorted(known), what='metrics')}"
        raise NotFoundError(
            f"{shown(whole)}: no checkpoint of {_named(branch)} has a finite value of the metric "
            f"{shown(metric)}.{others}{_seeded(chain, names)}"
        )
    return winner


def _named(branch: str | None) -> str:
    return "that history" if branch is None else f"branch {shown(branch)}"


def _seeded(chain: OwnChain, names: Names) -> str:
    """Return a sentence about the branch that another one was started from."""
    before = names.lookup(chain.start) if chain.start else None
    if before is None or chain.start is None:
        return ""
    return (
        f" Earlier checkpoints belong to {_named(before.branch)}, from which it was started: "
        f"{chain.start.short}@best:METRIC."
    )


def _refuse_gaps(
    history: Mapping[Digest, Manifest], *, whole: str, known: Collection[Digest] = ()
) -> None:
    """Raise CorruptError when a checkpoint is missing from a history that was searched to its end.

    The search may have been for the missing one or its ancestors. known: some existing checkpoints.
    """
    for id, manifest in history.items():
        for parent in manifest.parents:
            if parent not in history and parent not in known:
                raise CorruptError(
                    f"{shown(whole)}: checkpoint {parent.short}, from which {id.short} was made, "
                    "is missing, as in a copy that was cut short. Copy its file from another copy; "
                    "verify names it."
                )


def _offer(name: str, names: Names) -> str:
    known = sorted(names.heads) + sorted(names.tags)
    if known:
        return known_names(name, known, what="names")
    is_empty = next(iter(names.ids("")), None) is None
    return "Nothing has been committed yet." if is_empty else "No branch and no tag is left."
