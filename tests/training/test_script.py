"""A training resumed in another process equals one that never stopped, to the last bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ckptstore
from tests.helpers.forks import Forks
from tests.helpers.root import ROOT

pytestmark = pytest.mark.slow


def train(forks: Forks | None, *arguments: object) -> dict[str, Any]:
    """Train in a fork, or without forks in a process that has nothing in common with any other."""
    words = ["-m", "tests.helpers.training_script", *map(str, arguments)]
    if forks:
        done = forks.run(*words, cwd=ROOT)
    else:
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_losses_weights_and_moments_are_those_of_a_training_that_never_stopped(
    tmp_path: Path, forks: Forks
) -> None:
    """With each optimizer: a scheduler, dropout, BatchNorm, tied weights, three generators."""
    whole = train(forks, tmp_path / "whole", 8)
    train(None, tmp_path / "store", 4)
    resumed = train(forks, tmp_path / "store", 8, "@step=4")
    assert resumed.keys() == whole.keys()
    for kind, told in resumed.items():
        assert told["losses"] == whole[kind]["losses"][4:], kind
        assert told["fingerprint"] == whole[kind]["fingerprint"], kind
    repo = ckptstore.open(tmp_path / "store")
    assert [c.step for c in repo.log("AdamW")] == [8, 4]
    assert repo.verify().ok
