"""A training on several ranks: the same two lines on each, and one checkpoint of all."""

from __future__ import annotations

import os
import random
import signal
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import ckptstore
from ckptstore import CkptStoreError, InvalidInputError, StorageError
from ckptstore.storage import LocalStorage
from ckptstore.store.refs import Refs
from ckptstore.training import CheckpointManager, group
from ckptstore.training.group import GroupSave
from tests.helpers.equality import difference
from tests.helpers.layouts import gathered
from tests.helpers.ranks import DiedError, checked, on_ranks

pytestmark = [pytest.mark.concurrency, pytest.mark.slow]

WIDTH = 302  # 3 ranks have no equal parts of it


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(20, WIDTH)
        self.norm = nn.LayerNorm(20)
        self.down = nn.Linear(WIDTH, 600)  # whose parts have chunks of their own
        self.register_buffer("seen", torch.zeros(1))
        self.odd = nn.Parameter(torch.ones(7, 20))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(torch.relu(self.up(self.norm(x + self.odd.sum(dim=0)))))
        return nn.functional.dropout(result, 0.1)


def model_in(layout: str) -> Any:
    torch.manual_seed(0)
    model = Model()
    world = dist.get_world_size() if dist.is_initialized() else 1
    if layout in ("plain", "ddp"):
        return DistributedDataParallel(model) if layout == "ddp" else model
    if layout == "both":
        mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data", "tensor"))
        data, tensor = mesh["data"], mesh["tensor"]
    else:
        data = tensor = init_device_mesh("cpu", (world,))
    if layout in ("tensor", "both"):
        parallelize_module(model, tensor, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    if layout in ("fsdp", "both"):
        for part in (model.up, model.down, model):
            fully_shard(part, mesh=data)
    return model


def objects(layout: str) -> dict[str, Any]:
    model = model_in(layout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


def seed(rank: int) -> None:
    torch.manual_seed(100 + rank)
    random.seed(rank)
    np.random.seed(rank)


def drawn() -> list[float]:
    return [torch.rand(1).item(), random.random(), float(np.random.rand())]


def step_of(parts: dict[str, Any]) -> None:
    """One step, which depends on all random numbers of the rank."""
    x = torch.rand(4, 20) + random.random() + np.random.rand()
    parts["optimizer"].zero_grad()
    parts["model"](x).square().mean().backward()
    parts["optimizer"].step()
    parts["scheduler"].step()


def result(parts: dict[str, Any]) -> dict[str, Any]:
    """The whole state, the same on all ranks."""
    model, optimizer = parts["model"], parts["optimizer"]
    for parameter, state in optimizer.state.items():
        assert isinstance(state["exp_avg"], DTensor) == isinstance(parameter, DTensor)
    model = model.module if isinstance(model, DistributedDataParallel) else model
    return gathered(
        {
            "model": dict(model.state_dict()),
            "optimizer": parts["optimizer"].state_dict(),
            "scheduler": parts["scheduler"].state_dict(),
        }
    )


def train(url: str, layout: str, until: int, *, is_async: bool = True, **options: Any) -> Any:
    """Go on until a step: the start, the state at the end, and the next random numbers."""
    rank = dist.get_rank()
    parts = objects(layout)
    own = nn.Linear(2, 2)  # which no other rank has
    with torch.no_grad():
        own.bias.fill_(rank)
    seed(rank if layout in ("fsdp", "ddp") else 0)  # ranks of tensor parallel have equal samples
    with (
        warnings.catch_warnings(record=True) as caught,
        CheckpointManager(
            url, max_to_keep=2, own=own, async_save=is_async, rank_timeout=60, **parts, **options
        ) as manager,
    ):
        warnings.simplefilter("always")
        start = manager.restore_or_initialize()
        found = own.bias[0].item()
        for step in range(start + 1, until + 1):
            step_of(parts)
            with torch.no_grad():
                own.bias.add_(10)
            assert manager.save(step, metrics={"rank": rank})
        newest = manager.wait()
    said = [str(one.message) for one in caught if "rank" in str(one.message)]
    made = None if newest is None else newest.step
    return start, result(parts), drawn(), found, made, said


@pytest.fixture
def url(tmp_path: Path) -> str:
    return ckptstore.init(tmp_path / "store", chunk_size=1 << 16).url


@pytest.mark.parametrize(
    ("layout", "world"),
    [
        ("fsdp", 2),
        ("both", 4),
        pytest.param("tensor", 2, marks=pytest.mark.deep),
        pytest.param("fsdp", 4, marks=pytest.mark.deep),
    ],
)
def test_a_sharded_training_goes_on_bit_for_bit(url: str, tmp_path: Path, layout, world) -> None:
    steady = str(tmp_path / "steady")
    expected = checked(on_ranks(world, train, steady, layout, 4))
    half = checked(on_ranks(world, partial(train, is_async=False), url, layout, 2))
    found = checked(on_ranks(world, train, url, layout, 4))
    for rank in range(world):
        start, state, numbers, own, made, said = found[rank]
        assert (start, made, own, said) == (2, 4, rank + 20, [])
        assert difference(state, expected[rank][1]) is None
        assert numbers == expected[rank][2]
    repo = ckptstore.open(url)
    assert [checkpoint.step for checkpoint in repo.log(expired=False)] == [4, 3]
    assert repo.resolve("main").metrics == {"rank": 0}
    assert len(repo.log()) == 4
    assert repo.verify().ok
    state = repo.checkout(exclude=["rng", "progress", "own", "ranks"])
    assert difference(state | {"model": dict(state["model"])}, found[0][1]) is None
    assert half[0][1]["scheduler"]["last_epoch"] == 2


def test_other_ranks_other_layouts_and_one_process_go_on(url: str) -> None:
    saved = checked(on_ranks(2, train, url, "fsdp", 2))
    for layout, world in (("fsdp", 3), ("fsdp", 1), ("tensor", 2), ("ddp", 2)):
        found = checked(on_ranks(world, train, url, layout, 2))
        for rank, (start, state, numbers, own, _, said) in enumerate(found):
            assert start == 2
            assert difference(state, saved[0][1]) is None, (layout, world, rank)
            if rank < 2:  # what is of one rank returns to it
                assert (numbers, own) == (saved[rank][2], 20.0 + rank), (layout, world)
            if world == 2:
                assert said == []
        if world == 1:
            assert "saved by 2 ranks, and this is rank 0 of 1. What rank 1 had" in found[0][5][0]
            assert "not restored: own, rng." in found[0][5][0]
        if world == 3:
            assert found[0][5] == found[1][5] == []
            assert "rank 2 of 3 are in no checkpoint" in found[2][5][0]
            assert "This rank has those of rank 0: own." in found[2][5][1]
            assert found[2][3] == 20.0
    parts = objects("plain")
    with pytest.warns(UserWarning, match="rank 0 of 1. What rank 1 had of its own is not restored"):
        CheckpointManager(url, own=nn.Linear(2, 2), **parts).restore_or_initialize()
    assert difference(result(parts), saved[0][1]) is None


def test_a_checkpoint_of_one_process_goes_on_in_shards(url: str) -> None:
    parts = objects("plain")
    step_of(parts)
    with CheckpointManager(url, own=nn.Linear(2, 2), **parts) as manager:
        manager.save(1)
    for start, state, _, _, _, said in checked(on_ranks(2, train, url, "fsdp", 1)):
        assert start == 1
        assert difference(state, result(parts)) is None
        assert len(said) == ("rank 1 of 2" in str(said))


def test_data_parallel_ranks_keep_their_random_numbers_and_samples(url: str) -> None:
    def run(until: int) -> Any:
        rank = dist.get_rank()
        parts = objects("ddp")
        data: Any = torch.arange(64.0).reshape(32, 2)
        sampler: Any = DistributedSampler(data, shuffle=True)
        loader = DataLoader(data, batch_size=4, sampler=sampler)
        seed(rank)
        seen = []
        with CheckpointManager(url, loader=loader, rank_timeout=60, **parts) as manager:
            step = manager.restore_or_initialize()
            for epoch in range(step // 4, 2):
                sampler.set_epoch(epoch)
                for batch in loader:
                    step_of(parts)
                    seen += batch[:, 0].tolist()
                    step += 1
                    manager.save(step)
                    if step == until:
                        return seen, result(parts), drawn()
        return seen, result(parts), drawn()

    first = checked(on_ranks(2, run, 3))
    rest = checked(on_ranks(2, run, 8))
    repo = ckptstore.open(url)
    repo.rename_branch("main", "killed")
    steady = checked(on_ranks(2, run, 8))
    for rank in range(2):
        assert first[rank][0] + rest[rank][0] == steady[rank][0]
        assert difference(rest[rank][1], steady[rank][1]) is None
        assert rest[rank][2] == steady[rank][2]
    samples = [sample for rank in range(2) for sample in steady[rank][0]]
    assert sorted(samples) == sorted([*range(0, 64, 2)] * 2)
    of_ranks = [array for array in repo.resolve("main").arrays if array.path.startswith("ranks/")]
    assert not any("model" in array.path for array in of_ranks)  # replicas are saved once


def test_rank_0_decides_when_to_save(url: str) -> None:
    def run() -> Any:
        rank = dist.get_rank()
        times = iter(range(0, 10_000, 15 if rank == 0 else 1))
        model = nn.Linear(2, 2)
        with CheckpointManager(
            url, save_interval_minutes=1, clock=lambda: next(times), model=model, rank_timeout=60
        ) as manager:
            answers = [(manager.should_save(step), manager.save(step)) for step in range(1, 9)]
            forced = manager.save(9, force=True)
        return answers, forced, [checkpoint.step for checkpoint in manager.checkpoints]

    first, second = checked(on_ranks(2, run))
    assert first == second
    assert {saves for _, saves in first[0]} == {True, False}
    assert first[1]
    assert first[2][-1] == 9


def errors_of(work: Any) -> Any:
    """The type and message of the error that a job raises, and its seconds."""
    begin = time.monotonic()
    try:
        work()
    except CkptStoreError as error:
        return type(error).__name__, str(error), time.monotonic() - begin
    return None


def test_a_rank_that_does_not_come_is_an_error_after_the_timeout(url: str) -> None:
    def run(ranks: str) -> Any:
        def save() -> None:
            if dist.get_rank() == 0:
                options: Any = {"async_save": False, "rank_timeout": 1, "ranks": ranks}
                manager = CheckpointManager(url, model=nn.Linear(2, 2), **options)
                manager.save(1)
                manager.close()

        found = errors_of(save)
        dist.barrier()
        return found

    found, _ = checked(on_ranks(2, run, "all"))
    assert found[0] == "RankError"
    assert (
        "The save of step 1 has failed on all 2 ranks: rank 1 has not come within 1 s" in found[1]
    )
    assert "ranks='first'" in found[1]
    assert found[2] < 30
    repo = ckptstore.open(url)
    assert repo.log() == []
    assert checked(on_ranks(2, run, "first")) == [None, None]
    assert [checkpoint.step for checkpoint in repo.log()] == [1]


def test_ranks_that_differ_are_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the save before has not yet begun in the background of one of them."""
    run = GroupSave.run

    def late(save: GroupSave, *args: Any) -> Any:
        if dist.get_rank():
            time.sleep(1)
        return run(save, *args)

    def save() -> Any:
        rank = dist.get_rank()
        with CheckpointManager(url, model=nn.Linear(2, 2), rank_timeout=20) as manager:
            manager.save(1)
            return errors_of(lambda: manager.save(2 + rank)) or errors_of(manager.wait)

    monkeypatch.setattr(GroupSave, "run", late)
    first, second = checked(on_ranks(2, save))
    assert second[0] == "InvalidInputError"
    assert "This rank is at step 3, and rank 0 at step 2" in second[1]
    assert first[0] == "RankError"
    assert "rank 1 raised InvalidInputError: This rank is at step 3" in first[1]
    assert [checkpoint.step for checkpoint in ckptstore.open(url).log()] == [1]


@pytest.mark.parametrize("where", ["capture", "put", "publish"])
@pytest.mark.parametrize("is_async", [True, False])
def test_an_error_of_one_rank_is_one_of_all(url: str, where: str, is_async: bool) -> None:
    class Bad:
        def state_dict(self) -> Any:
            if is_bad and where == "capture" and dist.get_rank() == 1:
                raise RuntimeError("no state today")
            return {}

        def load_state_dict(self, state: Any) -> None:
            pass

    is_bad = False

    def run() -> Any:
        nonlocal is_bad
        rank, parts = dist.get_rank(), objects("fsdp")
        bad = Bad()
        put, publish = group.put_shards, Refs.publish

        def failing(*args: Any, **options: Any) -> Any:
            if is_bad and (where, rank) == ("put", 1):
                raise StorageError("the disk is gone")
            return put(*args, **options)

        def unpublished(self: Any, *args: Any, **options: Any) -> Any:
            if is_bad and where == "publish":
                raise StorageError("the disk is gone")
            return publish(self, *args, **options)

        group.put_shards, Refs.publish = failing, unpublished  # type: ignore[assignment,method-assign]
        manager = CheckpointManager(
            url, bad=bad, rank_timeout=60, async_save=is_async, model=parts["model"]
        )
        manager.save(1)
        manager.wait()
        step_of(parts)
        is_bad = True
        found = "none"
        try:
            manager.save(2)
            manager.wait()
        except (CkptStoreError, RuntimeError) as error:
            found = str(error)
        is_bad = False
        assert manager.save(3)
        manager.close()
        return found

    first, second = checked(on_ranks(2, run))
    words = {"capture": "no state today", "put": "the disk is gone", "publish": "disk is gone"}
    assert words[where] in first
    assert words[where] in second
    assert [checkpoint.step for checkpoint in ckptstore.open(url).log()] == [3, 1]
    assert ckptstore.open(url).verify().ok


def test_a_killed_rank_leaves_the_last_checkpoint_and_ends_the_wait(url: str) -> None:
    def run() -> Any:
        parts = objects("ddp")
        options: Any = {"rank_timeout": 2}
        manager = CheckpointManager(url, model=parts["model"], **options)
        manager.save(1)
        manager.wait()
        if dist.get_rank() == 1:
            put = group.put_shards

            def dying(*args: Any, **given: Any) -> Any:
                put(*args, **given)
                os.kill(os.getpid(), signal.SIGKILL)

            group.put_shards = dying  # type: ignore[assignment]
        manager.save(2)
        return errors_of(manager.wait)

    first, second = on_ranks(2, run)
    assert isinstance(second, DiedError)
    assert "rank 1 has given no sign of life for 2 s, so it has died or hangs" in first[1]
    repo = ckptstore.open(url)
    assert [checkpoint.step for checkpoint in repo.log()] == [1]
    assert repo.verify().ok


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_on_one_rank_saves_on_all(url: str, name: str) -> None:
    def run() -> Any:
        parts = objects("fsdp")
        options: Any = {
            "save_on_signal": {"SIGTERM": "end", "SIGUSR1": "continue"},
            "save_interval_steps": 1000,
        }
        with CheckpointManager(url, rank_timeout=60, **options, **parts) as manager:
            saved = []
            for step in range(1, 7):
                step_of(parts)
                if step == 3 and dist.get_rank() == 1:
                    os.kill(os.getpid(), getattr(signal, name))
                try:
                    saved.append(manager.save(step))
                except SystemExit as end:
                    return step, end.code, saved
                dist.barrier()
            return saved

    first, second = checked(on_ranks(2, run))
    assert first == second
    steps = [checkpoint.step for checkpoint in ckptstore.open(url).log()]
    if name == "SIGTERM":
        step, code, saved = first
        assert (step in (3, 4), code, any(saved)) == (True, 128 + signal.SIGTERM, False)
        assert steps == [step]
    else:
        assert first.count(True) == 1
        assert steps == [first.index(True) + 1]


def test_a_skipped_save_is_skipped_and_made_up_for_on_all(url: str) -> None:
    def run() -> Any:
        is_first = dist.get_rank() == 0
        put = LocalStorage.put

        def slow(self: Any, *args: Any, **options: Any) -> Any:
            time.sleep(0.2 * is_first)
            return put(self, *args, **options)

        LocalStorage.put = slow  # type: ignore[method-assign]
        with CheckpointManager(
            url, when_busy="skip", model=model_in("fsdp"), rank_timeout=60
        ) as manager:
            saved = [manager.save(1), manager.save(2), manager.save(3)]
        return saved, [checkpoint.step for checkpoint in manager.checkpoints]

    first, second = checked(on_ranks(2, run))
    assert first == second
    assert first == ([True, False, False], [1, 3])


def test_a_damaged_checkpoint_is_passed_over_by_all(url: str) -> None:
    checked(on_ranks(2, train, url, "fsdp", 1))
    before = {*Path(url).rglob("*")}
    checked(on_ranks(2, train, url, "fsdp", 2))
    new = sorted({*Path(url).rglob("*")} - before)
    path = next(path for path in new if path.stat().st_size == 50 * WIDTH * 4)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of model.down.weight, or of a moment, in the half of one rank
    path.chmod(0o600)
    path.write_bytes(data)

    def restore() -> Any:
        manager = CheckpointManager(url, own=nn.Linear(2, 2), rank_timeout=60, **objects("fsdp"))
        found = errors_of(manager.restore)
        return found[0], manager.restore(fallback=True).step

    assert checked(on_ranks(2, restore)) == [("CorruptError", 1)] * 2


def test_a_mirror_gets_what_all_ranks_saved(url: str, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    saved = checked(on_ranks(2, partial(train, mirror=str(mirror)), url, "fsdp", 2))
    fresh = str(tmp_path / "fresh")
    found = checked(on_ranks(2, partial(train, mirror=str(mirror)), fresh, "fsdp", 2))
    for rank in range(2):
        assert found[rank][0] == 2
        assert difference(found[rank][1], saved[rank][1]) is None


def test_a_sum_over_ranks_is_refused_by_name(url: str) -> None:
    def run() -> Any:
        mesh = init_device_mesh("cpu", (2,))

        class Sums:
            def state_dict(self) -> Any:
                return {"w": DTensor.from_local(torch.ones(2), mesh, [Partial()])}

            def load_state_dict(self, state: Any) -> None:
                pass

        with CheckpointManager(url, sums=Sums(), rank_timeout=20, async_save=False) as manager:
            try:
                manager.save(1)
            except InvalidInputError as error:
                return str(error)
        return None

    for said in checked(on_ranks(2, run)):
        assert "sums/w" in said
        assert "Partial" in said
