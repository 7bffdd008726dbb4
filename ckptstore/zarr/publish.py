"""Publish: what a session has staged becomes objects, pages and what a manifest says of them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ckptstore.collector import paused_collector
from ckptstore.digest import Digest
from ckptstore.errors import InvalidInputError, shown
from ckptstore.format import structure, zarr_document
from ckptstore.format.manifest import PageRef
from ckptstore.format.node_page import NodePage, Value, ZarrNode
from ckptstore.format.page import SMALL_BYTES, Bundle, cut
from ckptstore.format.repage import repage
from ckptstore.graft import graft
from ckptstore.parallel import gather
from ckptstore.state import ROOT
from ckptstore.writer import PUT_THREADS, Reached, Written, page_ref, reached_by
from ckptstore.zarr.contents import (
    METADATA,
    NODE_DOCUMENTS,
    ArrayChunk,
    Made,
    Stored,
    above,
    document_bytes,
    join,
    parsed,
)
from ckptstore.zarr.layout import lay_out

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ckptstore.zarr.contents import Content
    from ckptstore.zarr.layout import Layout
    from ckptstore.zarr.staged import Staged

    Nodes = Sequence[tuple[str, tuple[tuple[str, Content], ...]]]


def write(staged: Staged) -> Written:
    """Store all that a manifest will refer to; durable when this returns."""
    held = reached_by(staged.head, staged.catalog) if staged.head else Reached()
    with paused_collector():
        layout = lay_out(staged.contents, written=staged.written)
        pages = _array_pages(staged, layout)
        nodes = NodeWriter(staged)
        hierarchy = nodes.write(layout.nodes)
        root = _structure(staged, layout, nodes)
    root_digest = staged.document(structure.encode(root))
    reached = {root_digest, *(ref.digest for ref in (*pages, *hierarchy)), *nodes.reached}
    for ref in pages:
        reached.update(digest for digest, _ in staged.catalog.page(ref.digest).digests())
    staged.catalog.objects.flush(reached - held.digests)
    return Written(
        pages=pages,
        structure=root_digest,
        hierarchy=hierarchy,
        new_bytes=staged.new_bytes,
        relied=frozenset(reached),
    )


def renamed(staged: Staged, arrays: Collection[str], names: Mapping[str, str]) -> Nodes:
    """The nodes of those Zarr arrays that have a new path, under it, and of the groups that these then lie in.

    arrays: the paths of all nodes that are arrays. names: new paths, by path in the state.
    """
    nodes = dict(lay_out(staged.contents, written=()).nodes)
    moved = {path: names[path or ROOT] for path in arrays if (path or ROOT) in names}
    made = {"" if (path, new) == ("", ROOT) else new: nodes[path] for path, new in moved.items()}
    for group in {group for path in made for group in above(path)}:
        document = Made(lambda: zarr_document.group_document({}))
        made[group] = nodes.get(group, ((METADATA, document),))
    return sorted(made.items())


def _array_pages(staged: Staged, layout: Layout) -> tuple[PageRef, ...]:
    """The pages of the head's arrays that stay; the same ones when all do."""
    manifest = staged.manifest
    if manifest is None:
        return ()
    if not layout.converted and len(layout.kept) == sum(ref.arrays for ref in manifest.pages):
        return manifest.pages
    if not layout.kept:
        return ()
    made = repage(list(staged.catalog.pages(manifest)), {path: path for path in layout.kept})
    return tuple(page_ref(page, staged.document(page.encode())) for page in made)


def _structure(staged: Staged, layout: Layout, nodes: NodeWriter) -> structure.Node:
    for path in sorted(layout.kept & nodes.arrays):
        raise InvalidInputError(
            f"{shown(path)} is the path of an array of the state, which Zarr shows as {shown(zarr_document.node_path(path))}. "
            "Give the new Zarr array another name."
        )
    root = staged.catalog.structure(staged.manifest) if staged.manifest else {"dict": []}
    return graft(
        root,
        kept=layout.kept,
        converted=layout.converted,
        arrays=nodes.arrays,
        groups=nodes.groups,
    )


class NodeWriter:
    """Makes the pages of the nodes. arrays, groups: the paths of the nodes that are such."""

    def __init__(self, staged: Staged) -> None:
        self.staged = staged
        self.arrays: set[str] = set()
        self.groups: set[str] = set()
        self.reached: set[Digest] = set()
        self._known: dict[str, NodePage] = {}
        if staged.manifest:
            pages = staged.catalog.node_pages(staged.manifest)
            self._known = {page.first: page for page in pages}

    def write(self, nodes: Nodes) -> tuple[PageRef, ...]:
        """Have all pages stored, and what they refer to."""
        self._put_values(nodes)
        parts = cut([(path, len(contents)) for path, contents in nodes])
        return tuple(self._page(nodes[part]) for part in parts)

    def _put_values(self, nodes: Nodes) -> None:
        """Have every value stored that is not yet, on several threads."""
        jobs = [
            partial(self._put, content)
            for _, contents in nodes
            for key, content in contents
            if self._is_put(key, content)
        ]
        waiting = iter(gather(jobs, threads=PUT_THREADS))
        self._values = {
            id(content): next(waiting)
            for _, contents in nodes
            for key, content in contents
            if self._is_put(key, content)
        }

    def _is_put(self, key: str, content: Content) -> bool:
        """True for a value that is to be stored as objects of its own."""
        is_there = (
            isinstance(content, Stored) and content.segment_bytes == self.staged.segment_bytes
        )
        return not is_there and not _is_bundled(key, content)

    def _put(self, content: Content) -> Value:
        """A value as objects of its own; a whole chunk of an array of the head is one already."""
        if isinstance(content, ArrayChunk) and content.is_object(self.staged.segment_bytes):
            return Value(content.size, (content.digest,))
        return self.staged.stored(memoryview(content.read(self.staged.objects, 0, content.size)))

    def _page(self, nodes: Nodes) -> PageRef:
        """Have one page stored; one that is as it was is not made again."""
        page = self._unchanged(nodes) or self._made(nodes)
        arrays = 0
        for path, contents in nodes:
            kind = self._kind(path, contents)
            arrays += kind == "array"
            if kind:
                (self.arrays if kind == "array" else self.groups).add(path)
        digest = self.staged.document(page.encode())
        self.reached.update(found for found, _ in page.digests())
        return PageRef(first=page.first, digest=digest, arrays=arrays, bytes=page.nbytes)

    def _unchanged(self, nodes: Nodes) -> NodePage | None:
        page = self._known.get(nodes[0][0])
        if page is None or len(page.nodes) != len(nodes):
            return None
        for node, (path, contents) in zip(page.nodes, nodes, strict=True):
            if node.path != path or len(node.values) != len(contents):
                return None
            for (known, value), (key, content) in zip(node.values, contents, strict=True):
                if known != key or not isinstance(content, Stored) or content.value is not value:
                    return None
        return page

    def _made(self, nodes: Nodes) -> NodePage:
        data = bytearray()
        made = []
        for path, contents in nodes:
            values = []
            for key, content in contents:
                if _is_bundled(key, content):
                    part = bytes(content.read(self.staged.objects, 0, content.size))
                    values.append((key, self._bundled(part, len(data))))
                    data += part
                elif isinstance(content, Stored) and not self._is_put(key, content):
                    values.append((key, content.value))
                else:
                    values.append((key, self._values[id(content)]))
            made.append(ZarrNode(path, tuple(values)))
        bundle = Bundle(digest=self.staged.document(bytes(data)), size=len(data)) if data else None
        return NodePage(nodes=tuple(made), segment_bytes=self.staged.segment_bytes, bundle=bundle)

    def _bundled(self, data: bytes, offset: int) -> Value:
        return Value(len(data), (Digest.of(data),), offset)

    def _kind(self, path: str, contents: Sequence[tuple[str, Content]]) -> str:
        """What a node is: "array", "group" or, without a document that says so, ""."""
        for key, content in contents:
            if key == ".zarray":
                return "array"
            if key == ".zgroup":
                return "group"
            if key in NODE_DOCUMENTS:
                document = parsed(document_bytes(join(path, key), content, self.staged.objects))
                if document is not None:
                    return str(document["node_type"])
        return ""


def _is_bundled(key: str, content: Content) -> bool:
    """True for a document that shares an object with others of its page."""
    return key in NODE_DOCUMENTS and 0 < content.size < SMALL_BYTES
