"""What `save` is given is checked and copied before it returns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckptstore
from ckptstore.errors import InvalidInputError
from ckptstore.training import CheckpointManager
from ckptstore.training.callbacks import BackupAndRestore, ModelCheckpoint
from tests.helpers.children import HeldStorage


def manager(**options: Any) -> CheckpointManager:
    return CheckpointManager("memory://", model=torch.nn.Linear(2, 2), **options)


class Values:
    """Everything that a caller may change after a save."""

    def __init__(self) -> None:
        self.step, self.epoch, self.batch = torch.tensor(3), np.array(1), torch.tensor(2)
        self.loss, self.metrics = torch.tensor(0.5), {"loss": torch.tensor(0.5)}
        self.metrics["loss"] = self.loss
        self.meta: dict[str, Any] = {"seen": [1, {"deep": [2]}], "name": "a"}

    def change(self) -> None:
        self.step += 100
        self.epoch += 100
        self.batch += 100
        self.loss += 100
        self.metrics["other"] = self.loss
        self.meta["seen"][1]["deep"].append("later")
        self.meta["seen"].append("later")
        self.meta["name"] = "later"


@pytest.fixture
def held(tmp_path: Path) -> Iterator[HeldStorage]:
    """A repository whose writes wait until `go_on` is set."""
    ckptstore.init(tmp_path / "store")
    storage = HeldStorage(tmp_path / "store")
    yield storage
    storage.go_on.set()


def was_kept(found: CheckpointManager) -> bool:
    latest = found.latest
    assert latest is not None
    other = CheckpointManager(found.repository, model=torch.nn.Linear(2, 2))
    other.restore()
    return (
        (latest.step, latest.metrics, other.epoch, other.batch) == (3, {"loss": 0.5}, 1, 2)
        and latest.meta["seen"] == [1, {"deep": [2]}]
        and latest.meta["name"] == "a"
    )


def save(found: CheckpointManager, values: Values) -> bool:
    return found.save(
        values.step,
        metrics=values.metrics,
        meta=values.meta,
        epoch=values.epoch,
        batch=values.batch,
    )


def test_what_changes_while_a_save_is_in_flight_does_not_reach_the_checkpoint(
    held: HeldStorage,
) -> None:
    found = CheckpointManager(held.repository(), model=torch.nn.Linear(2, 2))
    values = Values()
    assert save(found, values)
    values.change()
    held.go_on.set()
    found.wait()
    assert was_kept(found)


def test_what_changes_after_a_save_was_skipped_does_not_reach_the_one_that_makes_up_for_it(
    held: HeldStorage,
) -> None:
    found = CheckpointManager(held.repository(), model=torch.nn.Linear(2, 2), when_busy="skip")
    assert found.save(1)
    values = Values()
    assert not save(found, values)
    values.change()
    held.go_on.set()
    found.close()
    assert was_kept(found)


def test_steps_counted_in_one_tensor_are_each_saved_when_they_are_due() -> None:
    found = manager(save_interval_steps=2)
    step = torch.tensor(0)
    for _ in range(8):
        step += 1
        found.save(step)
    found.wait()
    assert [checkpoint.step for checkpoint in found.checkpoints] == [2, 4, 6, 8]


@pytest.mark.parametrize(
    "arguments",
    [
        {"step": 3.0},
        {"step": "3"},
        {"step": None},
        {"step": 2**63},
        {"message": None},
        {"meta": {"when": object()}},
        {"metrics": {"loss": "low"}},
        {"epoch": 1.5},
        {"batch": "2"},
    ],
    ids=lambda arguments: "-".join(f"{k}={type(v).__name__}" for k, v in arguments.items()),
)
def test_what_cannot_be_saved_is_an_error_at_once(arguments: dict[str, Any]) -> None:
    found = manager()
    with pytest.raises(InvalidInputError):
        found.save(**{"step": 1, **arguments})
    found.close()
    assert found.latest is None


def test_a_bad_step_is_an_error_even_when_nothing_is_due() -> None:
    found = manager(save_interval_steps=1000)
    with pytest.raises(InvalidInputError, match="step"):
        found.save(3.0)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="step"):
        found.should_save("3")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments",
    [
        {"branch": "epoch={epoch}"},
        {"branch": "run/{val_loss:.3q}"},
        {"branch": "run-{batch}"},  # not known at the end of an epoch
        {"branch": "run-{}"},
        {"branch": "run-{epoch.parent}"},
        {"branch": "two words"},
        {"message": "{epoch:%}{"},
        {"message": "{loss[0]}"},
        {"message": "{batch}"},
        {"message": "{count:d}"},  # a metric is a float
        {"filepath": "{epoch"},
        {"filepath": "w-{}.h5"},
        {"filepath": "w-{val_loss:02d}.h5"},
        {"filepath": "w-{batch}.h5"},
        {"filepath": "{epoch!s:.0s}"},
        {"message": "x" * 70_000},
    ],
    ids=lambda arguments: str(arguments)[:40],
)
def test_a_template_that_can_never_be_filled_is_found_before_the_training(
    arguments: dict[str, Any],
) -> None:
    with pytest.raises(InvalidInputError):
        ModelCheckpoint("memory://", **arguments)


def test_templates_that_can_be_filled_are_taken() -> None:
    ModelCheckpoint(
        "memory://", branch="run-{epoch:02d}-{val_loss:.3f}", message="{acc:.1%} {step}"
    )
    ModelCheckpoint("memory://", branch="run-{batch}", message="{batch}", save_freq=3)


def test_an_illegal_branch_of_backups_is_found_before_the_training() -> None:
    with pytest.raises(InvalidInputError, match="branch"):
        BackupAndRestore("memory://", branch="a b")
