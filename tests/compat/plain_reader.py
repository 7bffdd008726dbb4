"""A reader of repositories of format version 1, written from docs/reference/format.md alone.

It uses the standard library and blake3, and nothing of ckptstore: what it cannot do, the document
does not say. Section numbers are the document's. It is written to be read, not to be fast: arrays
come as bytes, dtype and shape.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
import stat
import struct
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

from blake3 import blake3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KIB, MIB = 1 << 10, 1 << 20
SMALL_BYTES = 64 * KIB
ITEM_BYTES = {
    **dict.fromkeys(
        ("bool", "int8", "uint8", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"), 1
    ),
    **dict.fromkeys(("float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32", "complex32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
    "complex128": 16,
}
DIGEST = re.compile(r"[0-9a-f]{64}")
REF_PAGE = re.compile(r"[0-9]{12}-[0-9a-f]{64}")
OPERATION = re.compile(r"([0-9]{12})\.json")
ZARR_KEY = re.compile(r"[^/\x00-\x1f\x7f\ud800-\udfff]+(?:/[^/\x00-\x1f\x7f\ud800-\udfff]+)*")
REF_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")


class BadRepositoryError(Exception):
    """The repository is not as the document says."""


class NewerFormatError(Exception):
    """A document has another format version than 1."""


@dataclass(frozen=True)
class Array:
    """The bytes of an array in C order, little-endian."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Ordered:
    """An ordered dict and what it carries beside its pairs."""

    pairs: tuple[tuple[Any, Any], ...]
    metadata: Any


@dataclass(frozen=True)
class Typed:
    """A value of a type that has a codec, in its plain form."""

    name: str
    value: Any


class PlainReader:
    """One repository in a local folder."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)
        self.marker = unseal("repository", self.read("ckptstore.json", 64 * KIB))
        expect_format(self.marker)
        need(self.marker["hash"] == "blake3", "the marker names another digest function")
        need(
            64 * KIB <= whole(self.marker["chunk_size"]) <= 256 * MIB, "chunk_size is out of range"
        )

    def newest(self) -> dict[str, Any]:
        """The newest operation (section 8)."""
        for _ in range(1000):
            try:
                names = os.listdir(os.path.join(self.root, "ops"))
            except FileNotFoundError:
                names = []
            numbers = [int(match[1]) for name in names if (match := OPERATION.fullmatch(name))]
            if not numbers:
                return {"seq": 0, "heads": {}, "tags": {}}
            try:
                return self.operation(max(numbers))
            except FileNotFoundError:  # pruned since it was listed
                continue
        raise BadRepositoryError("the newest operation cannot be found")

    def operation(self, seq: int) -> dict[str, Any]:
        """One operation by its number."""
        document = unseal("operation", self.read(f"ops/{seq:012}.json", 32 * MIB))
        expect_format(document, newest=2)
        for kind, pages in (("heads", "head_pages"), ("tags", "tag_pages")):
            if document["format"] == 2 and document[pages]:
                document[kind] = self.refs(document[pages])
        need(document["seq"] == seq, "an operation has another number than its file")
        for name, id in [*document["heads"].items(), *document["tags"].items()]:
            need(is_ref_name(name), "a ref has an illegal name")
            check_digest(id)
        if document["condemned"] is not None:
            check_condemned(document["condemned"], seq)
        return document

    def refs(self, pages: list[str]) -> dict[str, str]:
        """The refs of some pages (section 8.1)."""
        refs: dict[str, str] = {}
        for name in pages:
            need(REF_PAGE.fullmatch(name) is not None, "a page of refs has an illegal name")
            data = self.read(f"refs/{name}.json", MIB)
            need(digest_of(data) == name[13:], "a page of refs does not have its digest")
            document = parse(data)
            expect_format(document)
            for ref, id in document["refs"].items():
                need(ref > max(refs, default=""), "refs are not in order")
                refs[ref] = id
        return refs

    def manifest(self, id: str) -> dict[str, Any]:
        """The manifest of a checkpoint (section 9)."""
        check_digest(id)
        for folder in ("checkpoints", "history", "checkpoints"):
            try:
                data = self.read(f"{folder}/{id}.json", 16 * MIB)
            except FileNotFoundError:
                continue
            need(digest_of(data) == id, "a manifest does not have its digest")
            document = parse(data)
            expect_format(document, newest=2)
            need(len(document["parents"]) <= 16, "a manifest has too many parents")
            for parent in document["parents"]:
                check_digest(parent)
            need(is_ref_name(document.get("branch", "main")), "a branch has an illegal name")
            document["metrics"] = {k: metric(v) for k, v in document["metrics"].items()}
            return document
        raise FileNotFoundError(id)

    def entries(self, manifest: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Each page with each of its entries, in path order (section 10)."""
        last = None
        for ref in manifest["pages"]:
            page = parse(self.object(ref["digest"], bytes_max=32 * MIB))
            listed = page["arrays"]
            need(1 <= len(listed) <= 512, "a page lists too few or too many arrays")
            need(listed[0]["path"] == ref["first"], "a page begins with another path")
            need(len(listed) == ref["arrays"], "a page lists another number of arrays")
            need(sum(map(nbytes_of, listed)) == ref["bytes"], "a page has another number of bytes")
            for entry in listed:
                need(last is None or last < entry["path"], "the arrays are not in path order")
                last = entry["path"]
                yield page, entry

    def arrays(self, manifest: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
        """The dtype, shape and bytes of every array, by its path."""
        return {
            entry["path"]: (entry["dtype"], tuple(entry["shape"]), self.in_c_order(page, entry))
            for page, entry in self.entries(manifest)
        }

    def in_c_order(self, page: dict[str, Any], entry: dict[str, Any]) -> bytes:
        """The bytes of one array, whose elements may be stored in another order (section 10.1)."""
        data, shape = self.bytes_of(page, entry), entry["shape"]
        if "order" not in entry:
            return data
        item, distances, distance = ITEM_BYTES[entry["dtype"]], {}, 1
        for axis in reversed(entry["order"]):
            distances[axis] = distance
            distance *= shape[axis]
        starts = (
            item * sum(at * distances[axis] for axis, at in enumerate(index))
            for index in product(*map(range, shape))
        )
        return b"".join(data[start : start + item] for start in starts)

    def bytes_of(self, page: dict[str, Any], entry: dict[str, Any]) -> bytes:
        """The bytes of one array as they are stored (sections 10.2 and 10.3)."""
        size, shape = nbytes_of(entry), entry["shape"]
        if "order" in entry:
            axes = list(range(len(shape)))
            need(sorted(entry["order"]) == axes != entry["order"], "an order is none")
            shape = [shape[axis] for axis in entry["order"]]
        if "offset" in entry:
            bundle, start = page["bundle"], whole(entry["offset"])
            need(0 < size < SMALL_BYTES, "an array of this size cannot lie in a bundle")
            need(start + size <= bundle["size"] <= 32 * MIB, "an array lies outside its bundle")
            data = self.object(bundle["digest"], size=bundle["size"])[start : start + size]
            need(digest_of(data) == entry["digest"], "a small array does not have its digest")
            return data
        item = ITEM_BYTES[entry["dtype"]]
        blocks = chunk_blocks(shape, entry["chunk_shape"])
        need(len(blocks) == len(entry["digests"]), "an array has too few or too many chunks")
        need(chunk_bytes(blocks[:1], item) <= 256 * MIB, "a chunk is too large")
        data = bytearray(size)
        for digest, block in zip(entry["digests"], blocks, strict=True):
            chunk = self.object(digest, size=chunk_bytes([block], item))
            place(data, shape, block, item, chunk)
        return bytes(data)

    def values(self, manifest: dict[str, Any]) -> dict[str, bytes]:
        """What each key of a Zarr hierarchy holds, as it was set (section 10.5)."""
        found, last = {}, None
        for ref in manifest.get("hierarchy", ()):
            page = parse(self.object(ref["digest"], bytes_max=32 * MIB))
            nodes, segment = page["nodes"], whole(page["segment_bytes"])
            need(64 * KIB <= segment <= 256 * MIB, "segment_bytes is out of range")
            need(1 <= len(nodes) <= 512, "a page lists too few or too many nodes")
            need(nodes[0]["path"] == ref["first"], "a page begins with another path")
            need(whole(ref["arrays"]) <= len(nodes), "a page lists fewer arrays")
            sizes = sum(whole(value[1]) for node in nodes for value in node["values"])
            need(sizes == ref["bytes"], "a page has another number of bytes")
            for node in nodes:
                path, keys = node["path"], [value[0] for value in node["values"]]
                need(path == "" or is_key(path), "a path is illegal")
                need(bool(keys) and all(map(is_key, keys)), "a key is illegal")
                begin = (
                    path,
                    keys[0] if node is nodes[0] else "",
                )  # where a page begins, one may go on
                need(last is None or last < begin, "the nodes are not in path order")
                need(all(a < b for a, b in pairwise(keys)), "keys are unordered")
                last = (path, keys[-1])
                for key, size, offset, *digests in node["values"]:
                    name = f"{path}/{key}" if path else key
                    found[name] = self.value(page, segment, size, offset, digests)
        return found

    def value(
        self, page: dict[str, Any], segment: int, size: int, offset: int | None, digests: list[str]
    ) -> bytes:
        """The bytes of one value."""
        need(whole(size) <= 1 << 44, "a value is too large")
        if offset is None:
            starts = range(0, size, segment)
            need(len(digests) == len(starts), "a value has too few or too many segments")
            lengths = (min(segment, size - start) for start in starts)
            return b"".join(self.object(d, size=n) for d, n in zip(digests, lengths, strict=True))
        bundle = page["bundle"]
        need(0 < size < SMALL_BYTES and len(digests) == 1, "a value cannot lie in a bundle")
        need(whole(offset) + size <= bundle["size"] <= 32 * MIB, "a value lies outside its bundle")
        data = self.object(bundle["digest"], size=bundle["size"])[offset : offset + size]
        need(digest_of(data) == digests[0], "a small value does not have its digest")
        return data

    def state(self, manifest: dict[str, Any]) -> Any:
        """The state of a checkpoint; tied arrays are one object (section 12)."""
        root = parse(self.object(manifest["structure"], bytes_max=32 * MIB))["structure"]
        stored = self.arrays(manifest)
        made: dict[str, Array] = {}

        def array(path: str, kind: str) -> Array:
            if path not in made:
                need(path in stored, "the structure names an array that no page lists")
                made[path] = Array(kind, *stored[path])
            return made[path]

        return build(root, array, 0)

    def object(self, digest: str, *, size: int | None = None, bytes_max: int = 256 * MIB) -> bytes:
        """The bytes of an object, checked."""
        check_digest(digest)
        try:
            data = self.read(f"objects/{digest[:2]}/{digest[2:]}", bytes_max)
        except FileNotFoundError as error:
            raise BadRepositoryError("an object is missing") from error
        need(size is None or len(data) == size, "an object has another size")
        need(digest_of(data) == digest, "an object does not have its digest")
        return data

    def read(self, key: str, bytes_max: int) -> bytes:
        """All bytes of a regular file; no link below the root is followed (section 2)."""
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in key.split("/"):
                inner = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd)
                os.close(fd)
                fd = inner
            status = os.fstat(fd)
            need(stat.S_ISREG(status.st_mode), f"{key} is not a regular file")
            need(status.st_size <= bytes_max, f"{key} is too large")
            with os.fdopen(os.dup(fd), "rb") as file:
                return file.read(bytes_max + 1)
        finally:
            os.close(fd)


def is_ref_name(text: object) -> bool:
    """True for a legal name of a branch or tag (section 8)."""
    return (
        isinstance(text, str)
        and bool(REF_NAME.fullmatch(text))
        and len(text) <= 200
        and text not in ("latest", "best", "HEAD")
        and ".." not in text
        and not text.endswith((".", ".lock"))
    )


def is_key(text: object) -> bool:
    """True for a legal key, or path, of a Zarr hierarchy (section 10.5)."""
    return isinstance(text, str) and len(text) <= 4096 and bool(ZARR_KEY.fullmatch(text))


def chunk_blocks(shape: list[int], chunk_shape: list[int]) -> list[tuple[range, ...]]:
    """What each chunk covers, in C order of the grid (section 10.2)."""
    need(len(shape) == len(chunk_shape), "a chunk shape has another number of dimensions")
    steps = list(zip(shape, map(whole, chunk_shape), strict=True))
    need(all(1 <= step <= max(1, length) for length, step in steps), "a chunk shape does not fit")
    if 0 in shape:
        return []
    need(math.prod(-(-n // step) for n, step in steps) <= 1_000_000, "an array has too many chunks")
    sides = ([range(at, min(at + step, n)) for at in range(0, n, step)] for n, step in steps)
    return list(product(*sides))


def chunk_bytes(blocks: list[tuple[range, ...]], item_bytes: int) -> int:
    """The bytes of some chunks."""
    return sum(math.prod(map(len, block)) * item_bytes for block in blocks)


def place(
    data: bytearray, shape: list[int], block: tuple[range, ...], item_bytes: int, chunk: bytes
) -> None:
    """Copy a chunk, row by row of its block, to where it belongs in the bytes of its array."""
    row = len(block[-1]) * item_bytes if block else item_bytes
    for number, index in enumerate(product(*block[:-1])):
        start = 0
        for position, length in zip((*index, *(b.start for b in block[-1:])), shape, strict=True):
            start = start * length + position
        start *= item_bytes
        data[start : start + row] = chunk[number * row : (number + 1) * row]


def nbytes_of(entry: dict[str, Any]) -> int:
    """The bytes of an array, from its dtype and shape."""
    need(len(entry["path"]) <= 4096, "a path is too long")
    need(entry["dtype"] in ITEM_BYTES, "a dtype is not known")
    need(len(entry["shape"]) <= 64, "an array has too many dimensions")
    size = math.prod(map(whole, entry["shape"])) * ITEM_BYTES[entry["dtype"]]
    need(size < 2**63, "an array is too large")
    return size


def build(node: Any, array: Callable[[str, str], Array], depth: int) -> Any:
    """The value of a structure node (section 12.1)."""
    need(depth <= 100, "the structure is nested too deeply")
    if isinstance(node, list):
        return [build(item, array, depth + 1) for item in node]
    if not isinstance(node, dict):
        return node

    def pairs(items: list[list[Any]]) -> tuple[tuple[Any, Any], ...]:
        made = [(key_of(key), build(item, array, depth + 1)) for key, item in items]
        need(len({repr(key) for key, _ in made}) == len(made), "a dict has a key twice")
        return tuple(made)

    match sorted(node):
        case ["dict"]:
            return dict(pairs(node["dict"]))
        case ["ordered_dict"] | ["metadata", "ordered_dict"]:
            return Ordered(
                pairs(node["ordered_dict"]), build(node.get("metadata"), array, depth + 1)
            )
        case ["tuple"]:
            return tuple(build(item, array, depth + 1) for item in node["tuple"])
        case ["tensor"] | ["tensor", "tied"]:
            return array(str(node.get("tied", node["tensor"])), "tensor")
        case ["ndarray"] | ["ndarray", "tied"]:
            return array(str(node.get("tied", node["ndarray"])), "ndarray")
        case ["zarr"] | ["zarr_tensor"]:
            return array(str(*node.values()), "zarr")
        case ["type", "value"]:
            return Typed(node["type"], build(node["value"], array, depth + 1))
        case [tag] if tag in SCALARS:
            return SCALARS[tag](node[tag])
    raise BadRepositoryError(f"a node has the tags {sorted(node)}")


def key_of(node: Any) -> int | str:
    """The dict key that a node stands for."""
    key = SCALARS["str"](node["str"]) if isinstance(node, dict) and list(node) == ["str"] else node
    in_range = type(key) is int and -(2**63) <= key < 2**64
    need(in_range or type(key) is str, "a dict key is neither a string nor an integer of 64 bits")
    return key  # type: ignore[no-any-return]


def double(digits: str) -> float:
    """A double from its 16 hexadecimal digits."""
    return float(struct.unpack(">d", bytes.fromhex(digits))[0])


SCALARS: dict[str, Callable[[Any], Any]] = {
    "float": double,
    "complex": lambda parts: complex(double(parts[0]), double(parts[1])),
    "int": lambda digits: int(digits, 16),
    "str": lambda digits: bytes.fromhex(digits).decode("utf-8", "surrogatepass"),
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "bytearray": lambda text: bytearray(base64.b64decode(text, validate=True)),
}


def unseal(kind: str, data: bytes) -> dict[str, Any]:
    """The document inside a sealed file (section 6)."""
    sealed = parse(data)
    need(sealed.keys() == {"blake3", kind}, f"a file is not a sealed {kind}")
    need(canonical(sealed) == data, "a sealed file is not canonical JSON")
    need(digest_of(canonical(sealed[kind])) == sealed["blake3"], "a sealed file is damaged")
    need(isinstance(sealed[kind], dict), "a sealed document is not an object")
    document: dict[str, Any] = sealed[kind]
    return document


def parse(data: bytes) -> dict[str, Any]:
    """A JSON object, with what a correct writer never writes refused (section 4)."""
    counted = data.count(b",") + data.count(b"[") + data.count(b"{")
    need(counted <= 1_000_000, "a document holds too many values")
    try:
        document = json.loads(
            data.decode("ascii"),
            object_pairs_hook=unique,
            parse_constant=refuse_constant,
            parse_float=finite,
        )
    except (ValueError, RecursionError) as error:
        raise BadRepositoryError(f"a document cannot be parsed: {error}") from error
    need(isinstance(document, dict), "a document is not a JSON object")
    parsed: dict[str, Any] = document
    return parsed


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without duplicate keys."""
    need(len(dict(pairs)) == len(pairs), "a key stands twice in one object")
    return dict(pairs)


def refuse_constant(text: str) -> float:
    """NaN and Infinity are not JSON."""
    raise BadRepositoryError(f"{text} is not JSON")


def finite(text: str) -> float:
    """A number that a double holds."""
    need(math.isfinite(float(text)), "a number is too large for a double")
    return float(text)


def canonical(document: object) -> bytes:
    """Canonical JSON; Python's own writer of floats is the one that section 4 describes."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def metric(value: Any) -> int | float:
    """A metric; three strings stand for what JSON has no number for."""
    if value in ("nan", "inf", "-inf"):
        return float(value)
    need(type(value) in (int, float), "a metric is not a number")
    return value  # type: ignore[no-any-return]


def expect_format(document: dict[str, Any], *, newest: int = 1) -> None:
    """Refuse documents of later format versions."""
    if not 1 <= document["format"] <= newest:
        raise NewerFormatError(f"format version {document['format']}")


def digest_of(data: bytes) -> str:
    """BLAKE3 of some bytes, as a digest is written."""
    return blake3(data).hexdigest()


def check_digest(text: Any) -> None:
    """Refuse what is not 64 lowercase hexadecimal digits."""
    need(isinstance(text, str) and bool(DIGEST.fullmatch(text)), "a digest is malformed")


def check_condemned(condemned: Any, seq: int) -> None:
    """Refuse what a gc cannot have condemned (section 8)."""
    for digest in [*condemned["digests"], *condemned["checkpoints"]]:
        check_digest(digest)
    need(len(condemned["why"]) <= 65_536, "condemned for too long a reason")
    need(("owner" in condemned) == ("since" in condemned), "owner and since come together")
    if "owner" in condemned:
        owner, since = condemned["owner"], condemned["since"]
        need(isinstance(owner, str) and 0 < len(owner) <= 64, "an owner is not a short text")
        need(0 < whole(since) <= seq, "condemned since an operation to come")


def whole(value: Any) -> int:
    """An integer from 0 to 2^63-1."""
    need(type(value) is int and 0 <= value < 2**63, "a size is not an integer from 0 to 2^63-1")
    return int(value)


def need(condition: bool, otherwise: str) -> None:
    """Refuse the repository unless a condition holds."""
    if not condition:
        raise BadRepositoryError(otherwise)
