"""A glimpse tells most batches apart, and reads little of each."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from ckptstore.training.loaders.glimpse import LEAVES_MAX, glimpse

BATCHES: list[Any] = [
    torch.arange(6.0),
    torch.arange(6.0).flip(0),
    torch.arange(6.0).reshape(2, 3),
    torch.arange(6),
    torch.arange(6.0).bfloat16(),
    torch.tensor(2.0),
    torch.zeros(0, 3),
    torch.zeros(2, 3).to_sparse(),
    torch.zeros(2, 4, device="meta"),
    np.arange(6.0),
    np.zeros((3, 0)),
    {"x": torch.ones(2), "y": 1},
    [torch.ones(2), 2],
    ["a", "b"],
    "ab",
    b"ab",
    None,
    object,
    1.5,
]


def test_batches_that_differ_have_other_glimpses() -> None:
    assert len({glimpse(batch) for batch in BATCHES}) == len(BATCHES)
    assert glimpse((torch.ones(2), 2)) == glimpse([torch.ones(2), 2])


def test_a_glimpse_of_many_samples_sees_the_first() -> None:
    many = [torch.tensor(i) for i in range(1000)]
    assert glimpse(many) == glimpse(many[:LEAVES_MAX]) != glimpse(many[1:])


@pytest.mark.slow
def test_a_loop_without_torch_does_not_import_it() -> None:
    program = """
import sys
from ckptstore.training import CallbackList
callbacks = CallbackList()
callbacks.on_train_begin()
callbacks.on_epoch_begin(0)
assert [batch for _, batch in callbacks.batches([1, 2])] == [1, 2]
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
