"""Every hostile case in a process of its own: bounded, without side effects, mostly refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.hostile.cases import Case
from tests.helpers.hostile.corpus import CASES
from tests.helpers.hostile.seeded import SEEDED, WRONGDOERS
from tests.helpers.hostile.work import ENVIRONMENT
from tests.helpers.root import ROOT

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.skipif(sys.platform != "linux", reason="work is counted by /proc"),
]
ROOM_BYTES = 1 << 30

Ask = Callable[[str, Path], dict[str, Any]]


@pytest.fixture(scope="session")
def ask() -> Iterator[Ask]:
    """Ask a server, which forks once for each case, what came of one."""
    command = [sys.executable, "-m", "tests.helpers.hostile.server"]
    env = {**os.environ, **ONE_THREAD, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
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


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory if there is room: thousands of fsyncs cost minutes on a disk."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < ROOM_BYTES:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, ignore_cleanup_errors=True) as made:
        yield Path(made)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.story) for case in CASES])
def test_each_case_stays_within_bounds(
    case: Case, ask: Ask, folder: Path, record_property: Callable[[str, object], None]
) -> None:
    complaints = _complaints(case, ask(case.story, folder))
    assert not complaints, "\n".join(complaints)
    record_property("hostile cases", 1)


def test_each_story_is_told_once() -> None:
    stories = [case.story for case in CASES]
    assert len(set(stories)) == len(stories)


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 60
    files = [case for case in CASES if case.story.startswith(("a file", "a Zarr document"))]
    assert len(files) >= 200


def _complaints(case: Case, answer: dict[str, Any]) -> list[str]:
    """What is wrong with the answer to one case."""
    results = {said.get("call", "given"): said for said in answer["said"]}
    complaints = [text for name, said in results.items() for text in _misdeeds(name, said)]
    if answer["status"]:
        last = list(results)[-1] if results else "given"
        complaints.append(f"{last} died of {_death(answer['status'])}")
    for name in case.refused:
        complaints += _refusal_complaints(case, name, results.get(name))
    for name in case.accepted:
        said = results.get(name, {})
        if "returned" not in said:
            complaints.append(f"{name} was not accepted: {said.get('message', 'never tried')}")
    return complaints


def _misdeeds(name: str, said: dict[str, Any]) -> Iterator[str]:
    """What one call did that it must not do."""
    if "unexpected" in said:
        yield f"{name}: {said['unexpected']}"
    for excess in said.get("excess", ()):
        yield f"{name} took {excess}"
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


# The harness itself: each of these must be caught, or the cases above prove nothing.


@pytest.mark.seeded
@pytest.mark.parametrize("story", WRONGDOERS)
def test_a_case_that_wrongdoes_is_caught(story: str, ask: Ask, folder: Path) -> None:
    case = next(case for case in SEEDED if case.story == story)
    complaints = _complaints(case, ask(story, folder))
    assert WRONGDOERS[story] in "\n".join(complaints), complaints
