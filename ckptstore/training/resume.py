"""Resume: restores what a training tracks, and reports what was restored and what was not."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import partial
from glob import escape
from typing import TYPE_CHECKING, Any, Self

from ckptstore.checkout.checkout import fill
from ckptstore.checkout.stored_state import StoredState
from ckptstore.documents.manifest import SEED
from ckptstore.documents.names import check_strings, escape_key, unescape_key
from ckptstore.errors import (
    CkptStoreError,
    CorruptError,
    ExpiredError,
    InvalidInputError,
    RankError,
    first_line,
    shown,
)
from ckptstore.state.paths import key_segments
from ckptstore.state.rename import Rename
from ckptstore.state.selection import Selection
from ckptstore.training.differences import changed, environment, moved, settings
from ckptstore.training.rank_view import RankView
from ckptstore.training.tracked import PROGRESS, RANDOM, RANKS, destination, records_of, settle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.digest import Digest
    from ckptstore.repository import Repository
    from ckptstore.training.group import Group
    from ckptstore.training.tracked import Stateful

FINDING, RESTORING = "search for a checkpoint", "restore"
SHOWN_MAX = 5  # names in a line of the report; the attributes have all


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeReport:
    """The result of `CheckpointManager.restore`.

    Attributes:
        checkpoint: The checkpoint that was restored.
        restored: The paths that were restored into tracked objects.
        left_out: The paths of the checkpoint that a tracked object could take and that were not
            restored: `include`, `exclude` or `reset` left them out, or with `strict=False` they did
            not fit.
        not_found: The paths of tracked objects that the checkpoint does not have. They keep their
            values.
        not_tracked: The names in the checkpoint for which nothing is tracked.
        differences: Sentences about what differs from the run that saved the checkpoint: values of
            the program that the checkpoint has replaced, such as a learning rate, and the
            environment, such as the version of torch or numpy.
        damaged: With `fallback=True`, the newer checkpoints that could not be read, newest first.
    """

    checkpoint: Checkpoint
    restored: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    not_found: tuple[str, ...] = ()
    not_tracked: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    damaged: tuple[Digest, ...] = ()

    @property
    def id(self) -> Digest:
        """The id of the checkpoint."""
        return self.checkpoint.id

    @property
    def step(self) -> int | None:
        """The step of the checkpoint."""
        return self.checkpoint.step

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        checkpoint = self.checkpoint
        facts = [] if checkpoint.step is None else [f"step {checkpoint.step}"]
        facts += [] if checkpoint.branch is None else [f"branch {checkpoint.branch}"]
        told = f" ({', '.join(facts)})" if facts else ""
        tops = ", ".join(dict.fromkeys(map(_top, self.restored)))
        yield f"Restored {tops or 'nothing'} from checkpoint {checkpoint.id.short}{told}."
        if self.damaged:
            yield f"Damaged, and passed over: {', '.join(id.short for id in self.damaged)}."
        for label, names in (
            ("Not restored", self.left_out),
            ("Not in the checkpoint, left as they are", self.not_found),
            ("In the checkpoint, but not tracked", self.not_tracked),
        ):
            if names:
                yield f"{label}: {_some(names)}."
        yield from self.differences


def restore_rev(
    repository: Repository,
    rev: str,
    tracked: Mapping[str, Stateful],
    *,
    strict: bool,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    rename: Mapping[str, str] | None,
    reset: Sequence[str],
    fallback: bool,
    group: Group | None = None,
) -> tuple[ResumeReport, Mapping[str, Any] | None]:
    """Restore tracked objects from a revision, as `restore_tracked` does.

    fallback: whether to restore the newest whole one of the checkpoints before it if it is damaged.
    group: all ranks of it restore the same checkpoint, the one that rank 0 finds, or none.
    """
    before = settings(tracked)
    damaged: list[Digest] = []
    first: CorruptError | None = None
    try:
        for found in _tried(repository, rev, fallback=fallback, group=group):
            try:
                checkpoint = _resolved(repository, found, group)
                restore = partial(
                    restore_tracked,
                    repository,
                    checkpoint,
                    tracked,
                    strict=strict,
                    include=include,
                    exclude=exclude,
                    rename=rename,
                    reset=reset,
                    group=group,
                )
                report, position = (
                    restore() if group is None else group.together(restore, RESTORING)
                )
            except (CorruptError, RankError) as error:
                if (damage := _damage(error)) is None:
                    raise
                first = first or damage
                damaged.append(_id_of(repository, found))
            except ExpiredError:
                if not damaged:
                    raise
            else:
                break
        else:
            assert first is not None
            raise first
    except CkptStoreError as error:
        error.add_note(
            "Training was not started from scratch. Restore another checkpoint (rev=, "
            "fallback=True for the newest whole one), only parts of it (include=, exclude=, "
            "strict=False), or use another branch."
        )
        raise
    if first is not None:
        warnings.warn(
            f"The newest checkpoint is damaged ({first_line(first)}). {checkpoint!r} was restored "
            f"instead, after {len(damaged)} that could not be read. The next save moves the branch "
            "back to it.",
            stacklevel=3,
        )
    differences = (
        *changed(before, settings(tracked)),
        *moved(report.checkpoint.meta, environment(tracked)),
    )
    return replace(report, damaged=tuple(damaged), differences=differences), position


def names_to_reset(
    reset: bool | str | Sequence[str], tracked: Mapping[str, Stateful]
) -> tuple[str, ...]:
    """Return the names of tracked objects that are to begin anew.

    Raises:
        InvalidInputError: Nothing is tracked under one of the names.
    """
    names = () if reset is True or reset is False else check_strings(reset, what="names to reset")
    for name in names:
        if name not in tracked:
            raise InvalidInputError(
                f"reset names {shown(name)}, which is not tracked. Tracked: {', '.join(tracked)}."
            )
    return tuple(names)


def _tried(
    repository: Repository, rev: str, *, fallback: bool, group: Group | None
) -> Iterator[str]:
    """Yield the revisions to try; on all ranks those of rank 0."""
    found = iter(_candidates(repository, rev) if fallback else (rev,))
    if group is None:
        yield from found
        return
    while (name := group.told(lambda: next(found, None), FINDING)) is not None:
        yield name


def _resolved(repository: Repository, rev: str, group: Group | None) -> Checkpoint:
    """Return the checkpoint of a revision; on all ranks that which rank 0 finds."""
    if group is None:
        return repository.resolve(rev)
    return repository.resolve(group.told(lambda: repository.resolve(rev).id, FINDING))


def _damage(error: CorruptError | RankError) -> CorruptError | None:
    """The error of what is damaged, on whichever ranks it was found; None if that is not all."""
    found = [*error.failures.values()] if isinstance(error, RankError) else [error]
    damage = [each for each in found if isinstance(each, CorruptError)]
    return damage[0] if len(damage) == len(found) else None


def _candidates(repository: Repository, rev: str) -> Iterator[str]:
    """Yield a revision, and then the checkpoints before it, newest first."""
    yield rev
    try:
        older = [checkpoint.id for checkpoint in repository.log(rev)[1:] if not checkpoint.expired]
    except CorruptError:  # which is before a damaged manifest, only the operations know
        moves = (move for info in repository.operations() for move in info.moves or ())
        older = [m.before for m in moves if m.kind == "branch" and m.name == rev and m.before]
    yield from dict.fromkeys(older)


def _id_of(repository: Repository, rev: str) -> Digest:
    """Return the id of a damaged checkpoint."""
    heads, tags = repository.ref_names()
    return heads.get(rev) or tags.get(rev) or repository.resolve(rev).id


def restore_tracked(
    repository: Repository,
    checkpoint: Checkpoint,
    tracked: Mapping[str, Stateful],
    *,
    strict: bool,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    rename: Mapping[str, str] | None,
    reset: Sequence[str],
    group: Group | None = None,
) -> tuple[ResumeReport, Mapping[str, Any] | None]:
    """Restore tracked objects and the global random states from a checkpoint.

    Args:
        repository: The repository of the checkpoint.
        checkpoint: The checkpoint.
        tracked: The objects by name.
        strict: Whether any misfit raises before anything changes.
        include: Globs of the paths to restore. None: all that the checkpoint has, if it is derived,
            and otherwise all that is tracked.
        exclude: Globs of paths to leave as they are.
        rename: New paths of what these choose.
        reset: The names of objects that begin anew.
        group: The ranks, each of which takes what it had for itself.

    Returns:
        The report, and the saved position, "epoch" and "batch", if it was chosen.
    """
    paths = _Paths.of(checkpoint).of_rank_0
    view = RankView(0 if group is None or rename else group.rank)
    if include is None and isinstance(checkpoint.meta.get(SEED), dict):
        include = sorted({f"{_top(path)}/**" for path in paths.leaves})
    renames = Rename.of(rename)
    if reset:
        exclude, renames = _without(reset, paths, Selection.of(include, exclude), renames)
    chosen = paths.chosen(Selection.of(include, exclude))
    moves = renames.names(chosen.arrays, [*chosen.values, *chosen.tops])
    names = [unescape_key(_top(moves.of(path))) for path in paths.every]
    into, random, progress = destination(tracked, names, records_of(repository, checkpoint, moves))
    mine = {name: item for name, item in into.items() if name not in reset}
    side = repository._side()  # noqa: SLF001
    with StoredState.reading(
        checkpoint.id,
        side.resolver,
        side.catalog,
        selection=Selection.of(include, exclude),
        rename=renames,
        view=view,
    ) as stored:
        misfit = fill(stored, mine, strict=strict)
    settle(tracked, random, strict=strict, is_own=RANDOM in view.own)
    view.report(group, progress.state, into)
    taken = {*map(view.path_of_all, misfit.restored)}
    leaves = map(moves.of, paths.leaves)
    own = [path for path in leaves if _top(path) in into and _top(path) not in (RANDOM, PROGRESS)]
    restored = [path for path in own if path in taken]
    report = ResumeReport(
        checkpoint=checkpoint,
        restored=tuple(restored),
        left_out=tuple(sorted({*own} - {*restored})),
        not_found=misfit.missing,
        not_tracked=tuple(
            name
            for name in dict.fromkeys(names)
            if name not in into and name not in (RANDOM, PROGRESS)
        ),
    )
    return report, progress.state


@dataclass(frozen=True, slots=True, kw_only=True)
class _Paths:
    """The paths of a checkpoint: of its arrays, of plain values, and of its outermost keys."""

    arrays: tuple[str, ...]
    values: tuple[str, ...]
    tops: tuple[str, ...]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Self:
        """Look them up."""
        return cls(
            arrays=tuple(array.path for array in checkpoint.arrays),
            values=tuple(checkpoint.values),
            tops=tuple(key_segments(checkpoint.names)),
        )

    @property
    def leaves(self) -> list[str]:
        """The arrays and values in order."""
        return sorted({*self.arrays, *self.values})

    @property
    def every(self) -> list[str]:
        """The arrays and values, and the keys that have nothing below them."""
        known = {*map(_top, self.leaves)}
        return [*self.leaves, *(top for top in self.tops if top not in known)]

    @property
    def of_rank_0(self) -> Self:
        """Those without what other ranks have of their own."""
        return self.chosen(Selection(exclude=(RANKS,)))

    def chosen(self, selection: Selection) -> Self:
        """What a selection chooses."""
        return type(self)(
            arrays=tuple(filter(selection, self.arrays)),
            values=tuple(filter(selection, self.values)),
            tops=tuple(filter(selection, self.tops)),
        )


def _without(
    reset: Sequence[str], paths: _Paths, selection: Selection, rename: Rename
) -> tuple[list[str], Rename]:
    """Return the globs to exclude so that objects begin anew, and the renames that are left."""
    if not rename.patterns:
        return [*selection.exclude, *map(escape_key, reset)], rename
    chosen = paths.chosen(selection)
    names = rename.names(chosen.arrays, [*chosen.values, *chosen.tops])
    tops = {*map(escape_key, reset)}
    gone = [path for path in chosen.every if _top(names.of(path)) in tops]
    others = {_top(path) for path in {*chosen.every} - {*gone}}
    globs = dict.fromkeys(path if _top(path) in others else _top(path) for path in gone)
    exclude = [*selection.exclude, *map(escape, globs)]
    rest = chosen.chosen(Selection.of(selection.include, exclude))
    return exclude, rename.within(rest.arrays, [*rest.values, *rest.tops])


def _top(path: str) -> str:
    return path.split("/")[0]


def _some(names: Iterable[str]) -> str:
    first, *rest = [*names]
    listed = [first, *rest[: SHOWN_MAX - 1]]
    more = len(rest) + 1 - len(listed)
    return ", ".join(listed) + (f" and {more} more" if more else "")
