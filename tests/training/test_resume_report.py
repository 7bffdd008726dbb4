"""What a restore reports, and how intervals go on after it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import ckptstore
from ckptstore.training import CheckpointManager


def manager(store: Any = "memory://", **options: Any) -> CheckpointManager:
    return CheckpointManager(store, **{"async_save": False, "rng": False, **options})


def test_a_report_says_what_was_restored_left_out_and_not_tracked() -> None:
    repo = ckptstore.init("memory://")
    state = {"model": torch.nn.Linear(2, 2).state_dict(), "ema": {"decay": 0.5}}
    made = repo.commit(state, step=7)
    report = manager(repo, model=torch.nn.Linear(2, 2)).restore(include="model/weight")
    assert report.checkpoint.id == report.id == made.id
    assert report.step == 7
    assert report.restored == ("model/weight",)
    assert report.left_out == ("model/bias",)
    assert report.not_tracked == ("ema",)
    assert report.not_found == ()
    assert str(report).splitlines() == [
        f"Restored model from checkpoint {made.id.short} (step 7, branch main).",
        "Not restored: model/bias.",
        "In the checkpoint, but not tracked: ema.",
    ]


def test_a_report_says_what_the_checkpoint_lacks() -> None:
    repo = ckptstore.init("memory://")
    repo.commit({"model": {"weight": torch.ones(2, 2), "bias": torch.ones(3)}})
    model = torch.nn.Linear(2, 2)
    report = manager(repo, model=model, other=torch.nn.Linear(1, 1)).restore(strict=False)
    assert report.restored == ("model/weight",)
    assert report.not_found == ("other",)
    assert report.left_out == ("model/bias",)


def test_many_names_are_counted() -> None:
    repo = ckptstore.init("memory://")
    made = repo.commit({f"part{i}": np.zeros(1) for i in range(9)})
    report = manager(repo).restore(strict=False)
    assert str(report).splitlines() == [
        f"Restored nothing from checkpoint {made.id.short} (branch main).",
        "In the checkpoint, but not tracked: part0, part1, part2, part3, part4 and 4 more.",
    ]


def test_steps_that_begin_again_after_a_restore_are_saved() -> None:
    first = manager(branch="pretrain", model=torch.nn.Linear(2, 2))
    first.save(50_000)
    second = manager(
        first.repository, branch="tune", save_interval_steps=10, model=torch.nn.Linear(2, 2)
    )
    second.restore("pretrain", include="model")
    assert [step for step in range(1, 32) if second.save(step)] == [10, 20, 30]
