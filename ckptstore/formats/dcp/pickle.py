"""The pickle of torch.distributed.checkpoint's metadata, read with nothing run.

Inert records stand for the classes that such a pickle names, and any other name is refused.
"""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ckptstore.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

OPERATIONS_MAX = 3_000_000  # at worst of 72 bytes of memory each
SHARD_OPERATIONS = 70  # what the shard of a tensor takes, about


def load(data: bytes) -> Any:
    """What a pickle says, of plain values, dtypes and records. ForeignNameError when it names anything else."""
    return _Unpickler(io.BytesIO(data)).load()


class ForeignNameError(Exception):
    """The pickle names what is not expected there."""


class Record:
    """Stands for an object of any class: what it was called with, and what its state is said to be."""

    __slots__ = ("arguments", "state")
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: object) -> Record:
        """Made with any arguments, which are kept."""
        made = object.__new__(cls)
        made.arguments, made.state = arguments, None
        return made

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
    | {("collections", "OrderedDict"), ("builtins", "getattr")}  # as names only: see Record
)


def _counted(handler: Callable[[Any], None]) -> Callable[[Any], None]:
    """What handles an operation, and counts it."""

    def handle(unpickler: _Unpickler) -> None:
        unpickler.operations += 1
        if unpickler.operations > OPERATIONS_MAX:
            raise InvalidInputError(
                f"The metadata of the folder takes more than {OPERATIONS_MAX} operations to read: it lists more than some "
                f"{OPERATIONS_MAX // SHARD_OPERATIONS} shards. Have torch write it as one file, and commit that: "
                "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt"
            )
        handler(unpickler)

    return handle


class _Unpickler(pickle._Unpickler):  # noqa: SLF001  the one in Python: the other takes memory that a file only claims
    """Makes plain values and records, from the operations that plain values and objects need."""

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
        """A class of records, made for this file alone, or a dtype."""
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        if (module, name) not in _KNOWN:
            raise ForeignNameError(f"{module}.{name}"[:200])
        if (module, name) not in self._classes:
            self._classes[module, name] = type(name, (Record,), {"__slots__": ()})
        return self._classes[module, name]
