"""What the library returns, as JSON values, and which refs point at which checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ckptstore.errors import CkptStoreError

if TYPE_CHECKING:
    from ckptstore import ArrayInfo, Checkpoint, Repository

    Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refs:
    """The branches and tags that point at one checkpoint."""

    branches: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join([*self.branches, *(f"tag: {name}" for name in self.tags)])


NO_REFS = Refs()


def refs_by_id(repo: Repository) -> dict[str, Refs]:
    """The refs of each checkpoint that has any, as far as a damaged repository can be read."""
    try:
        branches, tags = repo.ref_names()
    except CkptStoreError:
        return {}
    found: dict[str, Refs] = {}
    for name, id in branches.items():
        refs = found.get(id, NO_REFS)
        found[id] = replace(refs, branches=(*refs.branches, name))
    for name, id in tags.items():
        refs = found.get(id, NO_REFS)
        found[id] = replace(refs, tags=(*refs.tags, name))
    return found


def checkpoint(value: Checkpoint, refs: Refs | None = None) -> Document:
    """One checkpoint; with its refs where they are known."""
    known = {} if refs is None else {"branches": list(refs.branches), "tags": list(refs.tags)}
    return {
        "id": value.id,
        **known,
        "step": value.step,
        "metrics": dict(value.metrics),
        "message": value.message,
        "created": value.created.isoformat(),
        "parents": list(value.parents),
        "arrays": value.array_count,
        "bytes": value.array_bytes,
        "new_bytes": value.new_bytes,
        "expired": value.expired,
        "meta": dict(value.meta),
    }


def array(value: ArrayInfo) -> Document:
    """One array of a checkpoint."""
    return {
        "path": value.path,
        "dtype": value.dtype,
        "shape": list(value.shape),
        "bytes": value.nbytes,
        "chunk_shape": list(value.chunk_shape),
        "chunks": value.chunk_count,
    }
