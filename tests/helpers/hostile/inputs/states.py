"""States that no checkpoint can hold, or that would never end."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy
import torch

import ckptstore
from tests.helpers.hostile.cases import Case, World, call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _state(story: str, make: Callable[[], Any], *, says: str = "") -> Case:
    def action(world: World) -> object:
        before = sorted(world.store.rglob("ops/*"))
        try:
            return world.repo.commit(world.given)
        finally:
            assert sorted(world.store.rglob("ops/*")) == before, "a refused commit counted"

    return call(f"a state with {story}", action, given=lambda world: make(), says=says)


def _key(story: str, key: Any) -> Case:
    return _made_key(story, lambda: key)


def _made_key(story: str, make: Callable[[], Any]) -> Case:
    return _state(f"{story} for a key", lambda: {"a": {make(): torch.zeros(2)}})


def _value(story: str, make: Callable[[], Any]) -> Case:
    return _state(story, lambda: {"model": {"x": make()}}, says="model/x")


class _Liar:
    """Answers every question with an error."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError("ask somebody else")

    def __repr__(self) -> str:
        raise RuntimeError("no name either")

    def __len__(self) -> int:
        return -1


class _LyingKey(_Liar):
    def __hash__(self) -> int:
        return 0


class _Text(str):
    __slots__ = ()


class _Tensor(torch.Tensor):
    pass


class _Colour(enum.Enum):
    RED = 1


class _IntColour(enum.IntEnum):
    RED = 1


@dataclasses.dataclass
class _Point:
    x: float = 0.0


_Named = collections.namedtuple("_Named", ["x"])


def _inside_itself() -> Any:
    state: dict[str, Any] = {"w": torch.zeros(2)}
    state["self"] = state
    return state


def _list_inside_itself() -> Any:
    state: list[Any] = [torch.zeros(2)]
    state.append((state,))
    return state


def _deep(levels: int, *, kind: Callable[[Any], Any]) -> Any:
    state: Any = 1
    for _ in range(levels):
        state = kind(state)
    return state


def _laughs() -> Any:
    """60 lists, each holding the one before it twice: 2^60 values in a few bytes."""
    return _deep(60, kind=lambda inner: [inner, inner])


def _dict_laughs() -> Any:
    return _deep(60, kind=lambda inner: {"a": inner, "b": inner, "c": inner})


def _odd_metadata() -> Any:
    state: Any = collections.OrderedDict(w=torch.zeros(2))
    state._metadata = state
    return state


def _two_of_a_path() -> Any:
    state: Any = collections.OrderedDict(_metadata=torch.zeros(2))
    state._metadata = torch.zeros(2)
    return state


def _without_memory() -> Any:
    """What FSDP leaves of a parameter between two forward passes."""
    tensor = torch.zeros(1 << 20)
    tensor.untyped_storage().resize_(0)
    return tensor


def _quantized() -> Any:
    return torch.ops.aten.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)


def _sparse_csr() -> Any:
    return torch.sparse_csr_tensor([0, 1], [0], [1.0], size=(1, 1), check_invariants=True)


def _nested() -> Any:
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)


def _distributed() -> Any:
    """A DTensor of a world of one."""
    from torch.distributed import device_mesh, tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    mesh = device_mesh.init_device_mesh("cpu", (1,))
    return tensor.distribute_tensor(torch.zeros(4), mesh, [tensor.Replicate()])


def _generator() -> Iterator[int]:
    yield 1


def _masked() -> Any:
    return numpy.ma.masked_array(numpy.zeros(2), mask=[True, False])


def _quietly(make: Callable[[], Any]) -> Callable[[], Any]:
    """Torch warns that what is made here is experimental."""
    import warnings

    def made() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()

    return made


CASES = (
    _state("itself inside", _inside_itself),
    _state("itself inside a tuple in a list", _list_inside_itself),
    _state("itself for its metadata", _odd_metadata),
    _state("two arrays of one path", _two_of_a_path),
    _state("100,000 lists in one another", lambda: _deep(100_000, kind=lambda x: [x])),
    _state("100,000 dicts in one another", lambda: _deep(100_000, kind=lambda x: {"a": x})),
    _state("100,000 tuples in one another", lambda: _deep(100_000, kind=lambda x: (x,))),
    _state("2^60 values by way of lists", _laughs),
    _state("3^60 values by way of dicts", _dict_laughs),
    _state("10,000,000 numbers in one list", lambda: {"x": [0] * 10_000_000}),
    _state("40 MB of text", lambda: {"x": "x" * (40 << 20)}),
    _state("40 MB of bytes", lambda: {"x": bytes(40 << 20)}),
    _state("an integer of 1,000,000 digits", lambda: {"x": 1 << 3_400_000}),
    _state("a key of 1,000,000 characters", lambda: {"k" * 10**6: torch.zeros(2)}),
    _state("a path of 5,000 characters", lambda: {"k" * 2500: {"k" * 2500: torch.zeros(2)}}),
    _state("a key of 2,000 slashes", lambda: {"/" * 2000: torch.zeros(2)}),
    _made_key("a tuple of 1,000,000 numbers", lambda: tuple(range(10**6))),
    _key("a frozenset", frozenset({1})),
    _key("a type", int),
    _key("a subclass of str", _Text("w")),
    _key("a numpy integer", numpy.int64(1)),
    _key("an integer of 100,000 digits", 1 << 340_000),
    _key("an object that refuses to say its name", _LyingKey()),
    _value("an array of objects", lambda: numpy.array([object()], dtype=object)),
    _value("an array of strings", lambda: numpy.array(["a"])),
    _value("an array of records", lambda: numpy.zeros(2, dtype=[("a", "f4"), ("b", "i4")])),
    _value("an array of dates", lambda: numpy.array(["2020-01-01"], dtype="datetime64[D]")),
    _value("an array of long doubles", lambda: numpy.zeros(2, dtype=numpy.longdouble)),
    _value("an array of another byte order", lambda: numpy.zeros(2, dtype=">f4")),
    _value("a masked array", _masked),
    _value("a record array", lambda: numpy.rec.array([(1, 2.0)])),
    _value("a numpy string", lambda: numpy.str_("x")),
    _value("a numpy void", lambda: numpy.void(b"xx")),
    _value("a numpy long double", lambda: numpy.longdouble(1)),
    _value("a numpy array of 2^60 elements in 8 bytes", lambda: numpy.broadcast_to(0.5, 2**59)),
    _value("a tensor of 2^60 elements in 4 bytes", lambda: torch.zeros(1).expand(2**60)),
    _value("a tensor of 4 TB in 4 bytes", lambda: torch.zeros(1).expand(10**12)),
    _value("a tensor of 2^30 x 2^30 elements", lambda: torch.zeros(1, 1).expand(2**30, 2**30)),
    _value("a tensor of 65 dimensions", lambda: torch.zeros((1,) * 65)),
    _value("a tensor whose memory was taken away", _without_memory),
    _value("a sparse tensor", lambda: torch.eye(2).to_sparse()),
    _value("a sparse CSR tensor", _quietly(_sparse_csr)),
    _value("a quantized tensor", _quietly(_quantized)),
    _value("a meta tensor", lambda: torch.zeros(2, device="meta")),
    _value("a nested tensor", _quietly(_nested)),
    _value(
        "a nested tensor of old", _quietly(lambda: torch.nested.nested_tensor([torch.zeros(2)]))
    ),
    _value("a DTensor", _distributed),
    _value("a tensor subclass", lambda: torch.zeros(2).as_subclass(_Tensor)),
    _value("a lazy parameter", lambda: torch.nn.LazyLinear(2).weight),
    _value("a buffer subclass", lambda: torch.nn.Buffer(torch.zeros(2)).as_subclass(_Tensor)),
    _value("a lambda", lambda: lambda: 1),
    _value("a function", lambda: _laughs),
    _value("a method", lambda: [].append),
    _value("a class", lambda: int),
    _value("a module of Python", lambda: collections),
    _value("a random generator", lambda: torch.Generator()),
    _value("a storage", _quietly(lambda: torch.zeros(2).untyped_storage())),
    _value("a generator", _generator),
    _value("a file", lambda: sys.stdout),
    _value("a lock", threading.Lock),
    _value("a memoryview", lambda: memoryview(b"x")),
    _value("an Ellipsis", lambda: ...),
    _value("a subclass of str", lambda: _Text("x")),
    _value("an error", lambda: ValueError("x")),
    _value("a context manager", lambda: contextlib.nullcontext()),
    _value("an object that answers with errors", _Liar),
    call(
        "a codec whose plain form is what it was given",
        lambda world: world.repo.commit({"x": _Point()}),
        given=lambda world: ckptstore.register_codec(_Point, lambda x: x, lambda x: x),
    ),
)
