"""A fork of the tests' server ends as a program of its own does."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.helpers.forks import Forks

pytestmark = pytest.mark.slow

BEGIN = "import atexit, os, signal, sys, threading, time\n"


@pytest.mark.parametrize(
    ("text", "code", "said", "complained"),
    [
        ("print(__name__, sys.argv[1:])", 0, "__main__ ['a', '1']\n", ""),
        ("print([name for name in sys.modules if 'ckptstore' in name])", 0, "[]\n", ""),
        ("sys.exit(143)", 143, "", ""),
        ("sys.exit('why')", 1, "", "why\n"),
        ("raise KeyError(5)", 1, "", "KeyError: 5\n"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, "", ""),
        ("atexit.register(print, 'at exit')", 0, "at exit\n", ""),
        ("threading.Timer(0.1, print, ['thread']).start()", 0, "thread\n", ""),
        ("open(__file__)", 0, "", "ResourceWarning: unclosed file"),
    ],
)
def test_a_fork_ends_as_a_program_does(
    forks: Forks, tmp_path: Path, text: str, code: int, said: str, complained: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(BEGIN + text)
    done = forks.run(script, "a", 1)
    assert (done.returncode, done.stdout) == (code, said)
    assert complained in done.stderr
    assert bool(done.stderr) == bool(complained)


def test_a_signal_reaches_a_fork(forks: Forks, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(BEGIN + "time.sleep(60)")
    programs = [forks.start(script) for _ in range(2)]
    for program, number in zip(programs, (signal.SIGTERM, signal.SIGKILL), strict=True):
        assert program.poll() is None
        program.send_signal(number)
        program.communicate(timeout=30)
        assert program.returncode == -number
