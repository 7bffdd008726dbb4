"""`ckptstore verify`: check every byte and every reference."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from ckptstore.errors import CkptStoreError
from ckptstore_cli import documents, output, text
from ckptstore_cli.options import common
from ckptstore_cli.repo import open_repository

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptstore import Problem, Repository, VerifyReport
    from ckptstore_cli.documents import Refs

EXIT_PROBLEMS = 1


@click.command()
@common
@click.pass_context
def verify(ctx: click.Context, as_json: bool) -> None:
    """Check every byte and every reference.

    Each problem is listed with the checkpoints that it affects, and the exit code is 1 if there are
    any. Nothing is changed.
    """
    repo = open_repository(ctx)
    with output.Progress() as progress:
        report = repo.verify(progress=lambda done, total: progress.show(_progress(done, total)))
    refs = documents.refs_by_id(repo) if report.problems else {}
    if as_json:
        output.document(_document(report, refs))
    else:
        _print(report, refs, _steps(repo, report))
    if not report.ok:
        ctx.exit(EXIT_PROBLEMS)


def _print(report: VerifyReport, refs: Mapping[str, Refs], steps: Mapping[str, int]) -> None:
    for problem in report.problems:
        is_named = problem.error.startswith(problem.key)
        output.line(problem.error if is_named else f"{problem.key}: {problem.error}")
        for id in problem.checkpoints:
            step = f", step {steps[id]}" if id in steps else ""
            names = f" ({refs[id]})" if id in refs else ""
            output.line(f"    affects checkpoint {id.short}{step}{names}")
    output.line(
        f"Verified {text.count(report.checkpoints, 'checkpoint')} "
        f"({text.count(report.objects, 'object')}, {text.size(report.bytes)}): {_verdict(report)}"
    )


def _progress(done: int, total: int) -> str:
    return f"Verified {text.size(done)} of {text.size(total)}"


def _verdict(report: VerifyReport) -> str:
    if report.ok:
        return "no problems found."
    affected = {id for problem in report.problems for id in problem.checkpoints}
    checkpoints = text.count(len(affected), "checkpoint")
    return f"{text.count(len(report.problems), 'problem')}, {checkpoints} affected."


def _steps(repo: Repository, report: VerifyReport) -> dict[str, int]:
    """The steps of the affected checkpoints, where they can still be read."""
    steps: dict[str, int] = {}
    for id in {id for problem in report.problems for id in problem.checkpoints}:
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
        "problems": [_problem(problem, refs) for problem in report.problems],
    }


def _problem(problem: Problem, refs: Mapping[str, Refs]) -> dict[str, Any]:
    known = [refs[id] for id in problem.checkpoints if id in refs]
    return {
        "key": problem.key,
        "error": problem.error,
        "checkpoints": list(problem.checkpoints),
        "branches": [name for names in known for name in names.branches],
        "tags": [name for names in known for name in names.tags],
    }
