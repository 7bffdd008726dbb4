"""Committer: what was written becomes a checkpoint at the head of a branch.

The three ways to a new checkpoint (a state or a folder of files, a Zarr session, arrays of another
checkpoint) differ in what they write. They share what is here: look at the newest operation, write,
make the manifest, publish it, and begin again when a gc condemned something meanwhile.

docs/reference/format.md, section 14.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ckptstore.documents.manifest import Manifest
from ckptstore.errors import ConflictError, CorruptError
from ckptstore.store.lost import head_of
from ckptstore.store.refs import check_new_branch
from ckptstore.threads import beside
from ckptstore.zarr.hierarchy import ZarrFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ckptstore.commit.derive import Derivation
    from ckptstore.commit.shards import PutShards
    from ckptstore.digest import Digest
    from ckptstore.documents.facts import Facts
    from ckptstore.documents.nodes import Node
    from ckptstore.documents.operation import Operation
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.oplog import Oplog
    from ckptstore.store.reach import Written
    from ckptstore.store.refs import Refs
    from ckptstore.zarr.staged_contents import StagedContents

    Made = tuple[Digest, Manifest]

# Operations since a known one, which take four round trips to read. After more, which is rare, a
# commit puts once more instead.
SINCE_MAX = 64


class Begun(NamedTuple):
    """The state of a branch before anything was put that is to be committed to it.

    Attributes:
        newest: The newest operation.
        head: The head of the branch, which the checkpoint is to follow; None for a new branch.
    """

    newest: Operation
    head: Digest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Committer:
    """Makes the checkpoints of one repository.

    Attributes:
        catalog: The documents of its checkpoints, and its objects.
        oplog: Its operations.
        refs: Publishes manifests.
        chunk_bytes: Bytes of the largest chunks.
        now: Returns UTC in microseconds since 1970.
        committed: Called with each new checkpoint, once it is durable.
    """

    catalog: Catalog
    oplog: Oplog
    refs: Refs
    chunk_bytes: int
    now: Callable[[], int]
    committed: Callable[[Digest, Manifest], object]

    def commit(
        self,
        value: object,
        *,
        branch: str,
        facts: Facts,
        retry: bool,
        created: int | None = None,
        after: Digest | None = None,
    ) -> Made:
        """Commit a state, or a Zarr hierarchy in files, to a branch.

        created: None means now. after: the head that the branch has to have; None for any.
        """

        guesses = [self.oplog.known()]  # with which the first attempt begins

        def make() -> Made:
            guess = guesses.pop() if guesses else None
            look = partial(self._look, branch, after)
            written, since, head = self._written_beside(look, value, branch, guess)
            return self._publish(
                written,
                facts,
                branch=branch,
                retry=retry,
                parent=head,
                since=since,
                created=created,
            )

        return self._made(make)

    def commit_session(
        self, staged: StagedContents, *, branch: str, facts: Facts, retry: bool
    ) -> Made:
        """Commit what a Zarr session has staged to its branch."""
        from ckptstore.zarr.publish import write

        def make() -> Made:
            newest = self.oplog.newest()
            staged.check_there()  # what is there now, and is not condemned from now on, stays
            try:
                written = write(staged)
            except CorruptError:
                staged.check_there()  # a gc deleted it meanwhile
                raise
            return self._publish(
                written, facts, branch=branch, retry=retry, parent=staged.id, since=newest
            )

        return self._made(make)

    def begin(self, branch: str) -> Begun:
        """Look at a branch before several processes put what is to be committed to it."""
        return self._look(branch)

    def commit_shards(
        self,
        root: Node,
        stored: Sequence[PutShards],
        *,
        branch: str,
        facts: Facts,
        retry: bool,
        begun: Begun,
    ) -> Made:
        """Commit what several processes have put since a look at the branch.

        A gc that condemned something of it since then cannot be made up for here, as the processes
        that hold it are elsewhere. Unless all of it is there nonetheless, that is a ConflictError.
        """
        from ckptstore.commit.shards import assemble_shards

        looks = [begun.newest]

        def make() -> Made:
            is_again = not looks
            newest = looks.pop() if looks else self.oplog.newest()
            written = assemble_shards(
                root,
                stored,
                catalog=self.catalog,
                parent=begun.head,
                chunk_bytes=self.chunk_bytes,
                is_again=is_again,
            )
            return self._publish(
                written, facts, branch=branch, retry=retry, parent=begun.head, since=newest
            )

        return self._made(make)

    def derive(self, derivation: Derivation, *, branch: str, source: Callable[[], Digest]) -> Made:
        """Make a branch that begins with a derived checkpoint.

        source: returns the checkpoint it is made from. Called again after a gc came between.
        """
        from ckptstore.commit.derive import derive

        def make() -> Made:
            newest = self.oplog.newest()
            check_new_branch(branch, newest)
            id = source()
            self.catalog.refuse_expired(id)
            try:
                written = derive(derivation, id, self.catalog)
            except CorruptError:
                self.catalog.refuse_expired(id)  # a gc gave it up meanwhile
                raise
            manifest = derivation.manifest(
                id, self.catalog.manifest(id), written, branch=branch, now=self.now()
            )
            made = self.refs.publish_derived(
                manifest, branch=branch, source=id, since=newest, relied=written.relied
            )
            return made, manifest

        return self._made(make)

    def _made(self, make: Callable[[], Made]) -> Made:
        """Return what a function makes, which begins again after a gc, and announce it."""
        made = self.refs.beside_gc(make)
        self.committed(*made)
        return made

    def _look(self, branch: str, after: Digest | None = None) -> Begun:
        """Look at a branch. after: the head that it has to have; None for any."""
        newest = self.oplog.newest()
        head = head_of(branch, newest, self.oplog, self.catalog)
        if after not in (None, head):
            raise ConflictError(
                f"Branch {branch!r} is at {head.short if head else 'no checkpoint'}, not at "
                f"{after.short if after else ''}, which was to be the parent. Nothing was "
                "committed."
            )
        return Begun(newest, head)

    def _written_beside(
        self, look: Callable[[], Begun], value: object, branch: str, guess: Operation | None
    ) -> tuple[Written, Operation, Digest | None]:
        """Store a state, and look at the branch meanwhile if an operation is known already.

        That operation was the newest once, so it counts as what the commit looked at first: what
        any operation since then has condemned is not relied on. If there are very many since then,
        or it is gone, as where an older copy of the repository was put in place, the state is
        stored once more, with a look for each object (ADR 0077).

        Args:
            look: Looks at the branch.
            value: The state, or a Zarr hierarchy in files.
            branch: Its name.
            guess: An operation that was the newest once; None to look first.

        Returns:
            What was written, the operation that was the newest before, and the head of the branch.
        """

        if guess is None or isinstance(value, ZarrFiles):
            newest, head = look()
            return self._write(value, head, seems_new=not newest.seq or None), newest, head

        def checked() -> tuple[Begun, bool]:
            begun = look()
            since = begun.newest.seq - guess.seq
            if not since:
                return begun, begun.newest.nonce == guess.nonce
            return begun, 0 < since <= SINCE_MAX and self.oplog.holds(guess)

        store = partial(self._write, value)
        known = partial(store, guess.heads.get(branch), seems_new=not guess.seq or None)
        written, ((newest, head), is_sound) = beside(known, checked)
        if is_sound:
            return written, guess, head
        again = store(head, seems_new=False)
        new_bytes = written.new_bytes + again.new_bytes
        return replace(again, new_bytes=new_bytes), newest, head

    def _write(self, value: object, head: Digest | None, *, seems_new: bool | None) -> Written:
        """Store a state, or a Zarr hierarchy in files; durable when this returns.

        seems_new: whether most objects are new; None to guess that.
        """
        from ckptstore.commit.flatten import flatten_stored
        from ckptstore.commit.staging import Staged
        from ckptstore.commit.writer import write

        store = partial(
            write,
            catalog=self.catalog,
            parent=head,
            chunk_bytes=self.chunk_bytes,
            seems_new=seems_new,
        )
        if isinstance(value, ZarrFiles):
            from ckptstore.zarr.commit_folder import take

            return take(
                value,
                head=head,
                catalog=self.catalog,
                segment_bytes=self.chunk_bytes,
                write=store,
            )
        return store(value.flat if isinstance(value, Staged) else flatten_stored(value))

    def _publish(
        self,
        written: Written,
        facts: Facts,
        *,
        branch: str,
        retry: bool,
        parent: Digest | None,
        since: Operation,
        created: int | None = None,
    ) -> Made:
        """Make what was written the head of a branch. since: the newest operation before that."""
        now = self.now() if created is None else created
        manifest = Manifest(
            pages=written.pages,
            structure=written.structure,
            hierarchy=written.hierarchy,
            format=written.format,
            new_bytes=written.new_bytes,
            parents=(parent,) if parent else (),
            branch=branch,
            step=facts.step,
            metrics=facts.metrics,
            message=facts.message,
            meta=facts.meta,
            created=now,
            elapsed=self.refs.elapsed(parent, created=now),
        )
        return self.refs.publish(
            manifest, branch=branch, retry=retry, since=since, relied=written.relied
        )
