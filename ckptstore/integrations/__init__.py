"""Integrations: ckptstore in the training loops of other frameworks.

Each module imports its framework, and nothing below imports these modules: they are entry points.
See docs/adr/0024.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def needed(extra: str) -> Iterator[None]:
    """Name the extra that brings a package where it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}. Install what this integration needs: pip install 'ckptstore[{extra}]'",
            name=error.name,
        ) from error
