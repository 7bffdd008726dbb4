"""The parts of a long test that every run has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Collection


def some(chosen: Collection[object], of: Collection[object]) -> list[object]:
    """Parts for every run, and the others for a deep one. A tuple is a value for each name."""
    parts = []
    for part in of:
        values = part if isinstance(part, tuple) else (part,)
        parts.append(pytest.param(*values, marks=() if part in chosen else pytest.mark.deep))
    return parts
