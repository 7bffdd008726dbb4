"""Fuzzers: whatever bytes a reader gets, it returns or raises a CkptStoreError.

Nothing ends the process, and nothing takes more than 2 s of a processor or 512 MB. With CI=true
each target is fuzzed for a minute, in a deep run for ten, and otherwise for a thousand inputs.
`corpus` keeps inputs that once found a mistake; each run begins with them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.forks import Forks
from tests.helpers.fuzz.bugs import BUGS
from tests.helpers.root import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.skipif(
        find_spec("atheris") is None, reason="needs atheris, which is made for Linux on x86-64"
    ),
]
CORPUS = Path(__file__).parent / "corpus"
NAMES = ("arrays", "documents", "operations", "pt", "zarr")
EXTENT = {"ci": "-max_total_time=60", "deep": "-max_total_time=600"}.get(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") == "true" else ""),
    "-runs=1000",
)
SEEDED_EXTENT = "-runs=20000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a fuzzer did.

    Attributes:
        inputs: How many inputs it tried.
        finds: Those that must not do what they did.
        log: The end of its output.
    """

    inputs: int
    finds: list[bytes]
    log: str


@pytest.fixture(scope="session")
def fuzz() -> Iterator[Callable[..., Outcome]]:
    """Fuzz a target in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'cli'}")
        server = Forks(["tests.helpers.fuzz.instrumented"], options=())
        yield partial(_fuzz, server)
    server.close()


def _fuzz(server: Forks, target: str, folder: Path, *options: str) -> Outcome:
    done = server.run("-m", "tests.helpers.fuzz.fuzzer", target, folder, *options, cwd=ROOT)
    lines = (done.stdout + done.stderr).splitlines()
    log = "\n".join(lines[-60:])
    finds = [path.read_bytes() for path in sorted((folder / "finds").glob("*"))]
    assert done.returncode == 0 or finds, log
    inputs = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr)
    return Outcome(inputs=int(inputs[1]) if inputs else 0, finds=finds, log=log)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("target", NAMES)
def test_every_input_is_refused_or_harmless(
    target: str,
    fuzz: Callable[..., Outcome],
    scratch: Path,
    record_property: Callable[[str, object], None],
) -> None:
    outcome = fuzz(target, scratch, EXTENT, *filter(os.path.isdir, [str(CORPUS / target)]))
    assert not outcome.finds, f"{outcome.finds!r}\n{outcome.log}"
    record_property("fuzzed inputs", outcome.inputs)


# The fuzzers themselves: each of these must be found, or the test above proves nothing.


@pytest.mark.seeded
@pytest.mark.parametrize("bug", BUGS)
def test_a_mistake_is_found(bug: str, fuzz: Callable[..., Outcome], scratch: Path) -> None:
    outcome = fuzz(bug.partition(":")[0], scratch, bug, SEEDED_EXTENT, "-seed=1")
    assert outcome.finds, outcome.log
