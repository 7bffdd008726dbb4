"""JAX arrays: their bytes wherever their devices are, and new ones from host memory.

A checkpoint holds them as numpy arrays of the same bytes. An array in the memory of this process is
read there; of one that is on several devices, or on an accelerator, only the parts that are needed
are copied to the host. ADR 0075.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import jax
import numpy as np

from ckptstore.arrays.frameworks import describe
from ckptstore.arrays.lazy import LazyArray
from ckptstore.arrays.numpy import Numpy, numpy_dtype
from ckptstore.arrays.pytrees import KEY_IMPLS, Slot, is_key
from ckptstore.arrays.source import NDARRAY, ArraySource, Framework
from ckptstore.documents.boxes import Box
from ckptstore.documents.dtypes import ML_DTYPES, NUMPY_DTYPES
from ckptstore.errors import InvalidInputError, UnsupportedValueError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ckptstore.documents.boxes import Shape

HOST = "cpu"  # the platform whose devices use the memory of this process
ALIGNMENT = 64  # bytes: JAX takes over memory at such an address without a copy
_numpy: Final = Numpy()


class Pieces:
    """An array on several devices, or on an accelerator, or a part of it.

    box: the part. dtype: of numpy. parts: where each piece is in the whole array, and the array on
    one device that holds it.
    """

    def __init__(self, box: Box, dtype: Any, parts: Sequence[tuple[Box, Any]]) -> None:
        self.box, self.dtype, self._parts = box, dtype, parts

    @classmethod
    def of(cls, array: Any) -> Pieces:
        """A whole array; of what several devices hold alike, one copy is enough."""
        held: dict[Box, Any] = {}
        for shard in array.addressable_shards:
            held.setdefault(box_of(shard.index, array.shape), shard.data)
        whole = Box((0,) * array.ndim, tuple(array.shape))
        return cls(whole, np.dtype(array.dtype), tuple(held.items()))

    @property
    def nbytes(self) -> int:
        """Bytes of the part."""
        return self.box.size * int(self.dtype.itemsize)

    def __getitem__(self, index: tuple[slice, ...]) -> Pieces:
        """A smaller part, which copies nothing."""
        inner = box_of(index, self.box.shape)
        corner = tuple(a + b for a, b in zip(self.box.corner, inner.corner, strict=True))
        return Pieces(Box(corner, inner.shape), self.dtype, self._parts)

    def copy_to(self, target: Any) -> None:
        """Copy the elements to a numpy array."""
        for box, data in self._parts:
            low = tuple(map(max, box.corner, self.box.corner))
            high = tuple(map(min, box.end, self.box.end))
            if all(start < stop for start, stop in zip(low, high, strict=True)):
                sizes = tuple(stop - start for start, stop in zip(low, high, strict=True))
                common = Box(low, sizes)
                target[common.within(self.box)] = on_host(data, common.within(box))


class Jax(Framework):
    """The arrays of JAX, and what stands for one: its pieces, and the slot of one that is to be."""

    array_type: Any = (jax.Array, Pieces, Slot)

    def describe(self, array: Any) -> ArraySource:
        """How to read an array: as the numpy array that it is in memory, or in pieces."""
        if isinstance(array, Slot):
            raise UnsupportedValueError("is still to be read")
        _refuse(array)
        try:
            local = _in_memory(array)
            if local is not None:
                return _numpy.describe(local)
            pieces = Pieces.of(array)
        except RuntimeError as error:
            raise UnsupportedValueError(
                "is a JAX array that was deleted, or donated to a jitted function. Store the "
                "result of that function."
            ) from error
        return ArraySource(
            kind=NDARRAY,
            dtype=str(array.dtype),
            shape=pieces.box.shape,
            nbytes=pieces.nbytes,
            identity=(NDARRAY, id(array)),
            array=pieces,
            framework=self,
        )

    def memory(self, array: Any) -> memoryview | None:
        """None: what is in memory is described as a numpy array."""
        del array
        return None

    def join(self, arrays: Sequence[Any], data: memoryview) -> None:
        """Copy the elements of arrays to a buffer, one behind the other."""
        for array in arrays:
            self.copy_out(array, data[: array.nbytes])
            data = data[array.nbytes :]

    def allocate(self, dtype: str, shape: tuple[int, ...]) -> tuple[Any, memoryview]:
        """A numpy array that an array of JAX can take over, and its bytes."""
        item = np.dtype(numpy_dtype(dtype))
        size = item.itemsize * int(np.prod(shape, dtype=object))
        room = np.empty(size + ALIGNMENT, np.uint8)
        start = -room.__array_interface__["data"][0] % ALIGNMENT
        flat = room[start : start + size]
        memory: Any = flat
        return flat.view(item).reshape(shape), memoryview(memory)

    def copy_in(self, array: Any, data: memoryview) -> None:
        """Not for arrays that cannot be changed, as `unwritable` says."""
        raise NotImplementedError

    def copy_out(self, array: Any, data: memoryview) -> None:
        """Copy the elements of an array to a buffer."""
        pieces = array if isinstance(array, Pieces) else Pieces.of(array)
        pieces.copy_to(np.frombuffer(data, pieces.dtype).reshape(pieces.box.shape))

    def in_order(self, array: Any, order: Sequence[int]) -> Any:
        """An array with its dimensions in another order."""
        return array.transpose(order)

    def unwritable(self, array: Any) -> str | None:
        """Why an array cannot be filled in place."""
        if isinstance(array, Slot):
            return None
        return "is a JAX array, which cannot be changed"

    def end_of(self, array: Any) -> Callable[[], bool]:
        """A function that is true once the array is gone, or was deleted or donated."""
        reference = weakref.ref(array)

        def is_gone() -> bool:
            found = reference()
            return found is None or bool(found.is_deleted())

        return is_gone

    def to_device(self, array: Any, device: Any) -> Any:
        """The array on a device."""
        return jax.device_put(array, device)


def box_of(index: Iterable[slice], shape: Sequence[int]) -> Box:
    """The box that slices choose of an array of this shape."""
    spans = [part.indices(length)[:2] for part, length in zip(index, shape, strict=True)]
    return Box(
        tuple(start for start, _ in spans), tuple(max(0, stop - start) for start, stop in spans)
    )


def on_host(array: Any, index: tuple[slice, ...]) -> Any:
    """A part of an array of one device, as a numpy array; in memory, without a copy."""
    if is_in_host_memory(array):
        return np.asarray(array)[index]
    starts = [part.start for part in index]
    sizes = tuple(part.stop - part.start for part in index)
    if sizes != tuple(array.shape):
        array = _cut(array, starts, sizes)
    return np.asarray(jax.device_put(array, jax.local_devices(backend=HOST)[0]))


@partial(jax.jit, static_argnums=2)
def _cut(array: Any, starts: Any, sizes: Shape) -> Any:
    """A part of an array on its device. One program serves all parts of a size."""
    return jax.lax.dynamic_slice(array, starts, sizes)


def is_in_host_memory(array: Any) -> bool:
    """True for an array on devices that use the memory of this process."""
    return bool(next(iter(array.sharding.device_set)).platform == HOST)


def _in_memory(array: Any) -> Any:
    """The numpy array that shares the memory of an array; None if that is not one run of it."""
    if not is_in_host_memory(array):
        return None
    if array.sharding.num_devices == 1:
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_shards[0].data)
    return None


def _refuse(array: Any) -> None:
    """Raise UnsupportedValueError, without a path, for an array that cannot be stored."""
    if isinstance(array, jax.core.Tracer):
        raise UnsupportedValueError(
            "is an array that JAX traces, without a value. Commit outside of jit, grad and vmap."
        )
    if is_key(array):
        raise UnsupportedValueError("is a random key, which has a form of its own")
    dtype = str(array.dtype)
    if dtype not in NUMPY_DTYPES and dtype not in ML_DTYPES:
        bits = "".join(filter(str.isdigit, dtype.partition("_")[0]))
        wider = "int8" if dtype.startswith(("int", "uint")) and bits in ("2", "4") else "bfloat16"
        raise UnsupportedValueError(
            f"has the dtype {dtype}, which no checkpoint can hold. Store array.astype('{wider}')."
        )
    if not array.is_fully_addressable:
        raise UnsupportedValueError(
            "is an array of which other processes hold a part. Only arrays on devices of this "
            "process can be stored."
        )


def key_form(key: Any) -> tuple[str, Any]:
    """The name of the codec of a random key, and its data.

    Raises:
        UnsupportedValueError: Its implementation is not one of JAX's own.
    """
    name = impl_of(key)
    if name not in KEY_IMPLS:
        raise UnsupportedValueError(
            f"is a random key of the implementation {shown(name)}. Store jax.random.key_data(key)."
        )
    return KEY_IMPLS[name], jax.random.key_data(key)


def impl_of(key: Any) -> object:
    """The name of the implementation of a random key, or of the key that a template describes."""
    if isinstance(key, jax.ShapeDtypeStruct):
        for name in KEY_IMPLS:
            if jax.random.key(0, impl=name).dtype == key.dtype:
                return name
        return str(key.dtype)
    return jax.random.key_impl(key)


def key_of(data: Any, impl: str) -> Any:
    """The random key of an implementation that has this data, which may be read lazily."""
    if isinstance(data, LazyArray):
        source = describe(data)
        assert source is not None, "a lazy array can be read"
        flat = np.frombuffer(b"".join(map(bytes, source.pieces())), source.dtype)
        data = flat.reshape(source.shape)
    return jax.random.wrap_key_data(jax.numpy.asarray(data), impl=impl)


def placed(arrays: Mapping[str, Any], slots: Mapping[str, Slot]) -> None:
    """Give each slot of one device, or of copies on several, its array in memory of its own."""
    names = [name for name in arrays if slots[name].is_jax]
    for name in arrays.keys() - names:
        slots[name].fill(arrays[name])
    names = [name for name in names if not _keeps_numpy(arrays[name], slots[name])]
    free = [name for name in names if slots[name].sharding is None]
    bound = [name for name in names if slots[name].sharding is not None]
    put = [*jax.device_put([arrays[name] for name in free])] if free else []
    if bound:
        put += jax.device_put(
            [arrays[name] for name in bound], [slots[name].sharding for name in bound]
        )
    for name, array in zip([*free, *bound], put, strict=True):
        slots[name].fill(_checked(array, slots[name]))


def _keeps_numpy(array: Any, slot: Slot) -> bool:
    """Fill the slot of a number with an array of numpy, if JAX has no array of its dtype."""
    is_kept = slot.is_number and jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype
    if is_kept:
        slot.fill(array)
    return is_kept


def boxes_of(slot: Slot) -> dict[Box, list[Any]]:
    """The devices that are to hold each box of an array."""
    found: dict[Box, list[Any]] = {}
    for device, index in slot.sharding.addressable_devices_indices_map(slot.shape).items():
        found.setdefault(box_of(index, slot.shape), []).append(device)
    return found


def put_box(data: Any, devices: Sequence[Any]) -> dict[Any, Any]:
    """A part of an array on each of its devices."""
    put = jax.device_put([data] * len(devices), list(devices))
    jax.block_until_ready(put)
    return dict(zip(devices, put, strict=True))


def joined(slot: Slot, parts: Mapping[Any, Any]) -> Any:
    """The array whose parts are on these devices; none is copied."""
    devices = slot.sharding.addressable_devices_indices_map(slot.shape)
    array = jax.make_array_from_single_device_arrays(
        slot.shape, slot.sharding, [parts[device] for device in devices]
    )
    return _checked(array, slot)


def weak(array: Any) -> Any:
    """An array whose dtype yields to those it meets, as one that JAX makes of Python numbers.

    The array itself where no such array has the same dtype and bits.
    """
    if array.weak_type or not array.is_fully_replicated:
        return array
    zero = {"b": False, "i": 0, "f": 0.0, "c": 0j}.get(array.dtype.kind)
    if zero is None or jax.numpy.asarray(zero).dtype != array.dtype:
        return array
    made = jax.numpy.full(array.shape, zero).at[...].set(array)
    if not made.weak_type or bytes(np.asarray(made)) != bytes(np.asarray(array)):
        return array
    return jax.device_put(made, array.sharding) if array.committed else made


def of_number(number: Any, dtype: str) -> Any:
    """The numpy array that a Python number becomes; None where that would change it."""
    array = np.asarray(number)
    if array.dtype.kind not in "biufc":
        return None
    target = np.dtype(numpy_dtype(dtype))
    cast = array.astype(target)
    is_rounded = array.dtype.kind == "f" and jax.numpy.issubdtype(target, jax.numpy.floating)
    return cast if is_rounded or cast.astype(array.dtype) == array else None


def _checked(array: Any, slot: Slot) -> Any:
    if str(array.dtype) != slot.dtype:
        raise InvalidInputError(
            f"JAX makes {array.dtype} of an array of {slot.dtype} here. "
            "Set jax.config.update('jax_enable_x64', True), as where the template was made."
        )
    return array
