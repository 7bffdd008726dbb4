"""Queries over a history: which checkpoints to list, and in which order.

Pure. A condition such as `val_loss < 0.2 and step > 1000` is parsed by hand, never by Python:

condition    comparison, "and", "or", parentheses; "and" binds tighter
comparison   NAME < VALUE, with <, <=, >, >=, = (or ==) and !=
NAME         step, branch, message, meta.KEY or a metric; a quoted name is always a metric
VALUE        a number, also nan and inf; a word; quoted text

A comparison is false if the checkpoint lacks the name, or if a value is NaN. Only `= nan` finds
NaN, and `!= nan` everything else.
"""

from __future__ import annotations

import math
import operator
import re
import sys
from dataclasses import dataclass, replace
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from ckptstore.errors import InvalidInputError, shown
from ckptstore.metric_names import known_names, mode_of, parse_choice, quoting, unquoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

CONDITION_LENGTH_MAX = 10_000
CONDITION_DEPTH_MAX = 50
TEXT_NAMES = ("branch", "message")
META = "meta."
_TOKEN = re.compile(
    r"""\s*(?:(?P<symbol><=|>=|==|!=|[<>=()])|(?P<quoted>"(?:[^"\\]|\\["\\])*"|'[^']*')"""
    r"""|(?P<word>[^\s<>=!()'"]+))"""
)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:inf|nan)")
_EXAMPLE = "as in val_loss < 0.2 and step > 1000"


class Described(Protocol):
    """The attributes of a checkpoint that a query uses."""

    @property
    def step(self) -> int | None:
        """The training step."""

    @property
    def metrics(self) -> Mapping[str, int | float]:
        """Numbers by name."""

    @property
    def branch(self) -> str | None:
        """The branch of the commit."""

    @property
    def message(self) -> str:
        """The message."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """Further values by name."""


Item = TypeVar("Item", bound=Described)


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """A name in a query: `step`, `branch`, `message`, `meta.KEY`, or a metric."""

    text: str
    is_metric: bool = False

    @classmethod
    def of(cls, text: str, *, is_quoted: bool) -> Self:
        """Parse a name; a quoted one is that of a metric."""
        is_fact = text in ("step", *TEXT_NAMES) or text.startswith(META)
        return cls(text=text, is_metric=is_quoted or not is_fact)

    def values(self, item: Described) -> Mapping[str, Any]:
        """The values of a checkpoint of the same kind, by their names in a query."""
        if self.is_metric:
            return item.metrics
        if self.text.startswith(META):
            return {f"{META}{key}": value for key, value in item.meta.items()}
        return {name: getattr(item, name) for name in ("step", *TEXT_NAMES)}

    def of_item(self, item: Described) -> object:
        """The value of a checkpoint; None if it has none."""
        return self.values(item).get(self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One comparison of a condition."""

    name: Name
    symbol: str
    value: float | str

    def matches(self, item: Described) -> bool:
        """Return True if a checkpoint meets the comparison."""
        value = self.name.of_item(item)
        if isinstance(value, bool):
            value = str(value).lower()
        if isinstance(value, str) and not isinstance(self.value, str) and _NUMBER.fullmatch(value):
            value = float(value)  # meta that the command line recorded is text
        if value is None or isinstance(value, str) != isinstance(self.value, str):
            return False
        if _is_nan(value) or _is_nan(self.value):
            is_same = _is_nan(value) and _is_nan(self.value)
            return is_same if self.symbol == "=" else not is_same and self.symbol == "!="
        return bool(_COMPARE[self.symbol](value, self.value))

    def names(self) -> Iterator[Name]:
        """The name in the comparison."""
        yield self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """Conditions joined by "and" or by "or"."""

    parts: tuple[Condition, ...]
    decide: Callable[[Iterable[bool]], bool]

    def matches(self, item: Described) -> bool:
        """Return True if a checkpoint meets all of them, or any for "or"."""
        return self.decide(part.matches(item) for part in self.parts)

    def names(self) -> Iterator[Name]:
        """The names in the conditions."""
        for part in self.parts:
            yield from part.names()


Condition = Comparison | Joined


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An order by a metric, the best first, or by step. Without a finite number comes last."""

    name: Name
    mode: str

    @classmethod
    def parse(cls, text: object) -> Self:
        """Parse NAME or NAME:MODE. Steps are ordered with the highest first.

        Raises:
            InvalidInputError: The text is neither, or the direction of the metric is unknown.
        """
        choice = parse_choice(text) if isinstance(text, str) else None
        if choice is None or choice[1:] not in [(mode, 1) for mode in ("auto", "min", "max")]:
            raise InvalidInputError(
                f"sort is {shown(text)}; step, METRIC or METRIC:max is expected."
                f"{quoting(text) if isinstance(text, str) else ''}"
            )
        name, mode = Name.of(choice[0], is_quoted=str(text).startswith('"')), choice[1]
        if not name.is_metric and name.text != "step":
            raise InvalidInputError(f"sort is {shown(text)}; step or a metric is expected.")
        if mode == "auto":
            mode = mode_of(name.text) if name.is_metric else "max"
        return cls(name=name, mode=mode)

    def key(self, item: Described) -> tuple[bool, float]:
        """The sort key of a checkpoint; checkpoints with equal keys keep their order."""
        value = self.name.of_item(item)
        if not isinstance(value, int | float) or not math.isfinite(value):
            return True, 0.0
        return False, -value if self.mode == "max" else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A condition, an order and a limit of checkpoints."""

    where: Condition | None
    order: Order | None
    limit: int | None

    @classmethod
    def of(
        cls,
        *,
        where: object,
        sort: object,
        limit: object,
        renamed: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> Self:
        """Check what a user passed.

        Args:
            where: A condition, or None.
            sort: An order, or None.
            limit: A number of checkpoints, or None.
            renamed: The earlier names of branches, which their checkpoints record.

        Raises:
            InvalidInputError: An argument is invalid. The message names it.
        """
        if limit is not None and (not isinstance(limit, int) or limit < 0):
            raise InvalidInputError(
                f"The limit is {shown(limit)}; a number of checkpoints is expected."
            )
        return cls(
            where=None if where is None else _with_earlier_names(parse(where), renamed),
            order=None if sort is None else Order.parse(sort),
            limit=None if limit is None else min(limit, sys.maxsize),
        )

    @property
    def count_max(self) -> int:
        """How many checkpoints have to be looked at, at most."""
        if self.where is not None or self.order is not None or self.limit is None:
            return sys.maxsize
        return self.limit

    def select(self, items: Iterable[Item]) -> list[Item]:
        """Return the matching checkpoints in this order, or in that of `items` if there is none.

        Raises:
            InvalidInputError: None of the checkpoints has a name that the query uses.
        """
        unknown, is_empty = {name: set[str]() for name in self._looked_up()}, True

        def matching() -> Iterator[Item]:
            nonlocal is_empty
            for item in items:
                is_empty = False
                for name, known in [*unknown.items()]:
                    known.update(name.values(item))
                    if name.text in known:
                        del unknown[name]
                if self.where is None or self.where.matches(item):
                    yield item

        if self.order:
            found = sorted(matching(), key=self.order.key)[: self.limit]
        else:
            found = list(islice(matching(), self.limit))
        is_whole = self.order is not None or self.limit is None or len(found) < self.limit
        if unknown and is_whole and not is_empty:
            name, known = min(unknown.items(), key=lambda pair: pair[0].text)
            listed = known_names(
                name.text, sorted(known), what="metrics" if name.is_metric else "keys of meta"
            )
            raise InvalidInputError(f"None of these checkpoints has {shown(name.text)}. {listed}")
        return found

    def _looked_up(self) -> set[Name]:
        """Return the names that a checkpoint may lack."""
        names = {*(self.where.names() if self.where else ())}
        names |= {self.order.name} if self.order else set()
        return {name for name in names if name.text not in ("step", *TEXT_NAMES)}


def _with_earlier_names(condition: Condition, renamed: Mapping[str, Sequence[str]]) -> Condition:
    """Return a condition that takes the earlier names of a branch for its name."""
    if isinstance(condition, Joined):
        parts = tuple(_with_earlier_names(part, renamed) for part in condition.parts)
        return replace(condition, parts=parts)
    if condition.name != Name(text="branch"):
        return condition
    values = [condition.value, *renamed.get(str(condition.value), ())]
    return Joined(
        parts=tuple(replace(condition, value=value) for value in values),
        decide=any if condition.symbol == "=" else all,
    )


def parse(text: object) -> Condition:
    """Parse a condition.

    Raises:
        InvalidInputError: The text is not a condition. The message shows where parsing failed.
    """
    if not isinstance(text, str) or len(text) > CONDITION_LENGTH_MAX:
        raise InvalidInputError(f"where is {shown(text)}; a condition is expected, {_EXAMPLE}.")
    return _Parser(text).whole()


class _Parser:
    """Recursive descent over the tokens of a condition."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._end = self._last_end = 0
        self._token: re.Match[str] | None = None
        self._depth = 0
        self._advance()

    def whole(self) -> Condition:
        condition = self._any()
        if self._token or self._text[self._end :].strip():
            raise self._error()
        return condition

    def _any(self) -> Condition:
        return self._joined("or", self._all, any)

    def _all(self) -> Condition:
        return self._joined("and", self._one, all)

    def _joined(
        self,
        word: str,
        part: Callable[[], Condition],
        decide: Callable[[Iterable[bool]], bool],
    ) -> Condition:
        parts = [part()]
        while self._at("word", word):
            self._advance()
            parts.append(part())
        return parts[0] if len(parts) == 1 else Joined(parts=tuple(parts), decide=decide)

    def _one(self) -> Condition:
        if not self._at("symbol", "("):
            return self._comparison()
        self._depth += 1
        if self._depth > CONDITION_DEPTH_MAX:
            raise InvalidInputError(
                f"The condition has more than {CONDITION_DEPTH_MAX} nested parentheses."
            )
        self._advance()
        condition = self._any()
        if not self._at("symbol", ")"):
            raise self._error()
        self._advance()
        self._depth -= 1
        return condition

    def _comparison(self) -> Condition:
        quoted, word = self._take("quoted"), self._take("word")
        if word in ("and", "or") or (word and _NUMBER.fullmatch(word)):
            raise self._error(back=True)
        if quoted is None and word is None:
            raise self._error()
        name = Name.of(word or _unquoted(quoted), is_quoted=not word)
        symbol = (self._take("symbol") or "").replace("==", "=")
        if symbol not in _COMPARE:
            raise self._error(back=bool(symbol))
        quoted, word = self._take("quoted"), self._take("word")
        if quoted is None and word is None:
            raise self._error()
        value: float | str = word or _unquoted(quoted)
        if word and _NUMBER.fullmatch(word) and name.text not in TEXT_NAMES:
            value = float(word)
        self._check(name, symbol, value)
        return Comparison(name=name, symbol=symbol, value=value)

    def _check(self, name: Name, symbol: str, value: float | str) -> None:
        is_text = isinstance(value, str)
        if is_text and symbol not in ("=", "!="):
            raise InvalidInputError(f"{shown(value)} is text, which only = and != can compare.")
        if is_text and (name.is_metric or name.text == "step"):
            raise InvalidInputError(f"{name.text} is compared with {shown(value)}, not a number.")

    def _at(self, kind: str, text: str) -> bool:
        return self._token is not None and self._token[kind] == text

    def _take(self, kind: str) -> str | None:
        """Consume and return the next token if it is of this kind."""
        if self._token is None or self._token[kind] is None:
            return None
        text: str = self._token[kind]
        self._advance()
        return text

    def _advance(self) -> None:
        self._last_end = self._token.start() if self._token else 0
        self._token = _TOKEN.match(self._text, self._end)
        self._end = self._token.end() if self._token else self._end

    def _error(self, *, back: bool = False) -> InvalidInputError:
        at = self._last_end if back else self._token.start() if self._token else self._end
        rest = self._text[at:].strip()
        where = f"at {shown(rest)}" if rest else "at its end"
        return InvalidInputError(
            f"The condition {shown(self._text)} is not understood {where}. Comparisons joined by "
            f"'and' or 'or' are expected, {_EXAMPLE}."
        )


def _unquoted(quoted: str | None) -> str:
    text = quoted or ""
    return text[1:-1] if text.startswith("'") else unquoted(text)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "!=": operator.ne,
}
