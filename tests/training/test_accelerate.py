"""What accelerate's prepare returns is saved and loaded as what is inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import accelerate
import pytest
import torch
from torch import nn

import ckptstore
from ckptstore import CheckoutMismatchError
from ckptstore.training import CheckpointManager
from tests.helpers.equality import difference

pytestmark = [
    pytest.mark.framework,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
CHOICES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"mixed_precision": "bf16"},
    "compiled": {"dynamo_backend": "eager"},
}


@pytest.fixture(params=CHOICES)
def accelerator(request: pytest.FixtureRequest) -> Iterator[Any]:
    from accelerate.state import AcceleratorState

    yield accelerate.Accelerator(cpu=True, **CHOICES[request.param])
    AcceleratorState._reset_state(reset_partial_state=True)


def plain(kind: Any = torch.optim.AdamW) -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = kind(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


def prepared(accelerator: Any, objects: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(objects, accelerator.prepare(*objects.values()), strict=True))


def trained(objects: dict[str, Any]) -> dict[str, Any]:
    for _ in range(3):
        objects["model"](torch.randn(3, 4)).sum().backward()
        objects["optimizer"].step()
        objects["scheduler"].step()
        objects["optimizer"].zero_grad()
    return objects


def states(objects: dict[str, Any]) -> dict[str, Any]:
    from ckptstore.arrays.modules import unwrapped

    return {name: unwrapped(item).state_dict() for name, item in objects.items()}


@pytest.mark.parametrize("saves_plain", [False, True])
@pytest.mark.parametrize("restores_plain", [False, True])
def test_a_run_goes_on_with_and_without_it(
    accelerator: Any, *, saves_plain: bool, restores_plain: bool
) -> None:
    saved = trained(plain() if saves_plain else prepared(accelerator, plain()))
    with CheckpointManager("memory://", **saved) as manager:
        manager.save(3)
    made = [plain() if restores_plain else prepared(accelerator, plain()) for _ in range(4)]
    repo = manager.repository
    CheckpointManager(repo, **made[0]).restore()
    assert difference(states(saved), states(made[0])) is None
    repo.checkout(into=made[1], include=list(made[1]))
    assert difference(states(saved), states(made[1])) is None
    ckptstore.load_weights(made[2]["model"], repo)
    repo.follow().update(made[3]["model"])
    for objects in made[2:]:
        assert difference(states(saved)["model"], states(objects)["model"]) is None


def test_what_does_not_fit_inside_is_refused(accelerator: Any) -> None:
    with CheckpointManager("memory://", **trained(prepared(accelerator, plain()))) as manager:
        manager.save(3)
    repo = manager.repository
    other = prepared(accelerator, plain(torch.optim.SGD))
    with pytest.raises(CheckoutMismatchError, match="'AdamW', destination: 'SGD'"):
        CheckpointManager(repo, **other).restore()
    model = plain()["model"]
    backwards = torch.optim.AdamW([*model.parameters()][::-1], lr=0.1)
    exchanged = prepared(accelerator, {"model": model, "optimizer": backwards})
    with pytest.raises(CheckoutMismatchError, match=r"parameter 0 was 'model/0\.weight' and is"):
        CheckpointManager(repo, **exchanged).restore(exclude="scheduler")
