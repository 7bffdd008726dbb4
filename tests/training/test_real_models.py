"""Real models and optimizers: restored in place or fresh, training continues bit for bit."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ckptstore
from tests.helpers.equality import difference
from tests.helpers.root import ROOT

pytestmark = pytest.mark.slow


class Network(nn.Module):
    """Tied weights, buffers and counter of BatchNorm, dropout, and an extra state."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(300, width)
        self.body = nn.Sequential(
            nn.Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(0.1), nn.GELU()
        )
        self.head = nn.Linear(width, 300, bias=False)
        self.head.weight = self.embed.weight
        self.seen = 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return self.head(self.body(self.embed(tokens)))

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


class Run:
    """A training whose whole state can be taken and given back."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = Network()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 20)
        self.average = torch.optim.swa_utils.AveragedModel(self.model)

    def parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "average": self.average,
        }

    def state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts().items()} | {
            "rng": torch.get_rng_state()
        }

    def steps(self, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            tokens = torch.randint(300, (16,))
            loss = nn.functional.cross_entropy(self.model(tokens), tokens.roll(1))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.average.update_parameters(self.model)
            losses.append(loss.item())
        return losses


def test_a_resumed_run_ends_like_one_that_never_stopped(tmp_path: Path) -> None:
    """Weights, optimizer, schedule, average and random draws, after going on from a checkpoint."""
    whole = Run()
    whole.steps(5)
    repo = ckptstore.init(tmp_path / "store")
    repo.commit(whole.state(), step=5)
    expected = whole.steps(5)

    resumed = Run(seed=1)
    resumed.steps(2)  # so that the optimizer has state of its own, to be replaced
    rng = torch.zeros_like(torch.get_rng_state())
    assert not repo.checkout(into={**resumed.parts(), "rng": rng})
    torch.set_rng_state(rng)
    assert resumed.steps(5) == expected
    assert difference(whole.state(), resumed.state()) is None
    assert resumed.model.seen == whole.model.seen == 10
    # What the optimizer was given is its own: the checkpoint is as it was.
    assert repo.verify().ok


def test_a_checkpoint_checked_out_in_another_process_is_the_same(tmp_path: Path) -> None:
    run = Run()
    run.steps(3)
    ckptstore.init(tmp_path / "store").commit(run.state())
    torch.save(run.state(), tmp_path / "state.pt")
    program = (
        "import sys, torch, ckptstore; from tests.helpers.equality import difference; "
        "found = ckptstore.open(sys.argv[1]).checkout(); "
        "print(difference(torch.load(sys.argv[2], weights_only=True), found))"
    )
    command = [sys.executable, "-c", program, tmp_path / "store", tmp_path / "state.pt"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "None"


def test_a_module_is_filled_in_place(tmp_path: Path) -> None:
    """The same memory, the ties still tied, and autograd told that the weights changed."""
    run, target = Run(), Run(seed=1)
    run.steps(2)
    repo = ckptstore.init(tmp_path / "store")
    repo.commit(run.model.state_dict())
    memory = {
        name: tensor.data_ptr()
        for name, tensor in target.model.state_dict().items()
        if torch.is_tensor(tensor)
    }
    version = target.model.embed.weight._version
    assert not repo.checkout(into=target.model)
    assert difference(run.model.state_dict(), target.model.state_dict()) is None
    found = target.model.state_dict().items()
    assert {name: t.data_ptr() for name, t in found if torch.is_tensor(t)} == memory
    assert target.model.head.weight is target.model.embed.weight
    assert target.model.embed.weight.requires_grad
    assert target.model.embed.weight._version > version


def test_every_misfit_is_named_in_one_error_and_nothing_is_changed() -> None:
    saved = {
        "a.weight": torch.ones(3),
        "b.weight": torch.ones(2, 2),
        "c.weight": torch.ones(3),
        "gone": 5,
    }
    target = nn.ModuleDict({name: nn.Linear(2, 2) for name in "bc"})
    target["c"].weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    before = copy.deepcopy(target.state_dict())
    repo = ckptstore.init("memory://")
    repo.commit(saved)
    with pytest.raises(ckptstore.CheckoutMismatchError) as error:
        repo.checkout(into=target)
    found = error.value.incompatible
    assert found.missing == ("b.bias", "c.bias")
    assert sorted(found.unexpected) == ["a.weight", "gone"]
    assert found.mismatched == ("c.weight (checkpoint: float32 [3], destination: float64 [3])",)
    for name in ("b.bias", "c.bias", "a.weight", "gone", "c.weight"):
        assert name in str(error.value)
    assert difference(before, target.state_dict()) is None
    with pytest.warns(UserWarning, match="2 not expected"):
        assert repo.checkout(into=target, strict=False) == found
    assert torch.equal(target["b"].weight, torch.ones(2, 2))
    assert torch.equal(target["c"].weight, torch.zeros(3, dtype=torch.float64))


def test_a_module_given_for_a_part_of_the_checkpoint_is_told_which() -> None:
    model = nn.Linear(2, 2)
    repo = ckptstore.init("memory://")
    repo.commit({"model": model.state_dict(), "step": 3})
    with pytest.raises(ckptstore.CheckoutMismatchError, match="pass part='model'"):
        repo.checkout(into=model)
    assert not repo.checkout(into=model, part="model")
    assert not repo.checkout(into={"model": model}, include="model")
    with pytest.raises(ckptstore.CheckoutMismatchError, match=r"exclude=\['step'\]"):
        repo.checkout(into={"model": model})


def test_a_wrapper_that_computes_its_state_is_filled_through_load_state_dict() -> None:
    """A parametrized weight is computed at each access: filling it would change nothing."""

    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_state_dict_post_hook(self.double)
            self.register_load_state_dict_pre_hook(self.halve)

        @staticmethod
        def double(module: Any, state: dict[str, Any], prefix: str, metadata: object) -> None:
            state[f"{prefix}weight"] = state[f"{prefix}weight"] * 2

        @staticmethod
        def halve(module: Any, state: dict[str, Any], prefix: str, *rest: object) -> None:
            if f"{prefix}weight" in state:
                state[f"{prefix}weight"] = state[f"{prefix}weight"] / 2

    source, target = Doubled(), Doubled()
    nn.init.constant_(source.weight, 5)
    repo = ckptstore.init("memory://")
    repo.commit(source.state_dict())
    assert not repo.checkout(into=target)
    assert torch.equal(target.weight, torch.full((3,), 5.0))


def test_the_lists_of_lbfgs_and_other_states_come_back() -> None:
    """Nested lists of tensors, ints and None; dicts as of Muon and GradScaler; a lambda."""
    weight = nn.Parameter(torch.randn(8, 3))
    lbfgs = torch.optim.LBFGS([weight], max_iter=4)

    def closure() -> torch.Tensor:
        lbfgs.zero_grad()
        loss = (weight**2 + weight.sin()).sum()
        loss.backward()
        return loss

    for _ in range(3):
        lbfgs.step(closure)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        torch.optim.SGD([weight], momentum=0.9), lambda e: 0.9**e
    )
    state = {
        "lbfgs": lbfgs.state_dict(),
        "scheduler": scheduler.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "epoch": 3,
    }
    assert isinstance(state["lbfgs"]["state"][0]["old_dirs"], list)
    repo = ckptstore.init("memory://")
    repo.commit(state)
    found = repo.checkout()
    assert difference(state, found) is None
    again = torch.optim.LBFGS([weight], max_iter=4)
    again.load_state_dict(found["lbfgs"])


def test_what_the_optimizer_is_given_is_never_the_repositorys(tmp_path: Path) -> None:
    """Optimizer.load_state_dict keeps the given tensors, and steps change them in place."""
    run = Run()
    run.steps(2)
    repo = ckptstore.init(tmp_path / "store")
    repo.commit(run.state())
    run.optimizer.load_state_dict(repo.checkout()["optimizer"])
    before = repo.checkout()["optimizer"]
    run.steps(2)
    assert difference(before, repo.checkout()["optimizer"]) is None
