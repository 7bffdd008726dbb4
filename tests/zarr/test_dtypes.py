"""The dtypes of deep learning in zarr-python, and in TensorStore beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore.zarr import dtypes

ML_DTYPES = [dtype._zarr_v3_name for dtype in dtypes.ALL]
NUMPY = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
NUMPY += ["float16", "float32", "float64", "complex64", "complex128"]

# Else zarr-python compares each chunk with the fill value, and numpy warns of signalling NaNs.
ALL_CHUNKS = {"write_empty_chunks": True}


def native(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def bits(array: Any) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def every(name: str) -> np.ndarray:
    """All bit patterns of small elements, random ones of others; as two dimensions."""
    dtype = native(name)
    if name == "bool":
        return np.tile([True, False], 500).reshape(10, 100)
    if dtype.itemsize <= 2:
        return (
            np.arange(256**dtype.itemsize, dtype=f"u{dtype.itemsize}").view(dtype).reshape(-1, 16)
        )
    return np.frombuffer(np.random.default_rng(0).bytes(1000 * dtype.itemsize), dtype).reshape(
        10, 100
    )


def a_twentieth(data: np.ndarray) -> int:
    """Chunks of rows with a remainder: three rows would make thousands of files."""
    return max(3, len(data) // 20)


@pytest.mark.parametrize("name", ML_DTYPES + NUMPY)
def test_every_bit_goes_through_zarr_and_tensorstore_both_ways(tmp_path: Path, name: str) -> None:
    data = every(name)
    made = zarr.open_group(tmp_path / "ours", mode="w").create_array(
        "x",
        shape=data.shape,
        chunks=(a_twentieth(data), 9),
        dtype=data.dtype,
        compressors=None,
        config=ALL_CHUNKS,
    )
    made[...] = data
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "ours" / "x")}}
    assert bits(tensorstore.open(spec).result().read().result()) == bits(data)
    assert bits(zarr.open_group(tmp_path / "ours", mode="r")["x"][...]) == bits(data)
    spec["kvstore"]["path"] = str(tmp_path / "theirs" / "x")
    spec["metadata"] = {"shape": data.shape, "data_type": name}
    tensorstore.open(spec, create=True).result().write(data).result()
    assert bits(zarr.open_array(tmp_path / "theirs" / "x")[...]) == bits(data)


@pytest.mark.parametrize("name", ML_DTYPES)
@given(data=st.data())
def test_a_fill_value_keeps_its_bits(name: str, data: st.DataObject) -> None:
    dtype = native(name)
    number = data.draw(st.integers(0, 256**dtype.itemsize - 1))
    scalar = np.asarray(number, f"u{dtype.itemsize}").view(dtype)[()]
    kind = next(kind for kind in dtypes.ALL if kind._zarr_v3_name == name)()
    form = json.loads(json.dumps(kind.to_json_scalar(scalar, zarr_format=3)))
    assert bits(kind.from_json_scalar(form, zarr_format=3)) == bits(scalar)
    assert bits(kind.cast_scalar(scalar)) == bits(scalar)


def test_fill_values_have_the_forms_of_the_specification() -> None:
    kind = dtypes.BFloat16()
    forms = {
        1.5: 1.5,
        float("nan"): "NaN",
        float("inf"): "Infinity",
        float("-inf"): "-Infinity",
        -0.0: -0.0,
    }
    for value, form in forms.items():
        assert kind.to_json_scalar(ml_dtypes.bfloat16(value), zarr_format=3) == form
    odd = np.asarray(0x7FC1, "u2").view(ml_dtypes.bfloat16)[()]
    assert kind.to_json_scalar(odd, zarr_format=3) == "0x7fc1"
    for wrong in ("0x7fc", "0x7fc00", "nan", [1], None, True):
        with pytest.raises(TypeError):
            kind.from_json_scalar(wrong, zarr_format=3)


def test_tensorstore_takes_our_fill_values(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path, mode="w")
    for number, fill in enumerate(["NaN", "Infinity", 1.5, "0x7fc1"]):
        group.create_array(f"x{number}", shape=(4,), dtype=native("bfloat16"), fill_value=fill)
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(tmp_path / f"x{number}")},
        }
        found = tensorstore.open(spec).result().read().result()
        assert bits(found) == bits(group[f"x{number}"][...])


def test_a_program_that_knows_nothing_of_us_reads_and_makes_such_arrays(tmp_path: Path) -> None:
    data = every("bfloat16")
    zarr.open_group(tmp_path / "x", mode="w").create_array("w", data=data, config=ALL_CHUNKS)
    code = (
        "import sys, zarr, numpy as np\n"
        "group = zarr.open_group(sys.argv[1], mode='r+')\n"
        "assert 'ckptstore.repository' not in sys.modules\n"
        "found = group['w'][...]\n"
        "made = group.create_array('v', shape=found.shape, dtype='bfloat16', "
        "config={'write_empty_chunks': True})\n"
        "made[...] = found\n"
        "print(found.dtype, found.tobytes() == made[...].tobytes())\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "bfloat16 True\n"


@pytest.mark.parametrize("name", [*ML_DTYPES, "bool", "complex64", "complex128", "float16"])
def test_tensors_of_a_checkpoint_have_the_same_bits_in_zarr(tmp_path: Path, name: str) -> None:
    data = every(name)
    raw = torch.frombuffer(bytearray(bits(data)), dtype=torch.uint8)
    tensor = raw.view(getattr(torch, name)).reshape(data.shape)
    repo = ckptstore.init(tmp_path / "store", chunk_size=64 << 10)
    made = repo.commit({"w": tensor, "one": tensor[0, 0], "none": tensor[:0]})
    group = made.zarr()
    assert group["w"].dtype == native(name)
    assert bits(group["w"][...]) == bits(data)
    # as the zeros that the last chunk is filled up with, into which the array may be grown
    assert bits(group["w"].fill_value) == bytes(native(name).itemsize)
    assert bits(group["one"][...]) == bits(data[0, 0])
    assert group["none"].shape == (0, data.shape[1])


def test_what_zarr_has_no_name_for_is_shown_as_something_of_the_same_bits(tmp_path: Path) -> None:
    raw = torch.arange(240, dtype=torch.uint8)
    half = raw.view(torch.complex32).reshape(3, 20)
    repo = ckptstore.init(tmp_path / "store")
    group = repo.commit({"c": half, "f": raw.view(torch.float4_e2m1fn_x2)}).zarr()
    assert (group["c"].shape, group["c"].dtype) == ((3, 20, 2), np.float16)
    assert bits(group["c"][...]) == bytes(range(240)) == bits(group["f"][...])
    assert group["c"].attrs["ckptstore_dtype"] == "complex32"


def test_a_session_writes_such_arrays_and_a_checkout_reads_them(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store")
    with repo.session("main") as session:
        group = zarr.open_group(session.store)
        for name in ML_DTYPES:
            data = every(name)
            group.create_array(name, data=data, chunks=(a_twentieth(data), 16), config=ALL_CHUNKS)
        session.commit()
    state = repo.checkout("main")
    for name in ML_DTYPES:
        assert state[name].dtype == native(name)
        assert bits(state[name]) == bits(every(name))
        found = repo.resolve("main").array(name, framework="torch")[...]
        assert found.dtype == getattr(torch, name)
