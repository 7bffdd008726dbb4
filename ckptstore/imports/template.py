"""Templates of file names, such as "old/ckpt_{step}.pt", and proposals for the names in a folder.

A field matches one number: `{step}`, `{epoch}` and the like an integer, any other field, which
names a metric, an integer or a float. `*` and `?` match as in a shell, within one component of a
path. Pure.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptstore.errors import InvalidInputError, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

STEPS = ("step", "global_step", "iteration", "iter", "it")  # names that stand for the step
EPOCHS = ("epoch", "epochs", "ep")
COUNTS = frozenset({*STEPS, *EPOCHS, "batch", "steps", "iterations"})
_WORDS = {"e": "epoch", "s": "step", "i": "iter"}
_COUNT = r"[0-9]{1,18}"
_FLOAT = r"[+-]?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:nan|inf)"
_PIECE = re.compile(r"\{([^{}]+)\}|(\*)|(\?)|([^{}*?]+)|([{}])")


@dataclass(frozen=True, slots=True)
class Template:
    """A template of one component of a path.

    Attributes:
        pattern: The regular expression for a name.
        fields: The names of the groups of the pattern.
    """

    pattern: re.Pattern[str]
    fields: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Parse one component.

        Raises:
            InvalidInputError: A brace is not part of a field.
        """
        fields: list[str] = []
        pattern = ""
        for name, star, mark, literal, brace in _PIECE.findall(text):
            if brace:
                raise InvalidInputError(
                    f"{shown(text)} is not a template: a brace belongs to a field such as {{step}}."
                )
            if name in fields:
                pattern += f"(?P=f{fields.index(name)})"
            elif name:
                form = _COUNT if name in COUNTS else _FLOAT
                pattern += f"(?P<f{len(fields)}>{form})"
                fields.append(name)
            else:
                pattern += "[^/]*" if star else "[^/]" if mark else re.escape(literal)
        return cls(re.compile(pattern), tuple(fields))

    def match(self, name: str) -> dict[str, int | float] | None:
        """Return the numbers of the fields in a name, or None if it does not match."""
        match = self.pattern.fullmatch(name)
        if match is None:
            return None
        groups = zip(self.fields, match.groups(), strict=True)
        return {field: number(text) for field, text in groups}


def number(text: str) -> int | float:
    """Return a number as it is written; ValueError for other text."""
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else float(text)


def is_plain(text: str) -> bool:
    """Return True for a component without fields and wildcards."""
    return not set(text) & set("{}*?")


def proposed(names: Iterable[str]) -> list[tuple[str, int]]:
    """Return templates that fit names, each with the number of names that it fits, most first.

    Args:
        names: Names of files or folders, such as "epoch=3-val_loss=0.25.ckpt".
    """
    return Counter(filter(None, map(_template_of, names))).most_common()


def _template_of(name: str) -> str | None:
    """Return the template that a name suggests; None for a name without a number."""
    used: set[str] = set()

    def field(match: re.Match[str]) -> str:
        word, mark, text = match["name"] or "", match["mark"], match["number"]
        if text[:1] == "-" and not mark:  # the number in "model-100" is not negative
            mark, text = "-", text[1:]
        known = word.lower().rpartition("_")[2]
        default = _WORDS.get(known, known)
        is_count = re.fullmatch(_COUNT, text) is not None
        if mark == "=":
            chosen = word
        elif default in COUNTS:
            chosen = default
        else:
            chosen = "step" if is_count else (word or "metric")
        if not chosen or chosen in used:
            return match[0]
        used.add(chosen)
        return f"{word}{mark}{{{chosen}}}"

    stem, dot, suffix = name.rpartition(".")
    if not dot or re.fullmatch("[0-9]+", suffix):
        stem, suffix = name, ""
    template = re.sub(
        rf"(?<![A-Za-z0-9])(?P<name>[A-Za-z][A-Za-z_/]*?)?(?P<mark>[=_\- ]?)(?P<number>{_FLOAT})"
        r"(?![A-Za-z0-9])",
        field,
        stem,
    )
    return f"{template}{dot if suffix else ''}{suffix}" if used else None
