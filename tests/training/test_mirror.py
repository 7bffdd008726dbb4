"""The mirror of a manager: what is pushed, when, what stays for it, and what happens without it."""

from __future__ import annotations

import logging
import random
import shlex
import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ckptstore
from ckptstore import ConflictError, InvalidInputError, StorageError
from ckptstore.retention import UNMIRRORED_MAX, KeepBest, MaxToKeep
from ckptstore.storage import remote
from ckptstore.testing.s3_server import Request, S3Server
from ckptstore.training import CheckpointManager, mirror
from tests.helpers.children import do_in_child
from tests.helpers.transfers import assert_sound
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator


class Counter:
    """A stateful object: an array that shows the step."""

    def __init__(self) -> None:
        self.value = np.zeros(2000, "f4")

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = np.array(state["value"])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server whose failures are found out quickly."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(mirror, "PAUSE_SECONDS", 0.02)
    with S3Server() as server:
        yield server


def manager(store: Any, place: Any, **options: Any) -> CheckpointManager:
    options = {"rng": False, "record_run": False, **options}
    return CheckpointManager(store, mirror=place, model=Counter(), **options)


def save(found: CheckpointManager, *steps: int, **options: Any) -> None:
    for step in steps:
        model: Any = found.tracked["model"]
        model.value = np.full(2000, step, "f4")
        found.save(step, metrics={"loss": 1.0 / (step + 1)}, force=True, **options)
    found.wait()


def steps(repo: ckptstore.Repository, branch: str = "main") -> list[int | None]:
    return [c.step for c in repo.log(branch) if not c.expired][::-1]


SHARES = st.sampled_from([0.1, 0.5, 1.0])
NUMBERS = count()


def down(_: Request) -> str:
    return "unavailable"


def up(_: Request) -> None:
    return None


def test_each_side_keeps_what_its_own_policy_keeps(tmp_path: Path, server: S3Server) -> None:
    place = server.url("run")
    best = KeepBest("loss", "max", 2) | MaxToKeep(2)
    with manager(tmp_path / "run", place, max_to_keep=2, mirror_retention=best) as found:
        for step in range(6):
            save(found, step, tag="newest")
            assert found.wait_for_mirror()
            assert found.latest_durable("mirror") == found.latest_durable() == found.latest
    there = ckptstore.open(place)
    assert steps(found.repository) == [4, 5]
    assert steps(there) == [0, 1, 4, 5]
    assert [c.id for c in there.log()] == [c.id for c in found.repository.log()]
    assert there.retention("main") == best
    assert found.repository.retention("main") == MaxToKeep(2)
    assert there.resolve("newest").step == 5, "a tag that a training moves is moved there"
    assert_sound(there)
    state = found.mirror_state
    assert state is not None
    assert (state.behind, state.error, state.url) == (0, "", place)


def test_a_mirror_that_is_down_stops_nothing_and_fills_no_disk(
    tmp_path: Path, server: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ckptstore.training.mirror")
    place = server.url("run")
    found = manager(tmp_path / "run", place, max_to_keep=2)
    save(found, 0)
    assert found.wait_for_mirror()
    server.fault = down
    save(found, 1)
    until(lambda: found.mirror_state.error)  # type: ignore[union-attr]
    save(found, *range(2, 20))
    state = found.mirror_state
    assert state is not None
    assert state.behind == 19
    assert found.latest_durable("mirror").step == 0  # type: ignore[union-attr]
    assert found.latest_durable("local").step == 19  # type: ignore[union-attr]
    assert steps(found.repository) == list(range(10, 20))
    other = ckptstore.open(tmp_path / "run")
    other.gc()
    assert len(steps(other)) == UNMIRRORED_MAX == 10
    why = [str(reason) for reason in other.resolve("main@step=11").why]
    assert why == ["not yet in the mirror s3://bucket/run"]
    warned = [record.message for record in caplog.records if record.levelno > logging.INFO]
    assert len(warned) == 1, "once a minute"
    assert "1 checkpoint of main from step 1 on is only here" in warned[0]
    assert "The newest 10 checkpoints of main that are not there stay here" in warned[0]
    server.fault = up
    found.close()
    assert "has caught up: it has main at step 19" in caplog.text
    assert steps(found.repository) == [18, 19], "they were only kept for the mirror"
    there = ckptstore.open(place)
    assert steps(there) == [0, *range(10, 20)]
    assert [c.id for c in there.log()] == [c.id for c in found.repository.log()]


def test_close_names_what_is_not_in_the_mirror_and_the_command_that_pushes_it(
    tmp_path: Path, server: S3Server
) -> None:
    place = server.url("run")
    found = manager(tmp_path / "run", place, max_to_keep=1)
    server.fault = down
    save(found, 5, 6)
    with pytest.raises(StorageError) as caught:
        found.close(timeout=0.05)
    said = str(caught.value)
    assert "2 checkpoints of main from step 5 on are only in" in said
    command = shlex.split(said.partition("To push by hand: ")[2])
    server.fault = up
    assert command[:3] == ["ckptstore", "-r", found.repository.url]
    assert subprocess.run([sys.executable, "-m", "ckptstore_cli", *command[1:]]).returncode == 0
    assert steps(ckptstore.open(place)) == [5, 6]
    repo = ckptstore.open(tmp_path / "run")
    assert repo.mirrors["main"].id == repo.resolve("main").id, "a push by hand is noted"
    repo.gc()
    assert steps(repo) == [6]


def test_a_save_after_close_begins_another_push(tmp_path: Path, server: S3Server) -> None:
    found = manager(tmp_path / "run", server.url("run"))
    server.fault = down
    save(found, 0)
    with pytest.raises(StorageError):
        found.close(timeout=0)
    server.fault = up
    save(found, 1)
    found.close()
    assert steps(ckptstore.open(server.url("run"))) == [0, 1]


def test_an_empty_disk_gets_the_newest_checkpoint(tmp_path: Path) -> None:
    place = tmp_path / "mirror"
    with manager(tmp_path / "a", place) as found:
        save(found, 0, 1, 2)
    with manager(tmp_path / "b", place, resume="must") as other:
        assert other.restore_or_initialize() == 2
        assert (other.tracked["model"].value == 2).all()  # type: ignore[attr-defined]
        assert steps(other.repository) == [2]
        assert other.latest_durable("mirror") == other.latest
        save(other, 3)
    with manager(tmp_path / "a", place) as found:  # which is behind by now
        assert found.restore_or_initialize() == 3
        save(found, 4)
    assert steps(ckptstore.open(place)) == [0, 1, 2, 3, 4]


def test_what_an_earlier_run_left_is_pushed(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run", model=Counter(), rng=False) as found:
        save(found, 0, 1)
    with manager(tmp_path / "run", tmp_path / "mirror") as found:
        assert found.mirror_state.behind in (0, 2)  # type: ignore[union-attr]
    assert steps(ckptstore.open(tmp_path / "mirror")) == [0, 1]


def test_the_branch_of_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "mirror"
    for name in ("a", "b"):
        with CheckpointManager(tmp_path / name, model=Counter(), rng=False) as found:
            save(found, 0 if name == "a" else 1)
    ckptstore.init(place).pull(tmp_path / "a")
    before = ckptstore.open(place).resolve("main").id
    with pytest.raises(ConflictError, match="as of another run"):
        manager(tmp_path / "b", place)
    assert ckptstore.open(place).resolve("main").id == before
    assert steps(ckptstore.open(tmp_path / "b")) == [1]
    with manager(tmp_path / "b", place, branch="other") as found:
        save(found, 2)
    assert steps(ckptstore.open(place), "other") == [2]


def test_a_mirror_to_which_another_run_pushed_meanwhile_is_not_overwritten(
    tmp_path: Path,
) -> None:
    place = tmp_path / "mirror"
    found = manager(tmp_path / "run", place)
    save(found, 0)
    assert found.wait_for_mirror()
    ckptstore.open(place).commit({"other": 1}, step=9)
    save(found, 1)
    with pytest.raises(ConflictError, match="non-fast-forward"):
        found.close()
    assert ckptstore.open(place).resolve("main").step == 9
    assert found.repository.resolve("main").step == 1


def test_a_push_that_was_refused_is_tried_again_without_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the other run's branch was moved away, and meanwhile close does not wait."""
    monkeypatch.setattr(mirror, "REFUSED_SECONDS", 0.05)
    place = tmp_path / "mirror"
    found = manager(tmp_path / "run", place)
    save(found, 0)
    assert found.wait_for_mirror()
    there = ckptstore.open(place)
    there.commit({"other": 1}, step=9)
    save(found, 1)
    until(lambda: bool(found.mirror_state and found.mirror_state.error))
    there.branch("others", "main")
    there.reset_branch("main", "main~1")
    until(lambda: bool(found.mirror_state and not found.mirror_state.behind))
    assert there.resolve("main").step == 1
    monkeypatch.setattr(mirror, "REFUSED_SECONDS", 1e6)
    there.commit({"other": 2}, step=9)
    save(found, 2)
    until(lambda: bool(found.mirror_state and found.mirror_state.error))
    with pytest.raises(ConflictError, match="non-fast-forward"):
        found.close(timeout=1e6)


def test_the_mirror_follows_a_run_that_goes_back(tmp_path: Path) -> None:
    place = tmp_path / "mirror"
    with manager(tmp_path / "run", place) as found:
        save(found, 0, 1, 2)
    with manager(tmp_path / "run", place) as found:
        assert found.wait_for_mirror()
        found.restore("main@step=0", reset=True)
        save(found, 1)
    assert [c.step for c in ckptstore.open(place).log()] == [1, 0]
    run = ckptstore.open(tmp_path / "run")
    run.reset_branch("main", "main@step=0")  # while no manager is there
    with manager(run, place) as found:
        assert found.latest.step == 0, "the mirror has nothing new"  # type: ignore[union-attr]
    assert [c.step for c in ckptstore.open(place).log()] == [0]


def test_an_empty_disk_does_not_begin_anew_while_the_mirror_is_down(
    tmp_path: Path, server: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    with manager(tmp_path / "a", server.url("run")) as found:
        save(found, 0)
    server.fault = down
    with pytest.raises(StorageError, match="is there to be resumed"):
        manager(tmp_path / "b", server.url("run"))
    found = manager(tmp_path / "a", server.url("run"))  # which has the branch
    assert "is behind" in caplog.text
    save(found, 1)
    server.fault = up
    found.close()
    assert steps(ckptstore.open(server.url("run"))) == [0, 1]


def test_only_the_first_rank_pushes_and_all_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "mirror"
    monkeypatch.setenv("RANK", "1")
    manager(tmp_path / "other", place).close()
    assert not place.exists()
    monkeypatch.delenv("RANK")
    with manager(tmp_path / "run", place) as found:
        save(found, 0)
    monkeypatch.setenv("RANK", "1")
    other = manager(tmp_path / "other", place)
    assert other.restore_or_initialize() == 0
    assert other.latest_durable("mirror").step == 0  # type: ignore[union-attr]


def test_a_forked_child_leaves_the_mirror_to_its_parent(tmp_path: Path, server: S3Server) -> None:
    found = manager(tmp_path / "run", server.url("run"))
    server.stall_seconds = 0.5
    server.fault = lambda request: "stalled"
    save(found, 0)
    until(lambda: server.counts.total())

    def work() -> None:
        assert found.mirror_state.behind == 0  # type: ignore[union-attr]
        found.branch = "child"
        save(found, 1)
        found.close()

    do_in_child(work)
    server.fault = up
    save(found, 2)
    found.close()
    assert ckptstore.open(server.url("run")).ref_names()[0].keys() == {"main"}


def test_a_run_without_a_mirror_keeps_nothing_for_one(tmp_path: Path) -> None:
    found = manager(tmp_path / "run", tmp_path / "mirror", max_to_keep=1)
    save(found, 0)
    found.close()
    with CheckpointManager(tmp_path / "run", model=Counter(), rng=False) as found:
        found.restore_or_initialize()
        save(found, 1, 2, 3)
    assert steps(found.repository) == [3]
    assert found.mirror_state is None
    assert found.wait_for_mirror()


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="repository itself"):
        manager(tmp_path / "run", tmp_path / "run")
    with pytest.raises(InvalidInputError, match="mirror_retention is 5"):
        manager(tmp_path / "run", tmp_path / "mirror", mirror_retention=5)
    with pytest.raises(InvalidInputError, match="Pass mirror, too"):
        manager(tmp_path / "run", None, mirror_retention=MaxToKeep(1))
    found = manager(tmp_path / "run", tmp_path / "mirror")
    assert found.latest_durable(str(tmp_path / "mirror")) is None
    with pytest.raises(InvalidInputError, match="'local', 'mirror' or"):
        found.latest_durable("elsewhere")
    with pytest.raises(InvalidInputError, match="timeout is -1"):
        found.close(timeout=-1)


SCHEDULES = st.lists(
    st.one_of(
        st.just(("save", 0)),
        st.just(("save", 0)),
        st.tuples(st.sampled_from(["unavailable", "reset", "dropped", "truncated"]), SHARES),
        st.tuples(st.sampled_from(["conflict", "error", "flipped", "slow"]), SHARES),
        st.sampled_from([("heal", 0), ("gc", 0), ("wait", 0), ("restart", 0), ("move", 0)]),
    ),
    min_size=4,
    max_size=16,
)


@pytest.mark.property
@settings(
    deadline=None,
    max_examples=max(10, settings().max_examples // 4),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(schedule=SCHEDULES, seed=st.integers(0, 1000), has_policy=st.booleans())
def test_the_mirror_ends_as_the_run_and_has_had_all_that_was_promised(
    schedule: list[tuple[str, float]], seed: int, has_policy: bool, server: S3Server
) -> None:
    """Saves, failures of the mirror, gcs, and ends without a warning, also on another machine."""
    chance = random.Random(seed)
    policy = MaxToKeep(2) if has_policy else None
    name = f"run-{next(NUMBERS)}"
    place = server.url(name)
    step, machine = 0, 0
    promised: set[str] = set()
    server.fault = up
    with tempfile.TemporaryDirectory() as folder:

        def begun() -> CheckpointManager:
            return manager(
                Path(folder) / str(machine), place, max_to_keep=1, mirror_retention=policy
            )

        found = begun()
        for what, share in schedule:
            if what == "save":
                step += 1
                save(found, step)
            elif what == "gc":
                ckptstore.open(found.repository.url).gc()
            elif what == "wait":
                found.wait_for_mirror(0.05)
            elif what in ("restart", "move"):  # killed: no request of this push comes through
                server.fault = lambda request: "reset"
                assert found._mirror is not None
                found._mirror.close(0)
                until(lambda: not found._mirror._is_running)  # type: ignore[union-attr]  # noqa: B023
                found._place.release()
                server.fault = up
                machine += what == "move"
                found = begun()
                found.restore_or_initialize()
                if found.latest is not None:
                    step = max(step, found.latest.step or 0)
            elif what == "heal":
                server.fault = up
            else:
                server.latency = 0.002 if what == "slow" else 0.0
                server.fault = lambda request, what=what, share=share: (  # type: ignore[misc]
                    what if what != "slow" and chance.random() < share else None
                )
            durable = found.latest_durable("mirror")
            if durable is not None:
                promised.add(durable.id)
                folders = ("checkpoints", "history")
                places = {f"bucket/{name}/{folder}/{durable.id}.json" for folder in folders}
                assert places & server.objects.keys(), "promised before it was there"
        server.fault, server.latency = up, 0.0
        save(found, step + 1)
        found.close()
        there = ckptstore.open(place)
        assert_sound(there)
        assert [c.id for c in there.log()] == [c.id for c in found.repository.log()]
        assert steps(found.repository) == [step + 1], "by its own policy alone"
        assert found.repository.retention("main") == MaxToKeep(1)
        assert there.retention("main") == policy
        known = {c.id: c for c in there.log()}
        assert promised <= known.keys()
        assert has_policy or not any(c.expired for c in there.log())
        for id in promised:
            if not known[id].expired:  # type: ignore[index]
                state = there.checkout(id)
                assert (state["model"]["value"] == known[id].step).all()  # type: ignore[index]
