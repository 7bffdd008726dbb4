"""Waiting for what another thread or process does; pytest's timeout is the only limit."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PAUSE_SECONDS = 0.001


def until(condition: Callable[[], object]) -> None:
    """Return once the condition is true."""
    while not condition():
        time.sleep(PAUSE_SECONDS)
