"""A training in two processes of which the first alone saves: `ranks="first"`."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from torch.utils.data import DataLoader, DistributedSampler

import ckptstore
from ckptstore.digest import Digest
from ckptstore.training import CheckpointManager
from ckptstore.training.fingerprint import fingerprint
from tests.helpers.children import exit_code, fork

pytestmark = [pytest.mark.concurrency, pytest.mark.slow]

DRAWN = 7.0


class Position:
    """A tracked object of which each rank may have another state."""

    def __init__(self, place: int) -> None:
        self.place = place

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def on_both(folder: Path, work: Callable[[int], object]) -> list[Any]:
    """What `work` returns on each of two ranks, and the warnings of each."""

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            answer = work(rank)
        told = [str(item.message) for item in caught if "ank " in str(item.message)]
        (folder / f"{rank}.json").write_text(json.dumps([answer, told]))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()

    children = [fork(lambda rank=rank: run(rank)) for rank in range(2)]  # type: ignore[misc]
    assert [exit_code(child) for child in children] == [0, 0]
    (folder / "group").unlink(missing_ok=True)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


def test_rank_0_saves_and_the_other_names_what_differs(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    model.register_buffer("mean", torch.zeros(1))

    def work(rank: int) -> Any:
        torch.manual_seed(rank)
        model.mean += rank  # of a replica, until its next step
        parts = {"model": model, "same": Position(1), "loader": Position(rank)}
        with CheckpointManager(tmp_path / "store", ranks="first", **parts) as manager:
            saved = []
            for step in (1, 2):
                saved.append(manager.save(step))
                manager.wait()
                torch.distributed.barrier()
        return saved

    (first, none), (second, told) = on_both(tmp_path, work)
    assert (first, second, none) == ([True, True], [True, True], [])
    (warning,) = told
    assert "Only rank 0 of 2 saves, and its loader, rng and those of rank 1 differ" in warning
    assert [checkpoint.step for checkpoint in ckptstore.open(tmp_path / "store").log()] == [2, 1]


def test_equal_states_are_not_warned_of(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        random.seed(1)  # Python seeds it anew in each child
        with CheckpointManager(
            tmp_path / "store", ranks="first", model=torch.nn.Linear(2, 2)
        ) as manager:
            manager.save(1)
            torch.distributed.barrier()

    torch.manual_seed(3)
    assert on_both(tmp_path, work) == [[None, []], [None, []]]


def test_the_other_rank_restores_all_but_the_random_numbers_and_says_so(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 2)
    torch.manual_seed(5)
    with CheckpointManager(tmp_path / "store", model=net) as manager:
        manager.save(4)
    expected = torch.rand(1).item()

    def work(rank: int) -> Any:
        torch.manual_seed(100 + rank)
        model = torch.nn.Linear(2, 2)
        torch.manual_seed(100 + rank)
        found = CheckpointManager(tmp_path / "store", ranks="first", model=model)
        return [found.restore_or_initialize(), model.bias.tolist(), torch.rand(1).item()]

    (first, none), (second, told) = on_both(tmp_path, work)
    torch.manual_seed(101)
    assert first == [4, net.bias.tolist(), expected]
    assert second == [4, net.bias.tolist(), torch.rand(1).item()]
    assert none == []
    assert "random numbers of rank 1 of 2 are in no checkpoint" in told[0]


def test_each_rank_goes_on_with_its_own_samples(tmp_path: Path) -> None:
    torch.manual_seed(5)  # of the models, equal on both ranks

    def work(rank: int) -> Any:
        data: Any = torch.arange(20)
        sampler: Any = DistributedSampler(data)
        loader = DataLoader(data, batch_size=2, sampler=sampler)
        seen = []
        with CheckpointManager(
            tmp_path / "store",
            model=torch.nn.Linear(2, 2),
            loader=loader,
            rng=False,
            ranks="first",
        ) as manager:
            step = manager.restore_or_initialize()
            first = step
            for epoch in range(step // 5, 2):
                sampler.set_epoch(epoch)
                for batch in loader:
                    seen += batch.tolist()
                    step += 1
                    manager.save(step)
                    if step == first + 3:
                        manager.wait()
                        torch.distributed.barrier()
                        return seen
        return seen

    parts = [on_both(tmp_path, work) for _ in range(4)]
    epochs = [list[int](), list[int]()]
    for rank in range(2):
        assert [part[rank][1] for part in parts] == [[]] * 4
        seen = [sample for part in parts for sample in part[rank][0]]
        epochs[0] += seen[:10]
        epochs[1] += seen[10:]
    assert [sorted(epoch) for epoch in epochs] == [[*range(20)]] * 2


STATES: list[Any] = [
    {"a": torch.arange(3)},
    {"a": torch.arange(3).int()},
    {"a": torch.arange(3).reshape(1, 3)},
    {"a": np.arange(3)},
    {"b": torch.arange(3)},
    {"a": torch.tensor([0, 1, 3])},
    {"a": [0, 1, 2]},
    [torch.arange(3)],
    {"a": torch.arange(3), "b": 1},
    {"a": torch.arange(3), "b": 1.0},
]


def test_fingerprints_differ_where_anything_differs_and_only_there() -> None:
    prints = [fingerprint(state) for state in STATES]
    assert len({*prints}) == len(STATES)
    assert fingerprint({"a": torch.arange(6)[::2] // 2}) == prints[0]
    assert all(Digest.parse(text) == text for text in prints)
