"""What a restore reports, and how intervals go on after it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import ckptstore
from ckptstore.errors import CheckoutMismatchError
from ckptstore.training import CheckpointManager
from ckptstore.training.differences import FRAMEWORKS


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
    other = manager(repo, model=model, other=torch.nn.Linear(1, 1))
    with pytest.raises(CheckoutMismatchError, match="other"):
        other.restore(strict=False)
    with pytest.warns(UserWarning, match="in part"):
        report = other.restore(strict=False, exclude="other")
    assert report.restored == ("model/weight",)
    assert report.left_out == ("model/bias",)


def test_many_names_are_counted() -> None:
    repo = ckptstore.init("memory://")
    made = repo.commit({f"part{i}": np.zeros(1) for i in range(9)})
    with pytest.warns(UserWarning, match="in part"):
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


def scheduled(lr: float, t_max: int) -> dict[str, Any]:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    after = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=2),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=t_max),
        ],
        milestones=[2],
    )
    return {"model": model, "optimizer": optimizer, "scheduler": after}


def test_a_report_says_which_settings_of_the_program_were_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parts = scheduled(0.1, 100)
    first = manager(**parts)
    for step in range(1, 5):
        parts["optimizer"].step()
        parts["scheduler"].step()
        first.save(step)
    report = manager(first.repository, **scheduled(0.1, 100)).restore()
    assert report.differences == ()  # progress is no difference
    assert not caplog.messages
    parts = scheduled(0.5, 200)
    parts["optimizer"].param_groups[0]["momentum"] = 0.5
    report = manager(first.repository, **parts).restore()
    assert report.differences == (
        "optimizer/param_groups/0/momentum: 0.5 became 0.9.",
        "optimizer/param_groups/0/initial_lr: 0.5 became 0.1.",
        "scheduler/_schedulers/1/T_max: 200 became 100.",
    )
    (told,) = caplog.messages
    assert "T_max: 200 became 100." in told


def test_a_learning_rate_without_a_scheduler_is_a_setting() -> None:
    model = torch.nn.Linear(2, 2)
    first = manager(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=torch.tensor(1.0))
    )
    first.save(1)
    again = torch.optim.SGD(model.parameters(), lr=2.0)
    report = manager(first.repository, model=model, optimizer=again).restore()
    assert report.differences == ("optimizer/param_groups/0/lr: 2.0 became 1.0.",)


def test_a_report_says_what_changed_around_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(2, 2)
    first = manager(model=model)
    with monkeypatch.context() as earlier:
        earlier.setattr(torch, "__version__", "1.0")
        first.save(1, meta={"world_size": 4, "device": "NVIDIA H200"})
    assert first.latest is not None
    assert first.latest.meta["torch"] == "1.0"
    assert first.restore().differences == (
        f"torch: '1.0' when it was saved, '{torch.__version__}' now.",
        "device: 'NVIDIA H200' when it was saved, 'cpu' now.",
    )


def test_the_versions_of_imported_frameworks_are_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lightning = SimpleNamespace(__version__="2.5")
    monkeypatch.setitem(sys.modules, "lightning", lightning)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace())  # type: ignore[arg-type]
    first = manager(model=torch.nn.Linear(2, 2))
    first.save(1)
    assert first.latest is not None
    meta = first.latest.meta
    assert (meta["torch"], meta["numpy"]) == (torch.__version__, np.__version__)
    assert meta["lightning"] == "2.5"
    assert "transformers" not in meta
    assert {name for name in FRAMEWORKS if name in meta} <= sys.modules.keys()
    lightning.__version__ = "2.6"
    assert first.restore().differences == ("lightning: '2.5' when it was saved, '2.6' now.",)


def test_a_verbose_manager_prints_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    first = manager(model=torch.nn.Linear(2, 2))
    first.save(1)
    report = manager(first.repository, model=torch.nn.Linear(2, 2), verbose=True).restore()
    assert capsys.readouterr().err == f"ckptstore: {report}\n"


def test_the_initial_state_is_saved_when_that_is_asked_for() -> None:
    made: list[int] = []
    model = torch.nn.Linear(2, 2)
    run = manager(model=model, save_on_start=True)

    def initialize() -> None:
        with torch.no_grad():
            model.weight.fill_(3.0)

    assert run.restore_or_initialize(init_fn=initialize) == 0
    run.save(5)
    again = manager(run.repository, model=model, save_on_start=True)
    assert again.restore_or_initialize(init_fn=lambda: made.append(1)) == 5
    assert [checkpoint.step for checkpoint in run.checkpoints] == [0, 5]
    assert (run.repository.checkout("main~1")["model"]["weight"] == 3.0).all()
    assert not made
