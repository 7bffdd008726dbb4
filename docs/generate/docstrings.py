"""An extension of Griffe, which reads docstrings for mkdocstrings.

- `Example:` becomes `Examples:`, the section that contains code for Griffe; below `Example:` it
  would show doctests as prose.
- References to decisions and to the format become links.
- A default that is a constant is shown as its value.
- A class that describes no arguments is made by the library: its constructor is not shown.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import griffe

if TYPE_CHECKING:
    from collections.abc import Iterator

_DOCS = Path(__file__).parents[1]
_DOCS_FROM_PAGE = "../.."  # from docs/reference/api/PAGE.md
_ADRS = {path.name[:4]: path.stem for path in (_DOCS / "adr").glob("[0-9]*.md")}
_SECTION = re.compile(r"^( *)Example:$", flags=re.MULTILINE)
_ADR = re.compile(r"(?:ADR |docs/adr/)(\d{4})(?:-[\w-]+)?(?:\.md)?")
_FORMAT = re.compile(r"(?:docs/reference/)?\bformat\.md\b")


class Docstrings(griffe.Extension):
    """Prepares docstrings and constructors for the pages of the reference."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object once it has been read."""
        if obj.docstring:
            text = _SECTION.sub(r"\1Examples:", obj.docstring.value)
            text = _ADR.sub(_adr_link, text)
            obj.docstring.value = _FORMAT.sub(
                f"[format.md]({_DOCS_FROM_PAGE}/reference/format.md)", text
            )

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Called for each class once its members have been read."""
        constructor = cls.members.get("__init__")
        texts = [part.docstring.value for part in (cls, constructor) if part and part.docstring]
        if isinstance(constructor, griffe.Function) and not any("Args:" in text for text in texts):
            cls.del_member("__init__")

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Called once for the package, when all names can be resolved."""
        for function in _functions(pkg):
            for parameter in function.parameters:
                if isinstance(parameter.default, griffe.ExprName):
                    parameter.default = _value_of(parameter.default, loader)


def _functions(parent: griffe.Object) -> Iterator[griffe.Function]:
    for member in parent.members.values():
        if isinstance(member, griffe.Function):
            yield member
        elif isinstance(member, griffe.Module | griffe.Class):
            yield from _functions(member)


def _value_of(name: griffe.ExprName, loader: griffe.GriffeLoader) -> griffe.Expr | str:
    try:
        constant = loader.modules_collection[name.canonical_path]
    except KeyError:
        return name
    return constant.value if constant.is_attribute and constant.value else name


def _adr_link(match: re.Match[str]) -> str:
    stem = _ADRS.get(match[1])
    return f"[ADR {match[1]}]({_DOCS_FROM_PAGE}/adr/{stem}.md)" if stem else match[0]
