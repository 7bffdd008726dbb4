"""Staging: the arrays of a state copied to host memory that is used again, so that training goes on while they are stored.

The memory is one block, page-locked when a CUDA device is there, because the copy from it is then a plain transfer. What a
state holds besides arrays is taken apart at once, so nothing that happens to the state afterwards is seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ckptstore import arrays, codecs, state
from ckptstore.collector import paused_collector
from ckptstore.errors import StorageError

if TYPE_CHECKING:
    from ckptstore.arrays import ArraySource

ALIGNMENT = 64  # bytes: a cache line, and a multiple of every element


@dataclass(frozen=True, slots=True)
class Staged:
    """A state as it was, in memory that nobody else writes to; `Repository.commit` takes it in place of a state."""

    flat: state.Flat[ArraySource]


def flatten(value: object) -> state.Flat[ArraySource]:
    """Take a state apart; UnsupportedValueError names what no checkpoint can hold."""
    with paused_collector():
        return state.flatten(value, describe=arrays.describe, encode=codecs.encode)


class Staging:
    """Memory for one staged state at a time: what was staged before is overwritten."""

    def __init__(self) -> None:
        self._room: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return 0 if self._room is None else int(self._room.nbytes)

    def copy(self, value: object) -> Staged:
        """Copy a state; when this returns, everything lies in host memory."""
        import torch

        flat = flatten(value)
        own = {path: source for path, source in flat.arrays.items() if path not in flat.tied}
        ends = list(accumulate(_aligned(source.nbytes) for source in own.values()))
        room = self._at_least(ends[-1] if ends else 0)
        memory = memoryview(room.numpy())
        copies: dict[str, ArraySource] = {}
        devices = set()
        with torch.no_grad():
            for (path, source), end in zip(own.items(), ends, strict=True):
                start = end - _aligned(source.nbytes)
                part = slice(start, start + source.nbytes)
                devices |= _copy(source, room[part], memory[part])
                copies[path] = replace(
                    source, array=None, identity=None, flat=memory[part], is_private=True
                )
        for device in devices:
            torch.accelerator.synchronize(device)
        copies |= {path: copies[first] for path, first in flat.tied.items()}
        return Staged(replace(flat, arrays={path: copies[path] for path in flat.arrays}))

    def _at_least(self, size: int) -> Any:
        """Memory of at least so many bytes; what is held is given up before more is asked for."""
        import torch

        if self._room is None or self._room.nbytes < size:
            self._room = None
            pinned = torch.cuda.is_available()
            try:
                self._room = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned)
            except (MemoryError, RuntimeError) as error:
                raise StorageError(
                    f"There is no memory to copy a state of {size} bytes to: {error}. Pass async_save=False."
                ) from error
        return self._room


def _copy(source: ArraySource, room: Any, memory: memoryview) -> set[Any]:
    """Copy one array: the devices on which the copy may still be under way."""
    import torch

    if not source.nbytes:
        return set()
    if source.flat is not None:
        room.copy_(torch.frombuffer(source.flat, dtype=torch.uint8))
        return set()
    if arrays.is_ndarray(source.array) or source.array.is_cpu:
        arrays.copy_out(source.array, memory)
        return set()
    target = room.view(source.array.dtype).reshape(source.shape)
    target.copy_(source.array, non_blocking=True)
    return {source.array.device}


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
