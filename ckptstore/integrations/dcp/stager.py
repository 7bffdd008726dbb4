"""Stager: a copy of a sharded state in host memory, so that training goes on while it is saved.

The memory is used again for every save, as that of a training in one process. DTensors are copied
shard by shard and keep their layout, so nothing is exchanged between ranks. ADR 0012, ADR 0070.
"""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, Final

import torch
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.tensor import DTensor

from ckptstore.commit.staging import ALIGNMENT, Staging
from ckptstore.errors import InvalidInputError, shown
from ckptstore.python_gc import paused_collector

_PLAIN: Final = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.Size)
_CLONED: Final = (torch.complex32, torch.float4_e2m1fn_x2)  # torch cannot copy, or warns of, these


class Stager:
    """Copies states to memory that it keeps: `dcp.async_save(..., async_stager=Stager())`.

    A state may be staged once the save of the one before has ended. Before that, other memory is
    taken, so that nothing is overwritten that is still to be saved.

    Example:
        >>> import torch
        >>> from ckptstore.integrations.dcp import Stager
        >>> stager, state = Stager(), {"w": torch.ones(2)}
        >>> staged = stager.stage(state)
        >>> state["w"] += 1
        >>> staged["w"]
        tensor([1., 1.])
    """

    should_synchronize_after_execute: Final = False  # of torch: the copy is whole at once

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._staging = Staging()
        self._layout: list[Any] = []
        self._places: list[_Place] = []
        self._lent: weakref.ref[Any] | None = None

    def stage(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Copy a state; the copy is complete when this returns.

        Args:
            state: A state as for `dcp.save`. Of objects with a `state_dict` that is taken.

        Raises:
            InvalidInputError: The state is no dict.
            StorageError: There is no memory for the copy.
        """
        if self._lent is not None and self._lent() is not None:
            self._begin()
        with paused_collector(), torch.no_grad(), not_too_deep():
            tensors: dict[int, torch.Tensor] = {}
            whole = states(state)
            _collect(whole, tensors)
            places = self._places_for(tensors)
            devices = {
                place.fill(tensor) for place, tensor in zip(places, tensors.values(), strict=True)
            }
            for device in devices - {None}:
                torch.accelerator.synchronize(device)
            copies = {id: place.copy for id, place in zip(tensors, places, strict=True)}
            staged = _StagedState(_copied(whole, copies))
        self._lent = weakref.ref(staged)
        return staged

    def synchronize_staging(self) -> None:
        """Do nothing; torch may call it."""

    def close(self) -> None:
        """Free the memory."""
        self._begin()

    def _places_for(self, tensors: dict[int, torch.Tensor]) -> list[_Place]:
        """Where each tensor is copied to: as before if they are alike, else laid out again."""
        layout = [_layout_of(tensor) for tensor in tensors.values()]
        if layout != self._layout:
            sizes = [-(-_local(one).nbytes // ALIGNMENT) * ALIGNMENT for one in tensors.values()]
            room = self._staging.room(sum(sizes))
            starts = accumulate(sizes, initial=0)
            self._places = [
                _Place(tensor, room[start:])
                for tensor, start in zip(tensors.values(), starts, strict=False)
            ]
            self._layout = layout
        return self._places


class _Place:
    """Where a tensor is copied to.

    Attributes:
        copy: Its copy, of the same class; of a DTensor with the same layout.
    """

    __slots__ = ("_view", "copy")

    def __init__(self, tensor: torch.Tensor, room: torch.Tensor) -> None:
        local = _local(tensor)
        self._view = room[: local.nbytes].view(local.dtype).reshape(local.shape)
        self.copy: torch.Tensor = self._view
        if isinstance(tensor, DTensor):
            # from_local would move it to the device of the mesh
            make: Any = DTensor
            self.copy = make(self._view, tensor._spec, requires_grad=False)  # noqa: SLF001

    def fill(self, tensor: torch.Tensor) -> torch.device | None:
        """Copy a tensor; return the device that may still be copying, or None."""
        local = _local(tensor)
        self._view.copy_(local, non_blocking=not local.is_cpu)
        return None if local.is_cpu else local.device


@contextmanager
def not_too_deep() -> Iterator[None]:
    """Refuse a state that contains itself, or is nested too deeply."""
    try:
        yield
    except RecursionError:
        raise InvalidInputError("The state is nested too deeply, or contains itself.") from None


def states(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state in which that of each object with a `state_dict` takes its place."""
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise InvalidInputError(
            f"The state is {shown(state)}; a dict whose keys are str is expected."
        )
    return {
        key: item.state_dict() if isinstance(item, Stateful) else item
        for key, item in state.items()
    }


class _StagedState(dict[str, Any]):
    """A staged state, of which its stager notices when nothing uses it any more."""

    __slots__ = ("__weakref__",)


def _is_tensor(value: Any) -> bool:
    """True for tensors that are copied here; what else there is copies itself."""
    return (
        type(value) in (torch.Tensor, torch.nn.Parameter, DTensor)
        and value.layout is torch.strided
        and value.dtype not in _CLONED
        and not value.is_quantized
    )


def _collect(value: Any, tensors: dict[int, torch.Tensor]) -> None:
    """Find the tensors of a nested state, by their identity."""
    if _is_tensor(value):
        tensors[id(value)] = value
    elif type(value) in (dict, OrderedDict):
        for item in value.values():
            _collect(item, tensors)
    elif type(value) is list:
        for item in value:
            _collect(item, tensors)


def _copied(value: Any, copies: Mapping[int, torch.Tensor]) -> Any:
    """A nested state with the copies of its tensors, and with copies of what may change."""
    if id(value) in copies:
        return copies[id(value)]
    kind = type(value)
    if kind in (dict, OrderedDict):
        return kind((key, _copied(item, copies)) for key, item in value.items())
    if kind is list:
        return [_copied(item, copies) for item in value]
    if kind in _PLAIN:
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return copy.deepcopy(value)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds."""
    # to_local takes 20 microseconds
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor  # noqa: SLF001


def _layout_of(tensor: torch.Tensor) -> tuple[object, ...]:
    local = _local(tensor)
    whole = tensor._spec if isinstance(tensor, DTensor) else None  # noqa: SLF001
    return local.dtype, local.shape, whole
