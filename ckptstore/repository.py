"""Repository: the public face. Each verb is a few lines over the modules below.

What only some verbs need is imported there: a command such as log or branch starts in half the time.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from ckptstore.checkpoint import Checkpoint
from ckptstore.documents.manifest import (
    Manifest,
    check_message,
    check_meta,
    check_metrics,
    check_step,
)
from ckptstore.documents.marker import CHUNK_BYTES_DEFAULT, MARKER_BYTES_MAX, MARKER_KEY, Marker
from ckptstore.documents.names import check_ref_name
from ckptstore.errors import ConflictError, CorruptError, InvalidInputError, NotFoundError, shown
from ckptstore.history import ancestors
from ckptstore.python_gc import paused_collector
from ckptstore.revisions import Names, resolve
from ckptstore.state.selection import Selection
from ckptstore.storage import open_storage
from ckptstore.store.catalog import Catalog
from ckptstore.store.condemned import GRACE_SECONDS
from ckptstore.store.objects import ObjectStore
from ckptstore.store.oplog import Oplog
from ckptstore.store.refs import Refs, check_known, check_new_branch
from ckptstore.zarr.hierarchy import ZarrFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import SupportsIndex

    from ckptstore.checkout.opener import ArrayOpener
    from ckptstore.commit.seed import Seed
    from ckptstore.diff.changes import Diff
    from ckptstore.diff.compare import Source
    from ckptstore.digest import Digest
    from ckptstore.documents.operation import Operation
    from ckptstore.follow.follower import Follower
    from ckptstore.gc import GcPlan, GcReport, Stores
    from ckptstore.retention import Policy
    from ckptstore.storage import Storage
    from ckptstore.store.reach import Written
    from ckptstore.verify import VerifyReport
    from ckptstore.zarr.changes import StagedContents
    from ckptstore.zarr.session import Session

    Patterns = str | Sequence[str] | None

DEFAULT_BRANCH = "main"
RETENTION = "retention"  # the setting that holds the saved policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a repository holds, and what that takes.

    array_bytes: all arrays of all live checkpoints, as if each were kept whole. stored_bytes: what the objects take,
    each once. metadata_bytes: manifests, operations and the marker.
    """

    checkpoints: int
    branches: int
    tags: int
    array_bytes: int
    objects: int
    stored_bytes: int
    metadata_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """The operation that an undo took back, and what it had done."""

    operation: int
    description: str


def init(
    url: str | Path,
    *,
    chunk_size: int = CHUNK_BYTES_DEFAULT,
    clock: Callable[[], float] = time.time,
) -> Repository:
    """Make a new repository in an empty or missing folder, or at memory://NAME.

    chunk_size: bytes of the largest chunks, 64 KiB to 256 MiB, fixed for good. clock: gives seconds since 1970.
    ConflictError when a repository is there already; InvalidInputError when something else is.
    """
    marker = Marker(store=secrets.token_hex(16), chunk_bytes=chunk_size)
    storage = open_storage(url)
    storage.prepare({MARKER_KEY, *ObjectStore.FOLDERS, *Catalog.FOLDERS, *Oplog.FOLDERS})
    if not storage.create(MARKER_KEY, marker.encode()):
        raise ConflictError(f"{storage.url} is a repository already. Open it instead.")
    return Repository(storage, marker, clock=clock)


def open(
    url: str | Path, *, create: bool = False, clock: Callable[[], float] = time.time
) -> Repository:
    """Open a repository; NotFoundError when there is none, unless `create` is given."""
    storage = open_storage(url)
    try:
        marker = Marker.decode(storage.get(MARKER_KEY, bytes_max=MARKER_BYTES_MAX))
    except NotFoundError as error:
        if not create:
            raise NotFoundError(
                f"{storage.url} is not a repository. Make one with ckptstore.init, or `ckptstore init`."
            ) from error
        try:
            return init(storage.url, clock=clock)
        except ConflictError:  # somebody else made it just now
            return open(url, clock=clock)
    return Repository(storage, marker, clock=clock)


class Repository:
    """A repository of checkpoints. Made by `ckptstore.init` and `ckptstore.open`; safe to use from several threads."""

    def __init__(
        self, storage: Storage, marker: Marker, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._storage = storage
        self._chunk_bytes = marker.chunk_bytes
        self._clock = clock
        self._objects = ObjectStore(storage)
        self._oplog = Oplog(storage)
        self._catalog = Catalog(storage, self._objects)
        self._refs = Refs(self._oplog, self._catalog, now=self._now, finish_gc=self._finish_gc)

    def __repr__(self) -> str:
        return f"Repository({self.url!r})"

    @property
    def url(self) -> str:
        """What to pass to `ckptstore.open` to come here again."""
        return self._storage.url

    def commit(
        self,
        state: object,
        *,
        branch: str = DEFAULT_BRANCH,
        step: SupportsIndex | None = None,
        metrics: Mapping[str, object] | None = None,
        message: str = "",
        meta: Mapping[str, Any] | None = None,
        retry: bool = False,
    ) -> Checkpoint:
        """Store a state as a new checkpoint at the head of a branch; durable when this returns.

        state: any nesting of dicts (str or int keys), lists and tuples with torch tensors, numpy arrays and plain
        values. It is read during the call and never changed. Arrays that lie in a file or a repository (`formats.read_file`,
        `checkout(lazy=True)`) are read a piece at a time.
        retry: when the branch moved meanwhile, make the new head the parent instead of raising ConflictError.
        UnsupportedValueError names the path and type of a value that no checkpoint can hold.
        """
        check_ref_name(branch, kind="branch")
        describe = _describe(step, metrics, message, meta)

        def make() -> Checkpoint:
            newest = self._oplog.newest()
            head = newest.heads.get(branch)
            written = self._write(state, head)
            return self._publish(
                describe, written, branch=branch, parent=head, retry=retry, since=newest
            )

        return self._refs.beside_gc(make)

    def session(self, branch: str = DEFAULT_BRANCH) -> Session:
        """Changes a branch through Zarr: a writable store over its head.

        Other readers see the changes once the session has committed them. Any Zarr hierarchy can be
        written, with any codecs (ADR 0016).

        Args:
            branch: The branch to change. One that does not exist begins empty.

        Returns:
            A session, to be used as a context manager; leaving it without a commit drops the
            changes.

        Example:
            >>> import ckptstore, zarr, numpy as np
            >>> repo = ckptstore.init("memory://")
            >>> with repo.session("main") as session:
            ...     group = zarr.open_group(session.store)
            ...     group["loss"] = np.array([0.5, 0.31])
            ...     checkpoint = session.commit(step=100)
            >>> checkpoint.array("loss")[1:].tolist()
            [0.31]
        """
        from ckptstore.zarr.changes import StagedContents
        from ckptstore.zarr.session import Session

        check_ref_name(branch, kind="branch")

        def begin(head: Digest | None) -> StagedContents:
            manifest = None if head is None else self._catalog.manifest(head)
            return StagedContents(head, manifest, self._catalog, self._chunk_bytes)

        head = self._oplog.newest().heads.get(branch)
        return Session(branch, begin, partial(self._publish_session, branch), head=head)

    def _publish_session(
        self,
        branch: str,
        staged: StagedContents,
        *,
        step: SupportsIndex | None,
        metrics: Mapping[str, object] | None,
        message: str,
        meta: Mapping[str, Any] | None,
        retry: bool,
    ) -> Checkpoint:
        """Make what a session has staged the head of its branch."""
        from ckptstore.zarr.publish import write

        describe = _describe(step, metrics, message, meta)

        def make() -> Checkpoint:
            newest = self._oplog.newest()
            staged.check_there()  # what is there now, and is not condemned from now on, stays
            try:
                written = write(staged)
            except CorruptError:
                staged.check_there()  # a gc took it meanwhile
                raise
            return self._publish(
                describe, written, branch=branch, parent=staged.head, retry=retry, since=newest
            )

        return self._refs.beside_gc(make)

    def checkout(
        self,
        rev: str = DEFAULT_BRANCH,
        *,
        into: object = None,
        strict: bool = True,
        include: Patterns = None,
        exclude: Patterns = None,
        part: str | None = None,
        device: Any = None,
        lazy: bool = False,
    ) -> Any:
        """Reads a checkpoint: the same nested structure, bit for bit.

        Every byte is checked against its digest before it is visible. Only the pages and objects of
        what is chosen are read.

        Args:
            rev: The revision to read, such as "main", "main~2" or "main@best:val_loss".
            into: A destination to fill in place, without a second copy of the weights: an
                nn.Module, a Keras model, or a nested structure of dicts and lists of tensors,
                arrays, plain values, models and other objects with load_state_dict. Arrays keep
                their memory; dtypes and shapes must be the same (ADR 0005).
            strict: Whether any misfit of `into` raises before anything changes. If False, what
                fits is filled and the rest is returned.
            include: Globs over paths, such as "model/**". A dict loses the keys that are not
                chosen; a list or tuple has None in their place.
            exclude: Globs over paths to leave out.
            part: A key of the outermost dict, such as "model". The result is what is under it.
            device: Where tensors go, as torch names devices; the CPU when None.
            lazy: Whether to leave arrays in the repository. `state["wte.weight"][1000:1010]` then
                reads only the chunks it needs, and commit takes such a state like any other.

        Returns:
            The state in fresh, writable memory. With `into`, an `Incompatible` that lists what did
            not fit, which is false when everything did.

        Raises:
            CheckoutMismatchError: `into` does not fit and `strict` is set. Nothing was changed.
            ExpiredError: The arrays of the checkpoint were given up.
            CorruptError: Something is damaged or missing. Arrays of `into` that were filled before
                the damage was met keep their new values.
            InvalidInputError: The arguments exclude each other, or choose nothing.

        Example:
            >>> import ckptstore, numpy as np
            >>> repo = ckptstore.init("memory://")
            >>> _ = repo.commit({"model": {"w": np.arange(6.0).reshape(3, 2)}, "epoch": 3})
            >>> repo.checkout(part="model")["w"][2].tolist()
            [4.0, 5.0]
            >>> target = {"w": np.zeros((3, 2))}
            >>> bool(repo.checkout(part="model", into=target)), target["w"][0].tolist()
            (False, [0.0, 1.0])
        """
        if into is not None and device is not None:
            raise InvalidInputError("Pass into or device: what exists already stays where it is.")
        if lazy and (into is not None or device is not None):
            raise InvalidInputError(
                "Arrays that are read lazily can go neither into a destination nor to a device."
            )
        from ckptstore.checkout import checkout
        from ckptstore.checkout.stored_state import StoredState

        selection = Selection.of(include, exclude)
        id, manifest = self._readable(rev)
        with self._catalog.reading(id):
            stored = StoredState.load(id, manifest, self._catalog, selection=selection, part=part)
            if lazy:
                return checkout.lazy(stored)
            if into is None:
                return checkout.fresh(stored, stored.root, device=device)
            return checkout.fill(stored, into, strict=strict)

    def resolve(self, rev: str) -> Checkpoint:
        """The checkpoint that a revision names; NotFoundError says what there is instead."""
        id = resolve(rev, self._names())
        return self._checkpoint(id, self._catalog.manifest(id))

    def log(self, rev: str | None = None, *, limit: int | None = None) -> list[Checkpoint]:
        """The history of a revision, or of all branches and tags, newest first."""
        if limit is not None and (not isinstance(limit, int) or limit < 0):
            raise InvalidInputError(
                f"The limit is {shown(limit)}; a number of checkpoints is expected."
            )
        names = self._names()
        starts = (
            [resolve(rev, names)]
            if rev is not None
            else [*names.heads.values(), *names.tags.values()]
        )
        return [
            self._checkpoint(*found) for found in islice(ancestors(starts, names.lookup), limit)
        ]

    def branch(
        self,
        name: str,
        at: str = DEFAULT_BRANCH,
        *,
        include: Patterns = None,
        exclude: Patterns = None,
        rename: Mapping[str, str] | None = None,
        reset: Sequence[str] = ("step", "metrics"),
    ) -> Checkpoint:
        """Make a branch at a revision. No array is read or written.

        With include, exclude or rename the branch begins with a checkpoint of its own, a seed, whose parent is the one
        at the revision. It holds what the globs choose, as checkout would give it, with the arrays under new paths.
        rename: replacements by regular expression. A pattern must match the whole path of an array; the first that
        does wins, and a replacement may use its groups: {"model/backbone.(.*)": "model/encoder.\\1"}. Only keys of
        dicts can change. reset: of "step" and "metrics", what the seed does not take over. Its message names the source,
        and its meta says what was chosen and renamed.
        """
        check_ref_name(name, kind="branch")
        asked = (include, exclude, rename or None)
        if asked == (None, None, None) and tuple(reset) == ("step", "metrics"):
            return self._branch_at(name, at)
        from ckptstore.commit.seed import Seed

        seed = Seed.of(include, exclude, rename, reset)
        if seed.is_everything:
            return self._branch_at(name, at)
        return self._refs.beside_gc(lambda: self._plant(name, at, seed))

    def diff(
        self,
        a: str,
        b: object,
        *,
        numeric: bool = False,
        include: Patterns = None,
        exclude: Patterns = None,
        other: Repository | None = None,
    ) -> Diff:
        """What b holds that a does not, and the other way round. Its cost follows what differs.

        b: a revision, of the repository `other` if that is given; or else a state, which is compared as commit would store
        it and is not stored. include, exclude: globs over the paths to compare.
        numeric: read the arrays that changed, and tell how far they moved. Chunks that both share are read once, for the
        norms; arrays that are the same are never read.
        """
        from ckptstore.diff.compare import compare

        selection = Selection.of(include, exclude)
        if not isinstance(b, str):
            if other is not None:
                raise InvalidInputError("Pass a revision of the other repository, or a state.")
            other, b = self._holding(b, beside=a), DEFAULT_BRANCH
        other = self if other is None else other
        reading, source, opener = self._side(a)
        other_reading, other_source, other_opener = other._side(b)  # noqa: SLF001 - one of us
        with reading, other_reading:
            with paused_collector():
                found = compare(source, other_source, selection, decode=_decoded)
            if not numeric:
                return found
            from ckptstore.diff.numeric import measure

            return measure(
                found,
                before=self._objects,
                after=other._objects,  # noqa: SLF001
                openers=(opener, other_opener),
            )

    def follow(self, branch: str = DEFAULT_BRANCH, *, poll_seconds: float = 1.0) -> Follower:
        """Follows a branch: waits for new checkpoints, and keeps a model at the newest one.

        Args:
            branch: The branch that another process commits to. It need not exist yet.
            poll_seconds: Seconds between two looks at the repository.

        Returns:
            A follower. `Follower.update` reads only what changed since the last update (ADR 0015).

        Raises:
            InvalidInputError: `poll_seconds` is not above 0, or the name is not that of a branch.
        """
        from ckptstore.follow.follower import Follower

        check_ref_name(branch, kind="branch")
        return Follower(
            branch,
            oplog=self._oplog,
            catalog=self._catalog,
            objects=self._objects,
            checkpoint=self._checkpoint,
            poll_seconds=poll_seconds,
        )

    def branches(self) -> dict[str, Checkpoint]:
        """The head of each branch, by name."""
        return self._at(self._oplog.newest().heads)

    def delete_branch(self, name: str) -> None:
        """Delete a branch; its checkpoints stay until gc finds that nothing else reaches them."""
        self._refs.delete_branch(name)

    def tag(self, name: str, at: str = DEFAULT_BRANCH) -> Checkpoint:
        """Give a checkpoint a name that does not move."""
        check_ref_name(name, kind="tag")
        id = self._durable(at)
        self._refs.make_tag(name, id)
        return self._checkpoint(id, self._catalog.manifest(id))

    def tags(self) -> dict[str, Checkpoint]:
        """The checkpoint of each tag, by name."""
        return self._at(self._oplog.newest().tags)

    def delete_tag(self, name: str) -> None:
        """Delete a tag."""
        self._refs.delete_tag(name)

    def ref_names(self) -> tuple[dict[str, Digest], dict[str, Digest]]:
        """The ids that branches and tags point at, by name, sorted; no checkpoint is read for it."""
        newest = self._oplog.newest()
        return dict(sorted(newest.heads.items())), dict(sorted(newest.tags.items()))

    def undo(self) -> Undone:
        """Take back the newest operation that was not taken back yet: branches, tags and settings as before it."""
        last = self._refs.undo()
        return Undone(operation=last.seq, description=last.done)

    @property
    def retention(self) -> Policy | None:
        """The policy that is saved in the repository, and that `gc` applies by itself."""
        document = self._oplog.newest().settings.get(RETENTION)
        if document is None:
            return None
        from ckptstore.retention import from_json

        return from_json(document)

    def set_retention(self, policy: Policy | None) -> None:
        """Save a policy in the repository; None saves that there is none."""
        if policy is None:
            self._refs.set(RETENTION, None, done="saved no retention")
        else:
            self._refs.set(RETENTION, policy.to_json(), done=f"saved: {policy}")

    def plan_gc(
        self,
        policy: Policy | None = None,
        *,
        branches: Sequence[str] | None = None,
        grace: float = GRACE_SECONDS,
    ) -> GcPlan:
        """What gc would do: which checkpoints stay and why, which expire, and the bytes that each of these frees.

        policy: the one saved in the repository when None. branches: those that it is for, and the others keep all they
        have; None: all of them. grace: seconds for which what no branch or tag reaches is left
        alone, by the storage's own clock. Nothing is changed before the plan's `execute`.
        """
        policy = policy or self.retention
        if policy is None:
            raise InvalidInputError(
                "No policy is given, and none is saved. Pass one, or save one with set_retention "
                "(`ckptstore config retention`)."
            )
        heads = self._oplog.newest().heads
        for name in branches or ():
            check_known(name, heads, kind="branch")
        from ckptstore.gc import plan_gc

        return plan_gc(self._stores(), policy, branches=branches, grace=grace)

    def gc(
        self,
        policy: Policy | None = None,
        *,
        branches: Sequence[str] | None = None,
        grace: float = GRACE_SECONDS,
    ) -> GcReport:
        """Give up the checkpoints that a policy does not keep, and delete what nothing reaches any more.

        Safe beside any number of others who commit, read and collect. The arguments are those of `plan_gc`.
        """
        return self.plan_gc(policy, branches=branches, grace=grace).execute()

    def verify(self, *, progress: Callable[[int, int], object] | None = None) -> VerifyReport:
        """Check every byte and every reference; `progress` is called with bytes done and bytes in all."""
        from ckptstore.verify import verify

        return verify(self._storage, progress=progress)

    def usage(self) -> Usage:
        """What the repository holds, and what that takes."""
        newest = self._oplog.newest()
        reached = ancestors(newest.refs.values(), self._names().lookup)
        live = [manifest for id, manifest in reached if not self._catalog.is_expired(id)]
        sizes = [item.size for _, item in self._objects.list()]
        documents = [
            self._oplog.list(),
            *(self._catalog.list(folder) for folder in self._catalog.FOLDERS),
        ]
        metadata = [item.size for listing in documents for _, item in listing]
        return Usage(
            checkpoints=len(live),
            branches=len(newest.heads),
            tags=len(newest.tags),
            array_bytes=sum(manifest.array_bytes for manifest in live),
            objects=len(sizes),
            stored_bytes=sum(sizes),
            metadata_bytes=sum(metadata) + (self._storage.size(MARKER_KEY) or 0),
        )

    def _side(self, rev: str) -> tuple[AbstractContextManager[None], Source, ArrayOpener]:
        """A checkpoint as a diff loads it."""
        from ckptstore.checkout.opener import ArrayOpener
        from ckptstore.diff.compare import Source

        id, manifest = self._readable(rev)
        opener = ArrayOpener(id, manifest, self._catalog)
        source = Source(
            manifest=manifest,
            load_pages=lambda refs: self._catalog.pages(replace(manifest, pages=tuple(refs))),
            load_structure=lambda: self._catalog.structure(manifest),
            load_encoded=opener.encoded_entries,
        )
        return self._catalog.reading(id), source, opener

    def _holding(self, value: object, *, beside: str) -> Repository:
        """A repository whose only checkpoint holds a state, cut into chunks as here.

        It is in memory, but for the objects that the checkpoint beside it has as well.
        """
        from ckptstore.store.reach import reached_by

        id, _ = self._readable(beside)
        storage = self._objects.beside(reached_by(id, self._catalog).digests)
        marker = Marker(store=secrets.token_hex(16), chunk_bytes=self._chunk_bytes)
        made = Repository(storage, marker)
        with self._catalog.reading(id):
            made.commit(value)
        return made

    def _branch_at(self, name: str, at: str) -> Checkpoint:
        """Make a branch at a revision, with the checkpoint that is there."""
        id = self._durable(at)
        self._refs.make_branch(name, id)
        return self._checkpoint(id, self._catalog.manifest(id))

    def _plant(self, name: str, at: str, seed: Seed) -> Checkpoint:
        """Make a branch that begins with a seed; published as a commit is."""
        from ckptstore.commit.seed import plant

        newest = self._oplog.newest()
        check_new_branch(name, newest)
        source = self._durable(at)
        self._catalog.refuse_expired(source)
        try:
            written = plant(seed, source, objects=self._objects, catalog=self._catalog)
        except CorruptError:
            self._catalog.refuse_expired(source)  # gc gave it up meanwhile
            raise
        manifest = seed.manifest(
            source, self._catalog.manifest(source), written, branch=name, now=self._now()
        )
        id = self._refs.publish_seed(
            manifest, branch=name, source=source, since=newest, relied=written.relied
        )
        return self._checkpoint(id, manifest)

    def _stores(self) -> Stores:
        from ckptstore.gc import Stores

        return Stores(self._storage, self._objects, self._oplog, self._catalog, self._now)

    def _finish_gc(self) -> None:
        """Waits for a gc that is running, and finishes one that died."""
        from ckptstore.gc import finish_gc

        with self._storage.lock():
            finish_gc(self._stores())

    def _write(self, value: object, head: Digest | None) -> Written:
        """Store the arrays and the structure of a state, or a Zarr hierarchy in files."""
        from ckptstore.commit.staging import Staged, flatten
        from ckptstore.commit.writer import write

        store = partial(
            write,
            objects=self._objects,
            catalog=self._catalog,
            parent=head,
            chunk_bytes=self._chunk_bytes,
        )
        if isinstance(value, ZarrFiles):
            from ckptstore.zarr.commit_folder import take

            return take(
                value,
                head=head,
                catalog=self._catalog,
                segment_bytes=self._chunk_bytes,
                write=store,
            )
        return store(value.flat if isinstance(value, Staged) else flatten(value))

    def _publish(
        self,
        describe: Callable[..., Manifest],
        written: Written,
        *,
        branch: str,
        parent: Digest | None,
        retry: bool,
        since: Operation,
    ) -> Checkpoint:
        """Make what was written a checkpoint at the head of a branch."""
        manifest = describe(
            pages=written.pages,
            structure=written.structure,
            hierarchy=written.hierarchy,
            new_bytes=written.new_bytes,
            parents=(parent,) if parent else (),
            branch=branch,
            created=self._now(),
        )
        return self._checkpoint(
            *self._refs.publish(
                manifest, branch=branch, retry=retry, since=since, relied=written.relied
            )
        )

    def _durable(self, rev: str) -> Digest:
        """The id of what a revision names, flushed: who stored it may have been killed before that."""
        id = resolve(rev, self._names())
        self._catalog.flush(id)
        return id

    def _readable(self, rev: str) -> tuple[Digest, Manifest]:
        """The manifest of a checkpoint whose arrays are there."""
        id = resolve(rev, self._names())
        manifest = self._catalog.manifest(id)
        self._catalog.refuse_expired(id)
        return id, manifest

    def _checkpoint(self, id: Digest, manifest: Manifest) -> Checkpoint:
        return Checkpoint.of(id, manifest, self._catalog)

    def _at(self, refs: Mapping[str, Digest]) -> dict[str, Checkpoint]:
        return {
            name: self._checkpoint(id, self._catalog.manifest(id))
            for name, id in sorted(refs.items())
        }

    def _names(self) -> Names:
        """What revisions can name now."""
        return self._catalog.names(self._oplog.newest())

    def _now(self) -> int:
        """UTC now, in microseconds since 1970."""
        return max(0, int(self._clock() * 1e6))


def _describe(
    step: SupportsIndex | None,
    metrics: Mapping[str, object] | None,
    message: str,
    meta: Mapping[str, Any] | None,
) -> Callable[..., Manifest]:
    """What a user says of a checkpoint, checked; makes its manifest."""
    return partial(
        Manifest,
        step=check_step(step),
        metrics=check_metrics(metrics),
        message=check_message(message),
        meta=check_meta(meta),
    )


def _decoded(name: str, value: object) -> object:
    """What a codec makes of a value; the value itself where this process has no such codec."""
    from ckptstore.arrays import codecs

    try:
        return codecs.decode(name, value)
    except InvalidInputError:
        return value
