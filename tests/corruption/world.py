"""A small repository with every kind of file in it, and the ways to damage one of them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import ckptstore
from ckptstore.digest import Digest
from ckptstore.format.manifest import Manifest
from ckptstore.format.page import Page
from ckptstore.objects import digest_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

CHUNK_BYTES = 64 << 10


def state(n: int) -> dict[str, Any]:
    """Arrays of several chunks, small ones in a bundle, values; from one commit to the next a part changes."""
    weight = np.arange(40_000, dtype=np.float32)
    weight[0] = n
    return {
        "model": {
            "weight": weight,
            "frozen": np.arange(20_000.0),
            "bias": np.full(30, n, np.float64),
        },
        "other": {"scale": np.arange(7, dtype=np.int16), "empty": np.zeros((0, 3))},
        "step": n,
    }


@dataclass(frozen=True, slots=True)
class World:
    """A repository, what was committed to it, and which checkpoints need which file."""

    root: Path
    states: dict[str, dict[str, Any]]
    needs: dict[str, frozenset[str]]

    def open(self) -> ckptstore.Repository:
        return ckptstore.open(self.root)

    def files(self, kind: str = "") -> list[str]:
        """Keys of files, those of one kind or all."""
        return sorted(key for key in self.needs if kind_of(self, key) == kind or not kind)

    def copy(self, to: Path) -> World:
        shutil.copytree(self.root, to)
        return World(to, self.states, self.needs)


def make(root: Path) -> World:
    """Three commits on main, one on a branch, a tag."""
    repo = ckptstore.init(root, chunk_size=CHUNK_BYTES)
    states = {}
    for n in range(3):
        states[repo.commit(state(n), step=n).id] = state(n)
    repo.branch("side", "main~1")
    states[repo.commit(state(9), branch="side", step=9).id] = state(9)
    repo.tag("v1", "main~2")
    needs: dict[str, set[str]] = {
        str(path.relative_to(root)): set() for path in root.rglob("*") if path.is_file()
    }
    for id in states:
        for key in _reached(root, id):
            needs[key].add(id)
    return World(root, states, {key: frozenset(ids) for key, ids in needs.items()})


def _reached(root: Path, id: str) -> list[str]:
    """The keys that a checkpoint needs, from its documents alone."""
    manifest = Manifest.decode((root / f"checkpoints/{id}.json").read_bytes(), name="manifest")
    found = [f"checkpoints/{id}.json", _key(manifest.structure)]
    for ref in manifest.pages:
        page = Page.decode((root / _key(ref.digest)).read_bytes(), name="page")
        found += [_key(ref.digest), *(_key(digest) for digest, _ in page.digests())]
    return found


def _key(digest: Digest) -> str:
    return f"objects/{digest[:2]}/{digest[2:]}"


def kind_of(world: World, key: str) -> str:
    """What a file is: marker, operation, manifest, page, structure, bundle or chunk."""
    if not key.startswith("objects/"):
        return {"ckptstore.json": "marker", "ops": "operation"}.get(key.split("/")[0], "manifest")
    data = (world.root / key).read_bytes()
    assert digest_of(key) == Digest.of(data)
    if data.startswith(b'{"structure"'):
        return "structure"
    if data.startswith(b'{"arrays"'):
        return "page"
    return "chunk" if len(data) > 1000 else "bundle"


def flip(path: Path, chance: random.Random, position: int | None = None) -> str:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    place = chance.randrange(len(data)) if position is None else position
    bit = chance.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {place} flipped"


def truncate(path: Path, chance: random.Random) -> str:
    length = chance.randrange(path.stat().st_size)
    path.write_bytes(path.read_bytes()[:length])
    return f"cut to {length} bytes"


def extend(path: Path, chance: random.Random) -> str:
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.randint(1, 9)))
    return "made longer"


def zero(path: Path, chance: random.Random) -> str:
    path.write_bytes(bytes(path.stat().st_size))
    return "all zeros"


def empty(path: Path, chance: random.Random) -> str:
    path.write_bytes(b"")
    return "emptied"


def delete(path: Path, chance: random.Random) -> str:
    path.unlink()
    return "deleted"


def folder(path: Path, chance: random.Random) -> str:
    path.unlink()
    path.mkdir()
    return "a folder in its place"


DAMAGES: tuple[Callable[[Path, random.Random], str], ...] = (
    flip,
    truncate,
    extend,
    zero,
    empty,
    delete,
    folder,
)
