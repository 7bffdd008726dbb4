"""The peers of ckptstore: torch.save, safetensors, and the limits of the machine.

`loose_files` is the floor of the store's own layout: the same bytes hashed and written as as many
files, without a repository around them.

"Durable" is the same for all: the data of the new file and its name in the folder are on disk when
the call returns. Every save writes a new file; truncating an old one costs three times as much.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from bench.measure import Contender, keep
from ckptstore.documents.page import SMALL_BYTES
from ckptstore.storage.writeback import begin_writeback

HASHED_BYTES = 8 << 20  # also the largest chunk of a repository
_number = itertools.count()
BUNDLED = 180  # small arrays in a file: the mean of the pages of 5,000


def save(name: str, folder: Path, write: Callable[[Path], object]) -> Contender:
    """A contender that writes one new file durably."""

    def call(path: Path) -> None:
        write(path)
        make_durable(path)

    def prepare() -> Path:
        return folder / f"{name.replace(' ', '-')}-{next(_number)}"

    return Contender(name=name, prepare=prepare, call=call, clean=keep)


def torch_save(state: object, folder: Path) -> Contender:
    """torch.save to a path, durable."""
    return save("torch.save", folder, lambda path: torch.save(state, path))


def safetensors_save(tensors: Mapping[str, torch.Tensor], folder: Path) -> Contender:
    """safetensors' save_file, durable."""
    return save("safetensors", folder, lambda path: save_file(dict(tensors), path))


def raw_write(views: Sequence[memoryview], folder: Path) -> Contender:
    """Only the bytes, in one file, durable."""
    return save("raw write", folder, lambda path: write_views(views, path))


def loose_files(views: Iterable[memoryview], folder: Path) -> Contender:
    """A durable file for each chunk, named by its BLAKE3: the least that a commit of them needs.

    Two threads hash and write, and have the kernel begin to write to the disk. Then each file is
    fsynced, and the folder once. Arrays of less than 64 KiB share files, as in a repository.
    """
    large, small = [], []
    for view in views:
        (small if len(view) < SMALL_BYTES else large).append(view)
    chunks = [
        [view[start : start + HASHED_BYTES]]
        for view in large
        for start in range(0, len(view), HASHED_BYTES)
    ]
    bundles = [small[start : start + BUNDLED] for start in range(0, len(small), BUNDLED)]

    def write(path: Path, parts: list[memoryview]) -> int:
        for part in parts[1:]:
            blake3(part).hexdigest()
        data = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
        fd = os.open(path / blake3(data).hexdigest(), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        while data:
            data = data[os.write(fd, data) :]
        begin_writeback(fd)
        return fd

    def call(path: Path) -> None:
        with ThreadPoolExecutor(2) as pool:
            for fd in pool.map(partial(write, path), [*chunks, *bundles]):
                os.fsync(fd)
                os.close(fd)
        make_durable(path)

    def prepare() -> Path:
        return Path(tempfile.mkdtemp(dir=folder))

    return Contender(name="loose files", prepare=prepare, call=call, clean=keep)


def blake3_two_threads(views: Iterable[memoryview]) -> Contender:
    """BLAKE3 of all bytes on two threads in pieces of 8 MiB: the least that a commit needs."""
    pieces = [
        view[start : start + HASHED_BYTES]
        for view in views
        for start in range(0, len(view), HASHED_BYTES)
    ]

    def call(_: object) -> list[str]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda piece: blake3(piece).hexdigest(), pieces))

    return Contender(name="BLAKE3, 2 threads", call=call)


def memory_read_two_threads(views: Iterable[memoryview]) -> Contender:
    """Reading every byte in memory once on two threads: the limit of the memory."""
    words = [np.frombuffer(view[: len(view) // 8 * 8], np.int64) for view in views]
    parts = [
        array[start : start + HASHED_BYTES // 8]
        for array in words
        for start in range(0, len(array), HASHED_BYTES // 8)
    ]

    def call(_: object) -> list[np.int64]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(np.bitwise_or.reduce, parts))

    return Contender(name="memory read, 2 threads", call=call)


def numpy_compared(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Contender:
    """The numbers of a numeric diff by whole-array numpy calls in double precision, in memory."""

    def call(_: object) -> list[tuple[float, ...]]:
        return [
            _numbers(before.double().numpy(), after.double().numpy()) for before, after in pairs
        ]

    return Contender(name="numpy", call=call)


def torch_load(path: Path, *, mapped: bool = False) -> Contender:
    """torch.load. With `mapped` it reads nothing before the memory is accessed."""
    if mapped:
        return Contender(name="torch.load(mmap)", call=lambda _: torch.load(path, mmap=True))
    return Contender(name="torch.load", call=lambda _: torch.load(path))


def torch_load_copied(path: Path) -> Contender:
    """torch.load with a mapped file, and a copy of every tensor: the whole cost of mapping."""

    def call(_: object) -> list[torch.Tensor]:
        return [tensor.clone() for tensor in _leaves(torch.load(path, mmap=True))]

    return Contender(name="torch.load(mmap), copied", call=call)


def safetensors_load(path: Path) -> Contender:
    """safetensors' load_file, which maps the file into memory."""
    return Contender(name="safetensors", call=lambda _: load_file(path))


def safetensors_load_copied(path: Path) -> Contender:
    """safetensors' load_file, and a copy of every tensor."""

    def call(_: object) -> list[torch.Tensor]:
        return [tensor.clone() for tensor in load_file(path).values()]

    return Contender(name="safetensors, copied", call=call)


def raw_read(path: Path, sizes: Sequence[int]) -> Contender:
    """readinto of the same bytes from one file, those of each array into fresh memory."""

    def call(_: object) -> list[torch.Tensor]:
        tensors = [torch.empty(size, dtype=torch.uint8) for size in sizes]
        with open(path, "rb", buffering=0) as file:
            for tensor in tensors:
                read_full(file.readinto, view_of(tensor))
        return tensors

    return Contender(name="raw read", call=call)


def raw_views(tensors: Iterable[torch.Tensor]) -> list[memoryview]:
    """The memory of tensors, as bytes."""
    return [view_of(tensor) for tensor in tensors]


def view_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor, as bytes."""
    flat: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def write_views(views: Iterable[memoryview], path: Path) -> None:
    """Write bytes to a new file, not durable."""
    with open(path, "xb", buffering=0) as file:
        for view in views:
            while view:
                view = view[file.write(view) :]


def make_durable(path: Path) -> None:
    """Fsync a file and its folder."""
    for name in (path, path.parent):
        fd = os.open(name, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def read_full(readinto: Callable[[memoryview], int | None], view: memoryview) -> None:
    """Fill a view, in several calls if necessary."""
    while view:
        count = readinto(view)
        if not count:
            raise EOFError("The file is shorter than the arrays written to it.")
        view = view[count:]


def _numbers(before: np.ndarray, after: np.ndarray) -> tuple[float, ...]:
    before, after = before.reshape(-1), after.reshape(-1)
    difference = after - before
    norms = [float(np.sqrt(array @ array)) for array in (before, after, difference)]
    return (
        norms[2] / norms[0] if norms[0] else 0.0,
        float(np.abs(difference).max(initial=0)),
        float(before @ after) / (norms[0] * norms[1] or 1),
        np.count_nonzero(difference) / max(1, difference.size),
        float(np.count_nonzero(np.isnan(after) & ~np.isnan(before))),
        float(np.count_nonzero(np.isinf(after) & ~np.isinf(before))),
        norms[0],
        norms[1],
    )


def _leaves(state: object) -> Iterable[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _leaves(value)
