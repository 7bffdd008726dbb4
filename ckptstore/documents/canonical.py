"""Canonical JSON: one value has one text, and hostile text is refused before it costs anything.

Encoding sorts keys, writes no spaces and only ASCII, so equal documents have equal bytes and one
digest. Decoding refuses what a correct writer never writes: duplicate keys, NaN, absurd depth, size
or number of values (docs/reference/format.md, section 4).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from json.encoder import encode_basestring_ascii
from operator import methodcaller
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from ckptstore.digest import Digest
from ckptstore.errors import CorruptError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Value = TypeVar("Value")

VALUES_MAX = 1_000_000  # about 100 bytes of memory each once parsed: 100 MB
DOCUMENT_BYTES_MAX = 32 << 20

MANY_FLOATS = 10_000  # checking fewer one by one is faster than searching all bytes
_INFINITE = re.compile(rb"[0-9]{200}|[eE]\+?[0-9]{3}")  # every infinite number has one of these
_ENCODER = json.JSONEncoder(
    sort_keys=True,
    separators=(",", ":"),
    ensure_ascii=True,
    allow_nan=False,
    check_circular=False,  # which would take half of the time; what holds itself nests too deeply
    default=methodcaller("to_json"),
)


text_of = _ENCODER.encode
string = encode_basestring_ascii  # encodes one string as the JSON encoder does, but faster


class Document(Protocol):
    """A document as Python holds it."""

    def encode(self) -> bytes:
        """Return its canonical bytes."""

    @classmethod
    def decode(cls, data: bytes, *, name: str) -> Self:
        """Check and decode such bytes."""


def encode(
    document: object, *, name: str = "The document", bytes_max: int = DOCUMENT_BYTES_MAX
) -> bytes:
    """Encode a document to its canonical bytes; refuse what no reader accepts."""
    try:
        data = _ENCODER.encode(document).encode("ascii")
        check_size(data, name=name, bytes_max=bytes_max)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInputError(f"{name} has no JSON form: {error}.") from error
    except CorruptError as error:
        raise InvalidInputError(f"{error}{_filled_by(document)}") from error
    return data


def readable(document: Document, *, name: str) -> bytes:
    """Encode a document that is about to be put, once its own reader takes it back.

    The last line of defence: a limit that nothing checked where a value came in stops one call
    here, and not every reader afterwards. For documents of a few kilobytes; pages and structures
    are bounded where they are made, as decoding them would take a third of a commit's time.

    Raises:
        InvalidInputError: No reader would accept the document.
    """
    data = document.encode()
    try:
        document.decode(data, name=name)
    except CorruptError as error:
        raise InvalidInputError(f"Nothing was written, as no reader accepts it: {error}") from error
    return data


def decode(data: bytes, *, name: str, bytes_max: int = DOCUMENT_BYTES_MAX) -> dict[str, Any]:
    """Decode one JSON object; `name` names in errors what was read."""
    try:
        document = json.loads(
            text(data, name=name, bytes_max=bytes_max),
            object_pairs_hook=unique,
            parse_constant=_no_constant,
            parse_float=_finite if _may_be_infinite(data) else None,
        )
    except RecursionError as error:
        raise CorruptError(f"{name} is nested more deeply than any document may be.") from error
    except ValueError as error:
        raise CorruptError(f"{name} is not a canonical JSON document: {error}.") from error
    if not isinstance(document, dict):
        raise CorruptError(f"{name} is not a JSON object.")
    return document


def _filled_by(document: object) -> str:
    """Return a sentence for an error that names the largest field of a document of several."""
    if not isinstance(document, dict) or len(document) < 2:
        return ""
    sizes = {key: len(_ENCODER.encode(value)) for key, value in document.items()}
    largest = max(sizes, key=sizes.__getitem__)
    return f" Most of it is {largest!r}, with {sizes[largest]} bytes: pass less of that."


def text(data: bytes, *, name: str, bytes_max: int = DOCUMENT_BYTES_MAX) -> str:
    """Return the characters of a document; CorruptError if there are too many, or not ASCII."""
    check_size(data, name=name, bytes_max=bytes_max)
    try:
        return data.decode("ascii")
    except ValueError as error:
        raise CorruptError(f"{name} is not a canonical JSON document: {error}.") from error


def check_size(data: bytes, *, name: str, bytes_max: int = DOCUMENT_BYTES_MAX) -> None:
    """Refuse a document that is larger, or holds more values, than any correct writer makes."""
    if len(data) > bytes_max:
        raise CorruptError(f"{name} has {len(data)} bytes; a document has at most {bytes_max}.")
    if values(data) > VALUES_MAX:
        raise CorruptError(f"{name} holds more than {VALUES_MAX} values.")


def values(data: bytes) -> int:
    """Return how many values a JSON document holds at most, before it is parsed."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object; ValueError for a name that occurs twice, of which readers differ."""
    document = dict(pairs)
    if len(document) != len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"it has two values named {name[:60]!r}")
    return document


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _may_be_infinite(data: bytes) -> bool:
    """Return False when no number in it can be too large for a double."""
    return data.count(b".") < MANY_FLOATS or _INFINITE.search(data) is not None


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is too large for a double")
    return number


class Fields:
    """Reads the fields of a decoded object, checking the type and range of each."""

    __slots__ = ("document", "name")

    def __init__(self, document: object, *, name: str) -> None:
        if not isinstance(document, dict):
            raise CorruptError(f"{name} is not a JSON object.")
        self.document: Mapping[str, Any] = document
        self.name = name

    def get(self, key: str) -> Any:
        """Return the value of a field that must be there."""
        try:
            return self.document[key]
        except KeyError:
            raise CorruptError(f"{self.name} lacks the field {key!r}.") from None

    def version(self, *, newest: int = 1) -> int:
        """Return the document's version of the format; InvalidInputError for a later one."""
        version = self.integer("format", low=1)
        if version > newest:
            raise InvalidInputError(
                f"{self.name} was written by a newer ckptstore. Upgrade to read it."
            )
        return version

    def integer(self, key: str, *, low: int = 0, high: int = 2**63 - 1) -> int:
        """Return an integer within bounds."""
        return check_integer(self.get(key), name=f"{self.name}: {key}", low=low, high=high)

    def integer_or_none(self, key: str, *, low: int = 0, high: int = 2**63 - 1) -> int | None:
        """Return an integer within bounds, or None for null."""
        return None if self.get(key) is None else self.integer(key, low=low, high=high)

    def text(self, key: str, *, length_max: int = 1 << 20) -> str:
        """Return a string of bounded length."""
        value = self.get(key)
        if not isinstance(value, str) or len(value) > length_max:
            raise CorruptError(
                f"{self.name}: {key} is not a string of at most {length_max} characters."
            )
        return value

    def array(self, key: str, *, low: int = 0, high: int | None = None) -> list[Any]:
        """Return a JSON array, whose length is within bounds."""
        value = self.get(key)
        if not isinstance(value, list):
            raise CorruptError(f"{self.name}: {key} is not a JSON array.")
        if high is not None and not low <= len(value) <= high:
            raise CorruptError(f"{self.name} has {len(value)} {key}; {low} to {high} are allowed.")
        return value

    def object(self, key: str) -> dict[str, Any]:
        """Return a JSON object."""
        value = self.get(key)
        if not isinstance(value, dict):
            raise CorruptError(f"{self.name}: {key} is not a JSON object.")
        return value

    def digest(self, key: str) -> Digest:
        """Return a digest."""
        return check_digest(self.get(key), name=self.name)

    def digests(self, key: str, *, high: int | None = None) -> tuple[Digest, ...]:
        """Return a JSON array of digests."""
        return tuple([check_digest(text, name=self.name) for text in self.array(key, high=high)])

    def optional(self, key: str, read: Callable[[str], Value]) -> Value | None:
        """Return what `read` makes of a field, or None when there is no such field."""
        return read(key) if key in self.document else None


def legal(check: Callable[..., Value], *args: object, name: str, **options: object) -> Value:
    """Return what a check of what users pass returns; its InvalidInputError is a CorruptError."""
    try:
        return check(*args, **options)
    except InvalidInputError as error:
        raise CorruptError(f"{name}: {error}") from error


def check_integer(value: object, *, name: str, low: int = 0, high: int = 2**63 - 1) -> int:
    """Return an integer within bounds, or raise CorruptError."""
    if type(value) is not int or not low <= value <= high:
        raise CorruptError(
            f"{name} is {str(value)[:40]!r}; an integer from {low} to {high} is expected."
        )
    return value


def check_digest(text: object, *, name: str) -> Digest:
    """Return a digest read from a document, or raise CorruptError."""
    try:  # not by `legal`, as a page has thousands
        return Digest.parse(text)
    except InvalidInputError as error:
        raise CorruptError(f"{name}: {error}") from error
