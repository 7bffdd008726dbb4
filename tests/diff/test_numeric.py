"""How far arrays moved: every dtype, what is not finite, extreme sizes, and what is read for it."""

from __future__ import annotations

import gc
import math
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import ckptstore
from ckptstore.diff import numeric, sums
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.store.objects import ObjectStore

if TYPE_CHECKING:
    from pathlib import Path

    from ckptstore import Diff, Numbers

CHUNK = 1 << 16


def between(one: Any, other: Any, *, chunk: int = CHUNK, other_chunk: int = CHUNK) -> Diff:
    """The numeric diff of two states that lie in repositories of their own."""
    before = ckptstore.init("memory://", chunk_size=chunk)
    after = ckptstore.init("memory://", chunk_size=other_chunk)
    before.commit(one)
    after.commit(other)
    return before.diff("main", "main", other=after, numeric=True)


def numbers(one: Any, other: Any, **options: int) -> Numbers:
    (change,) = between({"x": one}, {"x": other}, **options).changed
    assert change.numbers
    return change.numbers


def naive(one: Any, other: Any) -> dict[str, float]:
    """The same in doubles, all at once."""
    a, b = (np.asarray(array).reshape(-1).astype(np.complex128) for array in (one, other))
    norms = np.linalg.norm(a), np.linalg.norm(b)
    return {
        "relative_l2": float(np.linalg.norm(b - a) / norms[0]),
        "max_abs": float(np.abs(b - a).max()),
        "cosine": float(np.vdot(a, b).real / (norms[0] * norms[1])),
        "norm_before": float(norms[0]),
        "norm_after": float(norms[1]),
    }


def check(found: Numbers, expected: dict[str, float], *, tolerance: float = 2e-6) -> None:
    for name, value in expected.items():
        smallest = 1e-6 if name == "cosine" else 0.0
        assert getattr(found, name) == pytest.approx(value, rel=tolerance, abs=smallest), name


def doubles(tensor: torch.Tensor) -> Any:
    """A tensor of any dtype as numpy's doubles, by torch's own conversion."""
    if tensor.is_complex():
        return torch.view_as_real(tensor.clone()).to(torch.float64).numpy().view(np.complex128)
    return tensor.to(torch.float64).numpy()


def of_dtype(dtype: str, seed: int, count: int) -> torch.Tensor:
    """Finite elements of a dtype."""
    made = torch.Generator().manual_seed(seed)
    kind = getattr(torch, dtype)
    if dtype == "bool":
        return torch.randint(0, 2, (count,), generator=made).bool()
    if kind.is_complex:
        parts = torch.randn(count, 2, generator=made, dtype=torch.float64)
        part = {"complex32": torch.float16, "complex64": torch.float32}.get(dtype, torch.float64)
        return torch.view_as_complex(parts.to(part))
    if kind.is_floating_point:
        return torch.randn(count, generator=made, dtype=torch.float64).abs().add(0.1).to(kind)
    high = min(torch.iinfo(kind).max, 1 << 40)
    return torch.randint(0, high, (count,), generator=made).to(kind)


@pytest.mark.parametrize("count", [50, 150_000])
@pytest.mark.parametrize("dtype", [name for name in ITEM_BYTES if name != "float4_e2m1fn_x2"])
def test_every_dtype_gives_what_doubles_give(dtype: str, count: int) -> None:
    one, other = of_dtype(dtype, 1, count), of_dtype(dtype, 2, count)
    other[: count // 5] = one[: count // 5]
    found = numbers(one, other)
    check(found, naive(doubles(one), doubles(other)))
    bits = [tensor.reshape(-1, 1).view(torch.uint8) for tensor in (one, other)]
    assert found.changed_share == (bits[0] != bits[1]).any(dim=1).sum().item() / count
    assert (found.new_nan, found.new_inf) == (0, 0)


def test_4_bit_floats_count_as_two_numbers_and_one_element() -> None:
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    codes = np.arange(256, dtype=np.uint8)
    one = np.zeros_like(codes)
    low, high = (np.array([values[code] for code in half]) for half in (codes & 15, codes >> 4))
    tensors = (torch.from_numpy(raw).view(torch.float4_e2m1fn_x2) for raw in (one + 0x12, codes))
    found = numbers(*tensors)
    after = np.concatenate([low, high])
    before = np.repeat([1.0, 0.5], 256)
    check(found, naive(before, after))
    assert found.changed_share == 255 / 256


@pytest.mark.parametrize("dtype", [name for name in ITEM_BYTES if name.startswith("float8")])
def test_the_values_of_8_bit_floats_are_those_of_torch(dtype: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(getattr(torch, dtype)).to(torch.float32).numpy()
    np.testing.assert_array_equal(sums._values(dtype, np.arange(256)), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
def test_what_is_not_finite_is_counted_and_left_out_of_the_rest(dtype: str) -> None:
    one = of_dtype(dtype, 1, 100_000)
    other = one * 1.5
    one[7] = other[7] = float("-inf")  # as in a mask: it changes nothing
    one[8] = other[8] = float("nan")
    finite = np.ones(100_000, bool)
    finite[[7, 8, 70_000, 70_001, 70_002, 70_003]] = False
    other[70_000] = float("nan")
    other[70_001] = float("inf")
    one[70_002] = float("inf")  # and is no more
    one[70_003], other[70_003] = float("inf"), float("nan")
    found = numbers(one, other)
    check(found, naive(doubles(one)[finite], doubles(other)[finite]))
    assert (found.new_nan, found.new_inf) == (2, 1)


def test_a_nan_of_the_same_bits_is_no_change_and_one_of_others_is() -> None:
    one = np.array([np.nan, np.nan, 1.0, 2.0])
    other = one.copy()
    other.view(np.uint64)[1] ^= 1
    other[2] = -1.0
    found = numbers(one, other)
    assert (found.changed_share, found.new_nan) == (0.5, 0)


def test_minus_zero_is_a_change_of_bits_that_moves_nothing() -> None:
    found = numbers(np.zeros(4, "f4"), -np.zeros(4, "f4"))
    assert (found.changed_share, found.relative_l2, found.max_abs) == (1.0, 0.0, 0.0)
    assert math.isnan(found.cosine)


def test_a_change_from_nothing_is_infinite() -> None:
    found = numbers(np.zeros(100_000, "f4"), np.ones(100_000, "f4"))
    assert found.relative_l2 == math.inf
    assert (found.norm_before, found.norm_after) == (0.0, pytest.approx(math.sqrt(100_000)))


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        ("float32", 1e30),
        ("float32", 1e-23),
        ("float32", 1e-40),
        ("float64", 1e200),
        ("float64", 1e-200),
        ("complex64", 1e25),
        ("bfloat16", 1e-30),
        ("bfloat16", 1e37),
    ],
)
def test_squares_that_overflow_or_underflow_are_summed_in_wider_floats(
    dtype: str, scale: float
) -> None:
    unit = [of_dtype("float64", seed, 70_000) for seed in (1, 2)]
    one, other = ((array * scale).to(getattr(torch, dtype)) for array in unit)
    found = numbers(one, other)
    small = [np.asarray(doubles(array)) / scale for array in (one, other)]
    expected = naive(*small)
    for name in ("max_abs", "norm_before", "norm_after"):
        expected[name] *= scale
    check(found, expected)


def test_a_tiny_change_of_one_element_is_not_lost_in_float32() -> None:
    one = np.ones(200_000, "f4")
    one[5] = 1e-30
    other = one.copy()
    other[5] = 2e-30
    found = numbers(one, other)
    assert found.max_abs == pytest.approx(1e-30)
    assert found.relative_l2 == pytest.approx(1e-30 / math.sqrt(199_999))


def test_large_integers_that_doubles_cannot_tell_apart_still_differ() -> None:
    one = np.array([2**62, 5, 6], np.int64)
    found = numbers(one, one + np.array([1, 0, 0]))
    assert (found.max_abs, found.changed_share) == (1.0, 1 / 3)


def test_unsigned_integers_do_not_wrap_around() -> None:
    found = numbers(np.array([200, 3], np.uint8), np.array([100, 3], np.uint8))
    assert found.max_abs == 100.0


@pytest.mark.parametrize("ratio", [1e-6, 0.1, 1.0, 3.9, 4.1, 1e3, 1e7])
def test_the_cosine_holds_for_norms_far_apart(ratio: float) -> None:
    one = of_dtype("float32", 1, 100_000)
    other = (one + torch.randn(100_000, generator=torch.Generator().manual_seed(2))) * ratio
    check(numbers(one, other), naive(one.numpy(), other.numpy()))


class Reads:
    """Counts the bytes of objects that are read, by digest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[tuple[str, int]] = []
        for name in ("read_into", "read_range"):
            monkeypatch.setattr(ObjectStore, name, self.counted(getattr(ObjectStore, name)))

    def counted(self, real: Any) -> Any:
        def read(store: ObjectStore, digest: Any, buffer: Any, **options: Any) -> Any:
            self.read.append((digest, len(buffer)))
            return real(store, digest, buffer, **options)

        return read

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.read)


def test_chunks_that_both_share_are_read_once_and_equal_arrays_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = np.arange(10 * CHUNK // 4, dtype="f4")
    other = one.copy()
    other[3] = 0
    still = np.ones(CHUNK, "f4")
    repo = ckptstore.init("memory://", chunk_size=CHUNK)
    repo.commit({"x": one, "still": still, "small": np.ones(3)})
    repo.commit({"x": other, "still": still, "small": np.ones(3)})
    reads = Reads(monkeypatch)
    found = repo.diff("main~1", "main", numeric=True)
    assert reads.bytes == 11 * CHUNK
    check(found.changed[0].numbers, naive(one, other))  # type: ignore[arg-type]


def test_of_many_small_arrays_only_those_that_changed_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = {f"{name:03}": np.full(100, name, "f4") for name in range(30)}
    repo = ckptstore.init("memory://", chunk_size=CHUNK)
    repo.commit(state)
    repo.commit({**state, "007": np.ones(100, "f4")})
    reads = Reads(monkeypatch)
    assert repo.diff("main~1", "main", numeric=True).changed[0].path == "007"
    assert reads.bytes == 2 * 400


def test_tied_arrays_are_read_once_and_both_told(monkeypatch: pytest.MonkeyPatch) -> None:
    repo = ckptstore.init("memory://", chunk_size=CHUNK)
    for seed in (1, 2):
        weight = of_dtype("float32", seed, CHUNK)
        repo.commit({"head": weight, "embedding": weight})
    reads = Reads(monkeypatch)
    found = repo.diff("main~1", "main", numeric=True)
    assert reads.bytes == 2 * 4 * CHUNK
    assert [change.path for change in found.changed] == ["embedding", "head"]
    assert found.changed[0].numbers == found.changed[1].numbers


@pytest.mark.parametrize("count", [16_385, 100_000, 123_457])
@pytest.mark.parametrize("dtype", ["float32", "complex128", "int8"])
def test_arrays_that_are_cut_otherwise_are_measured_too(dtype: str, count: int) -> None:
    one, other = of_dtype(dtype, 1, count), of_dtype(dtype, 2, count)
    expected = naive(doubles(one), doubles(other))
    check(numbers(one, other, other_chunk=3 * CHUNK // 2), expected)
    check(numbers(one, other, chunk=1 << 20), expected)


def test_arrays_that_are_only_cut_otherwise_turn_out_to_be_the_same() -> None:
    state = {"x": np.arange(100_000.0), "y": np.arange(5.0)}
    before = ckptstore.init("memory://", chunk_size=CHUNK)
    after = ckptstore.init("memory://", chunk_size=2 * CHUNK)
    before.commit(state)
    after.commit(state)
    found = before.diff("main", "main", other=after)
    assert [change.path for change in found.undecided] == ["x"]
    found = before.diff("main", "main", other=after, numeric=True)
    assert (found.is_empty, found.unchanged, found.shared) == (True, 2, 1.0)


def test_the_numbers_are_the_same_every_time() -> None:
    one, other = of_dtype("float32", 1, 500_000), of_dtype("float32", 2, 500_000)
    assert len({numbers(one, other) for _ in range(5)}) == 1


@pytest.mark.parametrize("count", [10, 100_000])
def test_damaged_bytes_are_never_measured(tmp_path: Path, count: int) -> None:
    repo = ckptstore.init(tmp_path / "store", chunk_size=CHUNK)
    for seed in (1, 2):
        repo.commit({"x": of_dtype("float32", seed, count)})
    sizes = {count * 4, count * 4 % CHUNK}
    for path in (tmp_path / "store" / "objects").glob("*/*"):
        if path.stat().st_size in sizes:
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.chmod(0o600)
            path.write_bytes(data)
    with pytest.raises(ckptstore.CorruptError, match="damaged"):
        ckptstore.open(tmp_path / "store").diff("main~1", "main", numeric=True)


@pytest.mark.slow
def test_memory_is_bounded_by_a_few_chunks(tmp_path: Path) -> None:
    chunk = 1 << 20
    repo = ckptstore.init(tmp_path / "store", chunk_size=chunk)
    for seed in (1, 2):
        repo.commit({"x": of_dtype("float32", seed, 16 << 20)})
    repo.diff("main~1", "main", numeric=True)  # imports what it needs
    gc.collect()
    tracemalloc.start()
    try:
        repo.diff("main~1", "main", numeric=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    block = 4 * sums.BLOCK_ITEMS
    assert 2 * chunk < peak < (numeric.AHEAD_MAX + 1) * 2 * chunk + 4 * block + (1 << 20)
