"""Arrays as bytes: views without a copy where memory allows, else equal bytes."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import ckptstore
from ckptstore.arrays import frameworks as arrays
from ckptstore.documents.chunks import Chunk, chunk_shape, chunks
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import StorageError, UnsupportedValueError
from tests.helpers.equality import difference

if TYPE_CHECKING:
    from pathlib import Path


def random(dtype: str, *shape: int) -> torch.Tensor:
    size = int(np.prod(shape)) * ITEM_BYTES[dtype]
    high = 2 if dtype == "bool" else 256
    raw = torch.empty(size, dtype=torch.uint8)
    raw.numpy()[:] = np.random.default_rng(0).integers(0, high, size, np.uint8)
    return raw.view(getattr(torch, dtype)).reshape(shape)


def fresh(size: int) -> memoryview:
    return memoryview(bytearray(size))


def stored(value: Any) -> bytes:
    """The bytes of an array as a commit reads them, joined."""
    source = arrays.describe(value)
    assert source is not None
    item = ITEM_BYTES[source.dtype]
    cut = chunk_shape(source.shape, item_bytes=item, chunk_bytes=1000)
    parts = [bytes(source.chunk(c, fresh)) for c in chunks(source.shape, cut, item_bytes=item)]
    assert bytes(source.whole()) == b"".join(parts)
    return b"".join(parts)


def strided(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same elements in other memory: each as a view that is not contiguous."""
    item = tensor.element_size()
    raw = torch.ones((*tensor.shape, 2, item), dtype=torch.uint8)
    raw[..., 0, :] = tensor.reshape(-1).view(torch.uint8).reshape(*tensor.shape, item)
    return {"as it is": tensor, "every second": raw.flatten(-2).view(tensor.dtype)[..., 0]}


@pytest.mark.parametrize("dtype", ITEM_BYTES)
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (1, 1), (7,), (70, 130), (3, 5, 7)], ids=str)
def test_the_bytes_are_those_of_the_elements_in_c_order_whatever_the_strides(
    dtype: str, shape: tuple[int, ...]
) -> None:
    """The transpose of [70, 130] is large enough for torch's special kernels."""
    tensor = random(dtype, *shape)
    expected = bytes(tensor.reshape(-1).view(torch.uint8).numpy())
    for view in strided(tensor).values():
        assert stored(view) == expected
    axes = tuple(reversed(range(len(shape))))
    elements = np.frombuffer(expected, np.uint8).reshape(*shape, ITEM_BYTES[dtype])
    turned = elements.transpose(*axes, len(shape)).tobytes()
    assert stored(tensor.permute(axes)) == turned
    if shape and shape[0]:
        assert stored(tensor[:1].expand(4, *shape[1:])) == 4 * stored(tensor[:1])


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_chunks_are_copied_into_any_strides(dtype: str) -> None:
    tensor = random(dtype, 70, 130)
    data = memoryview(bytearray(stored(tensor)))
    blanks = (
        torch.zeros_like(tensor.view(torch.uint8)).view(tensor.dtype),
        torch.zeros_like(tensor.view(torch.uint8)).view(tensor.dtype).reshape(130, 70).T,
        strided(torch.zeros_like(tensor.view(torch.uint8)).view(tensor.dtype))["every second"],
    )
    for target in blanks:
        for chunk in chunks((70, 130), (16, 130), item_bytes=ITEM_BYTES[dtype]):
            arrays.copy_chunk(target, chunk, data[chunk.start : chunk.start + chunk.size])
        assert difference(tensor, target) is None


def test_a_conjugate_or_negated_destination_reads_as_what_was_copied_into_it() -> None:
    source = torch.randn(40, dtype=torch.complex64)
    memory = torch.zeros(40, dtype=torch.complex64)
    target = memory.conj()
    data = memoryview(bytearray(stored(source)))
    arrays.copy_chunk(target, Chunk(0, 320, (slice(0, 40),)), data)
    assert torch.equal(target, source)
    assert torch.equal(memory, source.conj())
    negated = torch.zeros(40, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    values = memoryview(bytearray(stored(source.real)))
    arrays.copy_chunk(negated, Chunk(0, 160, (slice(0, 40),)), values)
    assert torch.equal(negated, source.real)


def at_odd_addresses(tensor: torch.Tensor) -> torch.Tensor:
    memory = memoryview(b"x" + stored(tensor))[1:]
    with warnings.catch_warnings(action="ignore"):  # it is read-only
        return torch.frombuffer(memory, dtype=torch.uint8).view(tensor.dtype).reshape(tensor.shape)


@pytest.mark.parametrize("dtype", ["complex128", "complex64", "complex32", "float64", "bfloat16"])
@pytest.mark.parametrize(
    "view",
    [torch.Tensor.t, torch.Tensor.conj, torch._neg_view, lambda array: array[1:, ::2]],
    ids=["transposed", "conjugated", "negated", "strided"],
)
def test_elements_at_odd_addresses_are_copied_bit_for_bit(dtype: str, view: Any) -> None:
    """torch itself crashes there: it copies with instructions that need aligned memory."""
    old, new = random(dtype, 40, 40), random(dtype, 40, 80)[:, 40:].contiguous()
    assert stored(view(at_odd_addresses(old))) == stored(view(old))
    shape = tuple(view(new).shape)
    chunk = Chunk(0, 0, tuple(slice(0, length) for length in shape))
    odd_data = memoryview(b"x" + stored(view(new)))[1:]
    for target in (view(old.clone()), view(at_odd_addresses(old))):
        arrays.copy_chunk(target, chunk, odd_data)
        assert stored(target) == bytes(odd_data)


def joined(*values: Any) -> bytes:
    """The bytes of small arrays as the bundle of a page has them."""
    sources = [source for value in values if (source := arrays.describe(value)) is not None]
    data = fresh(sum(source.nbytes for source in sources))
    arrays.join(sources, data)
    return bytes(data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8])
def test_more_elements_than_one_call_takes_are_joined(dtype: torch.dtype) -> None:
    lengths = [1, 20_000, 12_766, 1, 32_766, 1, 1, 32_767, 32_768, 40_000, 3]
    views = [torch.randint(0, 100, (length,)).to(dtype) for length in lengths]
    views.append(torch.randint(0, 100, (30, 20)).to(dtype))
    expected = [view.reshape(-1).view(torch.uint8).numpy().tobytes() for view in views]
    assert joined(*views) == b"".join(expected)


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_small_arrays_are_joined_bit_for_bit(dtype: str) -> None:
    """Of one dtype or several, whatever their strides, and of both frameworks."""
    matrix = random(dtype, 7, 5)
    views = [matrix, matrix[0], matrix[0, 0], *strided(matrix).values(), matrix[:, 1:3]]
    views += [at_odd_addresses(matrix), matrix.permute(1, 0), torch.nn.Parameter(matrix, False)]
    expected = [stored(view) for view in views]
    assert joined(*views) == b"".join(expected)
    byte = np.array([7], dtype=np.uint8)
    assert joined(byte, *views, byte, torch.ones(3)) == b"".join(
        [b"\7", *expected, b"\7", stored(torch.ones(3))]
    )


def test_negated_and_conjugated_arrays_are_joined_as_they_read() -> None:
    numbers = torch.randn(9, dtype=torch.complex64)
    views = [numbers.conj(), numbers.conj().imag, numbers.real, numbers]
    assert joined(*views[:1]) == stored(views[0])
    assert joined(*views[1:3]) == b"".join(map(stored, views[1:3]))
    assert joined(*views) == b"".join(map(stored, views))


def test_contiguous_arrays_are_read_where_they_lie() -> None:
    for array in (torch.zeros(100), np.zeros(100, np.float32)):
        source = arrays.describe(array)
        assert source is not None
        view = source.chunk(Chunk(40, 8, (slice(10, 12),)), fresh)
        array[10] = 1.0
        assert bytes(view) == np.array([1, 0], np.float32).tobytes()


@pytest.mark.parametrize("kind", ["tensor", "ndarray"])
def test_what_is_allocated_is_writable_and_its_own(kind: str) -> None:
    for dtype in ("float32", "bool", "complex128", "bfloat16"):
        for shape in ((), (0,), (3, 0), (1,), (2, 3)):
            array, memory = arrays.allocate(kind, dtype, shape)
            assert tuple(array.shape) == shape
            memory[:] = b"\1" * len(memory)
            assert stored(array) == b"\1" * len(memory)
            made = arrays.from_bytes(kind, dtype, shape, memory)
            memory[:] = bytes(len(memory))
            assert stored(made) == b"\1" * len(memory)


@pytest.mark.parametrize("kind", ["tensor", "ndarray"])
def test_memory_that_is_not_there_is_a_storage_error(kind: str) -> None:
    with pytest.raises(StorageError, match=r"no memory for an array of dtype float64"):
        arrays.allocate(kind, "float64", (1 << 20, 1 << 20, 1 << 10))


def identity(value: Any) -> object:
    source = arrays.describe(value)
    assert source is not None
    return source.identity


@pytest.mark.parametrize("kind", ["tensor", "ndarray"])
def test_two_names_of_the_same_memory_have_one_identity(kind: str) -> None:
    value: Any = torch.zeros(4, 4) if kind == "tensor" else np.zeros((4, 4), np.float32)
    assert identity(value) == identity(value[:])
    others = [value.T, value[1:], value[:, :2], value.reshape(16), value.view(dtype=INT[kind])]
    assert len({identity(view) for view in (value, *others)}) == 6
    # Nothing is tied by having no elements.
    assert identity(value[:0]) is None


INT: dict[str, Any] = {"tensor": torch.int32, "ndarray": np.int32}


@pytest.mark.parametrize("size", [40, 40_000])
def test_lazy_conjugates_and_negatives_are_stored_as_they_read_and_tied_to_nothing(
    size: int,
) -> None:
    """They lie in the same memory as what they were made from, and mean something else."""
    values = torch.randn(size, dtype=torch.complex64)
    real = torch.randn(size)
    state = {"a": values, "b": values.conj(), "c": values.conj(), "d": real}
    state["e"] = torch._neg_view(real)
    repo = ckptstore.init("memory://", chunk_size=64 << 10)
    repo.commit(state)
    found = repo.checkout()
    assert torch.equal(found["b"], torch.conj_physical(values))
    assert torch.equal(found["e"], -1 * real)
    assert difference(state, found) is None
    assert found["b"] is found["c"]
    assert not found["b"].is_conj()


def freed() -> torch.Tensor:
    """What FSDP leaves of a parameter between steps: a shape without memory."""
    tensor = torch.ones(1000)
    tensor.untyped_storage().resize_(0)
    return tensor


def shrunk() -> torch.Tensor:
    """One whose memory ends before its last element."""
    tensor = torch.ones(1000)
    tensor.untyped_storage().resize_(100)
    return tensor


@pytest.mark.parametrize("kind", ["freed", "shrunk", "symbolic zeros"])
def test_a_tensor_whose_memory_was_freed_is_refused_and_never_filled(kind: str) -> None:
    """Reading it would store whatever lies there now; writing would destroy that."""
    make = {"freed": freed, "shrunk": shrunk}.get(kind, lambda: torch._efficientzerotensor(1000))
    repo = ckptstore.init("memory://")
    with pytest.raises(UnsupportedValueError, match="'a/0' has no memory: its storage was freed"):
        repo.commit({"a": [make()]})
    repo.commit({"a": torch.zeros(1000)})
    with pytest.raises(ckptstore.CheckoutMismatchError, match="its storage was freed"):
        repo.checkout(into={"a": make()})


def test_parameters_buffers_and_mapped_files_come_out_as_plain_arrays(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "x", dtype=np.float32, mode="w+", shape=(3, 4))
    mapped[1] = 5
    shared = torch.ones(3).share_memory_()
    grown = torch.nn.Parameter(torch.ones(3)) * 2  # it has a grad_fn
    state = {
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "buffer": torch.nn.Buffer(torch.ones(3)),
        "mapped": mapped,
        "shared": shared,
        "grown": grown,
    }
    repo = ckptstore.init("memory://")
    repo.commit(state)
    found = repo.checkout()
    for name, array in found.items():
        assert type(array) in (torch.Tensor, np.ndarray)
        assert array.tolist() == state[name].tolist()
        assert type(array) is np.ndarray or not (array.requires_grad or array.is_shared())
    assert found["mapped"].flags.owndata or found["mapped"].base is None


def test_a_default_device_of_the_program_changes_nothing() -> None:
    """What it stands for here: a GPU, which the arrays of a checkout are put on only when asked."""
    state = {
        "a": torch.arange(50_000.0),
        "b": torch.zeros(3, dtype=torch.complex32),
        "c": np.ones(2),
    }
    repo = ckptstore.init("memory://", chunk_size=64 << 10)
    with torch.device("meta"):
        repo.commit({**state, "turned": state["a"].reshape(50, 1000).T})
        found = repo.checkout()
        assert not repo.checkout(into=copy.deepcopy(found))
    assert difference(state, {name: found[name] for name in state}) is None
    assert torch.equal(found["turned"], state["a"].reshape(50, 1000).T)


def test_nothing_else_is_an_array() -> None:
    for value in (1, [1], np.float32(1), torch.Size([1]), None, memoryview(b"x"), bytearray(b"x")):
        assert arrays.describe(value) is None
        assert not arrays.is_array(value)
