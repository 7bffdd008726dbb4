"""Classes: namedtuples, dataclasses and enumerations as their fields, and the way back.

A structure names the class. No reader imports what it names: a class becomes known by
`register_codec` alone, and values of others come back as a `NamedValue`. No constructor of a class
runs, so a checkpoint gives its fields, and nothing else happens. ADR 0052; section 12.1 of
docs/reference/format.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum, Flag
from typing import Any, Final

from ckptstore.errors import CorruptError, InvalidInputError, UnsupportedValueError, shown

NAMEDTUPLE, DATACLASS, ENUM = "namedtuple", "dataclass", "enum"
_ALSO_OTHERS = (dict, list, tuple, set, frozenset, str, bytes, int, float, complex, BaseException)
_ENUM_VALUES = frozenset({bool, int, float, str, bytes, tuple})
_registered: dict[str, type] = {}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class NamedValue:
    """A value of a class that was not registered before the checkout, as its plain fields.

    The fields can be read as attributes. A commit stores it as the value that it stands for.

    Attributes:
        class_kind: "namedtuple", "dataclass" or "enum".
        class_name: The module and the qualified name of the class.
        fields: The values of its fields by name; of a member of an enumeration "name" and "value".
    """

    class_kind: str
    class_name: str
    fields: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in NamedValue.__slots__:
            raise AttributeError(name)
        if name in self.fields:
            return self.fields[name]
        raise AttributeError(f"{self!r} has no field {name!r}. {self._way_out}")

    def __repr__(self) -> str:
        return f"<{self.class_kind} {shown(self.class_name)}, not registered: {shown(self.fields)}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NamedValue):
            return NotImplemented
        one = self.class_kind, self.class_name, self.fields
        return bool(one == (other.class_kind, other.class_name, other.fields))

    def __hash__(self) -> int:
        return hash((self.class_kind, self.class_name, *self.fields))

    @property
    def _way_out(self) -> str:
        name = shown(self.class_name.rpartition(".")[2]).strip("'\"")
        return f"Call ckptstore.register_codec({name}) before the checkout to get the class itself."


def register(cls: type) -> None:
    """Let checkouts make values of a class; InvalidInputError for one that has no plain fields."""
    if kind_of(cls) is None:
        raise InvalidInputError(
            f"{shown(cls)} is no namedtuple, dataclass or enumeration: pass encode and decode too."
        )
    _registered[name_of(cls)] = cls


def is_registered(cls: type) -> bool:
    """True for a class that checkouts may make values of."""
    return _registered.get(name_of(cls)) is cls


def name_of(cls: type) -> str:
    """The name of a class: its module and its qualified name."""
    return f"{cls.__module__}.{cls.__qualname__}"


def kind_of(cls: type) -> str | None:
    """How values of a class are stored; None for a class whose values are more than fields."""
    if issubclass(cls, Enum):
        return ENUM
    if issubclass(cls, tuple):
        names = getattr(cls, "_fields", None)
        is_named = isinstance(names, tuple) and all(isinstance(name, str) for name in names)
        return NAMEDTUPLE if is_named and hasattr(cls, "_make") else None
    if dataclasses.is_dataclass(cls) and not issubclass(cls, _ALSO_OTHERS):
        return DATACLASS
    return None


def text_of(value: Any) -> str:
    """A text for a key or an element of a set, alike in every process, registered or not."""
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value._name_}"
    if isinstance(value, NamedValue) and value.class_kind == ENUM:
        return f"{value.class_name.rpartition('.')[2]}.{value.fields['name']}"
    if isinstance(value, tuple):
        return f"({', '.join(map(text_of, value))})"
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(text_of, value)))}}}"
    is_long = isinstance(value, int) and value.bit_length() > 64
    return hex(value) if is_long else repr(value)  # decimal digits of a long one take long


def encode(value: Any) -> tuple[str, dict[str, Any]] | None:
    """The name of a value's class and its fields; None for a value of any other class."""
    if isinstance(value, NamedValue):
        return f"{value.class_kind}:{value.class_name}", value.fields
    cls = type(value)
    kind = kind_of(cls)
    return None if kind is None else (f"{kind}:{name_of(cls)}", _FIELDS[kind](value))


def is_class(name: str) -> bool:
    """True for a name under which the fields of a class are stored."""
    return name.partition(":")[0] in _FIELDS and ":" in name


def decode(name: str, form: object) -> object:
    """The value with these fields; a `NamedValue` if its class is not registered.

    Raises:
        CorruptError: This is no form of such a value.
        InvalidInputError: The class that is registered has other fields.
    """
    kind, _, class_name = name.partition(":")
    if not isinstance(form, dict) or not all(type(key) is str for key in form):
        raise CorruptError(f"The fields of a {shown(class_name)} are not a dict of texts.")
    if kind == ENUM and form.keys() != {"name", "value"}:
        raise CorruptError(f"A {shown(class_name)} has no name and value.")
    cls = _registered.get(class_name)
    if cls is None:
        return NamedValue(kind, class_name, form)
    if kind_of(cls) != kind:
        raise InvalidInputError(f"{class_name} is no {kind} any more. {_CHANGED}")
    return _MAKE[kind](cls, form)


def _namedtuple_fields(value: Any) -> dict[str, Any]:
    return dict(zip(type(value)._fields, value, strict=True))


def _dataclass_fields(value: Any) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(value)]
    more = [name for name in getattr(value, "__dict__", ()) if name not in names]
    if more:
        raise UnsupportedValueError(
            f"is a dataclass with the attributes {shown(more)} beside its fields. Pass "
            "encode and decode for it to register_codec."
        )
    missing = [name for name in names if not hasattr(value, name)]
    if missing:
        raise UnsupportedValueError(f"is a dataclass whose fields {shown(missing)} have no value")
    return {name: getattr(value, name) for name in names}


def _enum_fields(member: Any) -> dict[str, Any]:
    value = member._value_
    return {"name": member._name_, "value": value if type(value) in _ENUM_VALUES else None}


def _make_namedtuple(cls: Any, form: dict[str, Any]) -> object:
    defaults = getattr(cls, "_field_defaults", {})
    _check_fields(cls, form, set(cls._fields), optional=defaults)
    return tuple.__new__(cls, [form[n] if n in form else defaults[n] for n in cls._fields])


def _make_dataclass(cls: Any, form: dict[str, Any]) -> object:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    defaults = {name for name, field in fields.items() if _has_default(field)}
    _check_fields(cls, form, set(fields), optional=defaults)
    made = object.__new__(cls)
    for name, field in fields.items():
        object.__setattr__(made, name, form[name] if name in form else _default(field))
    return made


def _make_enum(cls: Any, form: dict[str, Any]) -> object:
    name, value = form["name"], form["value"]
    if isinstance(name, str) and name in cls.__members__:
        return cls.__members__[name]
    if issubclass(cls, Flag) and type(value) is int:
        flag = cls(value)  # Python 3.11.2 drops bits that no flag has
        if flag._value_ == value:
            return flag
    raise InvalidInputError(f"{name_of(cls)} has no member {shown(name)}. {_CHANGED}")


def _check_fields(cls: type, form: dict[str, Any], names: set[str], *, optional: Any) -> None:
    unknown = sorted(form.keys() - names)
    missing = sorted(names - form.keys() - set(optional))
    if unknown or missing:
        what = f"no field {shown(unknown[0])}" if unknown else f"the new field {shown(missing[0])}"
        raise InvalidInputError(f"{name_of(cls)} has {what}. {_CHANGED}")


def _has_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


_CHANGED: Final = (
    "The class has changed since the checkpoint was made: without register_codec for it, the value "
    "comes back as its plain fields."
)
_FIELDS = {NAMEDTUPLE: _namedtuple_fields, DATACLASS: _dataclass_fields, ENUM: _enum_fields}
_MAKE = {NAMEDTUPLE: _make_namedtuple, DATACLASS: _make_dataclass, ENUM: _make_enum}
