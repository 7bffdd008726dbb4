"""Step, epoch, metric and hyperparameters of a .ckpt of Lightning, which need no Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ckptstore
from ckptstore import formats


def saved(folder: Path, name: str = "epoch=2-step=300.ckpt", **changes: Any) -> formats.FileState:
    """The file that Lightning writes, as far as it matters."""
    scores = {f"/home/a/{name}": torch.tensor(0.25), "/home/a/other.ckpt": torch.tensor(0.5)}
    state = {
        "epoch": 2,
        "global_step": 300,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {"layer.weight": torch.ones(2)},
        "callbacks": {"ModelCheckpoint": {"monitor": "val_loss", "best_k_models": scores}},
        "hyper_parameters": {"lr": 0.1, "layers": [8, 8], "inf": float("inf")},
    }
    torch.save({**state, **changes}, folder / name)
    return formats.read_file(folder / name)


def test_the_facts_of_a_file_of_lightning_are_found(tmp_path: Path) -> None:
    found = saved(tmp_path)
    assert (found.step, found.epoch, found.metrics) == (300, 2, {"val_loss": 0.25})
    assert found.meta == {
        "file": "epoch=2-step=300.ckpt",
        "epoch": 2,
        "lightning": "2.6.6",
        "hyper_parameters": {"lr": 0.1, "layers": [8, 8], "inf": "inf"},
    }


def test_the_score_of_another_file_is_not_taken(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "epoch=2-step=300.ckpt").rename(tmp_path / "last.ckpt")
    assert formats.read_file(tmp_path / "last.ckpt").metrics == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": "x", "global_step": -1},
        {"epoch": torch.ones(3), "global_step": 2**70},
        {"callbacks": [1, 2], "hyper_parameters": {"n": 2**80, "t": torch.ones(2)}},
        {"callbacks": {"a": 1, 3: {"monitor": 5, "best_k_models": {"x": 1}}}},
        {"callbacks": {"a": {"monitor": "m", "best_k_models": {"epoch=2-step=300.ckpt": "x"}}}},
        {"callbacks": {"a": {"monitor": "m", "best_k_models": {"epoch=2-step=300.ckpt": [1]}}}},
        {"hyper_parameters": {"text": "x" * 100_000, "many": [0] * 10_000}},
        {"hyper_parameters": [[[[[[[[[[[[1]]]]]]]]]]]]},
    ],
    ids=[f"case {number}" for number in range(8)],
)
def test_odd_facts_are_left_out_and_the_file_is_committed(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    found = saved(tmp_path, **changes)
    made = ckptstore.init("memory://").commit(
        found.state, step=found.step, metrics=found.metrics, meta=found.meta
    )
    assert made.metrics in ({}, {"val_loss": 0.25})


def test_other_files_have_no_facts(tmp_path: Path) -> None:
    torch.save({"epoch": 2, "global_step": 300, "state_dict": {}}, tmp_path / "a.pt")
    found = formats.read_file(tmp_path / "a.pt")
    assert (found.step, found.epoch, found.metrics) == (None, None, {})
