"""The parts of a long test that every run has."""

from __future__ import annotations

import pytest


def some(chosen: range, of: range) -> list[object]:
    """Parts for every run, and the others for a deep one."""
    return [n if n in chosen else pytest.param(n, marks=pytest.mark.deep) for n in of]
