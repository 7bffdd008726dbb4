"""Whatever only reads works on a read-only mount, and for a reader without rights to write."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner

import ckptstore
from ckptstore import flock
from ckptstore.errors import CorruptError, StorageError
from ckptstore.retention import KeepBest, MaxToKeep
from ckptstore.store.catalog import Catalog
from ckptstore.store.objects import ObjectStore
from ckptstore_cli.main import cli
from tests.helpers import disks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DISKS: dict[str, Callable[[Path], AbstractContextManager[None]]] = {
    "read-only": lambda folder: disks.read_only(),
    "stranger": disks.as_stranger,
}


def model() -> torch.nn.Module:
    return torch.nn.Linear(40, 30)


@pytest.fixture(params=[True, False], ids=["whole", "without tmp"])
def store(scratch: Path, request: pytest.FixtureRequest) -> Path:
    """A repository with an expired checkpoint, a tag, and a branch committed through Zarr."""
    repo = ckptstore.init(scratch / "store")
    for step in range(4):
        repo.commit(
            {"model": model().state_dict(), "step": step}, step=step, metrics={"loss": step}
        )
    repo.tag("v1", "main~1")
    repo.gc(KeepBest("loss") | MaxToKeep(2))
    repo.set_retention(MaxToKeep(1))
    with repo.session("zarr") as session:
        zarr.open_group(session.store)["curve"] = np.arange(9.0)
        session.commit()
    if not request.param:
        shutil.rmtree(scratch / "store/tmp")
    return scratch / "store"


def follow(repo: ckptstore.Repository) -> object:
    with repo.follow("main") as follower:
        return follower.update(model())


READS: dict[str, Callable[[ckptstore.Repository], Any]] = {
    "log": lambda repo: repo.log(),
    "resolve": lambda repo: repo.resolve("best:loss"),
    "branches": lambda repo: (repo.branches(), repo.tags(), repo.ref_names()),
    "checkout": lambda repo: repo.checkout("main~1"),
    "checkout into": lambda repo: repo.checkout("main", part="model", into=model()),
    "checkout lazy": lambda repo: repo.checkout("main", lazy=True)["model"]["weight"][3:5],
    "load_weights": lambda repo: ckptstore.load_weights(model(), repo, "main", part="model"),
    "array": lambda repo: repo.resolve("main").array("model/weight")[2],
    "diff": lambda repo: repo.diff("main~1", "main", numeric=True).arrays[0].numbers,
    "diff with a state": lambda repo: repo.diff("main", {"w": np.ones(30_000)}),
    "usage": lambda repo: repo.usage(),
    "verify": lambda repo: repo.verify().problems == () or 1 / 0,
    "retention": lambda repo: repo.retention(),
    "zarr": lambda repo: (repo.resolve("main").zarr().tree(), repo.resolve("zarr").zarr()["curve"]),
    "session": lambda repo: zarr.open_group(repo.session("zarr").store, mode="r")["curve"][:],
    "follow": follow,
    "plan_gc": lambda repo: len(repo.plan_gc(grace=0).expired) == 1 or 1 / 0,
}


@pytest.mark.parametrize("disk", DISKS)
def test_everything_that_reads_works(store: Path, disk: str) -> None:
    for read in READS.values():  # frameworks import modules of their own on first use
        read(ckptstore.open(store))
    with DISKS[disk](store):
        for name, read in READS.items():
            try:
                read(ckptstore.open(store))
            except Exception as error:
                raise AssertionError(f"{name} fails") from error
        with pytest.raises(StorageError):
            ckptstore.open(store).commit({"w": np.ones(3)})
        with pytest.raises(StorageError):
            ckptstore.open(store).gc(MaxToKeep(1))


@pytest.mark.parametrize("disk", DISKS)
def test_every_command_that_reads_works(store: Path, scratch: Path, disk: str) -> None:
    (scratch / "free").mkdir()
    (scratch / "free").chmod(0o777)
    commands = [
        ["log", "--graph"],
        *(["show", "main"], ["ls", "main"], ["branch"], ["tag"], ["usage"], ["verify"]),
        *(["config", "retention"], ["diff", "main~1", "main", "--numeric"], ["gc", "--dry-run"]),
    ]
    exports = [
        ["checkout", "main", "-o", str(scratch / "free/x.pt")],
        ["checkout", "best:loss", "-o", str(scratch / "free/x.zarr")],
    ]
    if disk == "stranger":
        for command in commands + exports:  # to import what they use
            CliRunner().invoke(cli, ["-r", str(store), *command])
        shutil.rmtree(scratch / "free")
        (scratch / "free").mkdir()
        (scratch / "free").chmod(0o777)
        commands += exports
    with DISKS[disk](store):
        for command in commands:
            result = CliRunner().invoke(cli, ["-r", str(store), *command])
            assert result.exit_code == 0, (command, result.output)


def test_a_plan_takes_no_lock(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader could hold up the gc of the owner for as long as its plan takes."""
    monkeypatch.setattr(flock, "acquire", lambda *args: 1 / 0)
    repo = ckptstore.open(store)
    assert len(repo.plan_gc().expired) == 1
    assert repo.verify().ok


@pytest.mark.parametrize("times", [1, 10])
def test_a_plan_beside_a_gc_is_made_again_and_at_last_under_the_lock(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Another gc, with a stricter policy, deletes the pages that the plan is about to read."""
    repo = ckptstore.init(scratch / "store")
    for step in range(times + 3):
        repo.commit({"w": np.full(3, step)}, step=step)
    locks: list[str] = []
    steps = list(range(times))
    is_gone = False
    real_live, real_get, real_acquire = Catalog.live, ObjectStore.get, flock.acquire

    def live(catalog: Catalog) -> Any:
        """Each attempt begins with this."""
        nonlocal is_gone
        found = real_live(catalog)
        is_gone = bool(steps) and not locks
        if is_gone:
            with monkeypatch.context() as inside:
                inside.setattr(Catalog, "live", real_live)
                inside.setattr(ObjectStore, "get", real_get)
                inside.setattr(flock, "acquire", real_acquire)
                ckptstore.open(scratch / "store").gc(MaxToKeep(steps.pop() + 2), grace=0)
        return found

    def get(objects: ObjectStore, *args: Any, **options: Any) -> bytes:
        if is_gone:
            raise CorruptError("As if this gc had just deleted it.")
        return real_get(objects, *args, **options)

    def acquire(descriptor: int, path: str) -> None:
        locks.append(path)
        real_acquire(descriptor, path)

    monkeypatch.setattr(Catalog, "live", live)
    monkeypatch.setattr(ObjectStore, "get", get)
    monkeypatch.setattr(flock, "acquire", acquire)
    plan = ckptstore.open(scratch / "store").plan_gc(MaxToKeep(100), grace=0)
    assert plan.expired == ()
    assert len(locks) == (0 if times == 1 else 1)
    assert plan.execute().objects == 0
    assert repo.verify().ok


def test_damage_is_no_reason_to_plan_again(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = ckptstore.init(scratch / "store")
    repo.commit({"w": np.ones(3)})
    for path in (scratch / "store/objects").glob("*/*"):
        path.unlink()
    monkeypatch.setattr(flock, "acquire", lambda *args: 1 / 0)
    with pytest.raises(CorruptError, match="is missing"):
        ckptstore.open(scratch / "store").plan_gc(MaxToKeep(1))
