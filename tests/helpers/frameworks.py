"""Which modules need a framework that only `make frameworks` installs."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

INTEGRATIONS = "ckptstore.integrations."
INSTALLED = ("dcp", "keras", "tensorboard")  # integrations whose frameworks every test can import
_MARKED = re.compile(r"^(pytestmark = \[?|    )pytest\.mark\.framework\b", flags=re.MULTILINE)


def needs_framework(module: str) -> bool:
    """True for an integration whose framework the other tests do without."""
    return module.startswith(INTEGRATIONS) and not module.removeprefix(INTEGRATIONS).startswith(
        INSTALLED
    )


def imports_framework(path: Path) -> bool:
    """True for a module of tests that are all marked `framework`: it imports one at its top."""
    return path.suffix == ".py" and _MARKED.search(path.read_text(encoding="utf-8")) is not None


def are_wanted(expression: str) -> bool:
    """True if an expression, as of pytest's -m, selects a test that is marked `framework` alone."""
    marks = defaultdict(bool, framework=True)
    return bool(eval(expression or "True", {"__builtins__": {}}, marks))


def marked(module: str) -> object:
    """A module as a parameter of a test, which runs where its framework is installed."""
    marks = [pytest.mark.framework] if needs_framework(module) else []
    return pytest.param(module, marks=marks)
