"""torch and numpy arrays as the bytes they are: zero copy where memory allows it, one chunk's copy where not.

torch and numpy are imported only when an array of theirs is met or has to be made. What cannot be stored bit for bit (sparse, quantized,
nested, meta and distributed tensors, object arrays) is refused by name; it is never stored as something else.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.lazy import LazyArray
from ckptstore.documents.chunks import DIMENSIONS_MAX
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import InvalidInputError, StorageError, UnsupportedValueError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ckptstore.documents.chunks import Chunk

TENSOR, NDARRAY = "tensor", "ndarray"
REPEATED_BYTES_MAX = 1 << 30  # a view that repeats its elements is stored in full up to this size
_NUMPY_DTYPES = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    | {"float16", "float32", "float64", "complex64", "complex128"}
)
_ML_DTYPES = frozenset(name for name in ITEM_BYTES if name.startswith(("bfloat", "float8")))
_HINTS = {
    "layout": "Store its indices and values, or its dense form (tensor.to_dense()).",
    "quantized": "Store tensor.int_repr() with its scale and zero point.",
    "meta": "It has no data; materialise it first (module.to_empty(), then load weights).",
    "nested": "Store the list of its parts (tensor.unbind()).",
    "freed": "Commit while its module is gathered (FSDP frees it between steps).",
    "DTensor": "Gather it first (tensor.full_tensor()).",
    "repeated": "It repeats its elements in memory (an expanded view): store what it was made from.",
    "subclass": "Store the plain tensors it is made of, or register_codec for its type.",
}


@dataclass(slots=True, kw_only=True)  # not frozen: that makes each one a microsecond dearer
class ArraySource:
    """An array of a state, ready to be read chunk by chunk. Never changed once made.

    identity: equal for two names of the same memory, so that tied weights come out tied; None when that means nothing.
    array: a tensor, an ndarray, or a LazyArray. is_private: nobody else writes to `flat`.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    identity: object
    array: Any
    flat: memoryview | None
    is_private: bool = False

    def chunk(self, chunk: Chunk, buffer: Callable[[int], memoryview]) -> memoryview:
        """The bytes of one chunk, in C order: the array's own memory where that is contiguous, else a copy in a buffer.

        buffer: gives writable memory of so many bytes, which holds the chunk until it is asked again.
        """
        if self.flat is not None:
            return self.flat[chunk.start : chunk.start + chunk.size]
        data = buffer(chunk.size)
        if isinstance(self.array, LazyArray):
            self.array.read_into(data, chunk.start)
        else:
            copy_out(self.array[chunk.index] if chunk.index else self.array, data)
        return data

    def pieces(self) -> Iterator[memoryview]:
        """All bytes, in C order, a piece at a time: of a lazy array never more than one, valid until the next is asked for."""
        if not isinstance(self.array, LazyArray):
            yield self.whole()
            return
        buffer = bytearray()
        for start, size in self.array.pieces():
            if len(buffer) < size:
                buffer = bytearray(size)
            part = memoryview(buffer)[:size]
            self.array.read_into(part, start)
            yield part

    def whole(self) -> memoryview:
        """All bytes, in C order."""
        if self.flat is not None:
            return self.flat
        if isinstance(self.array, LazyArray):
            data = memoryview(bytearray(self.nbytes))
            if self.nbytes:
                self.array.read_into(data, 0)
            return data
        return _tensor_bytes(self.array) if self.kind == TENSOR else _ndarray_bytes(self.array)


def describe(value: object) -> ArraySource | None:
    """How to read an array, or None for anything else; UnsupportedValueError, without a path, for what is refused."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _describe_tensor(value, torch)
    if is_ndarray(value):
        return _describe_ndarray(value)
    if isinstance(value, LazyArray):
        return _describe_lazy(value)
    return None


def describe_only(value: object) -> ArraySource | None:
    """The same, for somebody who copies `array` and does not want `flat`: faster."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _describe_tensor(value, torch, with_bytes=False)
    return describe(value)


def is_array(value: object) -> bool:
    """True for a torch tensor and a numpy array, which have memory of their own."""
    torch = sys.modules.get("torch")
    return is_ndarray(value) or (torch is not None and isinstance(value, torch.Tensor))


def is_ndarray(value: object) -> bool:
    """True for a numpy array."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def is_module(value: object) -> bool:
    """True for a torch nn.Module."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def is_lazy(value: object) -> bool:
    """True for a parameter or buffer that has no shape yet."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.nn.parameter.is_lazy(value)


def allocate(kind: str, dtype: str, shape: tuple[int, ...]) -> tuple[Any, memoryview]:
    """A fresh, writable array and the memory of its bytes."""
    try:
        if kind == NDARRAY:
            import numpy as np

            array = np.empty(shape, dtype=numpy_dtype(dtype))
            return array, _ndarray_bytes(array)
        import torch

        if dtype == "complex32":  # torch warns of it wherever one is made, except as a view
            item = ITEM_BYTES[dtype]
            raw = torch.empty((math.prod(shape) * item,), dtype=torch.uint8, device="cpu")
            return raw.view(torch.complex32).reshape(shape), _contiguous_bytes(raw, torch)
        tensor = torch.empty(shape, dtype=getattr(torch, dtype), device="cpu")
        return tensor, _contiguous_bytes(tensor, torch)
    except UnsupportedValueError:
        raise
    except (MemoryError, RuntimeError, ValueError, OverflowError) as error:
        raise StorageError(
            f"There is no memory for an array of dtype {dtype} and shape {shape}: {error}"
        ) from error


def from_bytes(kind: str, dtype: str, shape: tuple[int, ...], data: memoryview) -> Any:
    """A fresh, writable array with a copy of these bytes."""
    array, flat = allocate(kind, dtype, shape)
    flat[:] = data
    return array


def copy_chunk(target: Any, chunk: Chunk, data: memoryview) -> None:
    """Copy the checked bytes of a chunk to where they belong in an existing array of the same dtype and shape."""
    part = target[chunk.index] if chunk.index else target
    if is_ndarray(target):
        import numpy as np

        part[...] = np.frombuffer(data, dtype=target.dtype).reshape(part.shape)
        return
    import torch

    with torch.no_grad():
        source = torch.frombuffer(data, dtype=torch.uint8).view(target.dtype).reshape(part.shape)
        _copy(_plain(part, torch), source, torch)


def copy_out(part: Any, data: memoryview) -> None:
    """Copy the elements of an array to a buffer, in C order."""
    if is_ndarray(part):
        import numpy as np

        np.frombuffer(data, dtype=part.dtype).reshape(part.shape)[...] = part
        return
    import torch

    target = torch.frombuffer(data, dtype=torch.uint8).view(part.dtype).reshape(part.shape)
    _copy(target, part, torch)


def _copy(target: Any, source: Any, torch: Any) -> None:
    """Copy a tensor to another of its dtype and shape.

    torch crashes where elements do not lie at multiples of their size, so there only bytes are copied.
    """
    if _is_misaligned(source):
        plain, is_conj, is_neg = _stored(source, torch)
        copy = _bytes(plain, torch).clone().view(source.dtype).squeeze(-1)
        source = _as_lazy(copy, is_conj, is_neg, torch)
    if not _is_misaligned(target):
        _copyable(target, torch).copy_(_copyable(source, torch))
        return
    target, is_conj, is_neg = _stored(target, torch)
    stored = _as_lazy(source, is_conj, is_neg, torch).resolve_conj().resolve_neg()
    _bytes(target, torch).copy_(_bytes(stored.clone(), torch))


def _is_misaligned(tensor: Any) -> bool:
    return bool(tensor.is_cpu and tensor.data_ptr() % tensor.element_size())


def _stored(tensor: Any, torch: Any) -> tuple[Any, bool, bool]:
    """A tensor's elements as they lie in memory, and whether they read as conjugated, and as negated."""
    is_conj, is_neg = tensor.is_conj(), tensor.is_neg()
    return _as_lazy(tensor, is_conj, is_neg, torch), is_conj, is_neg


def _as_lazy(tensor: Any, is_conj: bool, is_neg: bool, torch: Any) -> Any:
    """A view that reads as conjugated and as negated; twice is not at all."""
    tensor = tensor.conj() if is_conj else tensor
    return torch._neg_view(tensor) if is_neg else tensor  # noqa: SLF001 - it has no public name


def _bytes(tensor: Any, torch: Any) -> Any:
    """The bytes of each element, in one more dimension, whatever the strides."""
    return tensor.unsqueeze(-1).view(torch.uint8)


def to_device(value: Any, device: Any) -> Any:
    """A tensor on a device; anything else as it is."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return value
    try:
        return value.to(device=device)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InvalidInputError(
            f"No tensor can be put on {shown(device)}: {reason[:200]}."
        ) from error


def _plain(tensor: Any, torch: Any) -> Any:
    """The tensor's memory without autograd, bumping the version that autograd watches."""
    return tensor.detach() if isinstance(tensor, torch.Tensor) else tensor


def _describe_tensor(value: Any, torch: Any, *, with_bytes: bool = True) -> ArraySource:
    _refuse_tensor(value, torch)
    dtype = _dtype_name(value.dtype)
    if dtype not in ITEM_BYTES:
        raise UnsupportedValueError(f"has the dtype {value.dtype}, which no checkpoint can hold")
    tensor = value.detach()
    shape, nbytes = tuple(tensor.shape), tensor.nbytes
    is_lazy = tensor.is_conj() or tensor.is_neg()
    identity: object = None
    if nbytes:
        identity = (tensor.get_device(), tensor.data_ptr(), dtype, shape, tensor.stride())
        if is_lazy:
            identity = (identity, tensor.is_conj(), tensor.is_neg())
    flat = None
    if with_bytes and tensor.is_cpu and not is_lazy and tensor.is_contiguous():
        flat = _contiguous_bytes(tensor, torch)
    return ArraySource(
        kind=TENSOR,
        dtype=dtype,
        shape=shape,
        nbytes=nbytes,
        identity=identity,
        array=tensor,
        flat=flat,
    )


def _refuse_tensor(value: Any, torch: Any) -> None:
    """Raise for a tensor whose elements are not simply its memory."""
    kind = type(value)
    if kind is not torch.Tensor and kind is not torch.nn.Parameter:
        hint = _HINTS["DTensor" if kind.__name__ == "DTensor" else "subclass"]
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
        _refuse_layout(tuple(value.shape), [stride * item for stride in value.stride()], item)
    if has_no_memory(value):
        raise UnsupportedValueError(f"has no memory: its storage was freed. {_HINTS['freed']}")


def has_no_memory(tensor: Any) -> bool:
    """True for a tensor whose storage was freed or shrunk: reading it would give whatever lies there now."""
    if not tensor.nbytes:
        return False
    contiguous = tensor.is_contiguous()
    extent = tensor.numel() if contiguous else _extent(tuple(tensor.shape), tensor.stride(), 1)
    end = (extent + tensor.storage_offset()) * tensor.element_size()
    return end > tensor.untyped_storage().nbytes() or not tensor.data_ptr()


def _refuse_layout(shape: tuple[int, ...], stride_bytes: Sequence[int], item_bytes: int) -> None:
    """Raise for an array that no page can list, and for a small one that poses as a huge one."""
    if len(shape) > DIMENSIONS_MAX:
        raise UnsupportedValueError(
            f"has {len(shape)} dimensions; a checkpoint holds at most {DIMENSIONS_MAX}"
        )
    nbytes = math.prod(shape) * item_bytes
    if nbytes > REPEATED_BYTES_MAX and nbytes > _extent(shape, stride_bytes, item_bytes):
        raise UnsupportedValueError(f"would take {nbytes / 1e9:.0f} GB. {_HINTS['repeated']}")


def _extent(shape: tuple[int, ...], strides: Sequence[int], item: int) -> int:
    """The distance from the first to the end of the last element in memory."""
    steps = zip(shape, strides, strict=True)
    return item + sum((length - 1) * abs(stride) for length, stride in steps)


def _describe_ndarray(value: Any) -> ArraySource:
    import numpy as np

    if type(value) not in (np.ndarray, np.memmap):
        raise UnsupportedValueError(
            f"is a {type(value).__qualname__}, not a plain numpy array. Use np.asarray(…)."
        )
    dtype = value.dtype.name
    if dtype not in _NUMPY_DTYPES and dtype not in _ML_DTYPES:
        raise UnsupportedValueError(
            f"has the numpy dtype {value.dtype}, which no checkpoint can hold"
        )
    _refuse_layout(value.shape, value.strides, value.itemsize)
    if not value.dtype.isnative:
        raise UnsupportedValueError(
            f"has the byte order of another machine ({value.dtype.str}). Use array.astype(array.dtype.newbyteorder('='))."
        )
    identity = None
    if value.nbytes:
        where = value.__array_interface__["data"][0]
        identity = (NDARRAY, where, dtype, value.shape, value.strides)
    flat = _ndarray_bytes(value) if value.flags.c_contiguous else None
    return ArraySource(
        kind=NDARRAY,
        dtype=dtype,
        shape=value.shape,
        nbytes=value.nbytes,
        identity=identity,
        array=value,
        flat=flat,
    )


def _describe_lazy(value: LazyArray) -> ArraySource:
    if value.dtype not in ITEM_BYTES:
        raise UnsupportedValueError(
            "has elements that only Zarr knows. Leave it out (exclude), or export a .zarr"
        )
    return ArraySource(
        kind=value.kind,
        dtype=value.dtype,
        shape=value.shape,
        nbytes=value.nbytes,
        identity=value.identity,
        array=value,
        flat=None,
    )


def _tensor_bytes(tensor: Any) -> memoryview:
    """The bytes of a copy of a tensor, in C order."""
    import torch

    copy, flat = allocate(TENSOR, _dtype_name(tensor.dtype), tuple(tensor.shape))
    _copy(copy, tensor, torch)
    return flat


def _copyable(tensor: Any, torch: Any) -> Any:
    """A tensor as torch can copy it whatever its strides: 4-bit floats only as the bytes they are."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor


def _contiguous_bytes(tensor: Any, torch: Any) -> memoryview:
    if tensor.dim() and tensor.dtype in _numpy_formats() and tensor.numel():
        return memoryview(tensor.numpy()).cast("B")  # the same as below, twice as fast
    # Not reshape: it keeps the odd stride that 0 or 1 element may have.
    flat = tensor.as_strided((tensor.numel(),), (1,))
    return memoryview(flat.view(torch.uint8).numpy())


@cache
def _numpy_formats() -> frozenset[Any]:
    """The torch dtypes that numpy has too, and whose memory Python can show as bytes."""
    import torch

    names = ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
    return frozenset(getattr(torch, name) for name in names)


@cache
def _dtype_name(dtype: Any) -> str:
    """The name that this library uses for a torch dtype."""
    return str(dtype).removeprefix("torch.")


def _ndarray_bytes(array: Any) -> memoryview:
    """The bytes of a numpy array in C order, of its own memory when it is contiguous."""
    import numpy as np

    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(flat)


def numpy_dtype(dtype: str) -> Any:
    """What numpy takes for a dtype of ours. UnsupportedValueError when it has none."""
    if dtype in _ML_DTYPES:
        try:
            import ml_dtypes
        except ImportError as error:
            raise UnsupportedValueError(
                f"A numpy array of dtype {dtype} needs the package ml_dtypes."
            ) from error
        return getattr(ml_dtypes, dtype)
    if dtype not in _NUMPY_DTYPES:
        raise UnsupportedValueError(f"numpy has no dtype {dtype}.")
    return dtype
