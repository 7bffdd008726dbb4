"""A small repository with every kind of file, and which checkpoints need each."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import ckptstore
from ckptstore.documents.manifest import Manifest
from ckptstore.documents.page import Page

if TYPE_CHECKING:
    from pathlib import Path

CHUNK_BYTES = 64 << 10
DOCUMENTS = ("marker", "operation", "manifest", "page", "structure")
KINDS = (*DOCUMENTS, "bundle", "chunk")
MARKER = "ckptstore.json"


def state(n: int) -> dict[str, Any]:
    """Large arrays, small ones in two bundles, and values; each commit changes a part."""
    embed = np.arange(40_000, dtype=np.float32).reshape(100, 400)
    embed[0, 0] = n
    layers = {f"{number:03}": np.full(5, number, np.float32) for number in range(150)}
    layers["007"] = np.full(5, n, np.float32)
    return {
        "model": {"embed": embed, "frozen": np.arange(20_000.0), "layers": layers},
        "adam": torch.arange(30_000, dtype=torch.float32) + n,
        "other": {"scale": torch.arange(7, dtype=torch.bfloat16), "empty": np.zeros((0, 3))},
        "step": n,
    }


@dataclass(frozen=True, slots=True)
class World:
    """A repository and what was committed to it.

    kinds: the kind of each file. needs: the checkpoints that cannot be read whole without a file.
    """

    root: Path
    states: dict[str, dict[str, Any]]
    kinds: dict[str, str]
    needs: dict[str, frozenset[str]]

    def open(self) -> ckptstore.Repository:
        return ckptstore.open(self.root)

    def files(self, *kinds: str) -> list[str]:
        """Keys of files of these kinds, or of all."""
        return sorted(key for key, kind in self.kinds.items() if kind in (kinds or KINDS))

    @property
    def newest(self) -> str:
        """The key of the newest operation."""
        return max(self.files("operation"))

    def suffer(self, key: str) -> frozenset[str]:
        """The checkpoints that verify must name; none need the marker or the operations."""
        return frozenset() if self.kinds[key] in ("marker", "operation") else self.needs[key]

    def copy(self, to: Path) -> World:
        shutil.copytree(self.root, to)
        return World(to, self.states, self.kinds, self.needs)


def make(root: Path) -> World:
    """Three commits on main, one on a branch, a tag."""
    repo = ckptstore.init(root, chunk_size=CHUNK_BYTES)
    states = {}
    for n in range(3):
        states[str(repo.commit(state(n), step=n).id)] = state(n)
    repo.branch("side", "main~1")
    states[str(repo.commit(state(9), branch="side", step=9).id)] = state(9)
    repo.tag("v1", "main~2")
    files = (str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    kinds = {key: "chunk" for key in files if not key.startswith("tmp/")}
    kinds |= {key: "operation" for key in kinds if key.startswith("ops/")} | {MARKER: "marker"}
    needs: dict[str, set[str]] = {key: set() for key in kinds}
    needs[MARKER] |= states.keys()
    needs[max(key for key in kinds if key.startswith("ops/"))] |= states.keys()
    for id in states:
        reached = _reached(root, id)
        kinds |= reached
        for key in reached:
            needs[key].add(id)
    return World(root, states, kinds, {key: frozenset(ids) for key, ids in needs.items()})


def _reached(root: Path, id: str) -> dict[str, str]:
    """The keys that a checkpoint needs and their kinds, from its documents alone."""
    manifest = Manifest.decode((root / f"checkpoints/{id}.json").read_bytes(), name="manifest")
    found = {f"checkpoints/{id}.json": "manifest", _key(manifest.structure): "structure"}
    for ref in manifest.pages:
        page = Page.decode((root / _key(ref.digest)).read_bytes(), name="page")
        found[_key(ref.digest)] = "page"
        found |= {_key(digest): "chunk" for digest, _ in page.digests()}
        if page.bundle:
            found[_key(page.bundle.digest)] = "bundle"
    return found


def _key(digest: str) -> str:
    return f"objects/{digest[:2]}/{digest[2:]}"
