"""torch tensors, on any device and with any strides.

Tensors whose elements are not simply their memory (sparse, quantized, nested, meta and distributed
ones, and subclasses) are refused by name, never stored as something else.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from ckptstore.arrays.source import TENSOR, ArraySource, Framework, extent, refuse_layout
from ckptstore.documents.chunks import DIMENSIONS_MAX, order_of
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import InvalidInputError, UnsupportedValueError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_HINTS = {
    "layout": "Store its indices and values, or its dense form (tensor.to_dense()).",
    "quantized": "Store tensor.int_repr() with its scale and zero point.",
    "meta": "It has no data; materialise it first (module.to_empty(), then load weights).",
    "nested": "Store the list of its parts (tensor.unbind()).",
    "lazy": "It has no shape yet; pass a batch through its module first.",
    "freed": "Commit while its module is gathered (FSDP frees it between steps).",
    "DTensor": "Save all shards: dcp.save(state, storage_writer=StoreWriter(repository)), of "
    "ckptstore.integrations.dcp. Or gather it on all ranks: tensor.full_tensor(), or "
    "get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True)).",
    "subclass": "Store the plain tensors it is made of, or register_codec for its type.",
}
_SHARDS = frozenset({"DTensor", "ShardedTensor"})
_PLAIN_TYPES = frozenset({torch.Tensor, torch.nn.Parameter})
_STRIDED = torch.strided
_PLAIN_DTYPES = {  # all but the complex ones, whose tensors may be conjugated
    getattr(torch, name): name
    for name in ITEM_BYTES
    if hasattr(torch, name) and not getattr(torch, name).is_complex
}
# The dtypes that numpy has too, and whose memory Python can show as bytes.
_NUMPY_DTYPES = frozenset(
    {torch.float32, torch.float64, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.uint8, torch.bool}
)
# The dtypes that torch.cat takes as they are: nothing is converted, conjugated or packed.
_JOINED_DTYPES = _NUMPY_DTYPES | {torch.float16, torch.bfloat16}
_JOINED_MAX = (1 << 15) - 1  # elements; for more, torch.cat takes longer, and waits for threads


class Torch(Framework):
    """The tensors of torch."""

    array_type = torch.Tensor

    def describe(self, array: Any) -> ArraySource:
        """How to read a tensor. Nearly all need few looks at them, each of which takes 40 ns."""
        if (
            type(array) not in _PLAIN_TYPES
            or (dtype := _PLAIN_DTYPES.get(array.dtype)) is None
            or array.layout is not _STRIDED
            or array.is_nested
            or array.is_neg()
            or not array.is_contiguous()
        ):
            return self._describe_any(array)
        shape, nbytes, address = tuple(array.shape), array.nbytes, array.data_ptr()
        end = nbytes + array.storage_offset() * ITEM_BYTES[dtype]
        if (
            not address  # as where it is empty or on the meta device
            or end > array.untyped_storage().nbytes()
            or 1 in shape  # is_contiguous overlooks strides of length 1
            or len(shape) > DIMENSIONS_MAX
        ):
            return self._describe_any(array)
        tensor = array.detach() if array.requires_grad else array
        identity = (address, dtype, shape, array.get_device())
        return ArraySource(TENSOR, dtype, shape, nbytes, identity, tensor, self)

    def _describe_any(self, array: Any) -> ArraySource:
        """How to read any tensor; UnsupportedValueError for one that is refused."""
        _refuse(array)
        dtype = _dtype_name(array.dtype)
        tensor = array.detach() if array.requires_grad else array
        shape, nbytes = tuple(tensor.shape), tensor.nbytes
        identity: object = None
        order = None
        if nbytes:
            strides = tensor.stride()
            identity = (tensor.data_ptr(), dtype, shape, tensor.get_device(), strides)
            order = order_of(shape, strides)
            if tensor.is_neg() or (array.dtype.is_complex and tensor.is_conj()):
                identity = (identity, tensor.is_conj(), tensor.is_neg())
        return ArraySource(TENSOR, dtype, shape, nbytes, identity, tensor, self, order)

    def memory(self, array: Any) -> memoryview | None:
        """The bytes of a contiguous tensor on the CPU."""
        if array.is_cpu and array.is_contiguous() and not (array.is_conj() or array.is_neg()):
            return _bytes(array)
        return None

    def join(self, arrays: Sequence[Any], data: memoryview) -> None:
        """Copy the elements of tensors to a buffer; if all have one dtype, many by one call."""
        target = torch.frombuffer(data, dtype=torch.uint8)
        if _can_be_joined(arrays, target):
            target = target.view(arrays[0].dtype)
            for start, size, runs in _groups(arrays):
                torch.cat(runs, out=target[start : start + size])
            return
        for array in arrays:
            part, data = data[: array.nbytes], data[array.nbytes :]
            memory = self.memory(array)
            if memory is None:
                self.copy_out(array, part)
            else:
                part[:] = memory

    def allocate(self, dtype: str, shape: tuple[int, ...]) -> tuple[Any, memoryview]:
        """A new, writable tensor on the CPU, and its bytes."""
        if dtype == "complex32":  # torch warns of it wherever one is made, except as a view
            item = ITEM_BYTES[dtype]
            raw = torch.empty((math.prod(shape) * item,), dtype=torch.uint8, device="cpu")
            return raw.view(torch.complex32).reshape(shape), _bytes(raw)
        tensor = torch.empty(shape, dtype=getattr(torch, dtype), device="cpu")
        return tensor, _bytes(tensor)

    def copy_in(self, array: Any, data: memoryview) -> None:
        """Fill a tensor with elements of its dtype; autograd sees that it changed."""
        with torch.inference_mode() if array.is_inference() else torch.no_grad():
            _copy(array.detach(), _tensor(data, array))

    def copy_out(self, array: Any, data: memoryview) -> None:
        """Copy the elements of a tensor to a buffer."""
        _copy(_tensor(data, array), array.detach())

    def in_order(self, array: Any, order: Sequence[int]) -> Any:
        """A view of a tensor with its dimensions in another order."""
        return array.detach().permute(tuple(order))

    def unwritable(self, array: Any) -> str | None:
        """Why a tensor cannot be filled in place."""
        if is_shard(array):
            return (
                f"is a {type(array).__name__}; load it by dcp.load(state, storage_reader="
                "StoreReader(repository, revision)), of ckptstore.integrations.dcp"
            )
        if array.is_meta:
            return "is on the meta device; use module.to_empty() first"
        if array.layout is not torch.strided or array.is_quantized:
            return "is sparse or quantized"
        if has_no_memory(array):
            return "has no memory; its storage was freed"
        steps = zip(array.stride(), array.shape, strict=True)
        if any(stride == 0 and length > 1 for stride, length in steps):
            return "is an expanded view, whose elements share memory"
        return None

    def end_of(self, array: Any) -> Callable[[], bool] | None:
        """A function that is true once the storage is gone, which views of it share."""
        from torch.multiprocessing.reductions import StorageWeakRef

        try:
            storage = array.untyped_storage()
        except (NotImplementedError, RuntimeError):  # it has none
            return None
        reference: Any = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        expired: Callable[[], bool] = reference.expired
        return expired

    def to_device(self, array: Any, device: Any) -> Any:
        """The tensor on a device."""
        try:
            return array.to(device=device)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise InvalidInputError(
                f"No tensor can be put on {shown(device)}: {reason[:200]}."
            ) from error


def is_shard(value: Any) -> bool:
    """True for a tensor of which this process has only a part, as torch.distributed has them."""
    return type(value) not in _PLAIN_TYPES and any(
        kind.__name__ in _SHARDS and kind.__module__.startswith("torch.distributed.")
        for kind in type(value).__mro__
    )


def has_no_memory(tensor: Any) -> bool:
    """True for a tensor whose storage was freed or shrunk, so that its elements are not there."""
    size = tensor.nbytes
    if not size:
        return False
    item = tensor.element_size()
    if not tensor.is_contiguous():
        size = extent(tuple(tensor.shape), tensor.stride(), item)
    end = size + tensor.storage_offset() * item
    return bool(end > tensor.untyped_storage().nbytes() or not tensor.data_ptr())


def _groups(tensors: Sequence[Any]) -> Iterator[tuple[int, int, list[Any]]]:
    """Flat tensors in groups of at most `_JOINED_MAX` elements, or of one tensor.

    Yields:
        Where the elements of the group begin among all, how many they are, and its tensors.
    """
    start = size = 0
    group: list[Any] = []
    for tensor in tensors:
        count = tensor.numel()
        if size + count > _JOINED_MAX and group:
            yield start, size, group
            start, size, group = start + size, 0, []
        group.append(tensor if tensor.dim() == 1 else tensor.reshape(-1))
        size += count
    yield start, size, group


def _can_be_joined(tensors: Sequence[Any], target: Any) -> bool:
    """True for tensors of one dtype that torch.cat copies bit for bit to this memory."""
    dtype = tensors[0].dtype
    item = dtype.itemsize
    return (
        dtype in _JOINED_DTYPES
        and not target.data_ptr() % item
        and all(
            tensor.dtype is dtype
            and tensor.is_cpu
            and not tensor.data_ptr() % item  # torch crashes at odd addresses
            and not tensor.is_neg()
            for tensor in tensors
        )
    )


def _refuse(value: Any) -> None:
    """Raise for a tensor whose elements are not simply its memory."""
    kind = type(value)
    if torch.nn.parameter.is_lazy(value):
        raise UnsupportedValueError(f"is a {kind.__name__}. {_HINTS['lazy']}")
    if kind not in _PLAIN_TYPES:
        hint = _HINTS["DTensor" if is_shard(value) else "subclass"]
        raise UnsupportedValueError(
            f"is a {kind.__module__}.{kind.__qualname__}, not a plain tensor. {hint}"
        )
    if value.is_nested:
        raise UnsupportedValueError(f"is a nested tensor. {_HINTS['nested']}")
    if value.layout is not torch.strided:
        raise UnsupportedValueError(f"has the layout {value.layout}. {_HINTS['layout']}")
    if value.is_quantized:
        raise UnsupportedValueError(f"is quantized ({value.dtype}). {_HINTS['quantized']}")
    if value.is_meta:
        raise UnsupportedValueError(f"is on the meta device. {_HINTS['meta']}")
    if not value.is_contiguous() or value.dim() > DIMENSIONS_MAX:
        item = value.element_size()
        refuse_layout(tuple(value.shape), [stride * item for stride in value.stride()], item)
    if has_no_memory(value):
        raise UnsupportedValueError(f"has no memory: its storage was freed. {_HINTS['freed']}")


@cache
def _dtype_name(dtype: Any) -> str:
    """Return the stored name of a dtype; UnsupportedValueError if it has none."""
    name = str(dtype).removeprefix("torch.")
    if name not in ITEM_BYTES:
        raise UnsupportedValueError(f"has the dtype {dtype}, which a checkpoint cannot hold")
    return name


def _bytes(tensor: Any) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    if tensor.dim() and tensor.dtype in _NUMPY_DTYPES and tensor.numel():
        return memoryview(tensor.numpy()).cast("B")  # the same as below, twice as fast
    # Not reshape: it keeps the odd stride that 0 or 1 element may have.
    flat = tensor.as_strided((tensor.numel(),), (1,))
    return memoryview(flat.view(torch.uint8).numpy())


def _tensor(data: memoryview, like: Any) -> Any:
    """A buffer as a tensor of the dtype and shape of another."""
    return torch.frombuffer(data, dtype=torch.uint8).view(like.dtype).reshape(like.shape)


def _copy(target: Any, source: Any) -> None:
    """Copy a tensor to another of its dtype and shape.

    torch crashes on elements that are not at multiples of their size: there, bytes are copied.
    """
    if _is_misaligned(source):
        plain, is_conj, is_neg = _stored(source)
        copy = _element_bytes(plain).clone().view(source.dtype).squeeze(-1)
        source = _as_lazy(copy, is_conj, is_neg)
    if not _is_misaligned(target):
        _copyable(target).copy_(_copyable(source))
        return
    target, is_conj, is_neg = _stored(target)
    stored = _as_lazy(source, is_conj, is_neg).resolve_conj().resolve_neg()
    _element_bytes(target).copy_(_element_bytes(stored.clone()))


def _is_misaligned(tensor: Any) -> bool:
    return bool(tensor.is_cpu and tensor.data_ptr() % tensor.element_size())


def _stored(tensor: Any) -> tuple[Any, bool, bool]:
    """The elements in memory, and whether they read as conjugated, and as negated."""
    is_conj, is_neg = tensor.is_conj(), tensor.is_neg()
    return _as_lazy(tensor, is_conj, is_neg), is_conj, is_neg


def _as_lazy(tensor: Any, is_conj: bool, is_neg: bool) -> Any:
    """A view that reads as conjugated and as negated; twice is not at all."""
    tensor = tensor.conj() if is_conj else tensor
    return torch._neg_view(tensor) if is_neg else tensor  # noqa: SLF001 - it has no public name


def _element_bytes(tensor: Any) -> Any:
    """The bytes of each element, in one more dimension, whatever the strides."""
    return tensor.unsqueeze(-1).view(torch.uint8)


def _copyable(tensor: Any) -> Any:
    """A tensor as torch can copy it whatever its strides: 4-bit floats only as bytes."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor
