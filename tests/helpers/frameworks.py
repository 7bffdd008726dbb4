"""Which modules need a framework that only `make frameworks` installs."""

from __future__ import annotations

import pytest

INTEGRATIONS = "ckptstore.integrations."
INSTALLED = ("dcp", "keras", "tensorboard")  # integrations whose frameworks every test can import


def needs_framework(module: str) -> bool:
    """True for an integration whose framework the other tests do without."""
    return module.startswith(INTEGRATIONS) and not module.removeprefix(INTEGRATIONS).startswith(
        INSTALLED
    )


def marked(module: str) -> object:
    """A module as a parameter of a test, which runs where its framework is installed."""
    marks = [pytest.mark.framework] if needs_framework(module) else []
    return pytest.param(module, marks=marks)
