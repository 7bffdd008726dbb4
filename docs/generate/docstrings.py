"""An extension of Griffe, which reads docstrings for mkdocstrings: `Example:` contains code.

Griffe knows the section as `Examples:`, and would show doctests below `Example:` as prose.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(r"^( *)Example:$", flags=re.MULTILINE)


class ExampleSections(griffe.Extension):
    """Renames the section."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object once it has been read."""
        if obj.docstring:
            obj.docstring.value = _SECTION.sub(r"\1Examples:", obj.docstring.value)
