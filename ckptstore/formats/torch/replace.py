"""The walk of an unpickled state that puts lazy arrays in place of its tensors."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

import torch

from ckptstore.documents.structure import DEPTH_MAX
from ckptstore.formats.torch.numpy import NAME_LENGTH, LongArray, PickledArray

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptstore.formats.torch.text import LongTexts


class Replacer:
    """Puts something in place of each tensor of a state, and of what stands for a long text; lists and dicts are changed as they are."""

    def __init__(self, array: Callable[[torch.Tensor], object], texts: LongTexts) -> None:
        self._array, self._texts = array, texts
        self._known: dict[int, Any] = {}
        self._kept: list[Any] = []  # an id is given again once its object is gone

    def replace(self, value: Any, depth: int = 0) -> Any:
        """What takes the place of a value; of one that was met before, the same."""
        known = self._known
        if id(value) in known:
            return known[id(value)]
        kind = type(value)
        if isinstance(value, torch.Tensor):
            made = self._array(value)
        elif isinstance(value, PickledArray):
            made = self._pickled(value)
        elif kind in (str, bytes, bytearray) and len(value) == NAME_LENGTH:
            made = self._text(value)
        elif kind is tuple and depth <= DEPTH_MAX + 1:
            known[id(value)] = value  # it may hold itself, by way of a list
            made = tuple([self.replace(item, depth + 1) for item in value])
        else:
            if kind in (list, dict, OrderedDict, Counter) and depth <= DEPTH_MAX + 1:
                self._change(value, depth)
            return value
        self._kept.append(value)
        known[id(value)] = made
        return made

    def _pickled(self, value: PickledArray) -> Any:
        found = value.array
        return self._texts.array(found) if isinstance(found, LongArray) else found

    def _text(self, value: str | bytes | bytearray) -> str | bytes | bytearray:
        """The long text, or bytes, that a value stands for; else the value."""
        name = value if isinstance(value, str) else value.decode("latin-1")
        if name not in self._texts:
            return value
        text = self._texts.text(name)
        return text if isinstance(value, str) else type(value)(text.encode("latin-1"))

    def _change(self, value: Any, depth: int) -> None:
        """Replace what is in a list or dict, and in the _metadata that a module's state_dict has."""
        self._known[id(value)] = value
        if type(value) is list:
            value[:] = [self.replace(item, depth + 1) for item in value]
        else:
            items = list(value.items())
            value.clear()
            for key, item in items:
                value[self.replace(key, depth + 1)] = self.replace(item, depth + 1)
        if "_metadata" in getattr(value, "__dict__", ()):
            value.__dict__["_metadata"] = self.replace(value.__dict__["_metadata"], depth + 1)
