"""The documents and keys of Zarr, as pure values."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zarr.core.group import GroupMetadata
from zarr.core.metadata.v3 import ArrayV3Metadata

from ckptstore.documents import zarr_document
from ckptstore.documents.chunks import chunk_count
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.documents.names import escape_first, escape_key
from ckptstore.errors import CorruptError
from ckptstore.zarr import dtypes
from ckptstore.zarr.contents import Made

DTYPES = st.sampled_from(sorted(ITEM_BYTES))
SHAPES = st.lists(st.integers(0, 6), max_size=4).map(tuple)
RESERVED = [".", "..", "...", "zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"]
KEYS = st.sampled_from([*RESERVED, "__x", "__", "%", "%2E", "%5F_x", "c", "0", ""]) | st.text()
# What a path is made of; an int key beside a str key that reads like it makes the second form.
SEGMENTS = KEYS.map(escape_key) | st.integers().map(str).map(escape_first)


@given(dtype=DTYPES, shape=SHAPES, data=st.data())
def test_zarr_python_takes_every_document_and_it_tells_what_it_was_made_of(
    dtype: str, shape: tuple[int, ...], data: st.DataObject
) -> None:
    steps = tuple(data.draw(st.integers(1, max(1, length))) for length in shape)
    document = zarr_document.array_document(
        dtype=dtype, shape=shape, chunk_shape=steps, name="w", attributes={"unit": "m"}
    )
    read = ArrayV3Metadata.from_dict(json.loads(json.dumps(document)))
    item = read.data_type.to_native_dtype().itemsize
    size = math.prod(read.chunk_grid.chunk_shape) * item
    assert size == zarr_document.padded_bytes(dtype, steps)
    assert read.attributes["unit"] == "m"
    assert len(set(read.dimension_names or ())) == len(read.shape)
    assert zarr_document.described(document, name="w") == (dtype, shape)
    keys = [read.encode_chunk_key(index) for index in read.chunk_grid.all_chunk_coords(read.shape)]
    assert list(zarr_document.chunk_keys(dtype, shape, steps)) == keys
    assert len(keys) == chunk_count(shape, steps)
    for number, key in enumerate(keys):
        assert zarr_document.chunk_number(key, dtype, shape, steps) == number
        assert zarr_document.chunk_key(number, dtype, shape, steps) == key


@pytest.mark.parametrize(
    "key",
    ["", "c", "c/0", "c/0/0/0", "c/00/0", "c/0/01", "c/+1/0", "c/-1/0", "c/ 1/0", "c/2/0", "c/0/3",
     "c/1_0/0", "c/\u0661/0", "c//0", "c/0/0/", "/c/0/0", "d/0/0", f"c/{'9' * 5000}/0", "c.0.0"],
)  # fmt: skip
def test_a_key_of_no_chunk_has_no_number(key: str) -> None:
    assert zarr_document.chunk_number(key, "int8", (4, 9), (2, 3)) is None


@given(segment=SEGMENTS)
def test_a_name_goes_back_to_its_segment_so_no_two_have_one_name(segment: str) -> None:
    name = zarr_document.node_name(segment)
    assert zarr_document.segment_of(name) == segment
    assert name.strip(".")
    assert not name.startswith("__")
    assert name not in RESERVED


@given(parts=st.lists(SEGMENTS, min_size=1, max_size=4))
def test_a_path_goes_there_and_back(parts: list[str]) -> None:
    path = "/".join(parts)
    assert zarr_document.path_of_node(zarr_document.node_path(path)) == path


def test_zarr_python_takes_a_group_with_consolidated_documents() -> None:
    inside = {
        "g": zarr_document.group_document({}),
        "g/w": zarr_document.array_document(dtype="int8", shape=(3,), chunk_shape=(3,), name="w"),
    }
    document = zarr_document.group_document({"step": 1}, inside)
    read = GroupMetadata.from_dict(json.loads(json.dumps(document)))
    assert read.attributes == {"step": 1}
    assert read.consolidated_metadata is not None
    assert set(read.consolidated_metadata.flattened_metadata) == {"g", "g/w"}


@pytest.mark.parametrize(
    "change",
    [{"data_type": "int16"}, {"shape": None}, {"shape": [-1]}, {"shape": [True]}, {"shape": []},
     {"attributes": {"ckptstore_dtype": "float32"}}, {"attributes": {"ckptstore_dtype": ["x"]}},
     {"data_type": {"name": "float16"}}],
    ids=str,
)  # fmt: skip
def test_what_is_no_document_of_ours_is_refused(change: dict[str, object]) -> None:
    document = zarr_document.array_document(
        dtype="complex32", shape=(4,), chunk_shape=(4,), name="w"
    )
    with pytest.raises(CorruptError, match="has no dtype and shape"):
        zarr_document.described({**document, **change}, name="w")


@given(
    dtype=DTYPES, shape=st.lists(st.integers(0, 1 << 62), max_size=32).map(tuple), name=st.text()
)
def test_the_extent_of_a_document_is_never_told_too_small(
    dtype: str, shape: tuple[int, ...], name: str
) -> None:
    made = Made(
        lambda: zarr_document.array_document(
            dtype=dtype, shape=shape, chunk_shape=tuple(max(1, n) for n in shape), name=name
        )
    )
    values, size = made.extent
    assert count(json.loads(made.data)) <= values
    assert made.size <= size


def count(value: object) -> int:
    """How many values there are in a document: itself, and all in it."""
    inside = list(value.values()) if isinstance(value, dict) else value
    return 1 + sum(map(count, inside)) if isinstance(inside, list) else 1


def test_every_dtype_that_zarr_lacks_is_registered_or_shown_as_another() -> None:
    registered = {dtype._zarr_v3_name for dtype in dtypes.ALL}
    assert registered <= ITEM_BYTES.keys()
    assert {name for name in ITEM_BYTES if not zarr_document.has_name(name)} == {
        "complex32",
        "float4_e2m1fn_x2",
    }
