"""torch.distributed.checkpoint with repositories as its storage, on several ranks."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

import ckptstore
from ckptstore import InvalidInputError, StorageError, formats
from ckptstore.commit.put import putting
from ckptstore.integrations.dcp import StoreReader, StoreWriter
from ckptstore.retention import MaxToKeep
from ckptstore.store.refs import Refs
from ckptstore.testing.s3_server import S3Server
from tests.helpers.equality import difference
from tests.helpers.layouts import (
    CHUNK_BYTES,
    gathered,
    sharded,
    state_of_rank,
    training,
    whole,
    whole_state,
)
from tests.helpers.ranks import DiedError, checked, on_ranks
from tests.helpers.root import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def url(tmp_path: Path) -> str:
    return ckptstore.init(tmp_path / "store", chunk_size=CHUNK_BYTES).url


def saved(url: str, state: dict[str, Any], **options: Any) -> str:
    made = dcp.save(state, storage_writer=StoreWriter(url, **options))
    return str(made.storage_meta.checkpoint_id)


def check_loaded(url: str, *branches: str) -> None:
    """Load into fresh shards, and compare these with those of the whole."""
    expected = state_of_rank()
    shards = {name: shard.to_local() for name, shard in expected.pop("model").items()}
    expected["lists"][1]["empty"] = None  # torch takes no part of an empty list
    for branch in branches:
        state = state_of_rank(is_fresh=True)
        dcp.load(state, storage_reader=StoreReader(url, branch))
        for name, found in state.pop("model").items():
            assert torch.equal(found.to_local(), shards[name]), (branch, name)
        state["lists"][1]["empty"] = None
        assert difference(state, expected) is None


def save_state(url: str, branch: str) -> str:
    return saved(url, state_of_rank(), branch=branch)


def reshard(url: str, worlds: tuple[int, ...]) -> ckptstore.Repository:
    for world in worlds:
        ids = checked(on_ranks(world, save_state, url, f"of-{world}"))
        assert len(set(ids)) == 1
    for world in worlds:
        checked(on_ranks(world, check_loaded, url, *(f"of-{n}" for n in worlds)))
    return ckptstore.open(url)


def test_any_layout_saved_on_one_number_of_ranks_is_loaded_on_any_other(url, tmp_path):
    repo = reshard(url, (1, 2, 3, 4))
    expected = whole_state()
    for world in (1, 2, 3, 4):
        found = repo.checkout(f"of-{world}")
        assert difference(found, expected) is None
        assert not repo.diff("of-1", f"of-{world}", numeric=True).arrays
        group = repo.resolve(f"of-{world}").zarr()
        assert (group["model/grid"][...] == whole("grid").numpy()).all()
    formats.write_file(repo.checkout("of-4", part="model"), tmp_path / "model.safetensors")
    exported = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert exported.keys() == expected["model"].keys()
    assert all(torch.equal(exported[name], whole(name)) for name in exported)
    assert repo.verify().ok


@pytest.mark.deep
def test_any_layout_on_eight_ranks(url):
    reshard(url, (8, 5, 2))


LAYOUTS = [("fsdp", 2), ("tensor parallel", 2), ("both", 4), ("fsdp", 3), ("plain", 1)]


def test_a_training_goes_on_in_any_other_layout(url):
    """Weights and the state of AdamW, bit for bit."""

    def save(layout: str) -> Any:
        state = training(layout, steps=2)
        name = f"{layout.replace(' ', '-')}-{dist.get_world_size()}"
        saved(url, state, branch=name, step=2)
        return gathered(state)

    def load(layout: str, expected: dict[str, Any]) -> None:
        state = training(layout, steps=0)
        for name, whole_of_all in expected.items():
            dcp.load(state, storage_reader=StoreReader(url, name))
            assert difference(gathered(state), whole_of_all) is None, (name, layout)

    expected = {}
    for layout, world in LAYOUTS:
        name = f"{layout.replace(' ', '-')}-{world}"
        expected[name] = checked(on_ranks(world, save, layout))[0]
        assert difference(ckptstore.open(url).checkout(name), expected[name]) is None
    for layout, world in [("fsdp", 3), ("tensor parallel", 2), ("both", 4), ("plain", 1)]:
        checked(on_ranks(world, load, layout, expected))


def test_a_checkpoint_of_one_process_is_loaded_in_shards(url):
    repo = ckptstore.open(url)
    repo.commit(whole_state(), branch="plain")
    repo.commit({"model": {"w": whole("columns").T.contiguous().T}}, branch="transposed")
    dcp.save(whole_state(), storage_writer=StoreWriter(repo, branch="one"), no_dist=True)
    assert not repo.diff("plain", "one").arrays  # the same chunks too

    def load() -> None:
        check_loaded(url, "plain")
        mesh = init_device_mesh("cpu", (2,))
        state = {"model": {"w": distribute_tensor(torch.zeros(64, 1032), mesh, [Shard(0)])}}
        dcp.load(state, storage_reader=StoreReader(url), checkpoint_id="transposed")
        assert torch.equal(
            state["model"]["w"].to_local(), whole("columns").chunk(2)[dist.get_rank()]
        )

    checked(on_ranks(2, load))


def test_a_rank_reads_the_chunks_of_its_shards_and_none_twice(url, reads):
    names = ["rows", "columns", "uneven rows", "bytes", "grid", "twice"]

    def save() -> None:
        saved(url, {name: sharded(name, whole(name)) for name in names})

    checked(on_ranks(4, save))
    arrays = {array.path: array for array in ckptstore.open(url).resolve("main").arrays}

    def load() -> None:
        for name in names:
            state = {name: sharded(name, torch.zeros_like(whole(name)))}
            shape, corner = compute_local_shape_and_global_offset(
                state[name].shape, state[name].device_mesh, state[name].placements
            )
            reads.clear()
            dcp.load(state, storage_reader=StoreReader(url))
            touched = 1
            for begin, length, step, end in zip(
                corner, shape, arrays[name].chunk_shape, state[name].shape, strict=True
            ):
                touched *= min(-(-(begin + length) // step) * step, end) - begin // step * step
            assert sum(reads) == touched * state[name].element_size(), name
            if dist.get_world_size() in (2, 4) and name in ("rows", "columns"):
                assert sum(reads) == state[name].to_local().nbytes, name

    for world in (4, 3, 2):
        checked(on_ranks(world, load))


def test_copies_are_put_once_and_an_unchanged_step_puts_no_array(url):
    def work() -> list[int]:
        torch.manual_seed(0)
        state: dict[str, Any] = {f"w{n}": torch.rand(200, 200) for n in range(6)}
        state |= {"rows": sharded("rows", whole("rows")), "step": 1}
        put = []

        class Counting(StoreWriter):
            def write_data(self, plan, planner):
                future = super().write_data(plan, planner)
                put.append(future.value()[0].size_in_bytes)
                return future

        for step in (1, 2):
            dcp.save(state, storage_writer=Counting(url, step=step))
        return put

    put = checked(on_ranks(3, work))
    assert sum(first for first, _ in put) == 6 * 160_000 + whole("rows").nbytes
    assert all(first >= 160_000 for first, _ in put)  # each puts some of the copies
    assert [second for _, second in put] == [0, 0, 0]
    first, second = ckptstore.open(url).log("main")[::-1]
    assert (first.step, second.step) == (1, 2)
    assert second.new_bytes == 0


@pytest.mark.parametrize(("stated", "ranks"), [("4", 4), ("", 1), ("0", 1), ("x", 1), (None, 1)])
def test_ranks_of_one_machine_share_its_processors(url, stated, ranks, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if stated is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", stated)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    limits = []

    def put(*args, threads=None):
        limits.append(threads)
        return putting(*args, threads=threads)

    monkeypatch.setattr("ckptstore.commit.shards.hash_threads", lambda *_: 99)
    monkeypatch.setattr("ckptstore.commit.shards.putting", put)
    dcp.save({"w": torch.ones(3)}, storage_writer=StoreWriter(url), no_dist=True)
    assert limits[0] == 8 // ranks


def test_a_planner_that_keeps_plans(url):
    def work() -> None:
        state = {"rows": sharded("rows", whole("rows")), "both": whole("both"), "n": 1}
        for step in (1, 2, 3):
            state["n"] = step
            state["both"] += 1
            planner = DefaultSavePlanner(enable_plan_caching=True)
            dcp.save(state, storage_writer=StoreWriter(url, step=step), planner=planner)

    checked(on_ranks(2, work))
    repo = ckptstore.open(url)
    expected = {"rows": whole("rows"), "both": whole("both") + 2, "n": 2}
    assert difference(repo.checkout("main~1"), expected) is None
    assert repo.resolve("main").step == 3


def test_ranks_that_save_on_their_own_are_refused(url):
    def work() -> None:
        with pytest.raises(InvalidInputError, match="use_collectives=True"):
            dcp.save({"n": 1}, storage_writer=StoreWriter(url), use_collectives=False)

    checked(on_ranks(2, work))


def test_async_saves_in_a_thread(url):
    def work() -> None:
        state = {"rows": sharded("rows", whole("rows")), "x": torch.zeros(40_000), "n": [1]}
        for step in (1, 2):
            state["x"] += 1
            future = dcp.async_save(state, storage_writer=StoreWriter(url, step=step))
            state["x"] += 100  # while it is saved
            assert future.result().storage_meta.checkpoint_id
            state["x"] -= 100

    checked(on_ranks(2, work))
    repo = ckptstore.open(url)
    for rev, value in (("main~1", 1.0), ("main", 2.0)):
        found = repo.checkout(rev)
        assert torch.equal(found["x"], torch.full((40_000,), value))
        assert torch.equal(found["rows"], whole("rows")), found["n"] == [1]


def failures(answer: Any) -> str:
    assert isinstance(answer, CheckpointException)
    return " ".join(f"{rank}: {error[0]!r}" for rank, error in sorted(answer.failures.items()))


def test_errors_of_a_load_name_the_value(url):
    saved_state = {"model": {"w": whole("rows")}, "lr": 0.1}
    ckptstore.open(url).commit(saved_state)

    def load(state: dict[str, Any], **options: Any) -> str:
        try:
            dcp.load(state, storage_reader=StoreReader(url), **options)
        except CheckpointException as error:
            return failures(error)
        return ""

    def work() -> list[str]:
        mesh = init_device_mesh("cpu", (2,))

        def w(*shape: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
            tensor = torch.zeros(shape, dtype=dtype)
            return {"model": {"w": distribute_tensor(tensor, mesh, [Shard(0)])}}

        return [
            load(w(1032, 64, dtype=torch.bfloat16)),
            load(w(1031, 64)),
            load({"model": {"v": torch.zeros(3)}}),
            load({"model": {"w": 1}}),
            load({"lr": 1}, checkpoint_id="nothing"),
            load({"v": 1}, planner=DefaultLoadPlanner(allow_partial_load=True)),
        ]

    dtype, shape, missing, tensor, revision, partly = checked(on_ranks(2, work))[0]
    assert re.search("'model.w' is of dtype float32 in the checkpoint and of bfloat16", dtype)
    assert re.search("Size mismatch .* for model.w", shape)
    assert "Missing key in checkpoint state_dict: model.v" in missing
    assert "model.w" in tensor
    assert re.fullmatch(r"(\d: NotFoundError\(.*'nothing'.*\) ?){2}", revision)
    assert partly == ""


def test_errors_of_a_save_leave_the_branch_as_it_was(url):
    repo = ckptstore.open(url)
    before = repo.commit({"w": torch.ones(3)})

    class Failing(StoreWriter):
        def write_data(self, plan, planner):
            if dist.get_rank() == 1:
                raise StorageError("The disk is full.")
            return super().write_data(plan, planner)

    class Bare(DefaultSavePlanner):
        lookup_object = None  # type: ignore[assignment]

    class Late(StoreWriter):
        def finish(self, metadata, results):
            ckptstore.open(url).commit({"w": torch.zeros(3)}, branch="moved")
            super().finish(metadata, results)

    def save(writer: StoreWriter, state: Any = None, **options: Any) -> str:
        state = {"w": whole("rows"), "n": 1} if state is None else state
        try:
            dcp.save(state, storage_writer=writer, **options)
        except CheckpointException as error:
            return failures(error)
        return ""

    def work() -> list[str]:
        return [
            save(Failing(url)),
            save(StoreWriter(url), planner=Bare()),
            save(StoreWriter(url), {"n": object()}),
            save(Late(url, branch="moved")),
            save(Late(url, branch="moved", retry=True)),
        ]

    answers = checked(on_ranks(2, work))
    assert answers[0] == answers[1]
    full, bare, other, moved, retried = answers[0]
    assert full == "1: StorageError('The disk is full.')"
    assert "lookup_object" in bare
    assert "is of type object" in other
    assert "ConflictError" in moved
    assert retried == ""
    assert repo.resolve("main").id == before.id
    assert repo.verify().ok


KILLS = ["before putting", "after putting", "before publishing"]


@pytest.mark.crash
@pytest.mark.parametrize("point", KILLS)
def test_a_rank_that_is_killed_leaves_the_last_checkpoint(url, point, monkeypatch):
    repo = ckptstore.open(url)
    state = {"rows": whole("rows"), "n": 1}
    before = repo.commit(state)

    class Killed(StoreWriter):
        def write_data(self, plan, planner):
            if point == "before putting" and dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            future = super().write_data(plan, planner)
            if point == "after putting" and dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return future

    def publish(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        if point == "before publishing":
            monkeypatch.setattr(Refs, "publish", publish)
        state = {"rows": sharded("rows", whole("rows") + 1), "n": 2}
        dcp.save(state, storage_writer=Killed(url, step=2))

    answers = on_ranks(2, work)
    killed = 0 if point == "before publishing" else 1
    assert answers[killed].code == -signal.SIGKILL
    assert not isinstance(answers[1 - killed], DiedError)  # it raised, and waits for nothing
    assert isinstance(answers[1 - killed], BaseException)
    assert repo.resolve("main").id == before.id
    assert difference(repo.checkout(), state) is None
    assert repo.verify().ok
    again = {"rows": whole("rows") + 1, "n": 2}
    checked(on_ranks(1, partial(saved, url, again, step=2)))
    assert difference(repo.checkout(), again) is None


def test_a_save_relies_on_nothing_that_a_gc_gave_up_meanwhile():
    repo = ckptstore.init("memory://", chunk_size=CHUNK_BYTES)
    old = {"w": whole("rows")}
    repo.commit(old)
    repo.commit({"n": 1})

    class Late(StoreWriter):
        def finish(self, metadata, results):
            repo.gc(MaxToKeep(1), grace=0)
            super().finish(metadata, results)

    with pytest.raises(CheckpointException) as caught:
        dcp.save(old, storage_writer=Late(repo), no_dist=True)
    assert "A gc has deleted old objects" in failures(caught.value)
    assert repo.checkout() == {"n": 1}
    assert repo.verify().ok
    dcp.save(old, storage_writer=StoreWriter(repo), no_dist=True)
    assert difference(repo.checkout(), old) is None


@pytest.mark.parametrize("is_alike", [True, False], ids=["alike", "other"])
def test_all_ranks_read_what_the_branch_was_on_the_coordinator(url, is_alike):
    repo = ckptstore.open(url)
    repo.commit({"w": torch.zeros(3), "n": 0})

    class Late(StoreReader):
        def read_metadata(self, *args, **options):
            if dist.get_rank() == 1:
                dist.recv(torch.zeros(1), 0)
            metadata = super().read_metadata(*args, **options)
            if dist.get_rank() == 0:
                repo = ckptstore.open(url)
                repo.commit({"w": torch.ones(3 if is_alike else 4), "n": 1})
                dist.send(torch.zeros(1), 1)
            return metadata

    def work() -> float:
        state = {"w": torch.full((3 if is_alike or not dist.get_rank() else 4,), 5.0), "n": 5}
        dcp.load(state, storage_reader=Late(url))
        return float(state["w"].sum()) + state["n"]

    answers = on_ranks(2, work)
    if is_alike:
        assert checked(answers) == [0.0, 0.0]
    else:
        assert "ConflictError('The revision named checkpoint" in failures(answers[0])


def test_what_a_plain_commit_holds_besides_tensors_is_loaded():
    repo = ckptstore.init("memory://")
    state = {
        "counter": Counter({3: 1, 7: 2}),
        "scheduler": {"milestones": Counter({30: 1}), 5: "int key"},
        "size": torch.Size([2, 3]),
        "tuple": (torch.ones(2), 5),
        "numbers": [1, 2, 3],
        "nested": [[1], [torch.ones(1)]],
        "numpy": torch.arange(5).numpy(),
    }
    repo.commit(state)
    target = {
        "counter": Counter({3: 0, 7: 0}),
        "scheduler": {"milestones": Counter({30: 0}), 5: ""},
        "size": None,
        "tuple": None,
        "numbers": None,
        "nested": [[0], [torch.zeros(1)]],
        "numpy": None,
    }
    dcp.load(target, storage_reader=StoreReader(repo), no_dist=True)
    target["scheduler"][5] = target["scheduler"].pop("5", target["scheduler"].get(5))
    assert dict(target["counter"]) == {3: 1, 7: 2} or target["counter"]["3"] == 1
    assert target["size"] == torch.Size([2, 3])
    assert torch.equal(target["tuple"][0], torch.ones(2))
    assert target["numbers"] == [1, 2, 3]
    assert torch.equal(target["nested"][1][0], torch.ones(1))


def test_arguments_are_checked():
    repo = ckptstore.init("memory://")
    with pytest.raises(InvalidInputError, match="branch"):
        StoreWriter(repo, branch="a b")
    with pytest.raises(InvalidInputError, match="step"):
        StoreWriter(repo, step="x")  # type: ignore[arg-type]
    with pytest.raises(ckptstore.NotFoundError, match="no checkpoint"):
        _ = StoreWriter(repo).checkpoint
    writer = StoreWriter(repo, step=3, metrics={"loss": 0.5}, meta={"a": 1})
    dcp.save({"n": 1}, storage_writer=writer, checkpoint_id="after warm-up", no_dist=True)
    made = writer.checkpoint
    assert (made.step, made.message, dict(made.metrics)) == (3, "after warm-up", {"loss": 0.5})
    repo.commit([1, 2])
    with pytest.raises(CheckpointException, match="is no dict"):
        dcp.load({"n": 1}, storage_reader=StoreReader(repo), no_dist=True)


def environments() -> list[dict[str, str]]:
    """What torchrun would set for two ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'cli'}",
    }
    return [{**common, "RANK": str(rank)} for rank in range(2)]


SCRIPT = ("-m", "tests.helpers.rank_script")


def test_ranks_with_clients_of_their_own_share_an_object_store(forks):
    with S3Server() as server:
        ranks = [
            forks.start(*SCRIPT, server.url("run"), "sync", cwd=ROOT, env=env)
            for env in environments()
        ]
        answers = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(answers)


LAST_ACT_IS_A_SAVE = """
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ckptstore.integrations.dcp import StoreWriter
sys.setswitchinterval(1000)  # threads of gloo get the lock only where this one blocks
dist.init_process_group("gloo")
dcp.save({"w": torch.zeros(10)}, storage_writer=StoreWriter(sys.argv[1]))
"""


@pytest.mark.deep
def test_a_save_may_be_the_last_act_of_a_program(url):
    """Without the pause at the exit, most of these pairs end with an abort."""
    program = [sys.executable, "-c", LAST_ACT_IS_A_SAVE, url]
    ranks = [
        subprocess.Popen(program, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
        for env in environments()
    ]
    answers = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * 6, "\n".join(answers)


@pytest.mark.deep
def test_async_saves_in_a_process(url):
    ranks = [
        subprocess.Popen([sys.executable, *SCRIPT, url, "async"], cwd=ROOT, env=env)
        for env in environments()
    ]
    assert [rank.wait() for rank in ranks] == [0, 0]
    assert ckptstore.open(url).resolve("main").step == 2
