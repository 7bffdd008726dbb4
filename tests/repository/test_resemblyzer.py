"""A training checkpoint from the wild: the one that the package Resemblyzer ships, written by an
old torch.

Its optimizer state is keyed by the id() of each parameter, as torch did then.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptstore
from tests.helpers.equality import difference


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Any]:
    try:
        path = distribution("Resemblyzer").locate_file("resemblyzer/pretrained.pt")
    except PackageNotFoundError:
        pytest.skip("Resemblyzer is not installed (make installs it with --no-deps)")
    return torch.load(Path(str(path)), map_location="cpu", weights_only=False)


def test_it_comes_back_bit_for_bit_with_its_keys(
    checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    keys = list(checkpoint["optimizer_state"]["state"])
    assert min(keys) > 2**40
    repo = ckptstore.init(tmp_path / "store")
    made = repo.commit(checkpoint, step=checkpoint["step"])
    found = ckptstore.open(tmp_path / "store").checkout()
    assert difference(checkpoint, found) is None
    assert list(found["optimizer_state"]["state"]) == keys
    assert made.array_bytes > 16_000_000
    assert repo.verify().ok


def test_its_weights_alone_can_be_taken(checkpoint: dict[str, Any]) -> None:
    repo = ckptstore.init("memory://")
    repo.commit(checkpoint)
    assert (
        difference({"model_state": checkpoint["model_state"]}, repo.checkout(include="model_state"))
        is None
    )
