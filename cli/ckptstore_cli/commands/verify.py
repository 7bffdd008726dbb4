"""`ckptstore verify`: check every byte and every reference."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ckptstore.errors import CkptStoreError
from ckptstore_cli import documents, output, text
from ckptstore_cli.options import Share, common, revisions_argument
from ckptstore_cli.repo import open_repository
from ckptstore_cli.verbs import for_this_repo

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ckptstore import Digest, Problem, Repository, VerifyReport
    from ckptstore_cli.documents import Refs

EXIT_PROBLEMS = 1
LISTED_MAX = 8  # checkpoints and foreign files; --json lists all


@click.command()
@revisions_argument(
    "Check only these checkpoints, with all their arrays.  [default: the whole repository]"
)
@click.option(
    "--sample",
    type=Share(),
    default="100%",
    metavar="SHARE",
    help="Read only a part of all objects, such as 5%, a different one each time. All references "
    "are checked.",
)
@click.option("--repair", is_flag=True, help="Move damaged objects to damaged/.")
@common
@click.pass_context
def verify(
    ctx: click.Context, revs: tuple[str, ...], sample: float, repair: bool, as_json: bool
) -> None:
    """Check every byte and reference, of all checkpoints or some.

    Each problem is listed with the checkpoints that it affects and what to do, and the exit code is
    1 if there are any. Nothing is changed without --repair.

    A commit relies on objects that are there, damaged ones too. Once these are moved aside, a
    commit of the same state stores them again, and rsync copies them again from another copy.

    \b
    Examples:
      ckptstore verify
      ckptstore verify best:val_loss v1.0
      ckptstore verify --sample 5%
    """
    repo = open_repository(ctx)
    report = repo.verify(revs or None, sample=sample)
    refs = documents.refs_by_id(repo) if report.problems else {}
    if as_json:
        moved = report.repair() if repair else ()
        output.document({**_document(report, refs), "moved": list(moved)})
    else:
        _print(report, refs, _steps(repo, report))
        _print_notes(repo, report)
        moved = report.repair() if repair else ()
        if moved:
            output.line(f"Moved {text.count(len(moved), 'damaged object')} to damaged/.")
        elif report.damaged:
            output.line(for_this_repo("ckptstore verify --repair moves damaged objects aside."))
    if not report.ok:
        ctx.exit(EXIT_PROBLEMS)


def _print(report: VerifyReport, refs: Mapping[str, Refs], steps: Mapping[str, int]) -> None:
    for problem in report.problems:
        is_named = problem.error.startswith(problem.key)
        output.line(problem.error if is_named else f"{problem.key}: {problem.error}")
        for id in problem.checkpoints:
            names = f" ({refs[id]})" if id in refs else ""
            output.line(f"    affects checkpoint {text.checkpoint(id, steps.get(id))}{names}")
    for heal, keys in _by_heal(report).items():
        others = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        output.line(f"To heal {keys[0]}{others}: {heal}")
    output.line(
        f"Verified {text.count(report.checkpoints, 'checkpoint')} "
        f"({_objects(report)}): {_verdict(report)}"
    )


def _objects(report: VerifyReport) -> str:
    """The objects and bytes that were read, and the total if only a part was read."""
    count = text.count(report.stored_objects, "object")
    if report.objects == report.stored_objects:
        return f"{count}, {text.size(report.bytes)}"
    size, whole = text.size(report.bytes), text.size(report.stored_bytes)
    return f"{report.objects:,} of {count}, {size} of {whole}"


def _by_heal(report: VerifyReport) -> dict[str, list[str]]:
    """The files to which each way to heal applies."""
    keys: dict[str, list[str]] = {}
    for problem in report.problems:
        keys.setdefault(problem.heal, []).append(problem.key)
    return keys


def _print_notes(repo: Repository, report: VerifyReport) -> None:
    """Print what is no problem."""
    unreachable = report.unreachable
    backups = _backups(repo, unreachable.checkpoints)
    if others := [id for id in unreachable.checkpoints if id not in backups]:
        count = text.count(len(others), "checkpoint")
        output.line(f"No branch and no tag reaches {count}: {_named(repo, others)}.")
    if backups:
        count = text.count(len(backups), "backup")
        output.line(f"{count}, deleted at the end of the run: {_named(repo, backups)}.")
    if unreachable.checkpoints:
        output.line(for_this_repo("    ckptstore branch NAME ID brings one back."))
    if unreachable.objects:
        count = text.count(unreachable.objects, "object")
        output.line(f"No branch and no tag reaches {count} ({text.size(unreachable.bytes)}).")
    if report.foreign:
        count = text.count(len(report.foreign), "file")
        output.line(f"{count} of other programs: {_some(report.foreign)}.")
    if report.missing_operations:
        count = text.count(report.missing_operations, "operation")
        verb = "is" if report.missing_operations == 1 else "are"
        output.line(f"{count} {verb} missing, so undo goes back only to the one after.")


def _backups(repo: Repository, unreachable: Sequence[Digest]) -> list[Digest]:
    """The checkpoints of branches that a training deleted, as BackupAndRestore does at its end.

    unreachable: the checkpoints to choose from, newest first.
    """
    ends = {
        move.before
        for operation in (repo.operations() if unreachable else ())
        if operation.role == "training"
        for move in operation.moves or ()
        if move.kind == "branch" and move.after is None
    }
    found = []
    for id in unreachable:
        if id in ends:
            found.append(id)
            with suppress(CkptStoreError):
                ends |= set(repo.resolve(id).parents)
    return found


def _named(repo: Repository, ids: Sequence[Digest]) -> str:
    """Checkpoints with their steps; only the first few."""
    steps = _steps_of(repo, ids[:LISTED_MAX])
    return _some([f"{id.short} (step {steps[id]})" if id in steps else id.short for id in ids])


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - LISTED_MAX:,} more" if len(names) > LISTED_MAX else ""
    return ", ".join(names[:LISTED_MAX]) + more


def _verdict(report: VerifyReport) -> str:
    if report.ok:
        return "no problems found."
    affected = {id for problem in report.problems for id in problem.checkpoints}
    checkpoints = text.count(len(affected), "checkpoint")
    return f"{text.count(len(report.problems), 'problem')}, {checkpoints} affected."


def _steps(repo: Repository, report: VerifyReport) -> dict[str, int]:
    """The steps of the affected checkpoints."""
    return _steps_of(repo, {id for problem in report.problems for id in problem.checkpoints})


def _steps_of(repo: Repository, ids: Iterable[str]) -> dict[str, int]:
    """The steps of checkpoints, where they can still be read."""
    steps: dict[str, int] = {}
    for id in ids:
        with suppress(CkptStoreError):
            step = repo.resolve(id).step
            if step is not None:
                steps[id] = step
    return steps


def _document(report: VerifyReport, refs: Mapping[str, Refs]) -> dict[str, Any]:
    return {
        "ok": report.ok,
        "checkpoints": report.checkpoints,
        "objects": report.objects,
        "bytes": report.bytes,
        "stored_objects": report.stored_objects,
        "stored_bytes": report.stored_bytes,
        "problems": [_problem(problem, refs) for problem in report.problems],
        "unreachable": asdict(report.unreachable),
        "foreign": list(report.foreign),
        "missing_operations": report.missing_operations,
    }


def _problem(problem: Problem, refs: Mapping[str, Refs]) -> dict[str, Any]:
    known = [refs[id] for id in problem.checkpoints if id in refs]
    return {
        "key": problem.key,
        "error": problem.error,
        "checkpoints": list(problem.checkpoints),
        "branches": [name for names in known for name in names.branches],
        "tags": [name for names in known for name in names.tags],
        "heal": problem.heal,
    }
