"""What accelerate's save_state writes is a checkpoint, and load_state reads it again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

import ckptstore
from ckptstore import ConflictError, NotFoundError
from ckptstore.integrations.accelerate import AcceleratorManager
from tests.helpers.equality import difference

pytestmark = [pytest.mark.framework]


class Counter:
    """An object that is registered for checkpointing."""

    def __init__(self) -> None:
        self.seen = 0

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


@pytest.fixture
def accelerator() -> Iterator[Any]:
    from accelerate.state import AcceleratorState

    yield accelerate.Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def network() -> Any:
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(), torch.nn.Linear(8, 1))


class Run:
    """A training with dropout and a shuffled loader of 4 batches."""

    def __init__(self, accelerator: Any, seed: int = 0) -> None:
        torch.manual_seed(seed)
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        data = torch.arange(32.0).reshape(8, 4) / 32
        loader = torch.utils.data.DataLoader(data, batch_size=2, shuffle=True)
        self.accelerator = accelerator
        self.model, self.optimizer, self.scheduler, self.loader = accelerator.prepare(
            model, optimizer, scheduler, loader
        )
        self.counter = Counter()
        accelerator.register_for_checkpointing(self.counter)

    def epoch(self) -> None:
        for batch in self.loader:
            self.accelerator.backward(self.model(batch).square().mean())
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            self.counter.seen += len(batch)

    def state(self) -> dict[str, Any]:
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "seen": self.counter.seen,
        }


def forgotten(accelerator: Any) -> Any:
    """The accelerator as in a new process."""
    accelerator.free_memory()
    accelerator._custom_objects.clear()
    return accelerator


def test_a_run_resumes_bit_for_bit(accelerator: Any, tmp_path: Path) -> None:
    first = Run(accelerator)
    with AcceleratorManager(accelerator, tmp_path / "store", max_to_keep=2) as manager:
        assert manager.restore_or_initialize() == 0
        for step in (1, 2, 3):
            first.epoch()
            manager.save(step, metrics={"loss": 1 / step})
    expected = first.state()
    repo = ckptstore.open(tmp_path / "store")
    log = repo.log()
    assert [(one.step, one.expired) for one in log] == [(3, False), (2, False), (1, True)]
    assert log[0].metrics == {"loss": 1 / 3}
    assert set(log[0].names) == {
        *("model", "optimizer", "scheduler", "custom_checkpoint_0", "files"),
        *(name for name in log[0].names if name.startswith("sampler")),
    }
    again = Run(forgotten(accelerator), seed=9)
    with AcceleratorManager(accelerator, repo, branch="again", folder=tmp_path / "x") as manager:
        assert manager.restore("main~1") == 2
        again.epoch()
        manager.save(3)
    assert difference(expected, again.state()) is None
    assert repo.log("again")[1].id == log[1].id
    assert not any((tmp_path / "x").iterdir())
    filled = network()
    assert not ckptstore.load_weights(filled, repo)
    assert difference(expected["model"], dict(filled.state_dict())) is None


def test_an_older_checkpoint_needs_a_branch_or_a_reset(accelerator: Any, tmp_path: Path) -> None:
    Run(accelerator)
    repo = ckptstore.init(tmp_path / "store")
    with AcceleratorManager(accelerator, repo, async_save=False) as manager:
        with pytest.raises(NotFoundError):
            manager.restore()
        for step in (1, 2):
            manager.save(step)
        with pytest.raises(ConflictError, match=r"pass a new branch=.*restore\("):
            manager.restore("main~1")
        manager.save(3)
    with AcceleratorManager(accelerator, repo, reset=True) as manager:
        assert manager.restore("main~1") == 2
        manager.save(7)
    assert [one.step for one in repo.log()] == [7, 2, 1]
