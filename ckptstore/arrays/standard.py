"""Codecs of the standard library's values: containers, paths, times, exact numbers, namespaces.

Importing this module registers them; `ckptstore.arrays.codecs` does. Forms are checked by
the type that is made of it, and any error is that of a damaged checkpoint. A form never costs more
than in proportion to its length: see `check_hashes`. ADR 0052; section 12.1 of
docs/reference/format.md.
"""

from __future__ import annotations

from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import partial
from itertools import groupby
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ckptstore.errors import CorruptError, UnsupportedValueError, shown
from ckptstore.state import classes, codecs
from ckptstore.state.codecs import KEYED, KEYED_ORDERED

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

EQUAL_HASHES_MAX = 64  # values with one hash are compared with each other, all with all

_FACTORIES: dict[str, Callable[[], Any]] = {
    "bool": bool,
    "bytes": bytes,
    "collections.Counter": Counter,
    "collections.OrderedDict": OrderedDict,
    "collections.deque": deque,
    "dict": dict,
    "float": float,
    "int": int,
    "list": list,
    "set": set,
    "str": str,
    "tuple": tuple,
}


def check_hashes(values: Collection[Any]) -> None:
    """Refuse values that were made to have one hash: a set of them would take for ever to build."""
    hashes = sorted(map(hash, values))
    if any(sum(1 for _ in equal) > EQUAL_HASHES_MAX for _, equal in groupby(hashes)):
        raise CorruptError("The checkpoint holds a set or dict of values that have one hash.")


def _sorted(values: Iterable[Any]) -> list[Any]:
    """The elements of a set in an order that does not depend on the process."""
    return sorted(values, key=classes.text_of)


def _set(form: Any, kind: Callable[[Any], Any]) -> Any:
    elements = _of(list, form)
    check_hashes(elements)
    return _whole(kind(elements), elements)


def _keyed(form: Any, kind: Callable[[Any], Any]) -> Any:
    keys, items = _of(list, form["keys"]), _of(dict, form["items"])
    check_hashes(keys)
    return _whole(kind(zip(keys, items.values(), strict=True)), keys)


def _whole(made: Any, elements: list[Any]) -> Any:
    if len(made) != len(elements):
        raise CorruptError("The checkpoint holds a set or dict with an element twice.")
    return made


def _of(kind: type, form: Any) -> Any:
    if type(form) is not kind:
        raise TypeError(f"a {kind.__name__} is expected")
    return form


def _encode_defaultdict(value: Any) -> dict[str, Any]:
    factory = value.default_factory
    name = next((name for name, known in _FACTORIES.items() if known is factory), None)
    if name is None and factory is not None:
        raise UnsupportedValueError(
            f"is a defaultdict that makes its values with {shown(factory)}. A checkpoint can hold "
            f"one with {', '.join(_FACTORIES)} or None. Pass dict(value)."
        )
    return {"factory": name, "items": dict(value)}


def _decode_defaultdict(form: Any) -> Any:
    name = form["factory"]
    return defaultdict(None if name is None else _FACTORIES[name], _of(dict, form["items"]))


def _decode_deque(form: Any) -> Any:
    return deque(_of(list, form["items"]), form["maxlen"])


def _decode_namespace(form: Any) -> Namespace:
    made = Namespace()
    vars(made).update(_of(dict, form))
    return made


def _decode_simple_namespace(form: Any) -> SimpleNamespace:
    made = SimpleNamespace()
    vars(made).update(_of(dict, form))
    return made


def _clock(value: datetime | time) -> list[Any]:
    parts = value.hour, value.minute, value.second, value.microsecond
    return [*parts, value.fold, value.tzinfo]


def _decode_datetime(form: Any) -> datetime:
    *parts, fold, zone = _of(list, form)
    year, month, day, hour, minute, second, part = _integers(parts)
    return datetime(year, month, day, hour, minute, second, part, tzinfo=zone, fold=fold)


def _decode_time(form: Any) -> time:
    *parts, fold, zone = _of(list, form)
    hour, minute, second, part = _integers(parts)
    return time(hour, minute, second, part, tzinfo=zone, fold=fold)


def _encode_timedelta(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _encode_timezone(value: Any) -> list[Any]:
    offset, *name = value.__getinitargs__()
    return [*_encode_timedelta(offset), *name]


def _decode_timezone(form: Any) -> timezone:
    days, seconds, microseconds, *name = _of(list, form)
    return timezone(timedelta(*_integers([days, seconds, microseconds])), *name)


def _decode_timedelta(form: Any) -> timedelta:
    days, seconds, microseconds = _integers(form)
    return timedelta(days, seconds, microseconds)


def _decode_range(form: Any) -> range:
    start, stop, step = _integers(form)
    return range(start, stop, step)


def _integers(form: Any) -> list[int]:
    """A list of integers; the types of datetime would take bytes of their own pickles, too."""
    return [_of(int, number) for number in _of(list, form)]


def _path(kind: type) -> Callable[[Any], object]:
    """Make a path, of another system a pure one. No file is looked at."""
    return lambda form: kind(_of(str, form))


build_in = partial(codecs.build_in, is_replaceable=True)  # as programs did before these were here
build_in("builtins.set", _sorted, lambda form: _set(form, set))
build_in("builtins.frozenset", _sorted, lambda form: _set(form, frozenset))
build_in("builtins.range", lambda r: [r.start, r.stop, r.step], _decode_range)
build_in("builtins.slice", lambda s: [s.start, s.stop, s.step], lambda f: slice(*_of(list, f)))
build_in(KEYED, dict, lambda form: _keyed(form, dict))
build_in(KEYED_ORDERED, dict, lambda form: _keyed(form, OrderedDict))
build_in("collections.defaultdict", _encode_defaultdict, _decode_defaultdict)
build_in(
    "collections.deque",
    lambda value: {"maxlen": value.maxlen, "items": list(value)},
    _decode_deque,
)
build_in("argparse.Namespace", lambda value: dict(vars(value)), _decode_namespace)
build_in("types.SimpleNamespace", lambda value: dict(vars(value)), _decode_simple_namespace)
build_in("datetime.datetime", lambda d: [d.year, d.month, d.day, *_clock(d)], _decode_datetime)
build_in("datetime.date", lambda d: [d.year, d.month, d.day], lambda f: date(*_integers(f)))
build_in("datetime.time", _clock, _decode_time)
build_in("datetime.timedelta", _encode_timedelta, _decode_timedelta)
build_in("datetime.timezone", _encode_timezone, _decode_timezone)
build_in("decimal.Decimal", str, lambda form: Decimal(_of(str, form)))
build_in("uuid.UUID", lambda value: value.hex, lambda form: UUID(hex=_of(str, form)))
_own = type(Path())  # the paths of this system; those of another one come back as pure paths
for _kind, _other in (PosixPath, PurePosixPath), (WindowsPath, PureWindowsPath):
    build_in(f"pathlib.{_other.__name__}", str, _path(_other))
    build_in(f"pathlib.{_kind.__name__}", str, _path(_kind if _kind is _own else _other))
