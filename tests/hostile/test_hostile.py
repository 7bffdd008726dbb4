"""Every hostile case, each in a process of its own: refused, within a second and 256 MB, and nothing else happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.hostile.cases import CPU_SECONDS, EXTRA_BYTES, Case
from tests.hostile.corpus import CASES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

Ask = "Callable[[str, Path], dict[str, Any]]"


@pytest.fixture(scope="session")
def ask() -> Iterator[Callable[[str, Path], dict[str, Any]]]:
    """Ask a server, which forks once for each case, what came of one."""
    command = [sys.executable, "-m", "tests.hostile.server"]
    env = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout

        def answer(story: str, folder: Path) -> dict[str, Any]:
            process.stdin.write(json.dumps([story, str(folder)]) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            line = process.stdout.readline()  # type: ignore[union-attr]
            assert line, "the server died"
            return dict(json.loads(line))

        yield answer
        process.stdin.close()


@pytest.mark.parametrize("case", [pytest.param(case, id=case.story) for case in CASES])
def test_is_refused_within_bounds(
    case: Case, ask: Callable[[str, Path], dict[str, Any]], tmp_path: Path
) -> None:
    answer = ask(case.story, tmp_path)
    results: dict[str, dict[str, Any]] = {}
    for said in answer["said"]:
        results[said.get("call", "given")] = said
    complaints = [complaint for said in results.values() for complaint in _complaints(said)]
    if answer["status"]:
        last = list(results)[-1] if results else "given"
        complaints.append(f"{last} died of {_death(answer['status'])}")
    complaints += [
        complaint
        for name in case.refused
        for complaint in _refusal_complaints(case, name, results.get(name))
    ]
    assert not complaints, "\n".join(complaints)


def test_each_story_is_told_once() -> None:
    stories = [case.story for case in CASES]
    assert len(set(stories)) == len(stories)


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 60


def _complaints(said: dict[str, Any]) -> Iterator[str]:
    """What one call did that it must not do."""
    name = said.get("call", "given")
    if "unexpected" in said:
        yield f"{name}: {said['unexpected']}"
    if said.get("cpu_seconds", 0) > said.get("allowed_seconds", CPU_SECONDS):
        yield f"{name} took {said['cpu_seconds']:.2f} s of processor time"
    if said.get("extra_bytes", 0) > EXTRA_BYTES:
        yield f"{name} took {said['extra_bytes'] / 1e6:.0f} MB of memory"
    for event in said.get("seen", ()):
        yield f"{name} did what no case may do: {event}"


def _refusal_complaints(case: Case, name: str, said: dict[str, Any] | None) -> Iterator[str]:
    """Why a call that must be refused was not, or not as it should."""
    if said is None:
        yield f"{name} was never tried"
    elif "error" not in said:
        yield f"{name} was not refused: it returned a {said.get('returned')}"
    elif case.error.__name__ not in said["error"]:
        yield f"{name} raised {said['error'][0]}, not {case.error.__name__}: {said['message']}"
    elif case.says not in said["message"]:
        yield f"{name} does not say {case.says!r}: {said['message']}"


def _death(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit code {os.waitstatus_to_exitcode(status)}"
