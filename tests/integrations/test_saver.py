"""Saver: a sharded training is saved in the background, and no rank waits for ever for another."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

import ckptstore
from ckptstore import ConflictError, InvalidInputError, RankError, StorageError
from ckptstore.integrations.dcp import Saver, Stager, StoreWriter
from ckptstore.integrations.dcp import saver as saver_module
from ckptstore.retention import MaxToKeep
from tests.helpers.children import fork
from tests.helpers.equality import difference
from tests.helpers.layouts import CHUNK_BYTES, sharded, state_of_rank, whole, whole_state
from tests.helpers.ranks import DiedError, checked, on_ranks
from tests.helpers.small_disk import small_disk

pytestmark = [pytest.mark.slow, pytest.mark.concurrency]

TIMEOUT = 5.0  # seconds: a rank may wait long for a processor that others share


@pytest.fixture
def url(tmp_path) -> str:
    return ckptstore.init(tmp_path / "store", chunk_size=CHUNK_BYTES).url


def changed(state: Any) -> None:
    """Change all tensors of a state in place, as a training does."""
    if isinstance(state, torch.Tensor):
        if state.dtype.is_floating_point:
            state += 1000
    elif isinstance(state, dict | list):
        for value in state.values() if isinstance(state, dict) else state:
            changed(value)


def test_what_is_saved_in_the_background_is_the_state_at_the_call(url):
    def work() -> list[str]:
        with Saver(url) as saver:
            first = saver.save(state_of_rank(), step=1, metrics={"loss": 0.5}, message="first")
            for step in (2, 3):
                state = state_of_rank()
                saver.async_save(state, step=step)
                changed(state)
                state["lists"].append("later")
                state["optimizer"]["lr"] = 7.0
            room = saver._stager._staging.room(0).data_ptr()
            saver.async_save(state_of_rank(), step=4)
            assert saver._stager._staging.room(0).data_ptr() == room
            saver.wait()
            assert saver.save({"n": dist.get_rank()}, step=5) != first
        return [str(first)]

    ids = checked(on_ranks(3, work))
    repo = ckptstore.open(url)
    log = repo.log("main")[::-1]
    assert [one.step for one in log] == [1, 2, 3, 4, 5]
    assert {text for rank in ids for text in rank} == {str(log[0].id)}
    assert (dict(log[0].metrics), log[0].message) == ({"loss": 0.5}, "first")
    assert [one.new_bytes for one in log[1:4]] == [0, 0, 0]
    for step in range(1, 5):
        assert difference(repo.checkout(f"main~{5 - step}"), whole_state()) is None
    assert repo.verify().ok


def test_one_process_saves_too():
    repo = ckptstore.init("memory://")
    state = {"w": torch.arange(5.0), "odd": torch.zeros(3, dtype=torch.complex32), "n": [1]}
    state["numpy"], state["tuple"] = torch.arange(3).numpy(), (torch.ones(2), 1)
    expected = {name: value.clone() if name == "w" else value for name, value in state.items()}
    with Saver(repo) as saver:
        saver.async_save(state)
        state["w"] += 1
    assert difference(repo.checkout(), expected) is None
    with Saver(repo) as saver:
        with pytest.raises(InvalidInputError, match="step"):
            saver.async_save(state, step="x")  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="is of type object"):
            saver.save({"x": object()})
        saver.async_save({"x": object()})
        with pytest.raises(InvalidInputError, match="is of type object"):
            saver.wait()
        saver.wait()
    for arguments in ({"branch": "a b"}, {"timeout": 0}):
        with pytest.raises(InvalidInputError):
            Saver(repo, **arguments)


def test_memory_of_a_staged_state_that_is_in_use_is_left_alone():
    stager = Stager()
    first = stager.stage({"w": torch.ones(3)})
    second = stager.stage({"w": torch.zeros(3)})
    assert first["w"].tolist() == [1, 1, 1]
    place = second["w"].data_ptr()
    del second
    assert stager.stage({"w": torch.full((3,), 2.0)})["w"].data_ptr() == place
    state = {"w": torch.ones(3, dtype=torch.float64), "v": torch.ones(2, 2).T}
    assert difference(dict(stager.stage(state)), state) is None
    stager.close()


def is_running(future: Any) -> bool:
    return not future.done()


def reduce_while(is_busy: Any) -> int:
    """All-reduce on the default group while a rank is busy; the number of times."""
    rank, size = dist.get_rank(), dist.get_world_size()
    rounds = 0
    while True:
        numbers = torch.tensor([rounds * 10.0 + rank, float(is_busy())])
        dist.all_reduce(numbers)
        assert numbers[0] == sum(rounds * 10.0 + n for n in range(size))
        rounds += 1
        if not numbers[1]:
            return rounds


def test_collectives_of_a_training_go_on_beside_a_save(url):
    """In the group of the training, they would be taken for those of the save."""

    def work() -> list[int]:
        state = {"rows": sharded("rows", whole("rows")), "x": torch.zeros(400_000)}
        rounds = []
        with Saver(url) as saver:
            for step in (1, 2, 3):
                state["x"] += 1
                saver.async_save(state, step=step)
                rounds.append(reduce_while(lambda: saver._background.is_busy))
        own, stager = dist.new_group(backend="gloo"), Stager()
        for step in (4, 5):
            state["x"] += 1
            future = dcp.async_save(
                state,
                storage_writer=StoreWriter(url, step=step),
                process_group=own,
                async_stager=stager,
            )
            rounds.append(reduce_while(partial(is_running, future)))
            future.result()
        stager.close()
        return rounds

    rounds = checked(on_ranks(2, work))
    assert rounds[0] == rounds[1]
    repo = ckptstore.open(url)
    for step in range(1, 6):
        found = repo.checkout(f"main~{5 - step}")
        assert torch.equal(found["x"], torch.full((400_000,), float(step)))
    assert repo.verify().ok


POINTS = ["before", "planned", "while putting", "put", "before publishing", "published"]
LOSSES = [
    *(("killed", point, 1) for point in POINTS[:4]),
    *(("killed", point, 0) for point in POINTS),
    ("stopped", "before", 1),
    ("stopped", "while putting", 1),
    ("stopped", "while putting", 0),
    ("stopped", "before publishing", 0),
]


def lose(how: str) -> None:
    """Lose this rank; one that was stopped goes on once the others have given it up."""
    rank = os.getpid()

    def wake() -> None:
        time.sleep(2 * TIMEOUT)
        os.kill(rank, signal.SIGCONT)

    if how == "stopped":
        fork(wake, seconds=60)
    os.kill(rank, signal.SIGKILL if how == "killed" else signal.SIGSTOP)


class Lost(StoreWriter):
    """A writer on a rank that is lost at some moment of the save."""

    at: tuple[str, str] = ("", "")

    def _pass(self, point: str) -> None:
        how, where = self.at
        if point == where:
            lose(how)

    def prepare_local_plan(self, plan):
        self._pass("before")
        return super().prepare_local_plan(plan)

    def write_data(self, plan, planner):
        self._pass("planned")
        future = super().write_data(plan, planner)
        self._pass("put")
        return future

    def finish(self, metadata, results):
        self._pass("before publishing")
        super().finish(metadata, results)
        self._pass("published")


def tensors(start: float) -> list[torch.Tensor]:
    return [torch.arange(start + n, start + n + 100_000) for n in (0, 7)]


def survive(urls: list[str]) -> str:
    """Save in a pair of ranks, of which one is lost; all pairs at once."""
    pair, rank = divmod(dist.get_rank(), 2)
    groups = [dist.new_group([2 * n, 2 * n + 1]) for n in range(len(LOSSES))]
    how, point, lost = LOSSES[pair]
    saver = Saver(urls[pair], group=groups[pair], timeout=TIMEOUT)
    saver.save({f"w{rank}": tensors(0)[rank]}, step=1)
    if rank == lost:
        Lost.at = how, point
        saver_module.StoreWriter = Lost  # type: ignore[misc]
        if point == "while putting":
            meter = saver._repo._side().catalog.objects.meter
            once = iter([how])
            meter.listener = lambda _: [lose(how) for how in once]
    with pytest.raises(RankError) as caught:
        saver.save({f"w{rank}": tensors(1)[rank], "n": 2}, step=2)
    assert list(caught.value.failures) == [lost]
    if how == "stopped":
        if rank != lost:  # it goes on later, and puts what a gc has deleted
            saver._repo.gc(MaxToKeep(1), grace=0)
            assert saver._repo.verify().ok
        dist.barrier(groups[pair])
        assert saver._repo.verify().ok
        saver_module.StoreWriter = StoreWriter  # type: ignore[misc]
        saver.save({f"w{rank}": tensors(2)[rank], "n": 3}, step=3)
    return str(caught.value)


@pytest.mark.crash
def test_a_rank_that_is_lost_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    urls = [
        ckptstore.init(tmp_path / f"store-{number}", chunk_size=CHUNK_BYTES).url
        for number in range(len(LOSSES))
    ]
    answers = on_ranks(2 * len(LOSSES), survive, urls)
    for number, (how, point, lost) in enumerate(LOSSES):
        told, other = answers[2 * number + 1 - lost], answers[2 * number + lost]
        assert isinstance(told, str), (how, point, told)
        assert f"save of step 2 has failed on all 2 ranks: rank {lost} has given no sign" in told
        if how == "killed":
            assert isinstance(other, DiedError)
        else:
            assert other == told  # the straggler raised the same
        repo = ckptstore.open(urls[number])
        step = 3 if how == "stopped" else 2 if point == "published" else 1
        assert repo.resolve("main").step == step
        found = repo.checkout()
        for name, expected in zip(("w0", "w1"), tensors(step - 1.0), strict=True):
            assert torch.equal(found[name], expected)
        repo.gc(MaxToKeep(1), grace=0)
        report = repo.verify()
        assert report.ok
        assert report.unreachable.objects == 0


@pytest.mark.crash
def test_a_save_relies_on_nothing_of_any_rank_that_a_gc_deleted_meanwhile(url):
    class Late(StoreWriter):
        def finish(self, metadata, results):
            ckptstore.open(url).gc(MaxToKeep(1), grace=0)
            super().finish(metadata, results)

    def work() -> list[str]:
        rank = dist.get_rank()
        old, new = ({f"w{rank}": tensors(start)[rank], "start": start} for start in (0, 1))
        texts = []
        with Saver(url) as saver:
            saver.save(old)
            saver.save({"n": 1})
            for state in (old, new):  # held by a checkpoint that expires, or by none
                saver_module.StoreWriter = Late  # type: ignore[misc]
                with pytest.raises(RankError) as caught:
                    saver.save(state)
                assert list(caught.value.failures) == [0]
                assert isinstance(caught.value.__cause__, ConflictError)
                texts.append(str(caught.value))
                assert ckptstore.open(url).checkout() == {"n": 1}
            saver_module.StoreWriter = StoreWriter  # type: ignore[misc]
            saver.save(old)
        return texts

    first, second = checked(on_ranks(2, work))
    assert first == second
    assert "A gc has deleted old objects" in first[0]
    repo = ckptstore.open(url)
    found = repo.checkout()
    assert all(torch.equal(found[f"w{n}"], tensor) for n, tensor in enumerate(tensors(0)))
    assert repo.verify().ok


class Failing(StoreWriter):
    """A writer whose rank 1 fails once it has put everything."""

    def write_data(self, plan, planner):
        future = super().write_data(plan, planner)
        if dist.get_rank() == 1:
            raise StorageError("The network is gone.")
        return future


@pytest.mark.crash
def test_a_rank_that_fails_fails_all_alike(url):
    before = ckptstore.open(url).commit({"n": 1}, step=1)

    def work() -> list[str]:
        rank = dist.get_rank()
        state = {f"w{rank}": tensors(0)[rank]}
        with Saver(url) as saver:
            saver_module.StoreWriter = Failing  # type: ignore[misc]
            with pytest.raises(RankError) as caught:
                saver.save(state, step=2)
            saver.async_save(state, step=3)
            with pytest.raises(RankError) as in_background:
                saver.async_save(state, step=4)
            assert isinstance(caught.value.__cause__, StorageError)
            return [str(caught.value), str(in_background.value)]

    answers = checked(on_ranks(2, work))
    assert answers[0] == answers[1]
    for step, told in zip((2, 3), answers[0], strict=True):
        assert told == (
            f"The save of step {step} has failed on all 2 ranks: rank 1 raised StorageError: The "
            "network is gone. The last checkpoint is whole."
        )
    repo = ckptstore.open(url)
    assert repo.resolve("main").id == before.id
    assert repo.verify().unreachable.objects > 0
    repo.gc(MaxToKeep(1), grace=0)
    assert repo.verify().unreachable.objects == 0


@pytest.mark.crash
def test_a_rank_that_cannot_copy_its_state_fails_that_save_alone_on_all_ranks(url):
    def work() -> tuple[str, str]:
        with Saver(url, timeout=TIMEOUT) as saver:
            saver.save({"n": 1}, step=1)
            if dist.get_rank():
                saver._stager.stage = no_memory
            try:
                saver.async_save({"n": 2}, step=2)
                saver.wait()
            except ckptstore.CkptStoreError as error:
                found = type(error).__name__, str(error)
            vars(saver._stager).pop("stage", None)
            saver.async_save({"n": 3}, step=3)
        return found

    def no_memory(state: Any) -> Any:
        raise StorageError("There is no memory.")

    first, second = checked(on_ranks(2, work))
    assert second == ("StorageError", "There is no memory.")
    assert first[0] == "RankError"
    assert "rank 1 raised StorageError: There is no memory" in first[1]
    assert [one.step for one in ckptstore.open(url).log()] == [3, 1]


def test_a_disk_that_is_full_fails_all_ranks_alike(tmp_path):
    with small_disk("tmpfs", tmp_path) as disk:
        url = ckptstore.init(disk / "store", chunk_size=CHUNK_BYTES).url

        def work() -> str:
            rank = dist.get_rank()
            with Saver(url) as saver:
                saver.save({f"w{rank}": tensors(0)[rank]}, step=1)
                with pytest.raises(RankError) as caught:
                    saver.save({f"w{rank}": torch.rand(5_000_000 * rank)}, step=2)
                assert list(caught.value.failures) == [1]
                dist.barrier()
                if rank == 0:
                    assert saver._repo.resolve("main").step == 1
                    saver._repo.gc(MaxToKeep(1), grace=0)
                    assert saver._repo.verify().unreachable.objects == 0
                dist.barrier()
                saver.save({f"w{rank}": tensors(1)[rank]}, step=3)
                return str(caught.value)

        first, second = checked(on_ranks(2, work))
        assert first == second
        assert "rank 1 raised StorageError" in first
        assert "No space left" in first
        assert ckptstore.open(url).verify().ok
