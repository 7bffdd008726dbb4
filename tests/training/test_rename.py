"""Renames of a restore: a run goes on from a checkpoint with other names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ckptstore
from ckptstore import CheckoutMismatchError, InvalidInputError
from ckptstore.training import CheckpointManager
from tests.helpers.equality import difference

PARTS = {"(.*)_state_dict": r"\1"}


def objects(*, named: bool = False) -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    parameters: Any = model.named_parameters() if named else model.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


def trained(steps: int = 3, *, named: bool = False) -> dict[str, Any]:
    made = objects(named=named)
    for _ in range(steps):
        made["model"](torch.randn(4, 3)).sum().backward()
        made["optimizer"].step()
        made["scheduler"].step()
        made["optimizer"].zero_grad()
    return made


def states(made: dict[str, Any]) -> dict[str, Any]:
    return {name: item.state_dict() for name, item in made.items()}


@pytest.fixture
def saved() -> dict[str, Any]:
    return trained()


@pytest.fixture
def repo(saved: dict[str, Any]) -> ckptstore.Repository:
    """As imported from a file of torch.save."""
    repo = ckptstore.init("memory://")
    state = {f"{name}_state_dict": item for name, item in states(saved).items()}
    repo.commit({"epoch": 3, **state}, step=3)
    return repo


def test_the_keys_of_torch_save_become_the_names_of_the_objects(
    repo: ckptstore.Repository, saved: dict[str, Any]
) -> None:
    made = objects()
    manager = CheckpointManager(repo, **made)
    report = manager.restore(rename=PARTS, exclude="epoch")
    assert difference(states(saved), states(made)) is None
    assert report.step == 3
    assert {path.split("/")[0] for path in report.restored} == {*made}
    assert report.left_out == report.not_found == ()
    assert report.not_tracked == ("epoch",)
    assert (
        CheckpointManager(repo, **objects()).restore_or_initialize(
            rename={"model_state_dict": "model", "optimizer_state_dict": "optimizer"},
            exclude=["epoch", "scheduler", "scheduler_state_dict"],
        )
        == 3
    )


def test_a_name_to_reset_is_the_new_one(repo: ckptstore.Repository, saved: dict[str, Any]) -> None:
    made = objects()
    fresh = states(objects())
    rename = {f"{name}_state_dict": name for name in made}
    report = CheckpointManager(repo, **made).restore(
        rename=rename, exclude="epoch", reset="scheduler"
    )
    expected = {**states(saved), "scheduler": fresh["scheduler"]}
    assert difference(expected, states(made)) is None
    assert not any(path.startswith("scheduler") for path in report.restored)
    with pytest.raises(InvalidInputError, match="which is not tracked"):
        CheckpointManager(repo, **made).restore(rename=rename, reset="scheduler_state_dict")


@pytest.mark.parametrize("named", [False, True], ids=["parameters", "named parameters"])
def test_an_optimizer_knows_the_parameters_of_a_renamed_model(*, named: bool) -> None:
    saved = trained(named=named)
    with CheckpointManager("memory://", net=saved["model"], optimizer=saved["optimizer"]) as first:
        first.save(3)
    model = nn.ModuleDict({"body": objects()["model"]})
    parameters: Any = model.named_parameters() if named else model.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    second = CheckpointManager(first.repository, branch="next", model=model, optimizer=optimizer)
    second.restore("main", rename={r"net/(.*)": r"model/body.\1"})
    expected = saved["optimizer"].state_dict()
    if named:
        names = [f"body.{name}" for name in expected["param_groups"][0]["param_names"]]
        expected["param_groups"][0]["param_names"] = names
    assert difference(expected, optimizer.state_dict()) is None
    with second:
        second.save(4)
    second.restore()


def test_parameters_that_changed_places_are_still_an_error() -> None:
    saved = trained()
    with CheckpointManager("memory://", net=saved["model"], optimizer=saved["optimizer"]) as first:
        first.save(3)
    made = objects()
    first_layer, _, second_layer = made["model"]
    exchanged = torch.optim.AdamW([*second_layer.parameters(), *first_layer.parameters()], lr=0.1)
    second = CheckpointManager(first.repository, model=made["model"], optimizer=exchanged)
    with pytest.raises(CheckoutMismatchError, match=r"parameter 0 was 'model/0\.weight'"):
        second.restore(rename={"net": "model"})


def test_a_rename_that_matches_nothing_changes_nothing(repo: ckptstore.Repository) -> None:
    made = objects()
    before = {name: tensor.clone() for name, tensor in made["model"].state_dict().items()}
    with pytest.raises(InvalidInputError, match="'modell_state_dict' matches no array"):
        CheckpointManager(repo, **made).restore(rename={"modell_state_dict": "model"})
    assert difference(before, dict(made["model"].state_dict())) is None
