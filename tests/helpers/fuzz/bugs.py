"""Mistakes that a fuzzer must find: a check that is gone in the code of each target, and worse."""

from __future__ import annotations

import os
import time
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ckptstore.documents import canonical, page
from ckptstore.formats import npy
from ckptstore.formats.torch.unpickle import Loader
from ckptstore.zarr.encoding import _Check

if TYPE_CHECKING:
    from collections.abc import Callable


def _patch(holder: Any, name: str, replacement: Callable[..., Any]) -> Callable[[], None]:
    return lambda: setattr(holder, name, replacement)


def _also(action: Callable[[], object]) -> Callable[[], None]:
    """Do something besides when the first JSON document is decoded."""
    decode, once = canonical.decode, cache(action)

    def worse(*arguments: Any, **options: Any) -> Any:
        once()
        return decode(*arguments, **options)

    return _patch(canonical, "decode", worse)


def _compute() -> None:
    end = time.process_time() + 2.5
    while time.process_time() < end:
        pass


BUGS: dict[str, Callable[[], None]] = {
    "documents: the shape of an array may hold anything": _patch(
        page, "_shape", lambda values, *, name: tuple(values)
    ),
    "operations: integers may be anything": _patch(
        canonical, "check_integer", lambda value, **bounds: value
    ),
    "pt: errors of the unpickler are passed on": _patch(
        Loader, "_refused", lambda self, error, *, protocol: error
    ),
    "arrays: numpy makes a dtype of any text": _patch(
        npy, "_known", lambda text, name: np.dtype(text).name
    ),
    "zarr: the chunk shape may hold anything": _patch(
        _Check, "steps", lambda self, value, shape: tuple(value)
    ),
    "documents: takes 600 MB": _also(lambda: b"x" * (600 << 20)),
    "documents: takes seconds": _also(_compute),
    "documents: ends the process": _also(os.abort),
}
