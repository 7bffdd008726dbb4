"""Helpers of the format tests: states by path and bits, and a repository round trip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ckptstore
from ckptstore.commit.flatten import flatten
from ckptstore.formats import read_file

if TYPE_CHECKING:
    from pathlib import Path

Bits = dict[str, tuple[str, tuple[int, ...], bytes]]


def bits_of(state: Any) -> Bits:
    """Dtype, shape and bytes of each array, by its path."""
    return {
        path: (source.dtype, source.shape, source.whole().tobytes())
        for path, source in flatten(state).arrays.items()
    }


def committed(path: Path) -> Any:
    """The contents of a file after a commit and a checkout."""
    repo = ckptstore.init("memory://", chunk_size=64 << 10)
    return repo.checkout(repo.commit(read_file(path).state).id)
