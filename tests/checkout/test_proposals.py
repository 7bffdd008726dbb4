"""Where a checkpoint does not fit, the error names arguments with which it does."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ckptstore
from ckptstore import CheckoutMismatchError, InvalidInputError
from ckptstore.training import CheckpointManager
from tests.checkout.test_modules import Deriving, PostHook
from tests.helpers.equality import difference
from tests.helpers.proposed import proposed

KEYS = ["a", "b", "layers", "0", "1", "12", "weight", "bias", "norm_1", "(x)", "ä"]
name = st.lists(st.sampled_from(KEYS), min_size=1, max_size=4).map(".".join)
CHANGES: dict[str, Callable[[str], str]] = {
    "prefix": lambda name: f"module.{name}",
    "two prefixes": lambda name: f"_forward_module.model.{name}",
    "deeper": lambda name: f"net/{name}",
}


def objects(*, hook: bool = False) -> dict[str, Any]:
    layers = [PostHook() if hook else nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


def trained() -> dict[str, Any]:
    made = objects()
    made["model"](torch.randn(4, 3)).sum().backward()
    made["optimizer"].step()
    made["scheduler"].step()
    return made


def states(made: dict[str, Any]) -> dict[str, Any]:
    return {name: item.state_dict() for name, item in made.items()}


def proposal_of(act: Callable[[], object]) -> dict[str, Any]:
    with pytest.raises(CheckoutMismatchError) as caught:
        act()
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.rename == caught.value.rename
    return proposed(caught.value)


@given(
    st.lists(name, unique=True, min_size=1, max_size=8),
    st.sampled_from(sorted(CHANGES)),
    st.booleans(),
    st.sampled_from(["model", "model_state_dict", "net"]),
    st.data(),
)
def test_a_state_whose_names_moved_comes_back_bit_for_bit(
    names: list[str], change: str, goes_back: bool, top: str, data: Any
) -> None:
    shapes = data.draw(
        st.lists(st.sampled_from([(2,), (3, 1)]), min_size=len(names), max_size=len(names))
    )
    arrays = [np.random.default_rng(n).normal(size=shape) for n, shape in enumerate(shapes)]
    mine = {name.replace("/", "."): CHANGES[change](name).replace("/", ".") for name in names}
    pairs = [(new, old) if goes_back else (old, new) for old, new in mine.items()]
    stored = {old: array for (old, _), array in zip(pairs, arrays, strict=True)}
    expected = {new: array for (_, new), array in zip(pairs, arrays, strict=True)}
    repo = ckptstore.init("memory://")
    repo.commit({top: stored, "epoch": 3})
    into = {"model": {new: np.zeros_like(array) for new, array in expected.items()}}
    arguments = proposal_of(lambda: repo.checkout(into=into))
    assert not repo.checkout(into=into, **arguments)
    assert difference(expected, into["model"]) is None


@given(st.permutations(range(6)), st.integers(1, 60_000))
def test_any_names_are_found_by_the_values(order: list[int], size: int) -> None:
    arrays = [np.random.default_rng(n).normal(size=size + 1) for n in range(6)]
    repo = ckptstore.init("memory://", chunk_size=1 << 16)
    repo.commit({"model": {f"layer{n}.w": array for n, array in enumerate(arrays)}})
    into = {f"block{order[n]}.w": array.copy() for n, array in enumerate(arrays)}
    expected = {name: array.copy() for name, array in into.items()}
    arguments = proposal_of(lambda: repo.checkout(into={"model": into}))
    for array in into.values():
        array[:] = 0
    assert not repo.checkout(into={"model": into}, **arguments)
    assert difference(expected, into) is None


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize(
    "keys",
    [
        {name: f"{name}_state_dict" for name in objects()},
        {"model": "state_dict", "optimizer": "optim", "scheduler": "lr"},
        {"model": "ModelState", "optimizer": "optimizer_state", "scheduler": "scheduler"},
    ],
    ids=["as in torch.save", "by what fits", "mixed"],
)
def test_a_manager_restores_what_torch_save_held(prefix: str, keys: dict[str, str]) -> None:
    saved, made = trained(), objects()
    state = states(saved)
    state["model"] = {f"{prefix}{name}": value for name, value in state["model"].items()}
    repo = ckptstore.init("memory://")
    repo.commit({"epoch": 3, **{keys[name]: item for name, item in state.items()}}, step=7)
    manager = CheckpointManager(repo, **made)
    arguments = proposal_of(manager.restore)
    assert arguments["exclude"] == ["epoch"]
    assert manager.restore(**arguments).step == 7
    assert difference(states(saved), states(made)) is None


def test_other_names_of_a_run_keep_the_order_of_parameters() -> None:
    saved, made = trained(), objects()
    with CheckpointManager("memory://", net=saved["model"], optim=saved["optimizer"]) as first:
        first.save(1)
    repo = first.repository
    second = CheckpointManager(repo, model=made["model"], optimizer=made["optimizer"])
    arguments = proposal_of(second.restore)
    assert arguments == {"rename": {"net": "model", "optim": "optimizer"}}
    second.restore(**arguments)
    assert difference(states(saved)["optimizer"], states(made)["optimizer"]) is None


READS: dict[str, Callable[..., object]] = {
    "load_weights": lambda repo, model, **options: ckptstore.load_weights(model, repo, **options),
    "checkout": lambda repo, model, **options: repo.checkout(into=model, **options),
    "follow": lambda repo, model, **options: repo.follow().update(model, **options),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("kind", [Deriving, PostHook])
def test_a_model_finds_its_part_and_its_names(read: str, kind: type[Deriving]) -> None:
    saved, model = kind(), kind()
    state = {f"module.{name}": value for name, value in saved.state_dict().items()}
    repo = ckptstore.init("memory://")
    repo.commit({"network": state, "optimizer": {"lr": 0.1, "m": torch.ones(3)}, "epoch": 3})
    arguments = proposal_of(lambda: READS[read](repo, model))
    assert (
        arguments
        == {
            "part": "network",
            "rename": {r"network/module\.inner\.(.*)": r"network/inner.\1"},
        }
        or arguments["part"] == "network"
    )
    READS[read](repo, model, **arguments)
    assert difference(saved.state_dict(), model.state_dict()) is None


def test_a_rename_that_is_there_already_is_completed() -> None:
    saved = trained()
    repo = ckptstore.init("memory://")
    state = {f"module.{name}": value for name, value in states(saved)["model"].items()}
    repo.commit({"old": {"net": state}, "opt": states(saved)["optimizer"]})
    into = objects()
    del into["scheduler"]
    arguments = proposal_of(lambda: repo.checkout(into=into, rename={"old/net": "model"}))
    assert not repo.checkout(into=into, **arguments)
    assert difference(states(saved)["model"], states(into)["model"]) is None


def test_many_names_are_in_the_error() -> None:
    random = np.random.default_rng(0)
    arrays = {f"{n}": random.normal(size=3) for n in range(200)}
    repo = ckptstore.init("memory://")
    repo.commit({"model": {f"x{199 - int(n)}": array for n, array in arrays.items()}})
    into = {name: array.copy() for name, array in arrays.items()}
    with pytest.raises(CheckoutMismatchError, match=r"rename=error\.rename, where") as caught:
        repo.checkout(into={"model": into})
    assert len(str(caught.value)) < 20_000
    assert not repo.checkout(into={"model": into}, **proposed(caught.value))
    assert difference(arrays, into) is None


def test_a_part_that_fits_is_counted() -> None:
    repo = ckptstore.init("memory://")
    saved = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 5))
    repo.commit({"model": {f"module.{name}": value for name, value in saved.state_dict().items()}})
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    with pytest.raises(CheckoutMismatchError) as caught:
        ckptstore.load_weights(model, repo)
    assert (
        r'Pass rename={r"model/module\.0\.(.*)": r"model/0.\1"}: then 2 of the 4 missing names fit.'
        in str(caught.value)
    )
    assert caught.value.rename == {r"model/module\.0\.(.*)": r"model/0.\1"}


@pytest.mark.parametrize("kind", ["dict", "module"])
def test_below_a_missing_name_the_arrays_are_counted_once(kind: str) -> None:
    """The error lists the name alone, so the numbers are said to be of what is below it."""
    repo = ckptstore.init("memory://")
    repo.commit({"net": nn.Sequential(nn.Linear(2, 3)).state_dict()})
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    target: Any = model if kind == "module" else dict(model.state_dict())
    with pytest.raises(CheckoutMismatchError) as caught:
        repo.checkout(into={"model": target})
    assert caught.value.incompatible.missing == ("model",)
    text = "then 2 of the 4 arrays and objects below the missing names fit."
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("stored", "into"),
    [
        ({"a": {"w": 0}, "b": {"w": 1}}, {"model": {"w": 0}}),
        ({"a": {"w": 0}}, {"model": {"w": 0}, "ema": {"w": 0}}),
        ({"model": {"a.w": 0, "b.w": 1}}, {"model": {"c.w": 0, "d.w": 0}}),
    ],
    ids=["two stored parts", "two objects", "two arrays"],
)
def test_nothing_is_guessed(stored: Any, into: Any) -> None:
    def filled(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: filled(item) for key, item in tree.items()}
        return np.full(3, tree)

    repo = ckptstore.init("memory://")
    repo.commit(filled(stored))
    with pytest.raises(CheckoutMismatchError) as caught:
        repo.checkout(into=filled(into))
    assert "rename=" not in str(caught.value)
    assert caught.value.rename == {}


def test_a_part_under_another_name_is_named() -> None:
    repo = ckptstore.init("memory://")
    repo.commit({"model_state_dict": nn.Linear(2, 2).state_dict(), "epoch": 1})
    with pytest.raises(InvalidInputError, match=r"no part 'model'.* Pass part='model_state_dict'"):
        ckptstore.load_weights(nn.Linear(2, 2), repo, part="model")
    with pytest.raises(InvalidInputError) as caught:
        repo.checkout(part="optimizer")
    assert "Pass part" not in str(caught.value)
