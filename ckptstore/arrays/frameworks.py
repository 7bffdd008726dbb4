"""Frameworks: which framework an array belongs to, and what is done with arrays of any.

A framework is a module of this package, a name in `KINDS` or `ALIKE` and a line of `_load`. It is
imported once its arrays can exist, which is when the program has imported the framework, or when an
array of it has to be made: naming checkpoints needs neither torch nor numpy. See docs/adr/0074.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

from ckptstore.arrays.lazy import LazyArray
from ckptstore.arrays.source import ALIKE, JAX, KINDS, ArraySource, part_of
from ckptstore.documents.chunks import Chunk, reversed_order, stored_order
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import StorageError, UnsupportedValueError
from ckptstore.forks import renewed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ckptstore.arrays.source import Form, Framework

Key = TypeVar("Key")


@cache
def _load(name: str) -> Framework:
    if name == "torch":
        from ckptstore.arrays.torch import Torch

        return Torch()
    if name == JAX:
        from ckptstore.arrays.jax import Jax

        return Jax()
    if name == "tensorflow":
        from ckptstore.arrays.tensorflow import TensorFlow

        return TensorFlow()
    if name == "keras":
        from ckptstore.arrays.keras_variable import KerasVariables

        return KerasVariables()
    from ckptstore.arrays.numpy import Numpy

    return Numpy()


_NAMES = {**{kind: name for name, kind in KINDS.items()}, JAX: JAX}  # what makes arrays


_by_type: dict[type, Framework] = {}  # of the arrays that were met; spares most of each look


def framework_of(value: object) -> Framework | None:
    """The framework of an array; None for any other value."""
    known = _by_type.get(type(value))
    if known is not None:
        return known
    for name in (*KINDS, *ALIKE):
        if sys.modules.get(name) is not None:  # None: the program forbids to import it
            framework = _load(name)
            if isinstance(value, framework.array_type):
                _by_type[type(value)] = framework
                return framework
    return None


def describe(value: object) -> ArraySource | None:
    """How to read an array, or None for any other value.

    UnsupportedValueError, without a path, for an array that cannot be stored bit for bit.
    """
    framework = _by_type.get(type(value)) or framework_of(value)
    if framework is not None:
        return framework.describe(value)
    return _describe_lazy(value) if isinstance(value, LazyArray) else None


def is_array(value: object) -> bool:
    """True for an array with memory of its own, which lazy arrays do not have."""
    return framework_of(value) is not None


def is_model(value: object) -> bool:
    """True for a torch nn.Module and for a Keras model."""
    return is_module(value) or is_keras(value)


def is_module(value: object) -> bool:
    """True for a torch nn.Module."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def is_keras(value: object) -> bool:
    """True for a Keras model; with the torch backend it is an nn.Module too."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(value, getattr(keras, "Model", ()))


def is_uninitialized(value: object) -> bool:
    """True for a parameter or buffer of a torch module that has no shape yet."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.nn.parameter.is_lazy(value)


def allocate(
    kind: str, dtype: str, shape: tuple[int, ...], order: tuple[int, ...] | None = None
) -> tuple[Any, memoryview]:
    """A new, writable array, and its bytes; StorageError where there is no memory for it.

    order: its dimensions in the order of its bytes; None for C order.
    """
    framework = _load(_NAMES[kind])
    try:
        array, data = framework.allocate(dtype, stored_order(shape, order))
    except UnsupportedValueError:
        raise
    except (MemoryError, RuntimeError, ValueError, OverflowError) as error:
        raise StorageError(
            f"There is no memory for an array of dtype {dtype} and shape {shape}."
        ) from error
    if order is not None:
        array = framework.in_order(array, reversed_order(order))
    return array, data


def from_bytes(
    kind: str,
    dtype: str,
    shape: tuple[int, ...],
    data: memoryview,
    order: tuple[int, ...] | None = None,
) -> Any:
    """A new, writable array with a copy of these bytes. order: as of `allocate`."""
    array, flat = allocate(kind, dtype, shape, order)
    flat[:] = data
    return array


def in_order(array: Any, order: tuple[int, ...] | None) -> Any:
    """A view of an array with its dimensions in the order in which it is stored."""
    return array if order is None else _known(array).in_order(array, order)


def copy_chunk(target: Any, chunk: Chunk, data: memoryview) -> None:
    """Copy the checked bytes of a chunk to their place in an array of the same dtype and shape."""
    _known(target).copy_in(part_of(target, chunk), data)


@contextmanager
def opened(targets: Mapping[Key, Any]) -> Iterator[dict[Key, Any]]:
    """Yield memory to fill for each array: its own, or a copy that is assigned to it at the end.

    If an error is raised before that, arrays that have a copy stay as they are.
    """
    distinct = {id(target): target for target in targets.values()}
    memory = {key: _known(target).open(target) for key, target in distinct.items()}
    yield {key: memory[id(target)] for key, target in targets.items()}
    for key, target in distinct.items():
        if memory[key] is not target:
            _known(target).assign(target, memory[key])


def copy(target: Any, value: Any) -> None:
    """Copy the elements of an array to one of the same dtype and shape, of any framework."""
    source = describe(value)
    assert source is not None
    with opened({0: target}) as memory:
        copy_chunk(memory[0], Chunk(0, source.nbytes, ()), source.whole())


def form_of(array: Any) -> Form:
    """The dtype, as checkpoints name it, and the shape of an array."""
    return _known(array).form_of(array)


def copy_out(array: Any, data: memoryview) -> None:
    """Copy the elements of an array to a buffer, in C order."""
    _known(array).copy_out(array, data)


def join(sources: Sequence[ArraySource], data: memoryview) -> None:
    """Copy small arrays to a buffer of their size, one behind the other."""
    # The framework of an array that is not copied yet; None for others.
    joined_by = [source.framework if source.copied is None else None for source in sources]
    for framework, group in groupby(zip(joined_by, sources, strict=True), key=itemgetter(0)):
        members = [member for _, member in group]
        size = sum([member.nbytes for member in members])
        part, data = data[:size], data[size:]
        if framework is not None:
            with one_thread_in_child():
                framework.join([member.array for member in members], part)
            continue
        for member in members:
            part[: member.nbytes] = member.whole()
            part = part[member.nbytes :]


def unwritable(array: Any) -> str | None:
    """Why an array cannot be filled in place; None when it can."""
    return _known(array).unwritable(array)


def to_device(array: Any, device: Any) -> Any:
    """An array on a device, as its framework names devices; one that has none stays as it is."""
    return _known(array).to_device(array, device)


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Make and change tensors that can be trained, also inside torch.inference_mode()."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False):
        yield


@contextmanager
def one_thread_in_child() -> Iterator[None]:
    """Copy with one thread in a forked child.

    torch would wait for ever for the threads it had in the parent, which the child has not.
    """
    torch = sys.modules.get("torch") if _process.is_child else None
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Process:
    is_child = False

    def note_child(self) -> None:
        self.is_child = True


_process = renewed(_Process(), _Process.note_child)


def _known(array: Any) -> Framework:
    framework = framework_of(array)
    assert framework is not None
    return framework


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
        framework=None,
        order=value.order,
    )
