"""Derive: a checkpoint made of arrays of another one, under the same or other paths.

No array is read or written: new pages list the chunks and bundles that are there. Pages that come
out unchanged are not stored again. The first checkpoint of a branch made with `include`, `exclude`
or `rename` is such a derived checkpoint.

docs/reference/format.md, section 10.3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ckptstore.commit.assemble import put_documents
from ckptstore.commit.put import putting
from ckptstore.documents.facts import check_meta
from ckptstore.documents.manifest import SEED, Manifest
from ckptstore.documents.marker import CHUNK_BYTES_DEFAULT
from ckptstore.documents.repage import repage
from ckptstore.errors import InvalidInputError, shown
from ckptstore.python_gc import paused_collector
from ckptstore.state.paths import ROOT
from ckptstore.state.rename import Rename, move
from ckptstore.state.selection import Selection
from ckptstore.state.tree import select
from ckptstore.store.reach import Reached
from ckptstore.zarr.encoded_entries import encoded_entries

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ckptstore.digest import Digest
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.reach import Written

RESETTABLE = ("step", "metrics")


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """The part of its source that a derived checkpoint takes over.

    Attributes:
        selection: Which arrays and values.
        rename: New paths for arrays.
        kept: Which of `RESETTABLE` it keeps.
        asked: What the user asked for, as its meta will record it.
    """

    selection: Selection
    rename: Rename
    kept: frozenset[str]
    asked: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        include: str | Sequence[str] | None,
        exclude: str | Sequence[str] | None,
        rename: Mapping[str, str] | None,
        reset: Sequence[str],
    ) -> Derivation:
        """Parse the arguments of `Repository.branch`."""
        selection, renames = Selection.of(include, exclude), Rename.of(rename)
        asked = {
            "include": None if selection.include is None else list(selection.include),
            "exclude": list(selection.exclude) or None,
            "rename": [[pattern.pattern, new] for pattern, new in renames.patterns] or None,
        }
        return cls(
            selection=selection,
            rename=renames,
            kept=_kept(reset),
            asked={key: value for key, value in asked.items() if value is not None},
        )

    @property
    def is_everything(self) -> bool:
        """True when the derived checkpoint would hold the same as its source."""
        return self.selection.is_everything and not self.rename.patterns

    def manifest(
        self, id: Digest, source: Manifest, written: Written, *, branch: str, now: int
    ) -> Manifest:
        """The manifest of the derived checkpoint. id, source: the checkpoint it is made from."""
        step = "" if source.step is None else f", step {source.step}"
        return Manifest(
            pages=written.pages,
            structure=written.structure,
            hierarchy=written.hierarchy,
            format=written.format,
            parents=(id,),
            branch=branch,
            step=source.step if "step" in self.kept else None,
            metrics=source.metrics if "metrics" in self.kept else {},
            message=f"seed from {id.short}{step}",
            created=now,
            elapsed=source.elapsed_until(now),
            new_bytes=written.new_bytes,
            meta=check_meta({SEED: dict(self.asked)}),
        )


def derive(derivation: Derivation, id: Digest, catalog: Catalog) -> Written:
    """Store the structure and the pages of a derived checkpoint; durable when this returns.

    Args:
        derivation: What it takes from its source.
        id: The source.
        catalog: The documents of the repository, and its objects.
    """
    source = catalog.manifest(id)
    with paused_collector():
        root, pages = catalog.structure(source), list(catalog.pages(source))
        chosen = select(root, derivation.selection, name=f"checkpoint {id.short}")
        moves = derivation.rename.names_in(chosen, source=root)
        moved, names = move(chosen, moves, source=root), moves.arrays
        encoded = encoded_entries(source, catalog)
        zarr = {path or ROOT for path in encoded}
        derived = repage(pages, {old: new for old, new in names.items() if old not in zarr})
    with putting(catalog.objects, Reached(digests=source.documents())) as putter:
        putter.rely(digest for page in derived for digest, _ in page.digests())
        written, _ = put_documents(moved, [dict(enumerate(derived))], putter)
    return (
        written if source.hierarchy is None else _with_nodes(written, id, encoded, names, catalog)
    )


def _kept(reset: Sequence[str]) -> frozenset[str]:
    unknown = [name for name in reset if name not in RESETTABLE]
    if unknown:
        raise InvalidInputError(
            f"reset names {shown(unknown[0])}; a derived checkpoint can reset "
            f"{' and '.join(RESETTABLE)}."
        )
    return frozenset(RESETTABLE) - set(reset)


def _with_nodes(
    written: Written,
    id: Digest,
    encoded: Collection[str],
    names: Mapping[str, str],
    catalog: Catalog,
) -> Written:
    """Add those arrays that were committed through Zarr. encoded: the paths of their nodes."""
    from ckptstore.zarr.publish import NodeWriter, renamed
    from ckptstore.zarr.staged_contents import StagedContents

    source = catalog.manifest(id)
    segment_bytes = next((page.segment_bytes for page in catalog.node_pages(source)), None)
    staged = StagedContents(id, source, catalog, segment_bytes or CHUNK_BYTES_DEFAULT)
    nodes = NodeWriter(staged)
    refs = nodes.write(renamed(staged, encoded, names))
    relied = nodes.reached | {ref.digest for ref in refs}
    catalog.objects.flush(staged.relied)
    return replace(
        written,
        hierarchy=refs,
        new_bytes=written.new_bytes + staged.new_bytes,
        relied=written.relied | relied,
    )
