"""Optimizers are restored bit for bit, or it is an error that says what differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import ckptstore
from ckptstore import CheckoutMismatchError
from ckptstore.training import CheckpointManager

Make = Callable[[nn.Module], torch.optim.Optimizer]


def net(dtype: torch.dtype = torch.float32) -> nn.ModuleDict:
    layers = {name: nn.Linear(2, 2, bias=False) for name in ("a", "b", "c")}
    return nn.ModuleDict(layers).to(dtype)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for number, parameter in enumerate(model.parameters(), 1):
        parameter.grad = torch.full_like(parameter, number)
    optimizer.step()


def saved(model: nn.Module, optimizer: torch.optim.Optimizer, **tracked: Any) -> CheckpointManager:
    step(model, optimizer)
    manager = CheckpointManager("memory://", model=model, optimizer=optimizer, **tracked)
    manager.save(1)
    manager.wait()
    return manager


def states(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Any, torch.Tensor]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield from optimizer.state[parameter].items()


class MasterWeights(torch.optim.Optimizer):
    """Keeps a float32 copy of each weight, and codes of 8 bits."""

    def __init__(self, parameters: Any, lr: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["master"] = weight.float() + torch.rand(weight.shape)
                    state["codes"] = torch.arange(weight.numel(), dtype=torch.uint8)
                state["master"] -= group["lr"] * weight.grad.float()
                weight.copy_(state["master"])


class RenamedAdam(torch.optim.Adam):
    """The same optimizer under another name."""


def reverse(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(list(model.parameters())[::-1])


def named(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(list(model.named_parameters()))


def named_in_reverse(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(list(model.named_parameters())[::-1])


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters())


def two_groups(model: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model["a"].parameters())
    optimizer.add_param_group({"params": [*model["b"].parameters(), *model["c"].parameters()]})
    return optimizer


PAIRS: dict[str, tuple[Make, Make, str]] = {
    "class": (adam, lambda m: torch.optim.SGD(m.parameters(), 0.1), "'Adam', destination: 'SGD'"),
    "a class with the same hyperparameters": (
        adam,
        lambda m: RenamedAdam(m.parameters()),
        "'Adam', destination: 'RenamedAdam'",
    ),
    "order": (adam, reverse, "parameter 0 was 'model/a.weight' and is 'model/c.weight'"),
    "order of names": (named, named_in_reverse, "parameter 0 was 'a.weight' and is 'c.weight'"),
    "groups": (adam, two_groups, "parameter groups in the checkpoint: 1, in the destination: 2"),
    "size of a group": (
        adam,
        lambda m: torch.optim.Adam(list(m.parameters())[:2]),
        "group 0 has 3 parameters in the checkpoint, 2",
    ),
    "a hyperparameter of the program": (
        adam,
        lambda m: torch.optim.Adam([{"params": list(m.parameters()), "layer": 3}]),
        "only the destination has 'layer'",
    ),
}


@pytest.mark.parametrize("what", PAIRS)
def test_another_optimizer_is_an_error_that_says_what_differs(what: str) -> None:
    there, here, said = PAIRS[what]
    model = net()
    first = saved(model, there(model))
    other = net()
    optimizer = here(other)
    before = [parameter.clone() for parameter in other.parameters()]
    second = CheckpointManager(first.repository, model=other, optimizer=optimizer)
    with pytest.raises(CheckoutMismatchError, match=rf"optimizer \(.*{said}"):
        second.restore()
    assert all(map(torch.equal, before, other.parameters()))
    assert not optimizer.state
    with pytest.warns(UserWarning, match=said):
        second.restore(strict=False)
    assert not optimizer.state
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_hyperparameters_are_compared_where_no_class_was_recorded() -> None:
    """As in a store that was imported from a file of torch.save."""
    model = net()
    repo = ckptstore.init("memory://")
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer)
    repo.commit({"optimizer": optimizer.state_dict()})
    with pytest.raises(CheckoutMismatchError, match="only the destination has 'dampening', 'momen"):
        repo.checkout(into={"optimizer": torch.optim.SGD(model.parameters(), 0.1)})
    assert not repo.checkout(into={"optimizer": torch.optim.Adam(model.parameters())})


def test_an_old_state_may_lack_what_torch_added_since() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer)
    state = optimizer.state_dict()
    for name in ("foreach", "maximize", "capturable", "differentiable", "fused"):
        state["param_groups"][0].pop(name, None)
    state["param_groups"][0]["initial_lr"] = 0.1  # a scheduler adds it
    repo = ckptstore.init("memory://")
    repo.commit({"optimizer": state})
    other = torch.optim.AdamW(model.parameters())
    assert not repo.checkout(into={"optimizer": other})
    step(model, other)


@pytest.mark.parametrize("is_used", [False, True])
def test_states_keep_their_dtypes_beside_parameters_of_another(is_used: bool) -> None:
    model = net(torch.bfloat16)
    first = saved(model, MasterWeights(model.parameters()))
    other = net(torch.bfloat16)
    optimizer = MasterWeights(other.parameters())
    if is_used:
        step(other, optimizer)
    CheckpointManager(first.repository, model=other, optimizer=optimizer).restore()
    for (key, old), (_, new) in zip(
        states(first.tracked["optimizer"]), states(optimizer), strict=True
    ):
        assert old.dtype == new.dtype, key
        assert torch.equal(old, new), key


def test_a_state_that_would_be_cast_is_an_error() -> None:
    """The parameters had another dtype when it was saved, or nobody knows."""
    model = net()
    first = saved(model, adam(model))
    other = net(torch.bfloat16)
    target = {"optimizer": adam(other)}
    with pytest.raises(
        CheckoutMismatchError,
        match=r"exp_avg of parameter 0 is float32 .* dtype of its parameter, is bfloat16",
    ):
        first.repository.checkout(into=target, include="optimizer/**")
    manager = CheckpointManager(first.repository, optimizer=target["optimizer"])
    with pytest.raises(CheckoutMismatchError, match="is bfloat16"):
        manager.restore(include="optimizer/**")
    assert not target["optimizer"].state


def test_a_state_of_another_shape_is_an_error() -> None:
    model = net()
    first = saved(model, adam(model))
    other = nn.ParameterList(torch.zeros(size, 2) for size in (2, 3, 2))
    target = {"optimizer": adam(other)}
    with pytest.raises(
        CheckoutMismatchError, match=r"parameter 1 has shape \[2, 2\].*\[3, 2\] here"
    ):
        first.repository.checkout(into=target, include="optimizer/**")


def test_another_kind_of_scheduler_is_an_error() -> None:
    model = net()
    optimizer = adam(model)
    schedulers = torch.optim.lr_scheduler
    first = saved(model, optimizer, scheduler=schedulers.StepLR(optimizer, 3))
    other = schedulers.CosineAnnealingLR(optimizer, 10)
    manager = CheckpointManager(first.repository, model=model, optimizer=optimizer, scheduler=other)
    with pytest.raises(CheckoutMismatchError, match=r"scheduler .*'StepLR', destination: 'Cosine"):
        manager.restore()


def test_a_run_saved_before_objects_were_recorded_is_restored() -> None:
    model = net()
    optimizer = adam(model)
    step(model, optimizer)
    repo = ckptstore.init("memory://")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    repo.commit({**state, "progress": {"epoch": 2, "batch": None}}, step=5)
    other = net()
    manager = CheckpointManager(repo, model=other, optimizer=adam(other))
    assert manager.restore_or_initialize() == 5
    assert manager.epoch == 2
    for (_, old), (_, new) in zip(
        states(optimizer), states(manager.tracked["optimizer"]), strict=True
    ):
        assert torch.equal(old, new)
