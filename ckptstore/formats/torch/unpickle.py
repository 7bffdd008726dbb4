"""What torch.save pickled, with arrays that read the file in place of its tensors.

The pickle is read by the unpickler of `torch.load(weights_only=True)`, so torch decides what a file
may ask for, and nothing else is called. Only the storages are replaced: they are on the meta
device, which has no memory, and their places in the file are noted. What a tensor claims about its
storage is compared with the file.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._weights_only_unpickler import Unpickler
from torch.serialization import DEFAULT_PROTOCOL

from ckptstore.arrays.frameworks import copy_out
from ckptstore.arrays.source import REPEATED_BYTES_MAX
from ckptstore.arrays.strided import ChangedArray, FileArray, byteswap
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import CkptStoreError, InvalidInputError, first_line, shown
from ckptstore.formats.torch.locate import located
from ckptstore.formats.torch.numpy import MoreThanNumbersError, allowed, is_allowable
from ckptstore.formats.torch.replace import Replacer
from ckptstore.formats.torch.text import LongTexts
from ckptstore.formats.torch.zip import PICKLE_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ckptstore.arrays.file import ByteSource
    from ckptstore.arrays.lazy import LazyArray
    from ckptstore.formats.torch.text import PickleStream

READS_MAX = 10_000_000  # a tensor takes some 80
CONTAINERS_MAX = 1_500_000
_UNKNOWN_OPERATION = "Unsupported operand"


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage as a pickle describes it: its key in the file, and its range of bytes."""

    key: str
    start: int
    nbytes: int
    root_nbytes: int  # bytes of everything that has this key
    item_bytes: int


class Loader:
    """Reads the pickles of a file."""

    def __init__(self, file: ByteSource) -> None:
        self.file = file
        self.texts = LongTexts(file)
        self.roots: dict[str, Storage] = {}  # the first with each key
        self._storages: dict[int, Storage] = {}
        self._typed: dict[object, Any] = {}  # keeps them alive, so that the keys above stay true

    def invalid(self, why: object) -> InvalidInputError:
        """Return an error that explains why torch.save did not write this file."""
        return InvalidInputError(f"{self.file.path} is not a file that torch.save wrote: {why}")

    def unpickle(self, stream: PickleStream) -> Any:
        """Return the next value of a stream, with tensors that have no memory."""
        start = stream.tell()
        unpickler = _Unpickler(stream, self)
        try:
            with warnings.catch_warnings():
                # Of storage classes, about which only torch's authors can do anything.
                warnings.simplefilter("ignore")
                try:
                    return unpickler.load()  # type: ignore[no-untyped-call]
                except pickle.UnpicklingError as error:
                    if not is_allowable(error):
                        raise
                    stream.seek(start)
                    unpickler = _Unpickler(stream, self)
                    with allowed():
                        return unpickler.load()  # type: ignore[no-untyped-call]
        except CkptStoreError:
            raise
        except Exception as error:
            refused = self._refused(error, stream, start, protocol=unpickler.proto)
            raise refused from error
        finally:
            torch._utils._sparse_tensors_to_validate.clear()  # noqa: SLF001  as torch.load does

    def _refused(
        self, error: Exception, stream: PickleStream, start: int, *, protocol: int
    ) -> InvalidInputError:
        """The error that a user gets for one of the unpickler. protocol: of the pickle."""
        reason = first_line(error).split(". ")[0] + "."
        if isinstance(error, EOFError):
            return self.invalid("it ends early.")
        if isinstance(error, LookupError):  # of the unpickler's own stack and memo
            return self.invalid("it does not begin with a pickle.")
        if isinstance(error, pickle.UnpicklingError):
            return self._more_than_plain(str(error), stream, start, protocol)
        if isinstance(error, MoreThanNumbersError):
            return InvalidInputError(
                f"{self.file.path} holds {error}, which no checkpoint can hold. Store it as "
                "numbers or plain values."
            )
        if isinstance(error, NotImplementedError):  # of the meta device
            return InvalidInputError(
                f"{self.file.path} holds a tensor that is more than its elements in memory "
                "(nested, say), which no checkpoint can hold. Store the plain tensors it is made "
                f"of. ({reason[:100]})."
            )
        return self.invalid(reason)

    def _more_than_plain(
        self, said: str, stream: PickleStream, start: int, protocol: int
    ) -> InvalidInputError:
        """The error for a pickle that needs what the unpickler does not know."""
        if not said.startswith(_UNKNOWN_OPERATION):
            foreign = re.search(r"GLOBAL (\S{1,100})", said)
            where, remedy = located(stream, start, foreign[1]) if foreign else ("", "")
            way_out = f"put {remedy} in its place" if remedy else "leave that out"
            return InvalidInputError(
                f"{self.file.path} holds more than tensors and plain values "
                f"({foreign[1] if foreign else said[:100]}{where}), so loading it could run code, "
                "and it is not loaded. If you trust it, load it yourself (weights_only=False), "
                f"{way_out}, and commit the state, or save it again."
            )
        if protocol <= DEFAULT_PROTOCOL:
            return self.invalid("its pickle has an operation that no such file needs.")
        return InvalidInputError(
            f"{self.file.path} was saved with pickle protocol {protocol}, which weights_only=True "
            "does not know. If you trust it, load it yourself, and save it with protocol "
            f"{DEFAULT_PROTOCOL}, the default of torch.save."
        )

    def with_arrays(self, state: Any, place: Callable[[str], int], *, is_swapped: bool) -> Any:
        """Return the state, with arrays that read the file in place of tensors.

        Args:
            state: What `unpickle` returned.
            place: Returns where the storage of a key begins in the file.
            is_swapped: Whether the elements are big-endian.
        """

        def array(tensor: torch.Tensor) -> object:
            storage = self._storage_of(tensor)
            if storage is None:
                return tensor  # no checkpoint can hold it, and `commit` explains why
            return self._array(tensor, storage, place, is_swapped=is_swapped)

        return Replacer(array, self.texts).replace(state)

    def storage(self, saved_id: Any) -> Any:
        """Return a storage without memory for the persistent id of one."""
        try:
            _, kind, key, _, length, *view = saved_id
            dtype = torch.uint8 if kind is torch.UntypedStorage else kind.dtype
            key = key.decode("ascii") if isinstance(key, bytes) else key
            item = dtype.itemsize
            numbers = [length, *(view[0][1:] if view and view[0] else (0, length))]
        except (ValueError, TypeError, AttributeError, IndexError) as error:
            raise self.invalid("it names a storage in a form that torch does not know.") from error
        if type(key) is not str or not all(
            type(number) is int and 0 <= number * item <= self.file.nbytes for number in numbers
        ):
            raise self.invalid(f"its storage {shown(key)} would be larger than the file.")
        if dtype in _QUANTIZED:
            raise InvalidInputError(
                f"{self.file.path} holds a quantized tensor ({dtype}). Store tensor.int_repr() "
                "with its scale and zero point."
            )
        nbytes, start, size = (number * item for number in numbers)
        if start + size > nbytes:
            raise self.invalid(f"it has a view beyond the end of its storage {shown(key)}.")
        storage = Storage(key, start, size, nbytes, item)
        if nbytes > self.roots.setdefault(key, storage).root_nbytes:
            raise self.invalid(f"it contradicts itself about the size of its storage {shown(key)}.")
        if (storage, dtype) not in self._typed:
            raw: Any = torch.UntypedStorage(size, device="meta")  # type: ignore[no-untyped-call]
            self._storages[_identity(raw)] = storage
            typed: Any = torch.storage.TypedStorage
            self._typed[storage, dtype] = typed(wrap_storage=raw, dtype=dtype, _internal=True)
        return self._typed[storage, dtype]

    def _storage_of(self, tensor: torch.Tensor) -> Storage | None:
        """The storage of a tensor's elements; None for one that is more than its elements."""
        is_plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.is_nested
        if not is_plain or tensor.layout is not torch.strided or tensor.is_quantized:
            return None
        return self._storages.get(_identity(tensor.untyped_storage()))

    def _array(
        self,
        tensor: torch.Tensor,
        storage: Storage,
        place: Callable[[str], int],
        *,
        is_swapped: bool,
    ) -> LazyArray:
        """The array that reads the elements of a tensor."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in ITEM_BYTES:
            raise InvalidInputError(
                f"{self.file.path} holds a tensor of dtype {tensor.dtype}, which no checkpoint can "
                "hold."
            )
        item, shape = ITEM_BYTES[dtype], tuple(tensor.shape)
        strides = tuple(step * item for step in tensor.stride())
        nbytes, offset = math.prod(shape) * item, int(tensor.storage_offset()) * item
        if not nbytes:
            return FileArray(self.file, kind="tensor", dtype=dtype, shape=shape, offset=0)
        steps = list(zip(shape, strides, strict=True))
        extent = item + sum((length - 1) * step for length, step in steps)
        if offset < 0 or min(strides, default=0) < 0 or offset + extent > storage.nbytes:
            raise self.invalid(
                f"it has a tensor of shape {list(shape)} beyond the end of its storage "
                f"{shown(storage.key)}."
            )
        if nbytes > REPEATED_BYTES_MAX and nbytes > extent:
            raise InvalidInputError(
                f"{self.file.path} holds a tensor that repeats its elements (an expanded view), "
                f"and would take {nbytes / 1e9:.0f} GB. Store what it was made from."
            )
        start = place(storage.key) + storage.start + offset
        identity = (self.file, start, dtype, shape, strides, tensor.is_conj(), tensor.is_neg())
        array: LazyArray = FileArray(
            self.file,
            kind="tensor",
            dtype=dtype,
            shape=shape,
            offset=start,
            strides=strides,
            identity=identity,
        )
        for change in _changes(tensor, is_swapped=is_swapped):
            array = ChangedArray(array, change, identity=identity)
        return array


class _Unpickler(Unpickler):
    """torch's, with storages that have no memory, and names for long texts."""

    def __init__(self, stream: PickleStream, loader: Loader) -> None:
        super().__init__(stream, encoding="utf-8")
        self._loader = loader
        self.read = _bounded(stream, loader.texts)

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage that the pickle refers to."""
        return self._loader.storage(pid)


def _bounded(stream: PickleStream, texts: LongTexts) -> Callable[[int], bytes]:
    """Read a pickle within the limits of a checkpoint: a byte of it can take 72 of memory."""
    read = stream.read
    reads, containers, left = READS_MAX, CONTAINERS_MAX, PICKLE_BYTES_MAX

    def bounded(size: int) -> bytes:
        nonlocal reads, containers, left
        reads -= 1
        if texts.is_long(size):
            return texts.skip(stream, size)
        data = read(size)
        left -= size
        if data in _CONTAINERS:
            containers -= 1
        if reads < 0 or containers < 0 or left < 0:
            raise ValueError("it has more values than any checkpoint")
        return data

    return bounded


_CONTAINERS = frozenset(
    {pickle.MARK, pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET, pickle.TUPLE1}
)
_QUANTIZED = frozenset({torch.quint8, torch.qint8, torch.qint32, torch.quint4x2, torch.quint2x4})


def _identity(storage: Any) -> int:
    """Equal for every Python object of one storage while it is alive; torch.save uses it, too."""
    return int(storage._cdata)  # noqa: SLF001  it has no public name


def _changes(tensor: torch.Tensor, *, is_swapped: bool) -> Iterator[Callable[[memoryview], None]]:
    """The change to make to elements of the file, which are stored as they were in memory."""
    dtype, is_conj, is_neg = tensor.dtype, tensor.is_conj(), tensor.is_neg()
    part = dtype.itemsize // (2 if dtype.is_complex else 1)
    if is_swapped and part > 1:
        yield byteswap(part)
    if is_conj or is_neg:

        def resolve(buffer: memoryview) -> None:
            view = torch.frombuffer(bytearray(buffer), dtype=torch.uint8).view(dtype)
            view = view.conj() if is_conj else view
            view = torch._neg_view(view) if is_neg else view  # noqa: SLF001  it has no public name
            copy_out(view, buffer)

        yield resolve
