"""Renames of a checkout: every way to read a checkpoint reads it under other names."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch import nn

import ckptstore
from ckptstore import InvalidInputError
from tests.helpers.equality import difference

OLD = {"model_state_dict": "model"}
PREFIXED = {r"model_state_dict/(.*)": r"model/module.\1"}


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture
def saved() -> nn.Module:
    return trained()[0]


@pytest.fixture
def repo(saved: nn.Module) -> ckptstore.Repository:
    repo = ckptstore.init("memory://")
    repo.commit({"model_state_dict": saved.state_dict(), "epoch": 3})
    return repo


def test_a_fresh_state_has_the_new_names(repo: ckptstore.Repository, saved: nn.Module) -> None:
    state = repo.checkout(rename=OLD)
    assert list(state) == ["model", "epoch"]
    assert difference(saved.state_dict(), state["model"]) is None
    part = repo.checkout(rename=PREFIXED, part="model")
    assert list(part) == [f"module.{name}" for name in saved.state_dict()]


READS: dict[str, Callable[[Any, Any], object]] = {
    "load_weights": lambda repo, model: ckptstore.load_weights(model, repo, rename=OLD),
    "load_weights part": lambda repo, model: ckptstore.load_weights(
        model, repo, part="model", rename=OLD
    ),
    "into": lambda repo, model: repo.checkout(
        into={"model": model}, include="model_state_dict", rename=OLD
    ),
    "into part": lambda repo, model: repo.checkout(into=model, part="model", rename=OLD),
    "follow": lambda repo, model: repo.follow().update(model, rename=OLD),
}


@pytest.mark.parametrize("name", READS)
def test_a_model_is_filled_by_the_new_names(
    name: str, repo: ckptstore.Repository, saved: nn.Module
) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    READS[name](repo, model)
    assert difference(saved.state_dict(), model.state_dict()) is None


def test_a_follower_reads_what_changed_under_the_new_names(repo: ckptstore.Repository) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    follower = repo.follow()
    follower.update(model, rename=OLD)
    update = follower.update(model, rename=OLD)
    assert update is not None
    assert update.read_bytes == 0
    state = repo.checkout(part="model_state_dict")
    state["0.bias"] += 1
    repo.commit({"model_state_dict": state})
    update = follower.update(model, rename=OLD)
    assert update is not None
    assert update.changed == ("model/0.bias",)
    assert torch.equal(model.state_dict()["0.bias"], state["0.bias"])


def test_an_array_that_is_read_later_is_found_under_its_stored_name(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store")
    repo.commit({"a": {"small": np.arange(3), "large": np.arange(50_000)}, "b": np.arange(2)})
    state = repo.checkout(rename={"a/small": "b", "b": "a/small"}, lazy=True)
    assert state["b"][1:].tolist() == [1, 2]
    assert state["a"]["small"][...].tolist() == [0, 1]
    again = pickle.loads(pickle.dumps(state["b"]))
    assert again[...].tolist() == [0, 1, 2]
    assert not ckptstore.load_weights(
        {"x": {"large": np.zeros(50_000, int)}, "y": np.zeros(2, int), "z": np.zeros(3, int)},
        repo,
        rename={"a/small": "z", "a": "x", "b": "y"},
    )


def test_arrays_that_came_through_zarr_are_renamed_too() -> None:
    repo = ckptstore.init("memory://")
    with repo.session() as session:
        root = zarr.open_group(session.store)
        root.create_array("a/x", data=np.arange(4.0), chunks=(2,))
        root.create_array("y", data=np.arange(3))
        session.commit()
    state = repo.checkout(rename={"a": "b", "y": "a"})
    assert state["b"]["x"].tolist() == [0, 1, 2, 3]
    assert state["a"].tolist() == [0, 1, 2]
    into = {"b": {"x": np.zeros(4)}, "a": np.zeros(3, int)}
    assert not repo.checkout(rename={"a": "b", "y": "a"}, into=into)
    assert into["b"]["x"].tolist() == [0, 1, 2, 3]
    lazy = repo.checkout(rename={"y": "z"}, lazy=True)
    assert lazy["z"][1:].tolist() == [1, 2]


def test_the_names_of_parameters_in_an_optimizer_go_with_them() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.named_parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    repo = ckptstore.init("memory://")
    repo.commit({"net": model.state_dict(), "optimizer": optimizer.state_dict()})
    served = nn.ModuleDict({"body": nn.Linear(2, 2)})
    other = torch.optim.AdamW(served.named_parameters())
    into = {"net": served, "optimizer": other}
    repo.checkout(into=into, rename={"net/(.*)": r"net/body.\1"})
    assert other.param_groups[0]["param_names"] == ["body.weight", "body.bias"]
    state = other.state_dict()
    state["param_groups"][0]["param_names"] = ["weight", "bias"]
    assert difference(optimizer.state_dict(), state) is None


@pytest.mark.parametrize(
    ("rename", "expected"),
    [
        ({"nothing": "x"}, "'nothing' matches no array that is chosen, and no key"),
        ({"model_state_dict/.*": "x"}, "Two arrays would have the path 'x'"),
        ({"model_state_dict": "epoch"}, "cannot both be at 'epoch'"),
        ({"epoch": "model_state_dict"}, "cannot both be at 'model_state_dict'"),
        ({"(": "x"}, "is not a regular expression"),
        ({"model_state_dict": "50%"}, "is not an escaped key"),
        ({"model_state_dict": "a//b"}, "'a//b' is not a path"),
        ({"model_state_dict": 1}, "is not one of strings"),
        ("model", "a dict of replacements by regular expression is expected"),
    ],
)
def test_what_cannot_be_is_refused(
    repo: ckptstore.Repository, rename: Any, expected: str, saved: nn.Module
) -> None:
    before = {name: tensor.clone() for name, tensor in saved.state_dict().items()}
    for call in (
        lambda: repo.checkout(rename=rename),
        lambda: repo.checkout(rename=rename, lazy=True),
        lambda: repo.checkout(rename=rename, into={"model": saved}),
        lambda: ckptstore.load_weights(saved, repo, rename=rename),
        lambda: repo.follow().update(saved, rename=rename),
    ):
        with pytest.raises(InvalidInputError) as caught:
            call()
        assert expected in str(caught.value)
    assert difference(dict(saved.state_dict()), before) is None


def test_globs_go_by_the_stored_names_and_a_part_by_the_new_ones(
    repo: ckptstore.Repository,
) -> None:
    state = repo.checkout(rename=OLD, include="model_state_dict/0.*")
    assert {name: list(value) for name, value in state.items()} == {"model": ["0.weight", "0.bias"]}
    with pytest.raises(InvalidInputError, match="has no part 'model_state_dict'"):
        repo.checkout(rename=OLD, part="model_state_dict")
    with pytest.raises(InvalidInputError, match=r"Nothing in checkpoint .* matches"):
        repo.checkout(rename=OLD, include="model")
