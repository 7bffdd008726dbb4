"""The extra memory of commit and checkout(into=) is bounded for any size and strides."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.root import ROOT

pytestmark = pytest.mark.slow

COMMIT_MIB = 128
INTO_MIB = 64
FAR_COMMIT_MIB, FAR_INTO_MIB = 448, 320  # 128 each, and what the client and its allocator hold


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark is Linux's")
@pytest.mark.parametrize("size_mib", [192, pytest.param(600, marks=pytest.mark.deep)])
def test_extra_memory_is_bounded(size_mib: int, tmp_path: Path) -> None:
    """192 MiB are more than both bounds: whoever copies a whole array is found out."""
    command = [sys.executable, "-m", "tests.helpers.commit_memory", str(tmp_path), str(size_mib)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    limits = {name: COMMIT_MIB if name.startswith("commit") else INTO_MIB for name in found}
    assert {name: mib for name, mib in found.items() if mib >= limits[name]} == {}
    assert len(found) == 12


@pytest.mark.deep
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark is Linux's")
def test_extra_memory_on_an_object_store_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """768 MiB are more than both bounds."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    command = [sys.executable, "-m", "tests.helpers.far_memory", "768"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["commit"] < FAR_COMMIT_MIB
    assert found["into"] < FAR_INTO_MIB
