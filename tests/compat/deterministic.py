"""A ckptstore with a fixed clock and fixed names: equal commits write equal bytes."""

from __future__ import annotations

import secrets
from collections import defaultdict
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING
from unittest.mock import patch

import ckptstore
from ckptstore.documents.author import Author
from ckptstore.store import author

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ckptstore import Repository

NOW = 1_767_225_600  # 2026-01-01 00:00:00 UTC, in seconds


@contextmanager
def deterministic(root: Path, *, chunk_size: int) -> Iterator[Repository]:
    """A new repository whose clock and process are fixed; names of each length count upwards."""
    names: dict[int, count[int]] = defaultdict(lambda: count(1))

    def token_hex(nbytes: int) -> str:
        return f"{next(names[nbytes]):0{2 * nbytes}x}"

    process = Author(role="", user="ada", host="desk", program="train.py", pid=1)
    with (
        patch.object(secrets, "token_hex", token_hex),
        patch.object(author, "_process", lambda: process),
    ):
        yield ckptstore.init(root, chunk_size=chunk_size, clock=lambda: NOW)
