"""Repositories with forged Zarr nodes: pages, documents and structure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ckptstore.errors import CkptStoreError
from tests.helpers.hostile.cases import READING, VERBS, ZARR_VERBS, Case
from tests.helpers.hostile.forge import MISSING, W_BYTES, Forge, digest_of, dumps

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

READERS = (READING, "lazy", "array", "verify")
OPENED = (READING, "lazy", "array")
PAGES = (READING, "lazy", "zarr", "show", "diff", "session", "verify")
SEGMENT = 64 << 10
HUGE = 1 << 44
EVIL = (
    b"cos\nsystem\n(S'touch pickled; touch ../outside/pickled'\ntR."  # what unpickling it would do
)


def document(**fields: Any) -> dict[str, Any]:
    """The zarr.json of two float32."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [2],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
        **fields,
    }


def v2_document(**fields: Any) -> dict[str, Any]:
    """The .zarray of two float64."""
    return {
        "zarr_format": 2,
        "shape": [2],
        "chunks": [2],
        "dtype": "<f8",
        "compressor": None,
        "filters": None,
        "fill_value": 0,
        "order": "C",
        **fields,
    }


def large(forge: Forge, key: str, data: bytes = W_BYTES, **fields: Any) -> list[Any]:
    """A value in segments."""
    parts = [data[at : at + SEGMENT] for at in range(0, len(data), SEGMENT)]
    digests = fields.get("digests", [forge.object(part) for part in parts])
    return [key, fields.get("size", len(data)), None, *digests]


def checkpoint(
    forge: Forge,
    nodes: list[dict[str, Any]],
    *,
    bundle: bytes | None = None,
    structure: Any = None,
    ref: dict[str, Any] | None = None,
    page: bytes | None = None,
    page_fields: dict[str, Any] | None = None,
    **more: Any,
) -> None:
    """A repository whose one checkpoint has these nodes beside the array "w"."""
    fields: dict[str, Any] = {"nodes": nodes, "segment_bytes": SEGMENT}
    if bundle is not None:
        fields["bundle"] = {"digest": forge.object(bundle), "size": len(bundle)}
    data = dumps({**fields, **(page_fields or {})}) if page is None else page
    claims = {
        "first": nodes[0]["path"] if nodes else "",
        "digest": forge.object(data),
        "arrays": 1,
        "bytes": sum(value[1] for node in nodes for value in node["values"] if len(value) > 2),
        **(ref or {}),
    }
    root = {"dict": [["w", {"tensor": "w"}], ["x", {"zarr": "x"}]]}
    forge.honest(hierarchy=[claims], structure=root if structure is None else structure, **more)


def array(
    forge: Forge,
    told: Any,
    *,
    key: str = "zarr.json",
    chunks: dict[str, bytes] | None = None,
    path: str = "x",
    **more: Any,
) -> None:
    """One Zarr array whose document, JSON or bytes, says this."""
    data = told if isinstance(told, bytes) else json.dumps(told).encode()
    values = [
        large(forge, name, part) for name, part in ({"c/0": W_BYTES} | (chunks or {})).items()
    ]
    if len(data) < SEGMENT:
        values.append([key, len(data), 0, digest_of(data)])
    else:
        values.append(large(forge, key, data))
    node = {"path": path, "values": sorted(values)}
    checkpoint(forge, [node], bundle=data if len(data) < SEGMENT else None, **more)


def case(
    story: str,
    given: Callable[[Forge], object],
    *,
    refused: Collection[str] = READERS,
    says: str = "",
    error: type[CkptStoreError] = CkptStoreError,
) -> Case:
    calls = {**VERBS, **ZARR_VERBS}
    return Case(
        story=story,
        given=lambda world: given(Forge(world.store, world.outside)),
        calls=calls,
        refused=refused,
        says=says,
        error=error,
    )


def _page(story: str, *nodes: dict[str, Any], **more: Any) -> Case:
    return case(
        f"a page of Zarr nodes {story}",
        lambda forge: checkpoint(forge, list(nodes), **more),
        refused=PAGES,
    )


def _values(story: str, *values: list[Any], **more: Any) -> Case:
    return _page(story, {"path": "x", "values": list(values)}, **more)


def told(story: str, told: Any, *, refused: Collection[str] = READERS, **more: Any) -> Case:
    says = more.pop("says", "")
    return case(
        f"a Zarr document {story}",
        lambda forge: array(forge, told() if callable(told) else told, **more),
        refused=refused,
        says=says,
    )


def _missing_terabytes(forge: Forge) -> None:
    """16 TB in segments that are not there."""
    count = 65_536
    value = ["c/0", count * (256 << 20), None, *[MISSING] * count]
    told = json.dumps(document()).encode()
    node = {"path": "x", "values": [value, ["zarr.json", len(told), 0, digest_of(told)]]}
    checkpoint(forge, [node], bundle=told, page_fields={"segment_bytes": 256 << 20})


def _terabytes_of_one_object(forge: Forge, key: str) -> None:
    """One object of 1 MiB, 100,000 times in one value: 105 GB."""
    digest, size, count = forge.object(b" " * (1 << 20)), 1 << 20, 100_000
    value = [key, count * size, None, *[digest] * count]
    told = json.dumps(document()).encode()
    values = (
        [value] if key == "zarr.json" else [value, ["zarr.json", len(told), 0, digest_of(told)]]
    )
    checkpoint(
        forge,
        [{"path": "x", "values": values}],
        bundle=told,
        page_fields={"segment_bytes": size},
    )


def _one_document_for_many(forge: Forge) -> None:
    """110 arrays with the same large document, which a consolidated root would hold 110 times."""
    told = json.dumps(document(attributes={"a": ["x" * 50] * 20_000})).encode()
    value = large(forge, "zarr.json", told)
    names = sorted(f"x{number}" for number in range(110))
    group = json.dumps({"zarr_format": 3, "node_type": "group"}).encode()
    nodes = [{"path": "", "values": [["zarr.json", len(group), 0, digest_of(group)]]}]
    nodes += [{"path": name, "values": [value]} for name in names]
    checkpoint(forge, nodes, bundle=group, structure={"dict": []}, ref={"arrays": 110})


def _same_path(forge: Forge) -> None:
    array(forge, document(), path="w", structure={"dict": [["w", {"tensor": "w"}]]})


def _below_an_array(forge: Forge) -> None:
    array(forge, document(), path="w/y", structure={"dict": [["w", {"tensor": "w"}]]})


def _many_lists(forge: Forge) -> None:
    """40 arrays with 300,000 lists in each document, all in one consolidated root."""
    told = json.dumps(document(attributes={"a": [[]] * 300_000}), separators=(",", ":")).encode()
    value = large(forge, "zarr.json", told)
    nodes = [{"path": f"x{number:02d}", "values": [value]} for number in range(40)]
    checkpoint(forge, nodes, structure={"dict": [["w", {"tensor": "w"}]]}, ref={"arrays": 40})


def _long_keys(forge: Forge) -> None:
    """Paths and keys each as long as they may be, together twice that, and no document anywhere."""
    path = "/".join("a" * 2047)
    values = [large(forge, "/".join("b" * 2047))]
    checkpoint(forge, [{"path": path, "values": values}], structure={"dict": []})


def _deep_groups(forge: Forge) -> None:
    told = json.dumps({"zarr_format": 3, "node_type": "group"}).encode()
    values = [["zarr.json", len(told), 0, digest_of(told)]]
    nodes = [{"path": "/".join("g" * depth), "values": values} for depth in range(1, 500)]
    checkpoint(forge, nodes, bundle=told, structure={"dict": []}, ref={"arrays": 0})


def _twice_by_two_nodes(forge: Forge) -> None:
    """The key x/y/zarr.json, once as the root's and once as the node's own."""
    told, other = json.dumps(document()).encode(), b'{"zarr_format":3,"node_type":"group"}'
    nodes = [
        {"path": "", "values": [["x/zarr.json", len(other), len(told), digest_of(other)]]},
        {"path": "x", "values": [["zarr.json", len(told), 0, digest_of(told)]]},
    ]
    checkpoint(forge, nodes, bundle=told + other)


def _pickled(**more: Any) -> dict[str, Any]:
    return {"key": ".zarray", "chunks": {"0": EVIL}, "says": "pickle", "refused": OPENED, **more}


def _sharded(**inner: Any) -> list[dict[str, Any]]:
    configuration = {
        "chunk_shape": [2],
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "index_location": "end",
        **inner,
    }
    return [{"name": "sharding_indexed", "configuration": configuration}]


def _nested_shards(depth: int) -> list[dict[str, Any]]:
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
    for _ in range(depth):
        codecs = _sharded(codecs=codecs)
    return codecs


W = [digest_of(W_BYTES)]
GRID = {"name": "regular", "configuration": {"chunk_shape": [0]}}
TINY = {"name": "regular", "configuration": {"chunk_shape": [1]}}
SOME = document(shape=[10**12])
DEFLATED = {"name": "gzip", "configuration": {"level": 1}}

CASES = (
    # The page.
    _page("that lists none"),
    _page("of nodes out of order", *({"path": p, "values": [["c", 0, None]]} for p in "ba")),
    _page("with one node twice", *({"path": p, "values": [["c", 0, None]]} for p in "aa")),
    _page(
        "of more than 512 nodes",
        *({"path": f"{n:04}", "values": [["c", 0, None]]} for n in range(513)),
    ),
    _page("whose node is a list", page=dumps({"nodes": [[]], "segment_bytes": SEGMENT})),
    _page(
        "without a segment size", page=dumps({"nodes": [{"path": "x", "values": [["c", 0, None]]}]})
    ),
    _page(
        "whose segments are of one byte",
        {"path": "x", "values": [["c", 0, None]]},
        page_fields={"segment_bytes": 1},
    ),
    _page("that is no JSON", page=b"\xff{", ref={"first": "x"}),
    _page("that is nested deeply", page=b'{"nodes":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    _page(
        "that its ref calls otherwise",
        {"path": "x", "values": [["c", 0, None]]},
        ref={"first": "y"},
    ),
    _page(
        "whose ref tells another sum", {"path": "x", "values": [["c", 0, None]]}, ref={"bytes": 9}
    ),
    _page(
        "whose ref tells more arrays than nodes",
        {"path": "x", "values": [["c", 0, None]]},
        ref={"arrays": 2},
    ),
    _page("without values", {"path": "x", "values": []}),
    *(
        _page(f"with the path {path!r:.30}", {"path": path, "values": [["c", 0, None]]})
        for path in ("/x", "x/", "x//y", "\x00", "a\nb", "\ud800", "x" * 4097, "a/\x7f")
    ),
    # Its values.
    *(
        _values(f"with the key {key!r:.30}", [key, 0, None])
        for key in (
            "",
            "/",
            "/etc/passwd",
            "c//0",
            "c/",
            "\x1b[2J",
            "\ud800",
            "k" * 4097,
            None,
            5,
            ["c"],
        )
    ),
    _values("with a key twice", ["c/0", 0, None], ["c/0", 0, None]),
    _values("with keys out of order", ["d", 0, None], ["c", 0, None]),
    _values("with a value of two fields", ["c", 0]),
    _values("with a value that is a dict", {"c": 1}),  # type: ignore[arg-type]
    _values("with a negative size", ["c", -1, None]),
    _values("with a size that is a float", ["c", 8.0, None, *W]),
    _values("with a size beyond all", ["c", HUGE + 1, None, *W]),
    _values("with 16 TB in one segment", ["c", HUGE, None, *W]),
    _values("with too many segments", ["c", 8, None, *W, *W]),
    _values("with too few segments", ["c", SEGMENT + 1, None, *W]),
    _values("with a digest for nothing", ["c", 0, None, *W]),
    _values("with something that is no digest", ["c", 8, None, "../../etc/passwd"]),
    _values("with an offset and no bundle", ["c", 8, 0, *W]),
    _values("that reaches beyond its bundle", ["c", 8, 1, *W], bundle=W_BYTES),
    _values("with a negative offset", ["c", 8, -1, *W], bundle=W_BYTES),
    _values("with an empty value in its bundle", ["c", 0, 0, *W], bundle=W_BYTES),
    _values("with two digests in its bundle", ["c", 8, 0, *W, *W], bundle=W_BYTES),
    _values("with a large value in its bundle", ["c", SEGMENT, 0, *W], bundle=bytes(SEGMENT)),
    _values(
        "with a bundle beyond all",
        ["c", 8, 0, *W],
        page_fields={"bundle": {"digest": MISSING, "size": HUGE}},
    ),
    case(
        "a Zarr value that is the bytes of another",
        lambda forge: checkpoint(
            forge, [{"path": "x", "values": [["zarr.json", 8, 0, MISSING]]}], bundle=W_BYTES
        ),
        refused=("verify",),
    ),
    case(
        "16 TB of segments that are not there",
        _missing_terabytes,
        refused=(READING, "array", "verify"),
    ),
    case(
        "105 GB from an object of 1 MiB in a Zarr chunk",
        lambda forge: _terabytes_of_one_object(forge, "c/0"),
        refused=(READING, "array"),
    ),
    case(
        "105 GB from an object of 1 MiB in a Zarr document",
        lambda forge: _terabytes_of_one_object(forge, "zarr.json"),
        says="Zarr document",
    ),
    case("110 Zarr arrays with one large document", _one_document_for_many, refused=()),
    case("40 Zarr arrays with 300,000 lists each", _many_lists, refused=()),
    case("Zarr keys of 8,000 characters", _long_keys, refused=()),
    case("Zarr groups in 500 groups", _deep_groups, refused=()),
    case("a Zarr key that two nodes have", _twice_by_two_nodes, refused=()),
    # What the structure says.
    case(
        "a structure that names a Zarr node that is none",
        lambda forge: array(forge, document(), structure={"dict": [["x", {"zarr": "y"}]]}),
    ),
    case(
        "a structure that names a Zarr array where there are none",
        lambda forge: forge.honest(structure={"dict": [["x", {"zarr": "x"}]]}),
    ),
    case(
        "a structure that names a Zarr array by a strange path",
        lambda forge: array(forge, document(), structure={"dict": [["x", {"zarr": "../../x\0"}]]}),
        refused=(READING, "lazy", "verify"),
    ),
    case(
        "a structure that names an array of a state as a Zarr array",
        lambda forge: array(forge, document(), structure={"dict": [["x", {"tensor": "x"}]]}),
        refused=(READING, "lazy"),
    ),
    case("a Zarr array and an array of a state of one path", _same_path, refused=()),
    case("a Zarr array below an array of a state", _below_an_array, refused=()),
    case(
        "a Zarr group that the structure calls an array",
        lambda forge: array(forge, {"zarr_format": 3, "node_type": "group"}),
    ),
    # Documents.
    told(
        "of 50 MB",
        lambda: document(attributes={"x": "y" * 50_000_000}),
        says="Zarr document",
    ),
    told(
        "of ten million brackets",
        lambda: b"[" * 5_000_000 + b"]" * 5_000_000,
        says="Zarr document",
    ),
    told("of a hundred thousand brackets", b"[" * 100_000 + b"]" * 100_000),
    told("that is no JSON", b"\x00\xff"),
    told("that is empty", b" "),
    told("that is a number", b"1e999"),
    told("that is a list", []),
    told("without fields", {"zarr_format": 3, "node_type": "array"}),
    told("of 10^12 elements", SOME, refused=(READING,)),
    told("of 10^12 elements in as many chunks", {**SOME, "chunk_grid": TINY}, refused=(READING,)),
    told("of 10^30 elements", document(shape=[10**30]), refused=(READING, "array", "verify")),
    told("of negative elements", document(shape=[-2])),
    told("whose shape is of floats", document(shape=[2.0])),
    told("whose shape is a text", document(shape="22")),
    told("of a thousand dimensions", document(shape=[1] * 1000)),
    told("whose chunks are empty", document(chunk_grid=GRID), refused=(READING,)),
    told(
        "whose chunks are of another number of dimensions",
        document(shape=[2, 2]),
        refused=(READING,),
    ),
    told("of a grid that is none", document(chunk_grid={"name": "hexagonal"}), refused=OPENED),
    told("of a grid that is a number", document(chunk_grid=7), refused=(READING, "array")),
    told(
        "of a key encoding that is none",
        document(chunk_key_encoding={"name": "../.."}),
        refused=(READING, "array"),
    ),
    told("of a dtype that is none", document(data_type="float31"), refused=(READING, "array")),
    told(
        "of a dtype that is a list", document(data_type=[["a", "<f4"]]), refused=(READING, "array")
    ),
    told(
        "of a dtype that is a module", document(data_type="os.system"), refused=(READING, "array")
    ),
    told(
        "with a fill value that is none", document(fill_value={"a": []}), refused=(READING, "array")
    ),
    told("without codecs", document(codecs=[]), refused=(READING, "array")),
    told(
        "with a codec that is a file",
        document(codecs=[{"name": "/etc/passwd"}]),
        refused=(READING, "array"),
    ),
    told(
        "with a codec that is a module",
        document(codecs=[{"name": "os.system"}]),
        refused=(READING, "array"),
    ),
    told(
        "with ten thousand codecs",
        document(codecs=document()["codecs"] + [DEFLATED] * 10_000),
        refused=(READING, "array"),
    ),
    told(
        "whose chunk is compressed with garbage",
        document(codecs=[*document()["codecs"], DEFLATED]),
        refused=(READING, "array"),
    ),
    told("of shards in shards", document(codecs=_nested_shards(60)), refused=(READING, "array")),
    told("of a shard that is too short", document(codecs=_sharded()), refused=(READING, "array")),
    told(
        "of a shard whose index lies beyond it",
        document(codecs=_sharded()),
        chunks={"c/0": b"\x7f" * 7 + b"\1" * 9 + W_BYTES},
        refused=(READING, "array"),
    ),
    told("whose attributes are a list", document(attributes=[1]), refused=()),
    told(
        "whose chunk is too short",
        document(shape=[4], chunk_grid={"name": "regular", "configuration": {"chunk_shape": [4]}}),
        refused=(READING, "array"),
    ),
    told(
        "whose chunk is too long",
        document(),
        chunks={"c/0": bytes(4000)},
        refused=(READING, "array"),
    ),
    case(
        "a Zarr group whose attributes are a list",
        lambda forge: array(
            forge,
            {"zarr_format": 3, "node_type": "group", "attributes": [1]},
            path="",
            structure={"dict": []},
        ),
        refused=(),
    ),
    case(
        "a Zarr group whose consolidated metadata is a lie",
        lambda forge: array(
            forge,
            {
                "zarr_format": 3,
                "node_type": "group",
                "attributes": {},
                "consolidated_metadata": {
                    "kind": "inline",
                    "must_understand": True,
                    "metadata": {"x": 5},
                },
            },
            path="",
            structure={"dict": []},
        ),
        refused=(),
    ),
    # Pickles.
    told("of pickled objects", v2_document(dtype="|O", filters=[{"id": "pickle"}]), **_pickled()),
    told("of numbers that were pickled", v2_document(filters=[{"id": "pickle"}]), **_pickled()),
    told(
        "of texts that were pickled",
        v2_document(
            dtype="|O", fill_value="", filters=[{"id": "vlen-utf8"}], compressor={"id": "pickle"}
        ),
        **_pickled(),
    ),
    told(
        "of pickled objects in UTF-16",
        json.dumps(
            v2_document(dtype="|O", fill_value="", filters=[{"id": "vlen-utf8"}, {"id": "pickle"}])
        ).encode("utf-16"),
        **_pickled(),
    ),
    told(
        "of pickled objects in escapes",
        json.dumps(v2_document(filters=[{"id": "PICKLE"}]))
        .replace("PICKLE", "\\u0070ickle")
        .encode(),
        **_pickled(),
    ),
    told(
        "of objects without a codec",
        v2_document(dtype="|O"),
        key=".zarray",
        chunks={"0": EVIL},
        refused=(READING, "array"),
    ),
    told(
        "of objects of msgpack",
        v2_document(dtype="|O", filters=[{"id": "msgpack2"}]),
        key=".zarray",
        chunks={"0": EVIL},
        refused=(READING, "array"),
    ),
    told(
        "of a pickle codec of version 3",
        document(codecs=[{"name": "numcodecs.pickle", "configuration": {}}]),
        says="pickle",
        refused=OPENED,
        chunks={"c/0": EVIL},
    ),
    told(
        "of a pickle codec in shards",
        document(codecs=_sharded(codecs=[{"name": "numcodecs.pickle", "configuration": {}}])),
        says="pickle",
        refused=OPENED,
        chunks={"c/0": EVIL},
    ),
)
