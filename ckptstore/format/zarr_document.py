"""stand-in"""

from __future__ import annotations

import itertools
import math
from typing import Any

from ckptstore.format.dtypes import ITEM_BYTES


def _zshape(dtype, shape, chunk_shape):
    lead = 0
    while lead < len(chunk_shape) and chunk_shape[lead] == 1:
        lead += 1
    ch = tuple(
        min(c, max(1, l)) if i > lead else min(c, max(1, l))
        for i, (c, l) in enumerate(zip(chunk_shape, shape))
    )
    return ch


def array_document(*, dtype, shape, chunk_shape, name, attributes=None):
    ch = _zshape(dtype, shape, chunk_shape)
    sh = tuple(shape)
    fill: Any = 0
    if dtype.startswith(("float", "bfloat")):
        fill = 0.0
    if dtype == "bool":
        fill = False
    if dtype.startswith("complex"):
        fill = [0.0, 0.0]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(sh),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(ch)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": attributes or {},
        "dimension_names": [f"{name}[{i}]" for i in range(len(sh))],
        "storage_transformers": [],
    }


def padded_bytes(dtype, shape, chunk_shape):
    return math.prod(_zshape(dtype, shape, chunk_shape)) * ITEM_BYTES[dtype]


def group_document(attributes, consolidated=None):
    d = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    if consolidated is not None:
        d["consolidated_metadata"] = {
            "kind": "inline",
            "must_understand": False,
            "metadata": dict(consolidated),
        }
    return d


def chunk_keys(shape, chunk_shape):
    if not shape:
        return ["c"]
    counts = [-(-l // c) for l, c in zip(shape, chunk_shape)]
    return ["/".join(["c", *map(str, i)]) for i in itertools.product(*map(range, counts))]


def node_path(path):
    return path
