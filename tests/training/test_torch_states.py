"""torch's optimizers, schedulers, scalers and averages: committed, filled, continued."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler, swa_utils

import ckptstore
from tests.helpers.equality import difference

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

OPTIMIZERS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and name != "Optimizer"
)


def stepped(kind: str, steps: int = 3) -> Any:
    """An optimizer of two parameter groups that has made some steps."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4, 4))]
    make: Any = getattr(torch.optim, kind)
    groups = weights if kind == "LBFGS" else [{"params": [w], "lr": 0.01} for w in weights]
    optimizer = make(groups)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (weights[0] @ weights[1]).square().sum()
        loss.backward()
        if kind == "SparseAdam":
            for weight in weights:
                weight.grad = weight.grad.to_sparse() if weight.grad is not None else None
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return optimizer


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_comes_back_and_fills_another(kind: str) -> None:
    source = stepped(kind)
    state = copy.deepcopy(source.state_dict())
    repo = ckptstore.init("memory://")
    repo.commit({"optimizer": state})
    assert difference(state, repo.checkout()["optimizer"]) is None
    target = stepped(kind, steps=1)
    assert not repo.checkout(into={"optimizer": target})
    assert difference(state, target.state_dict()) is None
    # What the optimizer holds now is its own: its steps change no checkpoint.
    for tensor in target.state_dict()["state"].get(0, {}).values():
        if isinstance(tensor, torch.Tensor):
            tensor.zero_()
    assert difference(state, repo.checkout()["optimizer"]) is None


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 2, 2, 5]),
    "ConstantLR": lr_scheduler.ConstantLR,
    "LinearLR": lr_scheduler.LinearLR,
    "PolynomialLR": lr_scheduler.PolynomialLR,
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda e: 0.9**e] * 2),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda e: 0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 7),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, mode="exp_range"),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.MultiStepLR(o, [2])], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.05),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_scheduler_comes_back_and_goes_on_where_it_was(kind: str) -> None:
    def move(scheduler: Any, optimizer: Any) -> list[float]:
        rates = []
        for loss in (1.0, 1.0, 1.0, 1.0):
            scheduler.step(loss) if kind == "ReduceLROnPlateau" else scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    source = stepped("SGD")
    scheduler = SCHEDULERS[kind](source)
    move(scheduler, source)
    state = {"scheduler": scheduler.state_dict(), "optimizer": source.state_dict()}
    repo = ckptstore.init("memory://")
    repo.commit(state)
    assert difference(state, repo.checkout()) is None
    target = stepped("SGD")
    again = SCHEDULERS[kind](target)
    assert not repo.checkout(into={"scheduler": again, "optimizer": target})
    assert move(again, target) == move(scheduler, source)


def test_a_scaler_and_an_average_go_on_where_they_were() -> None:
    """The average keeps its count in a buffer and its weights under module.*."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    scaler.scale(torch.ones(1))
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    average = swa_utils.AveragedModel(model, use_buffers=True)
    for _ in range(3):
        model(torch.randn(5, 3))
        average.update_parameters(model)
    repo = ckptstore.init("memory://")
    repo.commit({"scaler": scaler.state_dict(), "average": average.state_dict()})
    target = {
        "scaler": torch.amp.GradScaler("cpu"),
        "average": swa_utils.AveragedModel(copy.deepcopy(model)),
    }
    assert not repo.checkout(into=target)
    assert target["scaler"].state_dict() == scaler.state_dict()
    assert int(target["average"].n_averaged) == 3
    assert difference(average.state_dict(), target["average"].state_dict()) is None


def test_a_model_on_another_dtype_is_told_and_keeps_its_weights() -> None:
    model = nn.Linear(3, 3)
    repo = ckptstore.init("memory://")
    repo.commit(model.state_dict())
    half = copy.deepcopy(model).to(torch.bfloat16)
    before = copy.deepcopy(half.state_dict())
    with pytest.raises(
        ckptstore.CheckoutMismatchError, match=r"checkpoint: float32 .*, destination: bfloat16"
    ):
        repo.checkout(into=half)
    assert difference(before, half.state_dict()) is None
