"""Locate: find the places in a state of the objects that a file is refused for.

Only the error message needs this. Python's unpickler reads the pickle once more, with a stand-in
for everything that it names: no class or function is looked up, so none of its code runs, and the
values are thrown away.
"""

from __future__ import annotations

import pickle
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ckptstore.documents.names import escape_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptstore.formats.torch.text import PickleStream

READS_MAX = 2_000_000
READ_BYTES_MAX = 64 << 20  # in all
VALUES_MAX = 1_000_000  # values that are searched
PLACES_MAX = 3
CLASSES_MAX = 10_000  # a class takes a kilobyte
_DICTS = ("OrderedDict", "Counter")
_REMEDIES = {
    "argparse.Namespace": "vars(…) of it",
    "types.SimpleNamespace": "vars(…) of it",
    "omegaconf.dictconfig.DictConfig": "OmegaConf.to_container(…) of it",
    "omegaconf.listconfig.ListConfig": "OmegaConf.to_container(…) of it",
    "pathlib.PosixPath": "str(…) of it",
    "pathlib.WindowsPath": "str(…) of it",
}


class _StandIn:
    """An object of any class."""

    name = ""

    def __new__(cls, *_: object, **__: object) -> _StandIn:
        return object.__new__(cls)

    def __setstate__(self, *_: object) -> None:
        pass


class _Reader(pickle._Unpickler):  # noqa: SLF001 - the one in Python
    """Reads any pickle within limits, without looking anything up."""

    def __init__(self, stream: PickleStream) -> None:
        self._stream = stream
        self._reads, self._bytes = READS_MAX, READ_BYTES_MAX
        # A new class each time: a pickle can set attributes of a class, and others would share it.
        self._dict = type("Dict", (dict,), {})
        self._classes: dict[str, type] = {}
        super().__init__(self, encoding="utf-8")

    def read(self, size: int) -> bytes:
        """Return the next bytes; ValueError beyond the limits."""
        self._reads -= 1
        self._bytes -= size
        if self._reads < 0 or self._bytes < 0:
            raise ValueError("it is too large to look for more")
        return self._stream.read(size)

    def readline(self) -> bytes:
        """Return the next line."""
        return self._stream.readline()

    def find_class(self, module: str, name: str) -> type:
        """Return a stand-in for a class or function; ValueError beyond the limit."""
        if module == "collections" and name in _DICTS:
            return self._dict
        whole = f"{module}.{name}"
        if whole not in self._classes:
            if len(self._classes) >= CLASSES_MAX:
                raise ValueError("it names too many classes to look for more")
            self._classes[whole] = type("StandIn", (_StandIn,), {"name": whole})
        return self._classes[whole]

    def persistent_load(self, _: object) -> None:
        """Return nothing in place of a storage."""


def located(stream: PickleStream, start: int, name: str) -> tuple[str, str]:
    """Return the places of the objects that need a class or function.

    Args:
        stream: The file to read.
        start: The offset of the pickle.
        name: The class or function, with its module.

    Returns:
        The paths as a part of a sentence, and a remedy; both are empty if nothing was found.
    """
    places: list[str] = []
    with suppress(Exception):  # it may be damaged, and the caller has an error already
        stream.seek(start)
        state = _Reader(stream).load()
        for path, found in _objects(state):
            if found == name or found == f"builtins.{name}":
                places.append(repr(path) if path else "the whole state")
    some = ", ".join(places[:PLACES_MAX]) + (", …" if len(places) > PLACES_MAX else "")
    return (f" at {some}" if some else ""), _REMEDIES.get(name, "")


def _objects(state: Any) -> Iterator[tuple[str, str]]:
    """Yield the path and the class of each object that is in a dict, list or tuple."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", state)]
    while waiting and len(seen) < VALUES_MAX:
        path, value = waiting.pop()
        kind = value if isinstance(value, type) else type(value)
        if issubclass(kind, _StandIn):
            yield path, kind.name
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            prefix = f"{path}/" if path else ""
            waiting += [(f"{prefix}{escape_key(str(key))}", item) for key, item in items][::-1]
