"""The pickle of torch.distributed.checkpoint's metadata, read without running any code.

Inert records stand for the classes that such a pickle names. Any other name is refused.
"""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ckptstore.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

OPERATIONS_MAX = 3_000_000  # each takes 72 bytes of memory at worst
SHARD_OPERATIONS = 70  # for each shard of a tensor, about


def load(data: bytes) -> Any:
    """Return the value of a pickle, made of plain values, dtypes and records.

    Raises:
        ForeignNameError: The pickle names anything else.
        InvalidInputError: It takes more operations than the limit allows.
    """
    return _Unpickler(io.BytesIO(data)).load()


class ForeignNameError(Exception):
    """The pickle names something unexpected."""


class Record:
    """Stands for an object of any class: the arguments of its constructor, and its state."""

    __slots__ = ("arguments", "state")
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: object) -> Record:
        """Keep any arguments."""
        record = object.__new__(cls)
        record.arguments, record.state = arguments, None
        return record

    def __setstate__(self, state: object) -> None:
        self.state = state


_CHECKPOINT = "torch.distributed.checkpoint."
_SHARDED = "torch.distributed._shard.sharded_tensor.metadata"  # before torch 2.3
_KNOWN = frozenset(
    {(f"{_CHECKPOINT}metadata", name) for name in ("Metadata", "MetadataIndex", "StorageMeta")}
    | {
        (f"{_CHECKPOINT}metadata", f"{name}StorageMetadata")
        for name in ("Bytes", "Chunk", "Tensor")
    }
    | {(f"{_CHECKPOINT}metadata", name) for name in ("TensorProperties", "_MEM_FORMAT_ENCODING")}
    | {(_SHARDED, name) for name in ("TensorProperties", "MEM_FORMAT_ENCODING")}
    | {(f"{_CHECKPOINT}filesystem", name) for name in ("_StorageInfo", "_StoragePrefix")}
    | {(module, "PosixPath") for module in ("pathlib", "pathlib._local")}
    | {(module, "WindowsPath") for module in ("pathlib", "pathlib._local")}
    | {("torch", "Size"), ("torch.serialization", "_get_layout")}
    | {("collections", "OrderedDict")}
    | {(module, "getattr") for module in ("builtins", "__builtin__")}  # as a name: see Record
)


def _counted(handler: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return a handler of an operation that also counts it."""

    def handle(unpickler: _Unpickler) -> None:
        unpickler.operations += 1
        if unpickler.operations > OPERATIONS_MAX:
            raise InvalidInputError(
                f"The metadata of the folder takes more than {OPERATIONS_MAX} operations to read: "
                f"it lists more than about {OPERATIONS_MAX // SHARD_OPERATIONS} shards. Let torch "
                "write it as one file, and commit that: python -m "
                "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt"
            )
        handler(unpickler)

    return handle


class _Unpickler(pickle._Unpickler):  # noqa: SLF001  the one in C allocates what a file claims
    """Makes plain values and records, with only the operations that these need."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code[0]: _counted(pickle._Unpickler.dispatch[code[0]])  # noqa: SLF001
        for code in (
            *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.NONE),
            *(pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINFLOAT),
            *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
            *(pickle.BINUNICODE, pickle.SHORT_BINUNICODE),
            *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
            *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
            *(pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS),
            *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.NEWOBJ, pickle.REDUCE, pickle.BUILD),
            *(pickle.MEMOIZE, pickle.BINPUT, pickle.LONG_BINPUT),
            *(pickle.BINGET, pickle.LONG_BINGET),
        )
    }

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.operations = 0
        self._classes: dict[tuple[str, str], type] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return a class of records, made for this file alone, or a dtype."""
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        if (module, name) not in _KNOWN:
            raise ForeignNameError(f"{module}.{name}"[:200])
        if (module, name) not in self._classes:
            self._classes[module, name] = type(name, (Record,), {"__slots__": ()})
        return self._classes[module, name]
