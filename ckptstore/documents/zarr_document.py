"""Zarr documents: how arrays and groups of a state appear to a Zarr v3 reader. Pure.

An array appears uncompressed, on the regular grid on which it is stored. Zarr wants every chunk to
have the same shape, so one that is stored short is padded with zeros when it is read. One that is
stored with its dimensions in another order has a transpose codec (ADR 0048).

Element types are named as in the registry of Zarr extensions. Two have no name there: complex32
appears as float16 with one more dimension of 2, float4_e2m1fn_x2 as uint8, and an attribute records
what they are. ADR 0016, ADR 0022.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import TYPE_CHECKING, Any

from ckptstore.documents.chunks import reversed_order
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.documents.names import escape_first
from ckptstore.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

METADATA = "zarr.json"
V2_KINDS = {".zarray": "array", ".zgroup": "group"}
NODE_DOCUMENTS = frozenset({METADATA, *V2_KINDS})
OWN_DTYPE = "ckptstore_dtype"  # the attribute of an array whose dtype Zarr has no name for
_SHOWN_AS = {"complex32": ("float16", (2,)), "float4_e2m1fn_x2": ("uint8", ())}
DOCUMENTS = NODE_DOCUMENTS | {".zattrs", ".zmetadata"}
_INDEX = re.compile(r"0|[1-9][0-9]*")


def array_document(
    *,
    dtype: str,
    shape: Sequence[int],
    chunk_shape: Sequence[int],
    name: str,
    attributes: Mapping[str, Any] | None = None,
    order: Sequence[int] | None = None,
) -> dict[str, Any]:
    """The zarr.json of an array.

    name: of its node. Its dimensions are called name[0], name[1], …, so that no two arrays share
    one by accident. order: its dimensions in the order of the bytes of its chunks; None for C
    order.
    """
    shown, more = _SHOWN_AS.get(dtype, (dtype, ()))
    own = {OWN_DTYPE: dtype} if shown != dtype else {}
    whole = (*shape, *more)
    codecs = [_bytes_codec(shown)]
    if order is not None:
        axes = [*order, *range(len(shape), len(whole))]
        codecs = [{"name": "transpose", "configuration": {"order": axes}}, *codecs]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(whole),
        "data_type": shown,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [*chunk_shape, *more]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": _zero(shown),
        "codecs": codecs,
        "attributes": {**(attributes or {}), **own},
        "dimension_names": [f"{name}[{axis}]" for axis in range(len(whole))],
    }


def group_document(
    attributes: Mapping[str, Any], consolidated: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """The zarr.json of a group.

    consolidated: the documents of all nodes below it, by path, so that opening takes one read.
    """
    document = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    if consolidated is not None:
        document["consolidated_metadata"] = {
            "kind": "inline",
            "must_understand": False,
            "metadata": dict(consolidated),
        }
    return document


def in_groups(nodes: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The nodes whose groups all have documents; zarr-python can consolidate no others."""
    groups = {""}
    for path, document in nodes:
        if path.rpartition("/")[0] in groups and path:
            if document["node_type"] == "group":
                groups.add(path)
            yield path, document


def padded_bytes(dtype: str, chunk_shape: Sequence[int]) -> int:
    """Bytes of every chunk for Zarr, which wants those at the end of a dimension padded."""
    return math.prod(chunk_shape) * ITEM_BYTES[dtype]


def chunk_keys(
    dtype: str,
    shape: Sequence[int],
    chunk_shape: Sequence[int],
    order: Sequence[int] | None = None,
) -> Iterator[str]:
    """The keys of all chunks below the array, in C order of the stored grid. order: as above."""
    _, more = _SHOWN_AS.get(dtype, (dtype, ()))
    counts = [-(-length // step) for length, step in zip(shape, chunk_shape, strict=True)]
    axes = range(len(shape)) if order is None else order
    places = reversed_order(axes)
    for position in itertools.product(*(range(counts[axis]) for axis in axes)):
        parts = [str(position[place]) for place in places]
        yield "/".join(["c", *parts, *("0" for _ in more)])


def chunk_key(number: int, dtype: str, shape: Sequence[int], chunk_shape: Sequence[int]) -> str:
    """The key of a chunk, by its number in C order; the reverse of `chunk_number`."""
    _, more = _SHOWN_AS.get(dtype, (dtype, ()))
    parts = ["0" for _ in more]
    for length, step in zip(reversed(shape), reversed(chunk_shape), strict=True):
        number, part = divmod(number, -(-length // step))
        parts.append(str(part))
    return "/".join(["c", *reversed(parts)])


def chunk_number(
    key: str, dtype: str, shape: Sequence[int], chunk_shape: Sequence[int]
) -> int | None:
    """The number of a chunk in C order, by its key; None for any other key."""
    _, more = _SHOWN_AS.get(dtype, (dtype, ()))
    first, *parts = key.split("/")
    if first != "c" or len(parts) != len(shape) + len(more):
        return None
    counts = [-(-length // step) for length, step in zip(shape, chunk_shape, strict=True)]
    number = 0
    for part, count in zip(parts, (*counts, *(1 for _ in more)), strict=True):
        if not _INDEX.fullmatch(part) or len(part) > 20 or int(part) >= count:
            return None
        number = number * count + int(part)
    return number


def has_name(dtype: str) -> bool:
    """True for a dtype that Zarr has a name for; others appear as another one of the same bits."""
    return dtype not in _SHOWN_AS


def described(document: Mapping[str, Any], *, name: str) -> tuple[str, tuple[int, ...]]:
    """The dtype and shape of an array, from a document that `array_document` made.

    Raises:
        CorruptError: It did not make this document.
    """
    shown, shape = document.get("data_type"), document.get("shape")
    attributes = document.get("attributes", {})
    own = attributes.get(OWN_DTYPE, shown) if isinstance(attributes, dict) else shown
    lengths = shape if isinstance(shape, list) else [-1]
    if not isinstance(own, str) or any(type(length) is not int or length < 0 for length in lengths):
        raise CorruptError(f"{name} has no dtype and shape that a state can hold.")
    form, more = _SHOWN_AS.get(own, (own, ()))
    if own not in ITEM_BYTES or form != shown or tuple(lengths[len(lengths) - len(more) :]) != more:
        raise CorruptError(f"{name} has no dtype and shape that a state can hold.")
    return own, tuple(lengths[: len(lengths) - len(more)])


def above(node: str) -> Iterator[str]:
    """The paths of the groups that contain a node, the root last."""
    while node:
        node = node.rpartition("/")[0]
        yield node


def node_path(path: str) -> str:
    """The path of the node for an array, or group, of this path in the state."""
    return "/".join(map(node_name, path.split("/")))


def path_of_node(path: str) -> str:
    """The path in the state that a node stands for; the reverse of `node_path`."""
    return "/".join(map(segment_of, path.split("/")))


def node_name(segment: str) -> str:
    """The name of a node for a segment of a path: the segment itself unless it is reserved."""
    return escape_first(segment) if _is_reserved(segment) else segment


def segment_of(name: str) -> str:
    """The segment of a path that a node's name stands for."""
    if name.startswith("%") and len(name) > 2:
        try:
            plain = bytes.fromhex(name[1:3]).decode("ascii") + name[3:]
        except ValueError:
            return name
        if _is_reserved(plain) and escape_first(plain) == name:
            return plain
    return name


def _is_reserved(segment: str) -> bool:
    return segment in DOCUMENTS or segment.startswith("__") or not segment.strip(".")


def _zero(dtype: str) -> Any:
    if dtype == "bool":
        return False
    if dtype.startswith("complex"):
        return [0.0, 0.0]
    if dtype == "float8_e8m0fnu":
        return "0x00"  # it has no zero; Zarr pads with these bytes
    return 0.0 if "float" in dtype else 0


def _bytes_codec(dtype: str) -> dict[str, Any]:
    """An element of one byte has no byte order."""
    if ITEM_BYTES[dtype] == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}
