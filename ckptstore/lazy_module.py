"""Public names that are imported from their modules on first use (PEP 562).

Importing a package must not import torch or numpy for the sake of a name that the program may never
use. A package that uses this module also imports its names under `TYPE_CHECKING`, for type
checkers; a test compares both.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]], *others: str
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return a package's `__getattr__`, `__dir__` and `__all__`.

    Args:
        package: Name of the package.
        homes: Public names by the module that defines them, relative to the package.
        others: Names that the package defines itself and `dir()` lists.
    """
    home_of = {name: f"{package}.{home}" for home, names in homes.items() for name in names}
    public = sorted(home_of)

    def getattr_(name: str) -> object:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home_of[name]), name)

    return getattr_, lambda: [*public, *others], public
