"""Values of the library as JSON, and the refs of each checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ckptstore.errors import CkptStoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ckptstore import ArrayChange, ArrayInfo, Checkpoint, Diff, Repository, StoredArray

    Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refs:
    """The branches and tags of one checkpoint."""

    branches: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.beside(None)

    def beside(self, branch: str | None) -> str:
        """The names, for a place beside the one that names this branch."""
        heads = ("head" if name == branch else name for name in self.branches)
        return ", ".join([*heads, *(f"tag: {name}" for name in self.tags)])


NO_REFS = Refs()


def refs_by_id(repo: Repository) -> dict[str, Refs]:
    """The refs of each checkpoint that has any; empty if a damaged repository has none to read."""
    try:
        branches, tags = repo.ref_names()
    except CkptStoreError:
        return {}
    by_id: dict[str, Refs] = {}
    for name, id in branches.items():
        refs = by_id.get(id, NO_REFS)
        by_id[id] = replace(refs, branches=(*refs.branches, name))
    for name, id in tags.items():
        refs = by_id.get(id, NO_REFS)
        by_id[id] = replace(refs, tags=(*refs.tags, name))
    return by_id


def checkpoint(value: Checkpoint, refs: Refs | None = None) -> Document:
    """One checkpoint, with its refs if they are given."""
    known = {} if refs is None else {"branches": list(refs.branches), "tags": list(refs.tags)}
    return {
        "id": value.id,
        **known,
        "step": value.step,
        "metrics": dict(value.metrics),
        "message": value.message,
        "created": value.created.isoformat(),
        "parents": list(value.parents),
        "branch": value.branch,
        "arrays": value.array_count,
        "bytes": value.array_bytes,
        "new_bytes": value.new_bytes,
        "expired": value.expired,
        "meta": dict(value.meta),
        "notes": [
            {
                "metrics": dict(note.metrics),
                "message": note.message,
                "time": note.time.isoformat(),
                "user": note.user,
                "host": note.host,
                "program": note.program,
            }
            for note in value.notes
        ],
    }


def array(value: ArrayInfo) -> Document:
    """One array of a checkpoint."""
    return {
        **_stored(value),
        "chunk_shape": list(value.chunk_shape),
        "chunks": value.chunk_count,
        "order": None if value.order is None else list(value.order),
    }


def diff(value: Diff, arrays: Sequence[ArrayChange]) -> Document:
    """The differences of two checkpoints, with `arrays` in the order given."""
    return {
        "arrays": [_array_change(change) for change in arrays],
        "values": [
            {
                "path": change.path,
                "kind": change.kind,
                "before": plain(change.before),
                "after": plain(change.after),
            }
            for change in value.values
        ],
        "rearranged": list(value.rearranged),
        "unchanged": value.unchanged,
        "bytes_before": value.bytes_before,
        "bytes_after": value.bytes_after,
        "shared_bytes": value.shared_bytes,
    }


def _array_change(change: ArrayChange) -> Document:
    return {
        "path": change.path,
        "kind": change.kind,
        "before": None if change.before is None else _stored(change.before),
        "after": None if change.after is None else _stored(change.after),
        "shared_bytes": change.shared_bytes,
        "numbers": None if change.numbers is None else asdict(change.numbers),
    }


def _stored(array: ArrayInfo | StoredArray) -> Document:
    return {
        "path": array.path,
        "dtype": array.dtype,
        "shape": list(array.shape),
        "bytes": array.nbytes,
    }


def plain(value: object) -> Any:
    """A plain value as JSON; its Python notation where JSON has no such type."""
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)
