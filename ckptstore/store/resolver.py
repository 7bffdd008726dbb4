"""Resolver: what revisions name in one repository, as of its newest operation.

The grammar of revisions is in `ckptstore.revisions`. This module adds the metrics of notes, and the
errors for checkpoints that have expired or are missing.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ckptstore.errors import CkptStoreError, ExpiredError, NotFoundError, shown
from ckptstore.revisions import own_of, resolve
from ckptstore.store.ahead import Ahead
from ckptstore.store.lost import is_missing, missing_head, refuse_without_operations
from ckptstore.threads import gather

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.operation import Operation
    from ckptstore.revisions import Names
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.notes import Notes
    from ckptstore.store.oplog import Oplog


class Resolver:
    """Finds the checkpoints that revisions, branches and tags name."""

    def __init__(self, oplog: Oplog, catalog: Catalog, notes: Notes) -> None:
        self._oplog, self._catalog, self._notes = oplog, catalog, notes

    def resolved(self, rev: str) -> tuple[Digest, Manifest]:
        """Return the checkpoint that a revision names.

        CorruptError where a part of a copy is missing.
        """
        newest = self._oplog.newest()
        found = self._found(rev, newest)
        self._notes.update(newest)
        return found

    def _found(
        self, rev: str, newest: Operation, *, is_readable: bool = False
    ) -> tuple[Digest, Manifest]:
        try:
            id = resolve(rev, self._names(newest))
            if is_readable:
                with self.naming(rev):
                    return id, self._catalog.live_manifest(id)
            return id, self._catalog.manifest(id)
        except NotFoundError:
            refuse_without_operations(newest, self._oplog, self._catalog)
            self._refuse_missing(
                {
                    name: id
                    for name, id in newest.refs.items()
                    if rev.startswith((name, "latest", "best:")) or id.startswith(rev)
                }
            )
            raise

    def readable(self, rev: str) -> tuple[Digest, Manifest]:
        """Return a checkpoint whose arrays are there; ExpiredError for one that has expired."""
        return self._found(rev, self._oplog.newest(), is_readable=True)

    def stored(self, rev: str) -> Digest:
        """Return the id of such a checkpoint, whose manifest and notes may be damaged."""
        names = self._catalog.names(self._oplog.newest(), Ahead(self._catalog))
        id = resolve(rev, names)
        with self.naming(rev):
            self._catalog.refuse_expired(id)
        return id

    def durable(self, rev: str) -> Digest:
        """Return the id that a revision names, flushed: its writer may have died before that."""
        id, _ = self.resolved(rev)
        self._catalog.flush(id)
        return id

    def seed_of(self, id: Digest) -> Digest | None:
        """Return the checkpoint that the branch of another one was started from, if any."""
        names = self._catalog.names(self._oplog.newest(), Ahead(self._catalog))
        _, chain = own_of(id, None, names)
        return chain.start

    def named(self) -> list[Digest]:
        """Return the checkpoints that branches and tags name; CorruptError where one is missing."""
        newest = self._oplog.newest()
        self.check(newest.refs, newest)
        return [*newest.heads.values(), *newest.tags.values()]

    def check(self, refs: Mapping[str, Digest], newest: Operation) -> None:
        """Raise CorruptError where operations, or checkpoints that refs name, are missing."""
        refuse_without_operations(newest, self._oplog, self._catalog)
        gather(
            (partial(self._catalog.read_ahead, id) for id in {*refs.values()}),
            threads=self._catalog.threads,
        )
        self._refuse_missing(refs)
        self._notes.update(newest)

    @contextmanager
    def naming(self, rev: str) -> Iterator[None]:
        """Name the revision where what it names has expired, and the best one that is stored."""
        try:
            yield
        except ExpiredError as error:
            raise ExpiredError(
                f"{shown(rev)} cannot be used. {error}{self._instead(rev)}"
            ) from error

    def _names(self, newest: Operation) -> Names:
        """Return the names that revisions can use as of an operation, with the metrics of notes."""
        walk = Ahead(self._catalog)

        def lookup(id: Digest) -> Manifest | None:
            self._notes.update(newest)
            manifest = walk(id)
            return manifest and self._notes.annotated(id, manifest)

        return self._catalog.names(newest, lookup)

    def _instead(self, rev: str) -> str:
        """Return a sentence about the best checkpoint that is stored, where a best one expired."""
        names = self._names(self._oplog.newest())
        with suppress(CkptStoreError):
            id = resolve(rev, replace(names, may_be_best=self._catalog.is_live))
            if self._catalog.is_live(id):
                return f" The best one that is stored is {id.short}."
        return ""

    def _refuse_missing(self, refs: Mapping[str, Digest]) -> None:
        """Raise CorruptError when the checkpoint of a branch or tag is missing."""
        for id, name in {id: name for name, id in refs.items()}.items():
            if is_missing(id, self._catalog):
                raise missing_head(name, id, self._catalog)
