"""A run that is killed and goes on ends with the same bits as one that never stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import ckptstore
from ckptstore.testing.s3_server import Request, S3Server
from tests.helpers.forks import Forks, Program
from tests.helpers.root import ROOT
from tests.helpers.transfers import assert_sound

STEPS = 30

pytestmark = pytest.mark.crash


def start(
    forks: Forks | None, store: Path, log: Path, *options: object, key: str = "test"
) -> subprocess.Popen[str] | Program:
    """A run in a fork, or without forks in a process that has nothing in common with any other.

    key: the access key that it signs requests with.
    """
    arguments = [
        str(part) for part in ("-m", "tests.helpers.training_run", store, log, STEPS, *options)
    ]
    if forks:
        return forks.start(*arguments, cwd=ROOT, env={**os.environ, "AWS_ACCESS_KEY_ID": key})
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


def run(forks: Forks | None, store: Path, log: Path, *options: object) -> int:
    return ended(start(forks, store, log, *options))


def ended(process: subprocess.Popen[str] | Program) -> int:
    """The exit code of a run that ended or was killed."""
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
    place = str(tmp_path / "mirror")
    for number, step in enumerate(sorted(chance.sample(range(4, STEPS), 3))):
        machine = machine_in(tmp_path, number)
        options = ("--kill-at", step)
        if number == 1:
            options = ("--kill-after-save", chance.random() / 50)
        process = start(forks, *mirrored(machine, place), *options)
        assert ended(process) == -signal.SIGKILL
        assert_promises_kept(machine, place)
        if (machine / "log").exists():
            assert lines(machine / "log").items() <= standard.items()
    assert_goes_on_from(place, machine_in(tmp_path, "last"), standard, forks)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.deep) for n in range(1, 9))]
)
def test_a_run_that_is_killed_at_a_request_to_its_mirror_goes_on(
    where: str,
    seed: int,
    tmp_path: Path,
    standard: dict[str, str],
    forks: Forks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three times in one run: with the store that it left, or on machines that share nothing."""
    chance = random.Random(seed)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with S3Server(latency=0.002) as server:
        place = server.url("run")
        kills = 0
        for number in range(3):
            machine = machine_in(tmp_path, number if where == "elsewhere" else "only")
            process = start(forks, *mirrored(machine, place), key=f"key-{number}")
            kill_at_request(process, server, f"key-{number}", chance)
            kills += ended(process) == -signal.SIGKILL
            assert_promises_kept(machine, place)
            if (machine / "log").exists():
                assert lines(machine / "log").items() <= standard.items()
        assert kills
        if where == "elsewhere":
            assert_goes_on_from(place, machine_in(tmp_path, "last"), standard, forks)
            return
        assert ended(start(forks, *mirrored(machine, place))) == 0
        assert lines(machine / "log") == standard
        assert_promises_kept(machine, place)
        assert ckptstore.open(machine / "store").verify().ok
        here, there = ckptstore.open(machine / "store"), ckptstore.open(place)
        assert [c.id for c in there.log("run")] == [c.id for c in here.log("run")]


def machine_in(folder: Path, name: object) -> Path:
    """The disk of a machine, which no other one sees."""
    machine = folder / f"machine-{name}"
    machine.mkdir(exist_ok=True)
    return machine


def mirrored(machine: Path, place: str) -> tuple[Any, ...]:
    """The arguments of a run on a machine that has a mirror."""
    claims = ("--claims", machine / "claims")
    return machine / "store", machine / "log", "--mirror", place, *claims


def kill_at_request(
    process: subprocess.Popen[str] | Program, server: S3Server, key: str, chance: random.Random
) -> None:
    """Kill a process at one of its first requests, which takes effect or not; none after it does.

    key: the access key that it signs with.
    """
    left = chance.randrange(40)
    fault = chance.choice(["dropped", "reset"])

    def kill(request: Request) -> str | None:
        nonlocal left
        if request.signer != key:
            return None
        left -= 1
        if left == -1:
            os.kill(process.pid, signal.SIGKILL)
            return fault
        return "reset" if left < 0 else None

    server.fault = kill


def promised(machine: Path) -> list[str]:
    """The checkpoints of which a run found that they are durable in the mirror."""
    claims = machine / "claims"
    return claims.read_text().split() if claims.exists() else []


def assert_promises_kept(machine: Path, place: str) -> None:
    """The mirror is sound, and has each checkpoint that the run found durable there."""
    claims = promised(machine)
    try:
        there = ckptstore.open(place)
    except ckptstore.NotFoundError:
        assert not claims
        return
    assert_sound(there)
    heads = there.ref_names()[0]
    live = {c.id for c in there.log("run") if not c.expired} if heads else set()
    assert live.issuperset(claims)


def assert_goes_on_from(place: str, machine: Path, standard: dict[str, str], forks: Forks) -> None:
    """A run on a new machine begins with the newest checkpoint of the mirror, and ends."""
    begun = 0
    with suppress(ckptstore.NotFoundError):
        begun = ckptstore.open(place).resolve("run").step or 0
    assert ended(start(forks, *mirrored(machine, place))) == 0
    done = lines(machine / "log")
    assert list(done) == [*map(str, range(begun, STEPS)), "end"]
    assert done.items() <= standard.items()
    assert_promises_kept(machine, place)
    here, there = ckptstore.open(machine / "store"), ckptstore.open(place)
    assert there.resolve("run").id == here.resolve("run").id == promised(machine)[-1]


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
