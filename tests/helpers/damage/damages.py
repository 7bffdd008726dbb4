"""The ways to damage a file, each of which describes what it did, and how to undo it."""

from __future__ import annotations

import os
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Damage = Callable[[Path, random.Random], str]


def flip(path: Path, chance: random.Random, position: int | None = None) -> str:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    place = chance.randrange(len(data)) if position is None else position
    bit = chance.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {place} flipped"


def truncate(path: Path, chance: random.Random, length: int | None = None) -> str:
    length = chance.randrange(path.stat().st_size) if length is None else length
    path.write_bytes(path.read_bytes()[:length])
    return f"cut to {length} bytes"


def lengths(size: int, count: int, chance: random.Random) -> list[int]:
    """Where to cut a file: at the ends, in the middle, at powers of two, and anywhere."""
    fixed = {0, 1, size // 2, size - 1, *(1 << power for power in range(12, 16))}
    found = {length for length in fixed if length < size}
    found |= {chance.randrange(size) for _ in range(count - len(found))}
    return sorted(found)


def extend(path: Path, chance: random.Random) -> str:
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.randint(1, 9)))
    return "made longer"


def pad(path: Path, chance: random.Random) -> str:
    del chance
    path.write_bytes(path.read_bytes() + bytes(4096))
    return "a page of zeros behind its end"


def zero(path: Path, chance: random.Random) -> str:
    del chance
    path.write_bytes(bytes(path.stat().st_size))
    return "all zeros"


def zero_sector(path: Path, chance: random.Random) -> str:
    data = bytearray(path.read_bytes())
    start = chance.randrange(len(data)) & ~511
    assert any(data[start : start + 512]) or not any(data)
    part = data[start : start + 512]
    data[start : start + 512] = bytes(len(part)) if any(part) else b"\1" * len(part)
    path.write_bytes(data)
    return f"the 512 bytes from {start} on lost"


def shift(path: Path, chance: random.Random) -> str:
    """The same bytes, one place on."""
    del chance
    data = path.read_bytes()
    path.write_bytes(b"\0" + data[:-1] if data[-1] or data[0] else b"\1" + data[:-1])
    return "all bytes one place on"


def empty(path: Path, chance: random.Random) -> str:
    del chance
    path.write_bytes(b"")
    return "emptied"


def delete(path: Path, chance: random.Random) -> str:
    del chance
    path.unlink()
    return "deleted"


def folder(path: Path, chance: random.Random) -> str:
    del chance
    path.unlink()
    path.mkdir()
    return "a folder in its place"


def link(path: Path, chance: random.Random) -> str:
    """The target of the link is right, but other programs could change it."""
    del chance
    path.symlink_to(path.rename(_aside(path)))
    return "a link to itself elsewhere"


def fifo(path: Path, chance: random.Random) -> str:
    del chance
    path.unlink()
    os.mkfifo(path)
    return "a FIFO in its place"


DAMAGES: tuple[Damage, ...] = (
    flip,
    truncate,
    extend,
    pad,
    zero,
    zero_sector,
    shift,
    empty,
    delete,
    folder,
    link,
    fifo,
)


@contextmanager
def mended(path: Path) -> Iterator[None]:
    """Undo every change of a file when the context ends."""
    kept = path.read_bytes()
    try:
        yield
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        elif (os.path.lexists(path) and not path.is_file()) or path.is_symlink():
            path.unlink()
        _aside(path).unlink(missing_ok=True)
        path.write_bytes(kept)


def _aside(path: Path) -> Path:
    """A path outside the repository for a file of it."""
    root = next(folder for folder in path.parents if (folder / "objects").is_dir())
    return root.parent / f"{path.name}-aside"
