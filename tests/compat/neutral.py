"""One JSON form for states as they were committed, as ckptstore gives them back and as the plain
reader does.

Two states have the same form exactly when they have the same types, order, bits and ties. It is
built from the values alone, without ckptstore.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import Any

from blake3 import blake3

from tests.compat.plain_reader import Array, Ordered, Typed

Form = Any


def neutral(state: Any) -> Form:
    """The JSON form of a state."""
    return _Neutral().form(state)


class _Neutral:
    """The walk of one state; `seen` numbers the arrays, so that tied ones show."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        self.alive: list[Any] = []  # so that no id() is used twice

    def form(self, value: Any) -> Form:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind in _SCALARS:
            return {kind.__name__: _SCALARS[kind](value)}
        if kind in (list, tuple):
            return {kind.__name__: [self.form(item) for item in value]}
        if kind is dict:
            return {"dict": self.pairs(value.items())}
        if kind is OrderedDict:
            return self.ordered(value.items(), getattr(value, "_metadata", None))
        if kind is Ordered:
            return self.ordered(value.pairs, value.metadata)
        if kind is Typed:
            return {"type": value.name, "value": self.form(value.value)}
        return self.array(value) or self.typed(value)

    def pairs(self, items: Any) -> Form:
        return [[self.form(key), self.form(item)] for key, item in items]

    def ordered(self, items: Any, metadata: Any) -> Form:
        return {"ordered_dict": self.pairs(items), "metadata": self.form(metadata)}

    def array(self, value: Any) -> Form:
        found = _array(value)
        if found is None:
            return None
        self.alive.append(value)
        number = self.seen.setdefault(id(value), len(self.seen))
        kind, dtype, shape, data = found
        digest = blake3(data).hexdigest()
        return {"array": kind, "dtype": dtype, "shape": list(shape), "blake3": digest, "as": number}

    def typed(self, value: Any) -> Form:
        """Types with a codec of their own, in the plain form that the document gives for them."""
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        if name == "torch.Size":
            return {"type": name, "value": self.form(list(value))}
        if name == "torch.dtype":
            return {"type": name, "value": self.form(str(value).removeprefix("torch."))}
        if name == "torch.device":
            return {"type": name, "value": self.form(str(value))}
        scalar = [value.dtype.name, value.tobytes().hex()]
        return {"type": "numpy.scalar", "value": self.form(scalar)}


def _array(value: Any) -> tuple[str, str, tuple[int, ...], bytes] | None:
    if isinstance(value, Array):
        return value.kind, value.dtype, value.shape, value.data
    module = type(value).__module__
    if module == "numpy" and type(value).__name__ == "ndarray":
        return "ndarray", value.dtype.name, value.shape, value.tobytes()
    if module.startswith("torch") and type(value).__name__ in ("Tensor", "Parameter"):
        import torch

        flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
        dtype = str(value.dtype).removeprefix("torch.")
        return "tensor", dtype, tuple(value.shape), flat.numpy().tobytes()
    return None


_SCALARS: dict[type, Any] = {
    int: hex,
    str: lambda text: text.encode("utf-8", "surrogatepass").hex() if not text.isascii() else text,
    float: lambda number: struct.pack(">d", number).hex(),
    complex: lambda number: struct.pack(">2d", number.real, number.imag).hex(),
    bytes: bytes.hex,
    bytearray: lambda data: bytes(data).hex(),
}
