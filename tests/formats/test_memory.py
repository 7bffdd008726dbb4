"""Committing a file, and writing one, takes memory that does not grow with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.root import ROOT

pytestmark = pytest.mark.slow

FILES = ("x.safetensors", "shards", "x.npz", "turned.npz", "packed.npz", "x.npy", "x.zarr")
COLUMNS = "columns.zarr"  # its chunks go through all rows, and bands of them are turned at once


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark is Linux's")
@pytest.mark.parametrize(
    ("name", "size_mib", "extra_mib"),
    [
        *((name, 256, 128) for name in FILES),
        (COLUMNS, 512, 256),
        *(pytest.param(name, 2048, 256, marks=pytest.mark.deep) for name in (*FILES, COLUMNS)),
    ],
)
def test_extra_memory_is_bounded(tmp_path: Path, name: str, size_mib: int, extra_mib: int) -> None:
    """A file of twice the bound or more: whoever holds a whole array is found out."""
    command = [
        sys.executable,
        "-m",
        "tests.helpers.format_memory",
        name,
        str(tmp_path),
        str(size_mib),
    ]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found.pop("torch") == 0
    assert found.keys() == {"commit", "checkout", "commit of a lazy checkout"}
    assert {what: mib for what, mib in found.items() if mib >= extra_mib} == {}
