"""A fast place for repositories, and no threads."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crash.threads import COUNTS

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMORY = "/dev/shm"


@pytest.fixture
def scratch() -> Iterator[Path]:
    """An empty folder, in memory where there is such a place: who only looks at what was asked for needs no disk."""
    place = MEMORY if os.access(MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="ckptstore-", dir=place)).resolve()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of tiny repositories are checked; threads would only take time to start."""
    for module, name in COUNTS:
        monkeypatch.setattr(module, name, 1)
