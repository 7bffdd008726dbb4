"""Resume: restores what a training tracks, and reports what was restored and what was not."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ckptstore.documents.manifest import SEED
from ckptstore.documents.names import check_strings, escape_key
from ckptstore.errors import (
    CkptStoreError,
    CorruptError,
    ExpiredError,
    InvalidInputError,
    first_line,
    shown,
)
from ckptstore.training.differences import changed, environment, moved, settings
from ckptstore.training.tracked import PROGRESS, RANDOM, destination, records_of, settle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.digest import Digest
    from ckptstore.repository import Repository
    from ckptstore.training.tracked import Stateful

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
            environment, such as the version of torch.
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
    fallback: bool,
) -> tuple[ResumeReport, Mapping[str, Any] | None]:
    """Restore tracked objects from a revision, as `restore_tracked` does.

    fallback: whether to restore the newest whole one of the checkpoints before it if it is damaged.
    """
    before = settings(tracked)
    damaged: list[Digest] = []
    first: CorruptError | None = None
    try:
        for found in _candidates(repository, rev) if fallback else (rev,):
            try:
                checkpoint = repository.resolve(found)
                report, position = restore_tracked(
                    repository, checkpoint, tracked, strict=strict, include=include, exclude=exclude
                )
            except CorruptError as error:
                first = first or error
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


def without_parts(
    exclude: str | Sequence[str] | None,
    reset: bool | str | Sequence[str],
    tracked: Mapping[str, Stateful],
) -> str | Sequence[str] | None:
    """Return `exclude` with the names of tracked objects that are to begin anew.

    Raises:
        InvalidInputError: Nothing is tracked under one of the names.
    """
    names = () if reset is True or reset is False else check_strings(reset, what="names to reset")
    if not names:
        return exclude
    for name in names:
        if name not in tracked:
            raise InvalidInputError(
                f"reset names {shown(name)}, which is not tracked. Tracked: {', '.join(tracked)}."
            )
    given = check_strings(exclude, what="patterns of array paths") if exclude else ()
    return (*given, *map(escape_key, names))


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

    Returns:
        The report, and the saved position, "epoch" and "batch", if it was chosen.
    """
    names = checkpoint.names
    into, random, progress = destination(tracked, names, records_of(repository, checkpoint))
    paths = sorted({*checkpoint.values, *(array.path for array in checkpoint.arrays)})
    if include is None and isinstance(checkpoint.meta.get(SEED), dict):
        include = sorted({f"{_top(path)}/**" for path in paths})
    misfit = repository.checkout(
        checkpoint.id, into=into, strict=strict, include=include, exclude=exclude
    )
    settle(tracked, random)
    taken = {*misfit.restored}
    own = [path for path in paths if _top(path) in into and _top(path) not in (RANDOM, PROGRESS)]
    restored = [path for path in own if path in taken]
    report = ResumeReport(
        checkpoint=checkpoint,
        restored=tuple(restored),
        left_out=tuple(sorted({*own} - {*restored})),
        not_found=misfit.missing,
        not_tracked=tuple(str(n) for n in names if n not in into and n not in (RANDOM, PROGRESS)),
    )
    return report, progress.state


def _top(path: str) -> str:
    return path.split("/")[0]


def _some(names: Iterable[str]) -> str:
    first, *rest = [*names]
    listed = [first, *rest[: SHOWN_MAX - 1]]
    more = len(rest) + 1 - len(listed)
    return ", ".join(listed) + (f" and {more} more" if more else "")
