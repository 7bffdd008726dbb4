"""A destination of several objects is filled whole, or is as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import ckptstore
from ckptstore import CheckoutMismatchError
from ckptstore.state import codecs
from tests.helpers.equality import difference


def committed(state: Any) -> ckptstore.Repository:
    repo = ckptstore.init("memory://")
    repo.commit(state)
    return repo


class Counter:
    """An object with a state, which it changes halfway before it refuses a negative one."""

    def __init__(self, n: int) -> None:
        self.n, self.seen = n, [n]

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n = state["n"]
        self.seen[:] = state["seen"]
        if self.n < 0:
            raise ValueError("a negative number")


class Hooked(nn.Linear):
    """A module that derives something when it is loaded; it refuses weights that are not finite."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_load_state_dict_post_hook(lambda module, _: module.derive())
        self.derive()

    def derive(self) -> None:
        self.turned = self.weight.detach().t().clone()
        if not self.weight.isfinite().all():
            raise ValueError("a weight that is not finite")


def stepped(model: nn.Module, kind: type[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    optimizer = kind(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer


def whole(target: dict[str, Any]) -> Any:
    """A copy of everything that a destination holds."""
    states = {
        name: item.state_dict() if hasattr(item, "state_dict") else item
        for name, item in target.items()
    }
    return copy.deepcopy((states, target["hooked"].turned, vars(target["counter"])))


def made(seed: int, order: list[str], kind: type[torch.optim.Optimizer]) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = nn.Linear(3, 3)
    found: dict[str, Any] = {
        "model": model,
        "optimizer": stepped(model, kind),
        "hooked": Hooked(),
        "counter": Counter(seed),
        "weights": torch.randn(4),
        "note": f"seed {seed}",
    }
    return {name: found[name] for name in order}


ORDERS = st.permutations(["model", "optimizer", "hooked", "counter", "weights", "note"])
FAULTS = st.sampled_from(["counter", "hooked", "optimizer", "weights", None])


@pytest.mark.property
@settings(max_examples=25)
@given(order=ORDERS, there=ORDERS, fault=FAULTS)
def test_whatever_refuses_everything_is_as_it_was(
    order: list[str], there: list[str], fault: str | None
) -> None:
    """Also what an object changed before it refused, and what was loaded before it."""
    saved = made(1, there, torch.optim.SGD if fault == "optimizer" else torch.optim.Adam)
    if fault == "counter":
        saved["counter"].n = -1
    if fault == "hooked":
        saved["hooked"].weight.data[0] = torch.nan
    state = {
        name: item.state_dict() if hasattr(item, "state_dict") else item
        for name, item in saved.items()
    }
    if fault == "weights":
        state["weights"] = torch.ones(5)
    target = made(2, order, torch.optim.Adam)
    before = whole(target)
    repo = committed(state)
    if fault is None:
        assert not repo.checkout(into=target)
        assert difference(whole({name: saved[name] for name in order}), whole(target)) is None
        return
    with pytest.raises(CheckoutMismatchError, match=rf"{fault} \(.*Nothing was changed"):
        repo.checkout(into=target)
    assert difference(before, whole(target)) is None


def test_a_value_of_an_unknown_type_is_met_before_anything_is_filled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Unknown:
        pass

    ckptstore.register_codec(Unknown, lambda value: 1, lambda form: Unknown())
    repo = committed({"weights": torch.ones(3), "x": Unknown()})
    monkeypatch.setattr(codecs, "_registered", {})
    target = {"weights": torch.zeros(3), "x": 0}
    with pytest.raises(ckptstore.InvalidInputError, match="register_codec"):
        repo.checkout(into=target)
    assert not target["weights"].any()


def test_without_strict_an_object_that_refuses_is_left_as_it_was_with_a_warning() -> None:
    saved = {"model": nn.Linear(2, 2), "counter": Counter(-1)}
    repo = committed({name: item.state_dict() for name, item in saved.items()})
    target = {"model": nn.Linear(2, 2), "counter": Counter(5)}
    with pytest.warns(UserWarning, match="a negative number"):
        found = repo.checkout(into=target, strict=False)
    assert found.restored == ("model/weight", "model/bias")
    assert len(found.mismatched) == 1
    assert (target["counter"].n, target["counter"].seen) == (5, [5])
    assert torch.equal(target["model"].weight, saved["model"].weight)


def test_an_object_that_gets_nothing_is_an_error_without_strict_too() -> None:
    repo = committed({"net": nn.Linear(2, 2).state_dict(), "step": 3})
    for target in ({"model": nn.Linear(2, 2), "step": 0}, {"net": nn.Linear(3, 3), "step": 0}):
        before = copy.deepcopy(target)
        with pytest.raises(
            CheckoutMismatchError, match=r"Nothing in the checkpoint fits '(model|net)'"
        ):
            repo.checkout(into=target, strict=False)
        assert target["step"] == 0
        for one, other in zip(before.values(), target.values(), strict=True):
            if isinstance(one, nn.Module):
                assert difference(one.state_dict(), other.state_dict()) is None


def test_an_object_that_is_excluded_need_not_get_anything() -> None:
    repo = committed({"model": nn.Linear(2, 2).state_dict()})
    target = {"model": nn.Linear(2, 2), "ema": nn.Linear(2, 2)}
    with pytest.raises(CheckoutMismatchError, match=r"Pass exclude=\['ema'\]"):
        repo.checkout(into=target, strict=False)
    for exclude in ("ema", "ema/**"):
        assert not repo.checkout(into=target, exclude=exclude)
    with pytest.raises(CheckoutMismatchError, match="fits 'ema'"):
        repo.checkout(into=target, exclude="other")
