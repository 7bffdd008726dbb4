"""A run that is killed and goes on ends with the same bits as one that never stopped."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ckptstore
from tests.helpers.forks import Forks, Program
from tests.helpers.root import ROOT
from tests.helpers.transfers import assert_sound

STEPS = 30

pytestmark = pytest.mark.crash


def start(
    forks: Forks | None, store: Path, log: Path, *options: object
) -> subprocess.Popen[str] | Program:
    """A run in a fork, or without forks in a process that has nothing in common with any other."""
    arguments = [
        str(part) for part in ("-m", "tests.helpers.training_run", store, log, STEPS, *options)
    ]
    if forks:
        return forks.start(*arguments, cwd=ROOT)
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


def run(forks: Forks | None, store: Path, log: Path, *options: object) -> int:
    process = start(forks, store, log, *options)
    _, said = process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGKILL, 143), said
    return process.returncode


def lines(log: Path) -> dict[str, str]:
    """What each step was, the last time that it was done."""
    return dict(line.split(" ", 1) for line in log.read_text().splitlines())


def saved_at_sigterm(process: subprocess.Popen[str] | Program, log: Path) -> int:
    """Send SIGTERM in the middle of a run, and return the step that it saved at its end."""
    while not log.exists() or len(log.read_text().splitlines()) < 7:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    done = len(log.read_text().splitlines())
    assert f"saved step {done} to run" in said
    return done


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("standard")
    assert run(None, folder / "store", folder / "log") == 0
    found = lines(folder / "log")
    assert len(found) == STEPS + 1
    return found


@pytest.mark.parametrize("options", [(), ("--sync",)], ids=["in the background", "at once"])
@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, standard: dict[str, str], forks: Forks, seed: int, options: tuple[str, ...]
) -> None:
    store, log = tmp_path / "store", tmp_path / "log"
    kills = sorted(random.Random(seed).sample(range(1, STEPS), 3))
    for step in kills:
        assert run(forks, store, log, "--kill-at", step, *options) == -signal.SIGKILL
    assert run(forks, store, log, *options) == 0
    assert lines(log) == standard
    repo = ckptstore.open(store)
    assert repo.verify().ok
    assert len([c for c in repo.log("run") if not c.expired]) in (3, 4)


@pytest.mark.parametrize("seconds", [0.0, 0.003, 0.01])
def test_a_run_that_is_killed_while_it_saves_goes_on_too(
    tmp_path: Path, standard: dict[str, str], forks: Forks, seconds: float
) -> None:
    store, log = tmp_path / "store", tmp_path / "log"
    code = run(forks, store, log, "--kill-after-save", seconds)
    assert code == -signal.SIGKILL
    assert run(forks, store, log) == 0
    assert lines(log) == standard
    assert ckptstore.open(store).verify().ok


def test_sigterm_saves_and_ends_the_run(
    tmp_path: Path, standard: dict[str, str], forks: Forks
) -> None:
    """The run continues in another process: other set order, other random numbers."""
    store, log = tmp_path / "store", tmp_path / "log"
    process = start(None, store, log, "--signal")
    done = saved_at_sigterm(process, log)
    assert ckptstore.open(store).resolve("run").step == done < STEPS
    assert run(forks, store, log) == 0
    assert lines(log) == standard


@pytest.mark.parametrize("seed", [0, 1, pytest.param(2, marks=pytest.mark.deep)])
def test_a_run_that_is_killed_goes_on_elsewhere_from_the_mirror_alone(
    seed: int, tmp_path: Path, standard: dict[str, str], forks: Forks
) -> None:
    """No two machines share anything but the mirror."""
    chance = random.Random(seed)
    place = tmp_path / "mirror"
    for number, step in enumerate(sorted(chance.sample(range(4, STEPS), 3))):
        machine = tmp_path / f"machine-{number}"
        machine.mkdir()
        options = ("--mirror", place, "--kill-at", step)
        if number == 1:
            options = ("--mirror", place, "--kill-after-save", chance.random() / 50)
        assert run(forks, machine / "store", machine / "log", *options) == -signal.SIGKILL
        if (machine / "log").exists():
            assert lines(machine / "log").items() <= standard.items()
    last = tmp_path / "last"
    last.mkdir()
    begun = 0
    if place.exists():
        there = ckptstore.open(place)
        heads = there.ref_names()[0]
        begun = there.resolve("run").step or 0 if heads else 0
    assert run(forks, last / "store", last / "log", "--mirror", place) == 0
    done = lines(last / "log")
    assert list(done) == [*map(str, range(begun, STEPS)), "end"]
    assert done.items() <= standard.items()
    there = ckptstore.open(place)
    assert_sound(there)
    assert there.resolve("run").id == ckptstore.open(last / "store").resolve("run").id


def test_sigterm_ends_the_run_once_the_last_save_is_in_the_mirror(
    tmp_path: Path, forks: Forks
) -> None:
    log, place = tmp_path / "log", tmp_path / "mirror"
    process = start(forks, tmp_path / "store", log, "--signal", "--mirror", place)
    done = saved_at_sigterm(process, log)
    assert ckptstore.open(place).resolve("run").step == done < STEPS


def test_the_comparison_would_notice(tmp_path: Path, standard: dict[str, str]) -> None:
    """Without what was drawn: a store that another run of other random numbers made."""
    changed = dict(standard, **{"7": standard["7"].replace("0", "1", 1)})
    assert changed != standard
    assert len({line.split()[0] for step, line in standard.items() if step != "end"}) == STEPS
