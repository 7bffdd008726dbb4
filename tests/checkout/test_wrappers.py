"""Wrappers of modules: any mix of them saves and loads by the names of the module inside."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.parallel import DataParallel, DistributedDataParallel

import ckptstore
from ckptstore.arrays.frameworks import is_module
from ckptstore.arrays.modules import named_state, unwrapped
from ckptstore.errors import CheckoutMismatchError
from ckptstore.training import CheckpointManager
from tests.helpers.equality import difference
from tests.helpers.proposed import proposed

pytestmark = [
    pytest.mark.property,
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),  # torch.compile's
]


@pytest.fixture(scope="module", autouse=True)
def _group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("group") / "file"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def plain() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2)
    )


WRAPPERS: dict[str, Any] = {
    "compile": torch.compile,
    "DDP": DistributedDataParallel,
    "DataParallel": DataParallel,
}
mixes = st.tuples(
    st.lists(st.sampled_from(sorted(WRAPPERS)), unique=True), st.sets(st.sampled_from([0, 1, 2]))
)


def wrapped(mix: tuple[list[str], set[int]]) -> Any:
    """A module of which some layers are compiled alone, and then the wrappers, one by one."""
    outer, layers = mix
    model: Any = plain()
    for layer in layers:
        model[layer] = torch.compile(model[layer])
    for name in outer:
        model = WRAPPERS[name](model)
    return model


def bits(model: Any) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]


def same(model: Any, other: Any) -> bool:
    return all(map(torch.equal, bits(model), bits(other)))


@settings(max_examples=15, deadline=None)
@given(mixes, mixes)
def test_any_mix_saves_what_any_other_restores(saved: Any, restored: Any) -> None:
    first, second, third = wrapped(saved), wrapped(restored), wrapped(restored)
    optimizer = torch.optim.AdamW(first.parameters())
    with CheckpointManager("memory://", model=first, optimizer=optimizer) as manager:
        manager.save(1)
    repo = manager.repository
    assert {array.path for array in repo.resolve("main").arrays} >= {
        f"model/{name}" for name in plain().state_dict()
    }
    other = torch.optim.AdamW(second.parameters())
    CheckpointManager(repo, model=second, optimizer=other).restore()
    assert same(first, second)
    assert not ckptstore.load_weights(third, repo)
    assert same(first, third)


@settings(max_examples=10, deadline=None)
@given(mixes)
def test_other_ways_in_see_through_them_too(mix: Any) -> None:
    first = plain()
    repo = ckptstore.init("memory://")
    repo.commit({"model": first})
    followed, filled = wrapped(mix), wrapped(mix)
    repo.follow().update(followed)
    assert same(first, followed)
    repo.checkout(into={"model": filled})
    assert same(first, filled)
    repo.commit({"model": filled}, branch="again")
    assert repo.resolve("again").arrays == repo.resolve("main").arrays


def test_an_average_that_passes_attributes_on_is_not_the_model_inside() -> None:
    class Average(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.average = torch.nn.Linear(2, 2)
            self.__dict__["_orig_mod"] = self.__dict__["module"] = model

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.__dict__["module"], name)

    model = torch.nn.Linear(2, 2)
    average = Average(model)
    assert unwrapped(average) is average
    with CheckpointManager("memory://", model=model, ema=average) as manager:
        manager.save(1)
    names = {array.path for array in manager.repository.resolve("main").arrays}
    assert {"ema/average.weight", "model/weight"} <= names


def test_the_error_names_the_arguments_that_remove_a_prefix(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    ema = torch.optim.swa_utils.AveragedModel(model)
    with CheckpointManager(tmp_path / "store", model=model, ema=ema) as manager:
        manager.save(1)
    repo = manager.repository
    served = torch.nn.Linear(2, 2)
    with pytest.raises(CheckoutMismatchError) as caught:
        ckptstore.load_weights(served, repo, part="ema")
    arguments = proposed(caught.value)
    assert arguments == {"rename": {r"ema/module\.(.*)": r"ema/\1"}, "exclude": ["ema/n_averaged"]}
    assert not ckptstore.load_weights(served, repo, part="ema", **arguments)
    assert same(served, model)
    other = torch.nn.ModuleDict({"module": torch.nn.Linear(2, 2)})
    with pytest.raises(CheckoutMismatchError) as caught:
        ckptstore.load_weights(other, repo, part="model")
    ckptstore.load_weights(other, repo, part="model", **proposed(caught.value))
    assert same(other, model)


class Twin(torch.nn.Module):
    """An average beside the model it is of, as ema-pytorch has it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.online_model, self.ema_model = model, copy.deepcopy(model)
        self.register_buffer("step", torch.tensor(0))


class Copy(torch.nn.Module):
    """An average as timm has it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)


class Shadow:
    """An average of the parameters alone, in a list, as torch-ema has it."""

    def __init__(self, model: Any) -> None:
        self.shadow = [parameter.detach().clone() for parameter in model.parameters()]

    def state_dict(self) -> dict[str, Any]:
        return {"decay": 0.9, "shadow_params": self.shadow, "collected_params": None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shadow = state["shadow_params"]


AVERAGES: dict[str, Any] = {
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "compiled": lambda model: torch.compile(torch.optim.swa_utils.AveragedModel(model)),
    "twin": Twin,
    "copy": Copy,
    "shadow": Shadow,
}


def state_of(average: Any) -> Any:
    return dict(named_state(unwrapped(average))) if is_module(average) else average.state_dict()


@pytest.mark.parametrize("kind", AVERAGES)
@settings(max_examples=15, deadline=None)
@given(mixes, mixes)
def test_an_average_of_any_mix_fits_or_the_error_says_how(
    kind: str, saved: Any, other: Any
) -> None:
    """Only DistributedDataParallel and DataParallel inside of an average change its names."""
    model = wrapped(saved)
    average = AVERAGES[kind](model)
    with CheckpointManager("memory://", model=model, ema=average) as manager:
        manager.save(1)
    restored = wrapped(other)
    made = AVERAGES[kind](restored)
    second = CheckpointManager(manager.repository, model=restored, ema=made)
    before = state_of(made)
    try:
        second.restore()
    except CheckoutMismatchError as error:
        assert (names := [*state_of(average)]) != [*before]
        assert {name.replace("module.", "") for name in names} == {
            name.replace("module.", "") for name in before
        }
        second.restore(**proposed(error))
    expected, found = (
        [*values.values()] if isinstance(values := state_of(each), dict) else values
        for each in (average, made)
    )
    assert difference(expected, found) is None


@pytest.mark.parametrize("kind", ["AveragedModel", "compiled", "copy"])
@settings(max_examples=15, deadline=None)
@given(mixes)
def test_an_average_goes_into_a_plain_model(kind: str, mix: Any) -> None:
    average = AVERAGES[kind](wrapped(mix))
    repo = ckptstore.init("memory://")
    repo.commit({"ema": average})
    served = plain()
    with pytest.raises(CheckoutMismatchError) as caught:
        ckptstore.load_weights(served, repo, part="ema")
    assert not ckptstore.load_weights(served, repo, part="ema", **proposed(caught.value))
    values = [value for name, value in state_of(average).items() if name != "n_averaged"]
    assert difference(values, [*served.state_dict().values()]) is None
