"""Publish: store the staged contents of a session as objects and pages, for a manifest to list.

The manifest itself and the branch are the caller's business. A page in which nothing changed is
neither rebuilt nor stored again. See docs/adr/0016 and section 10.5 of docs/reference/format.md.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ckptstore.digest import Digest
from ckptstore.documents import structure, zarr_document
from ckptstore.documents.manifest import PageRef
from ckptstore.documents.nodes import DictNode
from ckptstore.documents.page import SMALL_BYTES, Bundle
from ckptstore.documents.repage import repage
from ckptstore.documents.zarr_document import METADATA, NODE_DOCUMENTS, V2_KINDS
from ckptstore.documents.zarr_page import NodePage, Value, Weighed, ZarrNode, cut_nodes, weight
from ckptstore.errors import InvalidInputError, shown
from ckptstore.open_files import affordable
from ckptstore.python_gc import paused_collector
from ckptstore.state.paths import ROOT
from ckptstore.store.reach import Reached, Written, page_ref, reached_by
from ckptstore.threads import gather
from ckptstore.zarr.contents import (
    ArrayChunk,
    Made,
    Stored,
    document_bytes,
    join,
    parsed,
)
from ckptstore.zarr.graft import graft
from ckptstore.zarr.layout import lay_out

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from ckptstore.documents.nodes import Node
    from ckptstore.zarr.contents import Content
    from ckptstore.zarr.layout import Layout
    from ckptstore.zarr.staged_contents import StagedContents

    Nodes = Sequence[tuple[str, tuple[tuple[str, Content], ...]]]

PUT_THREADS = 12  # a thread spends most of its time waiting for fsync
FILES_PER_PUTTER = 8  # that a process has to be allowed for each of them


def write(staged: StagedContents) -> Written:
    """Store everything that the manifest will refer to; durable when this returns."""
    parent = reached_by(staged.id, staged.catalog) if staged.id else Reached()
    with paused_collector():
        layout = lay_out(staged.contents, written=staged.written)
        pages = _array_pages(staged, layout)
        nodes = NodeWriter(staged)
        hierarchy = nodes.write(layout.nodes)
        root = _structure(staged, layout, nodes)
    root_digest = staged.put_object(structure.encode(root))
    reached = {root_digest, *(ref.digest for ref in (*pages, *hierarchy)), *nodes.reached}
    for ref in pages:
        if ref.digest not in parent.digests:  # an old page's objects live as long as the page
            page = staged.catalog.page(ref.digest)
            reached.update(digest for digest, _ in page.digests())
    staged.catalog.objects.flush(reached - parent.digests)
    return Written(
        pages=pages,
        structure=root_digest,
        hierarchy=hierarchy,
        new_bytes=staged.new_bytes,
        relied=frozenset(reached),
        format=staged.manifest.format if staged.manifest and pages else 1,
    )


def renamed(staged: StagedContents, arrays: Collection[str], names: Mapping[str, str]) -> Nodes:
    """The Zarr arrays that `names` lists, under their new paths, with the groups above them.

    Args:
        staged: The contents to take them from.
        arrays: The paths of all nodes that are arrays.
        names: New paths by path in the state. Arrays that it lacks are left out.
    """
    nodes = dict(lay_out(staged.contents, written=()).nodes)
    moves = {path: names[path or ROOT] for path in arrays if (path or ROOT) in names}
    renamed = {"" if (path, new) == ("", ROOT) else new: nodes[path] for path, new in moves.items()}
    for group in {group for path in renamed for group in zarr_document.above(path)}:
        document = Made(lambda: zarr_document.group_document({}))
        renamed[group] = nodes.get(group, ((METADATA, document),))
    return sorted(renamed.items())


def _array_pages(staged: StagedContents, layout: Layout) -> tuple[PageRef, ...]:
    """The pages of the head's arrays that are kept; unchanged when all of them are."""
    manifest = staged.manifest
    if manifest is None:
        return ()
    if not layout.converted and len(layout.kept) == sum(ref.arrays for ref in manifest.pages):
        return manifest.pages
    if not layout.kept:
        return ()
    pages = repage(list(staged.catalog.pages(manifest)), {path: path for path in layout.kept})
    return tuple(page_ref(page, staged.put_object(page.encode())) for page in pages)


def _structure(staged: StagedContents, layout: Layout, nodes: NodeWriter) -> Node:
    for path in sorted(layout.kept & nodes.arrays):
        raise InvalidInputError(
            f"{shown(path)} is the path of an array of the state, which Zarr shows as "
            f"{shown(zarr_document.node_path(path))}. Give the new Zarr array another name."
        )
    root = staged.catalog.structure(staged.manifest) if staged.manifest else DictNode({})
    return graft(
        root,
        kept=layout.kept,
        converted=layout.converted,
        arrays=nodes.arrays,
        groups=nodes.groups,
        gone=nodes.gone,
    )


class NodeWriter:
    """Builds and stores the pages of Zarr nodes.

    Attributes:
        arrays: Paths of the nodes that are arrays.
        groups: Paths of the nodes that are groups.
        gone: Paths of the head's nodes that no longer exist.
        reached: The digests that the pages list.
    """

    def __init__(self, staged: StagedContents) -> None:
        self.staged = staged
        self.arrays: set[str] = set()
        self.groups: set[str] = set()
        self.gone: set[str] = set()
        self.reached: set[Digest] = set()
        self._kinds: dict[Digest, str] = {}  # by digest of the document, which many nodes may share
        self._known: dict[tuple[str, str], NodePage] = {}
        if staged.manifest:
            pages = staged.catalog.node_pages(staged.manifest)
            self._known = {page.begin: page for page in pages}

    def write(self, nodes: Nodes) -> tuple[PageRef, ...]:
        """Store the pages and everything that they refer to."""
        self._put_values(nodes)
        before = {node.path for page in self._known.values() for node in page.nodes}
        self.gone = before - {path for path, _ in nodes}
        return tuple(self._page(part) for part in self._cut(nodes))

    def _cut(self, nodes: Nodes) -> Iterator[Nodes]:
        """The nodes of each page, or a part of one node that has too many values for a page."""
        weighed = [
            Weighed(path, [key for key, _ in contents], [self._weight(*item) for item in contents])
            for path, contents in nodes
        ]
        for page in cut_nodes(weighed):
            yield [(nodes[number][0], nodes[number][1][part]) for number, part in page]

    def _weight(self, key: str, content: Content) -> int:
        value = self._value(key, content)
        return weight(key, 1 if value is None else len(value.digests))

    def _value(self, key: str, content: Content) -> Value | None:
        """The stored value; None for one that goes into the bundle of its page."""
        if _is_bundled(key, content):
            return None
        if isinstance(content, Stored) and not self._is_put(key, content):
            return content.value
        return self._values[id(content)]

    def _put_values(self, nodes: Nodes) -> None:
        """Store every value that is not stored yet, on several threads."""
        waiting = [
            content
            for _, contents in nodes
            for key, content in contents
            if self._is_put(key, content)
        ]
        threads = affordable(PUT_THREADS, files_each=FILES_PER_PUTTER)
        values = gather((partial(self._put, content) for content in waiting), threads=threads)
        self._values = dict(zip(map(id, waiting), values, strict=True))

    def _is_put(self, key: str, content: Content) -> bool:
        """True for a value that has to be stored as objects of its own."""
        is_there = (
            isinstance(content, Stored) and content.segment_bytes == self.staged.segment_bytes
        )
        return not is_there and not _is_bundled(key, content)

    def _put(self, content: Content) -> Value:
        """Store a value as objects of its own. A full chunk of a head's array is one already."""
        if isinstance(content, ArrayChunk) and content.is_object(self.staged.segment_bytes):
            return Value(content.size, (content.digest,))
        return self.staged.stored(memoryview(content.read(self.staged.objects, 0, content.size)))

    def _page(self, nodes: Nodes) -> PageRef:
        """Store one page. The head's page is taken where nothing changed."""
        page = self._unchanged(nodes) or self._new_page(nodes)
        arrays = 0
        for path, contents in nodes:
            kind = self._kind(path, contents)
            arrays += kind == "array"
            if kind:
                (self.arrays if kind == "array" else self.groups).add(path)
        digest = self.staged.put_object(page.encode())
        self.reached.update(listed for listed, _ in page.digests())
        return PageRef(first=page.first, digest=digest, arrays=arrays, bytes=page.nbytes)

    def _unchanged(self, nodes: Nodes) -> NodePage | None:
        first, contents = nodes[0]
        page = self._known.get((first, contents[0][0]))
        if page is None or len(page.nodes) != len(nodes):
            return None
        for node, (path, contents) in zip(page.nodes, nodes, strict=True):
            if node.path != path or len(node.values) != len(contents):
                return None
            for (known, value), (key, content) in zip(node.values, contents, strict=True):
                if known != key or not isinstance(content, Stored) or content.value is not value:
                    return None
        return page

    def _new_page(self, nodes: Nodes) -> NodePage:
        data = bytearray()
        page_nodes = []
        for path, contents in nodes:
            values = []
            for key, content in contents:
                value = self._value(key, content)
                if value is None:
                    part = bytes(content.read(self.staged.objects, 0, content.size))
                    value = Value(len(part), (Digest.of(part),), len(data))
                    data += part
                values.append((key, value))
            page_nodes.append(ZarrNode(path, tuple(values)))
        bundle = (
            Bundle(digest=self.staged.put_object(bytes(data)), size=len(data)) if data else None
        )
        return NodePage(
            nodes=tuple(page_nodes), segment_bytes=self.staged.segment_bytes, bundle=bundle
        )

    def _kind(self, path: str, contents: Sequence[tuple[str, Content]]) -> str:
        """The kind of a node: "array", "group", or "" without a valid document.

        Zarr v3 takes precedence over v2, as in zarr-python.
        """
        documents = {key: content for key, content in contents if key in NODE_DOCUMENTS}
        if METADATA not in documents:
            return next((V2_KINDS[key] for key in documents), "")
        data = document_bytes(join(path, METADATA), documents[METADATA], self.staged.objects)
        digest = Digest.of(data)
        if digest not in self._kinds:
            document = parsed(data)
            self._kinds[digest] = "" if document is None else str(document["node_type"])
        return self._kinds[digest]


def _is_bundled(key: str, content: Content) -> bool:
    """True for a document that goes into the bundle of its page."""
    return key in NODE_DOCUMENTS and 0 < content.size < SMALL_BYTES
