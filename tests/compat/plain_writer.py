"""A writer of repositories of format version 1, written from docs/reference/format.md alone.

It shows that the document is enough to write from: ckptstore reads what this writes, and makes the
same bytes of the same state. It commits dicts of arrays and plain JSON values to a new repository,
once; the standard library and blake3 suffice.
"""

from __future__ import annotations

import json
import os
from itertools import product
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from tests.compat.plain_reader import ITEM_BYTES, SMALL_BYTES, Array, chunk_blocks

if TYPE_CHECKING:
    from pathlib import Path

AUTHOR = {"role": "save", "user": "ada", "host": "desk", "program": "train.py", "pid": 1}


def chunk_shape(shape: list[int], item_bytes: int, chunk_size: int) -> list[int]:
    run_bytes = item_bytes
    for axis in reversed(range(len(shape))):
        if run_bytes * shape[axis] > chunk_size:
            k = max(1, chunk_size // run_bytes)
            return [1] * axis + [k] + [max(1, length) for length in shape[axis + 1 :]]
        run_bytes *= max(1, shape[axis])
    return [max(1, length) for length in shape]


def page_ends(path: str, arrays_in_page: int, digests_in_page: int) -> bool:
    if arrays_in_page >= 512 or digests_in_page >= 65_536:
        return True
    number = int.from_bytes(blake3(path.encode("utf-8")).digest()[:4], "little")
    return arrays_in_page >= 32 and number % 160 == 0


def part_ends(key: str, weight_of_page: int) -> bool:
    if weight_of_page >= 65_536:
        return True
    number = int.from_bytes(blake3(key.encode("utf-8")).digest()[:4], "little")
    return weight_of_page >= 4_096 and number % 8_192 == 0


class PlainWriter:
    """Writes one new repository in an empty folder."""

    def __init__(self, root: Path, *, store: str, chunk_size: int = 8 << 20) -> None:
        self.root, self.chunk_size, self.count = root, chunk_size, 0
        document = {"format": 1, "store": store, "hash": "blake3", "chunk_size": chunk_size}
        self.write("ckptstore.json", seal("repository", document), create=True)

    def commit(
        self,
        state: dict[str, Any],
        *,
        time: int,
        nonce: str,
        step: int,
        message: str,
        grids: dict[str, list[int]] | None = None,
    ) -> str:
        """Commit a dict as the first checkpoint of main, and return its id (section 14).

        grids: chunk shapes of some arrays, in place of those that section 10.2 makes of them.
        """
        self.grids = grids or {}
        pairs: list[list[Any]] = []
        arrays: dict[str, Array] = {}
        for key, value in state.items():
            if isinstance(value, Array):
                arrays[key] = value  # the keys used here need no escaping, so a key is its path
                pairs.append([key, {value.kind: key}])
            else:
                pairs.append([key, value])
        pages = [self.put_page(part) for part in self.cut(arrays)]
        manifest = {
            "format": 1,
            "pages": pages,
            "structure": self.put(canonical({"structure": {"dict": pairs}})),
            "parents": [],
            "branch": "main",
            "step": step,
            "metrics": {},
            "message": message,
            "created": time,
            "new_bytes": sum(p.stat().st_size for p in self.root.glob("objects/*/*")),
            "meta": {},
        }
        for folder in [*self.root.glob("objects/*"), self.root / "objects", self.root]:
            fsync(folder)  # all that the manifest refers to is durable before the manifest is there
        data = canonical(manifest)
        id = blake3(data).hexdigest()
        self.write(f"checkpoints/{id}.json", data)
        fsync(self.root / "checkpoints")
        fsync(self.root)
        operation = {
            "format": 1,
            "seq": 1,
            "nonce": nonce,
            "time": time,
            "heads": {"main": id},
            "tags": {},
            "settings": {},
            "condemned": None,
            "done": f"committed {id[:8]} to main",
            "undoes": None,
            "by": AUTHOR,
        }
        self.write("ops/000000000001.json", seal("operation", operation), create=True)
        return id

    def condemn(self, newest: dict[str, Any], *, digests: list[str], owner: str) -> None:
        """Append the operation of a gc that is about to delete objects (sections 8 and 14.1)."""
        seq = newest["seq"] + 1
        condemned = {
            "digests": digests,
            "checkpoints": [],
            "why": "",
            "owner": owner,
            "since": seq,
        }
        operation = {**newest, "seq": seq, "condemned": condemned, "done": "gc", "undoes": None}
        self.write(f"ops/{seq:012}.json", seal("operation", operation), create=True)

    def put_page(self, arrays: dict[str, Array]) -> dict[str, Any]:
        """Put chunks, bundle and page of some arrays; the page's ref (section 10)."""
        entries, bundle = [], bytearray()
        for path, array in arrays.items():
            entry: dict[str, Any] = {"path": path, "dtype": array.dtype, "shape": array.shape}
            if self.is_small(path, array):
                entry |= {"digest": blake3(array.data).hexdigest(), "offset": len(bundle)}
                bundle += array.data
            else:
                grid = self.grid(path, array)
                entry |= {"chunk_shape": grid, "digests": self.put_chunks(array, grid)}
            entries.append(entry)
        page: dict[str, Any] = {"arrays": entries}
        if bundle:
            page["bundle"] = {"digest": self.put(bytes(bundle)), "size": len(bundle)}
        first, sizes = next(iter(arrays)), (len(array.data) for array in arrays.values())
        digest = self.put(canonical(page))
        return {"first": first, "digest": digest, "arrays": len(arrays), "bytes": sum(sizes)}

    def put_chunks(self, array: Array, grid: list[int]) -> list[str]:
        """Put the chunks of an array in C order of the grid (section 10.2)."""
        blocks = chunk_blocks(list(array.shape), grid)
        return [self.put(elements(array, block)) for block in blocks]

    def is_small(self, path: str, array: Array) -> bool:
        """True for an array that lies in a bundle (section 10.3)."""
        return 0 < len(array.data) < SMALL_BYTES and path not in self.grids

    def grid(self, path: str, array: Array) -> list[int]:
        """The chunk shape of an array."""
        made = chunk_shape(list(array.shape), ITEM_BYTES[array.dtype], self.chunk_size)
        return self.grids.get(path, made)

    def cut(self, arrays: dict[str, Array]) -> list[dict[str, Array]]:
        """The arrays in path order, page by page (section 10.4)."""
        pages: list[dict[str, Array]] = [{}]
        digests = 0
        for path in sorted(arrays):  # Python orders strings by code point
            array = arrays[path]
            pages[-1][path] = array
            blocks = chunk_blocks(list(array.shape), self.grid(path, array))
            digests += 1 if self.is_small(path, array) else len(blocks)
            if page_ends(path, len(pages[-1]), digests):
                pages.append({})
                digests = 0
        return [page for page in pages if page]

    def put(self, data: bytes) -> str:
        """Put an object unless it is there, and return its digest."""
        digest = blake3(data).hexdigest()
        path = self.root / "objects" / digest[:2] / digest[2:]
        if not path.exists() or path.stat().st_size != len(data):
            self.write(f"objects/{digest[:2]}/{digest[2:]}", data)
        return digest

    def write(self, key: str, data: bytes, *, create: bool = False) -> None:
        """Write a temporary file, fsync, and rename it, or link it to fail on a taken name."""
        self.count += 1
        temporary, path = self.root / "tmp" / f"{os.getpid()}-{self.count}", self.root / key
        for folder in (temporary.parent, path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        fsync(temporary)
        if create:
            path.hardlink_to(temporary)
            temporary.unlink()
            fsync(path.parent)
            fsync(self.root)
        else:
            temporary.rename(path)


def elements(array: Array, block: tuple[range, ...]) -> bytes:
    """The elements of a block in C order."""
    data, item = memoryview(array.data), ITEM_BYTES[array.dtype]
    rows = []
    for index in product(*block[:-1]):
        start = 0
        first = (side.start for side in block[-1:])
        for position, length in zip((*index, *first), array.shape, strict=True):
            start = start * length + position
        count = len(block[-1]) if block else 1
        rows.append(data[start * item : (start + count) * item])
    return b"".join(rows)


def seal(kind: str, document: dict[str, Any]) -> bytes:
    """A document with its own digest beside it (section 6)."""
    return canonical({"blake3": blake3(canonical(document)).hexdigest(), kind: document})


def canonical(document: object) -> bytes:
    """Canonical JSON (section 4)."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def fsync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power failure."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
