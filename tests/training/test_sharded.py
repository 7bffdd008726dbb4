"""Models of FullyShardedDataParallel: saved and loaded by the names of the module inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

import ckptstore
from ckptstore import CheckoutMismatchError, InvalidInputError
from ckptstore.training import CheckpointManager
from tests.helpers.equality import difference

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*FSDP"),
    pytest.mark.filterwarnings("ignore:When using ``NO_SHARD``"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]


@pytest.fixture(scope="module", autouse=True)
def _group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("group") / "file"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def sharded(module: nn.Module, **options: Any) -> nn.Module:
    return FullyShardedDataParallel(module, device_id=torch.device("cpu"), **options)


def inside() -> nn.Module:
    model = plain()
    model[0] = sharded(model[0])  # type: ignore[operator,index]
    return model


def compiled_layer() -> nn.Module:
    model: Any = plain()
    model[0] = torch.compile(model[0])
    return sharded(model, use_orig_params=True)


KINDS: dict[str, Callable[[], Any]] = {
    "plain": plain,
    "flat": lambda: sharded(plain()),
    "apart": lambda: sharded(plain(), use_orig_params=True),
    "inside": inside,
    "within one": lambda: sharded(inside()),
    "compiled": lambda: torch.compile(sharded(plain(), use_orig_params=True)),
    "of a compiled one": lambda: sharded(torch.compile(plain()), use_orig_params=True),  # type: ignore[arg-type]
    "of a compiled layer": compiled_layer,
}
APART = ["plain", "apart", "compiled", "of a compiled one", "of a compiled layer"]


def weights(model: Any) -> dict[str, torch.Tensor]:
    from ckptstore.arrays.modules import named_state, unwrapped

    return {name: value.clone() for name, value in named_state(unwrapped(model)).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_in_and_out(kind: str) -> None:
    saved = KINDS[kind]()
    with CheckpointManager("memory://", model=saved) as manager:
        manager.save(1)
    repo, expected = manager.repository, weights(saved)
    names = {f"model/{name}" for name in plain().state_dict()}
    assert {array.path for array in repo.resolve("main").arrays if "rng" not in array.path} == names
    for other in (plain(), KINDS[kind](), KINDS["of a compiled one"]()):
        assert not ckptstore.load_weights(other, repo)
        assert difference(expected, weights(other)) is None
    restored, followed, filled = (KINDS[kind]() for _ in range(3))
    CheckpointManager(repo, model=restored).restore()
    repo.follow().update(followed)
    repo.checkout(into={"model": filled}, include="model")
    for other in (restored, followed, filled):
        assert difference(expected, weights(other)) is None
    source = plain()
    repo.commit({"model": source}, branch="plain")
    ckptstore.load_weights(filled, repo, "plain")
    assert difference(weights(source), weights(filled)) is None


def trained(kind: str) -> dict[str, Any]:
    model = KINDS[kind]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    (model.module if kind == "compiled" else model)(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer}


@pytest.mark.parametrize("kind", ["flat", "apart", "within one", "of a compiled layer"])
def test_an_optimizer_goes_on_under_the_same_wrapper(kind: str) -> None:
    saved = trained(kind)
    with CheckpointManager("memory://", **saved) as manager:
        manager.save(1)
    model = KINDS[kind]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    CheckpointManager(manager.repository, model=model, optimizer=optimizer).restore()
    expected = saved["optimizer"].state_dict()
    assert difference(expected, optimizer.state_dict()) is None
    for kind_apart in APART if kind in APART else ():
        other = KINDS[kind_apart]()
        optimizer = torch.optim.AdamW(other.parameters(), lr=0.1)
        CheckpointManager(manager.repository, model=other, optimizer=optimizer).restore()
        assert difference(expected, optimizer.state_dict()) is None


def test_an_optimizer_of_joined_parameters_does_not_fit_a_plain_model() -> None:
    with CheckpointManager("memory://", **trained("flat")) as manager:
        manager.save(1)
    model = plain()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with pytest.raises(CheckoutMismatchError, match=r"1 parameters.*without use_orig_params=True"):
        CheckpointManager(manager.repository, model=model, optimizer=optimizer).restore()


@pytest.mark.parametrize("kind", ["flat", "within one"])
def test_a_part_of_an_optimizer_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        def size(self) -> int:
            return 2

    objects = trained(kind)
    monkeypatch.setattr(objects["model"], "process_group", Two())
    with pytest.raises(InvalidInputError, match=r"has divided model among 2 processes.*optimizer"):
        CheckpointManager("memory://", **objects)
    CheckpointManager("memory://", model=objects["model"])
