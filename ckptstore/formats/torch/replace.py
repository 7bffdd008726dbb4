"""The walk through an unpickled state that puts arrays in place of what stands for them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

import torch

from ckptstore.documents.structure import DEPTH_MAX
from ckptstore.formats.torch.numpy import PickledArray

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptstore.formats.torch.text import LongTexts


class Replacer:
    """Replaces the tensors, numpy arrays and long texts of a state.

    Lists and dicts are changed in place.

    Args:
        array: Returns what replaces a tensor.
        texts: The long texts and numpy arrays of the file.
    """

    def __init__(self, array: Callable[[torch.Tensor], object], texts: LongTexts) -> None:
        self._array, self._texts = array, texts
        self._known: dict[int, Any] = {}
        self._kept: list[Any] = []  # the id of an object that is gone is given again

    def replace(self, value: Any, depth: int = 0) -> Any:
        """Return what replaces a value: the same for one that was met before."""
        known = self._known
        if id(value) in known:
            return known[id(value)]
        kind = type(value)
        if isinstance(value, torch.Tensor):
            new = self._array(value)
        elif isinstance(value, PickledArray):
            new = self._texts.array(value)
        elif kind in (str, bytes, bytearray):
            new = self._texts.value(value)
            if new is value:
                return value
        elif kind is tuple and depth <= DEPTH_MAX + 1:
            known[id(value)] = value  # it may contain itself, through a list
            new = tuple([self.replace(item, depth + 1) for item in value])
        else:
            if kind in (list, dict, OrderedDict, Counter) and depth <= DEPTH_MAX + 1:
                self._change(value, depth)
            return value
        self._kept.append(value)
        known[id(value)] = new
        return new

    def _change(self, value: Any, depth: int) -> None:
        """Replace what is in a list or dict, and in the _metadata of a module's state_dict."""
        self._known[id(value)] = value
        if type(value) is list:
            value[:] = [self.replace(item, depth + 1) for item in value]
        else:
            items = list(value.items())
            value.clear()
            for key, item in items:
                new_key = self.replace(key, depth + 1)
                try:
                    value[new_key] = self.replace(item, depth + 1)
                except TypeError as error:
                    raise self._texts.refused("as the key of a dict, which cannot be") from error
        if "_metadata" in getattr(value, "__dict__", ()):
            value.__dict__["_metadata"] = self.replace(value.__dict__["_metadata"], depth + 1)
