"""Repository: the public face. Each method is a few lines over the modules below.

Modules that only some methods need are imported inside them, which halves the start-up time of
commands such as `log` and `branch`.
"""

from __future__ import annotations

import copyreg
import secrets
import sys
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice, starmap
from typing import TYPE_CHECKING, Any, SupportsFloat

from ckptstore.checkpoint import Checkpoint
from ckptstore.commit_hooks import Hooked, Hooks
from ckptstore.digest import Digest
from ckptstore.documents.facts import Facts, check_created
from ckptstore.documents.manifest import CREATED_MAX
from ckptstore.documents.marker import CHUNK_BYTES_DEFAULT, MARKER_KEY, Marker
from ckptstore.documents.names import check_metric_name, check_ref_name, check_strings
from ckptstore.documents.settings import (
    GRACE,
    RESUMED,
    checked_grace,
    grace_of,
    names_before,
    ttl_seconds,
    with_part,
    without_branch,
)
from ckptstore.errors import (
    CkptStoreError,
    ConflictError,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    first_line,
    shown,
)
from ckptstore.history import ancestors
from ckptstore.python_gc import paused_collector
from ckptstore.revisions import own_of
from ckptstore.state.selection import Selection
from ckptstore.storage import open_storage
from ckptstore.store.ahead import Ahead
from ckptstore.store.author import author
from ckptstore.store.catalog import Catalog
from ckptstore.store.live import LiveCheckpoints
from ckptstore.store.lost import (
    head_of,
    lost_among,
    refuse_without_operations,
)
from ckptstore.store.notes import Notes
from ckptstore.store.objects import ObjectStore
from ckptstore.store.opening import create_marker, read_marker
from ckptstore.store.oplog import Oplog
from ckptstore.store.refs import Refs, check_known
from ckptstore.store.resolver import Resolver
from ckptstore.store.undo import operations
from ckptstore.threads import gather
from ckptstore.transfer.transfers import Transfers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import SupportsIndex

    from ckptstore.checkout.opener import ArrayOpener
    from ckptstore.commit.committer import Committer
    from ckptstore.diff.changes import Diff
    from ckptstore.diff.compare import Source
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.operation import Condemned, Operation
    from ckptstore.follow.follower import Follower
    from ckptstore.gc import GcPlan, GcReport, RulesAt, Stores
    from ckptstore.retention import Policy, Reason, Verdict
    from ckptstore.storage import Storage
    from ckptstore.storage.hold import Hold
    from ckptstore.store.meter import Progress
    from ckptstore.store.oplog import End
    from ckptstore.store.undo import OperationInfo, Undone, UndoPlan
    from ckptstore.store.usage import Usage
    from ckptstore.transfer.side import Side
    from ckptstore.verify import VerifyReport
    from ckptstore.zarr.session import Session
    from ckptstore.zarr.staged_contents import StagedContents

    Patterns = str | Sequence[str] | None

DEFAULT_BRANCH = "main"
SAMPLE_PLACES = 1 << 32  # where the sample of a verify may begin
HOLD_DIGITS = 32  # of a digest that stands for a branch
RESET = ("step", "metrics")  # what a derived checkpoint does not take over from its source


def init(
    url: str | Path,
    *,
    chunk_size: int = CHUNK_BYTES_DEFAULT,
    clock: Callable[[], float] = time.time,
) -> Repository:
    """Make a new repository.

    Args:
        url: An empty or missing folder, or "memory://NAME" for a repository in this process.
        chunk_size: Bytes of the largest chunks, 64 KiB to 256 MiB. It cannot be changed later
            (docs/reference/format.md, section 7).
        clock: Returns the time in seconds since 1970.

    Raises:
        ConflictError: There already is a repository.
        InvalidInputError: There is something else, or the chunk size is out of range.

    Example:
        >>> import ckptstore
        >>> ckptstore.init("memory://experiment")
        Repository('memory://experiment')
    """
    marker = Marker(store=secrets.token_hex(16), chunk_bytes=chunk_size)
    storage = open_storage(url)
    folders = (
        *(*ObjectStore.FOLDERS, *Catalog.FOLDERS, *Notes.FOLDERS),
        *(*Oplog.FOLDERS, *Oplog.PAGE_FOLDERS),
    )
    storage.prepare({MARKER_KEY, *folders})
    end = create_marker(storage, marker)
    storage.hold_reserve()
    return Repository(storage, marker, clock=clock, end=end)


def open(
    url: str | Path,
    *,
    create: bool = False,
    clock: Callable[[], float] = time.time,
    by_hand: bool = False,
) -> Repository:
    """Open a repository.

    Args:
        url: Its folder, or "memory://NAME".
        create: Whether to create a missing repository.
        clock: Returns the time in seconds since 1970.
        by_hand: Whether a person gives each command, as to the program `ckptstore`. `undo` in any
            process then takes back the commits of this handle too (ADR 0044).

    Raises:
        NotFoundError: There is no repository, and `create` is not set.
        CorruptError: Its marker is damaged.
        InvalidInputError: A newer version of ckptstore made it.

    Example:
        >>> import ckptstore
        >>> repo = ckptstore.open("memory://runs", create=True)
        >>> ckptstore.open("memory://runs").url
        'memory://runs'
    """
    storage = open_storage(url)
    try:
        marker, end = read_marker(storage)
    except NotFoundError as error:
        if not create:
            raise _no_repository(storage) from error
        with suppress(ConflictError):  # another process created it just now
            init(storage.url, clock=clock)
        return open(storage.url, clock=clock, by_hand=by_hand)
    except CorruptError as error:
        raise CorruptError(
            f"{storage.url} cannot be opened: {first_line(error)}. Copy {MARKER_KEY} from another "
            "copy of the repository. Without one, delete that file; to make it anew and keep the "
            "checkpoints, use ckptstore.init."
        ) from error
    return Repository(storage, marker, clock=clock, by_hand=by_hand, end=end)


def _no_repository(storage: Storage) -> NotFoundError:
    """Return the error for a place without a marker."""
    with suppress(CkptStoreError):
        if any(True for folder in Catalog.FOLDERS for _ in storage.list(folder)):
            return NotFoundError(
                f"{storage.url} holds checkpoints, but {MARKER_KEY} is missing. Copy it from "
                "another copy of the repository. Without one, to make it anew and keep the "
                "checkpoints, use ckptstore.init."
            )
    return NotFoundError(
        f"{storage.url} is not a repository. Check the path; to create one, use ckptstore.init."
    )


class Repository(Transfers, Hooked):
    """A repository of checkpoints.

    Made by `ckptstore.init` and `ckptstore.open`. A handle may be used from several threads, and
    any number of handles and processes may use one repository at once.
    """

    def __init__(
        self,
        storage: Storage,
        marker: Marker,
        *,
        clock: Callable[[], float] = time.time,
        by_hand: bool = False,
        end: End | None = None,
    ) -> None:
        self._storage = storage
        if not callable(clock):
            raise InvalidInputError(f"clock is {shown(clock)}; a function is expected.")
        self._chunk_bytes = marker.chunk_bytes
        self._clock = clock
        self._objects = ObjectStore.cached(storage)
        self._oplog = Oplog(storage, store=marker.store, now=self._now, end=end)
        self._catalog = Catalog(storage, self._objects, check_store=self._oplog.check_store)
        self._notes = Notes(storage, self._oplog.between, cache=self._objects.cache)
        self._resolver = Resolver(self._oplog, self._catalog, self._notes)
        self._live = LiveCheckpoints(self._oplog, self._catalog, self._notes)
        self._gc_stores: Stores | None = None
        self._author = partial(author, by_hand=by_hand)
        self._refs = Refs(
            self._oplog,
            self._catalog,
            self._notes,
            now=self._now,
            wait_for_gc=self._wait_for_gc,
            author=self._author,
        )

    def __repr__(self) -> str:
        return f"Repository({self.url!r})"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the place; unpickling opens it there. InvalidInputError for one in memory."""
        options = self._author.keywords | {"clock": self._clock}
        return partial(open, **options), (picklable(self.url),)

    @property
    def url(self) -> str:
        """The URL with which `ckptstore.open` reopens this repository."""
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
        created: datetime | None = None,
        retry: bool = False,
        parent: str | None = None,
    ) -> Checkpoint:
        """Store a state as a new checkpoint at the head of a branch.

        The checkpoint is durable when this returns. What the repository already has is not stored
        again. Several processes may commit at once (docs/reference/format.md, section 14).

        Args:
            state: Any nested structure of dicts (with str or int keys), lists and tuples with torch
                tensors, numpy and JAX arrays and plain values, or any pytree of JAX. It is read
                during the call and never changed. Arrays in a file or a repository
                (`formats.read_file`, `checkout(lazy=True)`) are read a piece at a time.
            branch: The branch to commit to. One that does not exist is made.
            step: The training step, an integer of at most 63 bits.
            metrics: Numbers by name. Scalars of numpy and torch are taken as plain numbers.
            message: Text for people, of at most 65,536 characters.
            meta: Plain JSON values that are kept with the checkpoint.
            created: The time of the checkpoint, with a time zone, for example the time of an
                imported file. Now when None.
            retry: Whether to make the new head the parent when the branch moved meanwhile, instead
                of raising ConflictError.
            parent: The id of the checkpoint that has to be the head of the branch when the new one
                becomes it. Any head when None.

        Returns:
            The new checkpoint.

        Raises:
            UnsupportedValueError: No checkpoint can hold a value of the state. Its path and type
                are named.
            ConflictError: The branch moved while committing, and `retry` is not set; or its head is
                not `parent`.
            InvalidInputError: Another argument is wrong, or an array changed during the call.
            StorageError: The storage failed. Nothing was committed, unless the error states that
                the outcome is unknown.

        Example:
            >>> import ckptstore, numpy as np
            >>> repo = ckptstore.init("memory://")
            >>> state = {"model": {"w": np.zeros(3)}, "lr": 0.1}
            >>> made = repo.commit(state, step=100, metrics={"val_loss": 0.31})
            >>> made.branch, made.step, made.array_bytes
            ('main', 100, 24)
        """
        check_ref_name(branch, kind="branch")
        facts = Facts.of(step=step, metrics=metrics, message=message, meta=meta)
        if parent is not None and not isinstance(parent, str):
            raise InvalidInputError(
                f"parent is {shown(parent)}; the id of a checkpoint is expected."
            )
        after = None if parent is None else Digest.parse(parent)
        if after is not None and retry:
            raise InvalidInputError("Pass parent or retry: a retry would take another parent.")
        at = None if created is None else check_created(created)
        return self._checkpoint(
            *self._committer().commit(
                state, branch=branch, facts=facts, created=at, retry=retry, after=after
            ),
            expired=False,
        )

    def session(self, branch: str = DEFAULT_BRANCH) -> Session:
        """Change a branch through Zarr: a writable store over its head.

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
        from ckptstore.zarr.session import Session
        from ckptstore.zarr.staged_contents import StagedContents

        check_ref_name(branch, kind="branch")

        def begin(head: Digest | None) -> StagedContents:
            manifest = None if head is None else self._catalog.manifest(head)
            return StagedContents(head, manifest, self._catalog, self._chunk_bytes)

        head = head_of(branch, self._oplog.newest(), self._oplog, self._catalog)
        return Session(branch, begin, partial(self._publish_session, branch), head=head)

    def _publish_session(
        self, branch: str, staged: StagedContents, facts: Facts, *, retry: bool
    ) -> Checkpoint:
        """Make what a session has staged the head of its branch."""
        return self._checkpoint(
            *self._committer().commit_session(staged, branch=branch, facts=facts, retry=retry),
            expired=False,
        )

    def checkout(
        self,
        rev: str = DEFAULT_BRANCH,
        *,
        into: object = None,
        strict: bool = True,
        include: Patterns = None,
        exclude: Patterns = None,
        part: str | None = None,
        rename: Mapping[str, str] | None = None,
        device: Any = None,
        lazy: bool = False,
        bytes_max: int | None = None,
    ) -> Any:
        """Read a checkpoint: the same nested structure, bit for bit.

        Every byte is checked against its digest before it is visible. Only the pages and objects of
        what is chosen are read.

        Args:
            rev: The revision to read, such as "main", "main~2" or "main@best:val_loss".
            into: A destination to fill in place, without a second copy of the weights: an
                nn.Module, a Keras model, or a nested structure of dicts and lists of tensors,
                arrays, plain values, models and other objects with load_state_dict. Arrays keep
                their memory; dtypes and shapes must be the same (ADR 0005). A pytree with JAX
                arrays is a template: it stays as it is, and a new one is returned (ADR 0075).
            strict: Whether any misfit of `into` raises before anything changes. If False, what
                fits is filled and the rest is returned.
            include: Globs over paths, such as "model/**". A dict loses the keys that are not
                chosen; a list or tuple has None in their place.
            exclude: Globs over paths to leave out.
            part: A key of the outermost dict, such as "model". The result is what is under it.
            rename: New paths of what the globs choose, as in `branch`. `part` and `into` go by the
                new names: `rename={"model_state_dict": "model"}, part="model"`.
            device: Where tensors go, as torch names devices; the CPU when None.
            lazy: Whether to leave arrays in the repository. `state["wte.weight"][1000:1010]` then
                reads only the chunks it needs, and commit takes such a state like any other.
            bytes_max: The most bytes that an array which was committed through Zarr may take. By
                default, 64 MiB and 100 times what is stored of it, so that a small repository
                cannot claim all memory.

        Returns:
            The state in fresh, writable memory. With `into`, a new pytree if it is one of JAX, else
            an `Incompatible` that lists what did not fit, which is false when everything did.

        Raises:
            CheckoutMismatchError: `into` does not fit and `strict` is set. Nothing was changed.
            ExpiredError: The arrays of the checkpoint were deleted by a gc.
            CorruptError: Something is damaged or missing. Arrays of `into` that were filled before
                the damage was met keep their new values.
            InvalidInputError: The arguments exclude each other, or choose nothing; or an array
                would take more than `bytes_max`.

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
        from ckptstore.checkout.checkout import check_destination, read
        from ckptstore.checkout.stored_state import StoredState
        from ckptstore.state.rename import Rename

        check_destination(into, device=device, lazy=lazy)
        selection, renames = Selection.of(include, exclude), Rename.of(rename)
        with StoredState.reading(
            rev,
            self._resolver,
            self._catalog,
            selection=selection,
            rename=renames,
            part=part,
            bytes_max=bytes_max,
        ) as stored:
            return read(stored, into=into, strict=strict, device=device, lazy=lazy)

    def resolve(self, rev: str) -> Checkpoint:
        """Return the checkpoint that a revision names.

        Args:
            rev: A branch, a tag, an id or a unique prefix of one, `latest`, `best:METRIC[:MODE]`,
                any of these with `~N` or `@step=N`, or a branch with `@best:METRIC[:MODE]`.

        Raises:
            NotFoundError: It names nothing. The error lists the alternatives.
            InvalidInputError: It is not a revision, or names several checkpoints.

        Example:
            >>> import ckptstore
            >>> repo = ckptstore.init("memory://")
            >>> for step, loss in enumerate([0.9, 0.3, 0.5]):
            ...     _ = repo.commit({"lr": 0.1}, step=step, metrics={"val_loss": loss})
            >>> repo.resolve("main~1").step, repo.resolve("best:val_loss").step
            (1, 1)
        """
        return self._checkpoint(*self._resolver.resolved(rev))

    def log(
        self,
        rev: str | None = None,
        *,
        limit: int | None = None,
        expired: bool = True,
        own: bool = False,
        where: str | None = None,
        sort: str | None = None,
    ) -> list[Checkpoint]:
        """Return the history of a revision, newest first.

        Args:
            rev: The revision to begin at; all branches and tags when None.
            limit: The most checkpoints to return.
            expired: Whether to include expired checkpoints. Without them no time is spent on them,
                however many there are.
            own: Whether to return only the checkpoints committed on the branch of the revision,
                as `best:` and policies do, without those that the branch was started from. With
                `sort`, this gives the best of the branch rather than of its whole history.
            where: A condition on step, branch, message, `meta.KEY` and metrics, such as "val_loss <
                0.2 and step > 1000"; it may use `or`, parentheses, and quoted names of metrics. A
                renamed branch is found by its name of now.
            sort: "step" for the highest first, or a metric for the best first, such as "val_loss"
                or "quality:max". Checkpoints without a finite number come last.

        Raises:
            NotFoundError: The revision names nothing.
            InvalidInputError: The limit is not a number of checkpoints, the condition cannot be
                parsed, or no checkpoint has a metric named in the condition or in `sort`.

        Example:
            >>> import ckptstore
            >>> repo = ckptstore.init("memory://")
            >>> for step in range(3):
            ...     _ = repo.commit({"epoch": step}, step=step)
            >>> [checkpoint.step for checkpoint in repo.log("main", limit=2)]
            [2, 1]
            >>> [checkpoint.step for checkpoint in repo.log(where="step < 2")]
            [1, 0]
        """
        from ckptstore.query import Query

        renamed = {}
        if where is not None:
            newest = self._oplog.newest()
            renamed = names_before(newest.settings, newest.heads)
        query = Query.of(where=where, sort=sort, limit=limit, renamed=renamed)
        if own:
            return query.select(self._own(rev, expired=expired))
        starts = [self._resolver.resolved(rev)[0]] if rev is not None else self._resolver.named()
        if expired:
            walk = Ahead(self._catalog, count=query.count_max)
            history = walk.with_expired(ancestors(starts, walk))
            return query.select(starmap(self._checkpoint, history))
        with self._live.lock:
            self._live.update(self._oplog.newest())
            live = self._live.reached(self._live.before(starts) or ())
            return query.select(self._checkpoint(*found, False) for found in live)

    def _own(self, rev: str | None, *, expired: bool) -> Iterator[Checkpoint]:
        """Yield the checkpoints of the branch of a revision, newest first."""
        if rev is None:
            raise InvalidInputError("own=True needs a revision, whose branch it lists.")
        id, _ = self._resolver.resolved(rev)
        walk = Ahead(self._catalog)
        _, chain = own_of(id, rev, self._catalog.names(self._oplog.newest(), lookup=walk))
        for found in starmap(self._checkpoint, walk.with_expired(chain.checkpoints)):
            if expired or not found.expired:
                yield found

    def annotate(
        self, rev: str, *, metrics: Mapping[str, object] | None = None, message: str = ""
    ) -> Checkpoint:
        """Add metrics or a message to a checkpoint after its commit.

        They are stored in a note; the checkpoint itself does not change. The newest value of a
        metric counts: in `best:`, in policies, in the log and in `Checkpoint.metrics`. `undo` takes
        a note back. An expired checkpoint can be annotated too (ADR 0045).

        Args:
            rev: The revision to annotate.
            metrics: Numbers by name, as for `commit`.
            message: Text for people.

        Returns:
            The checkpoint, with the note.

        Raises:
            NotFoundError: The revision names nothing.
            InvalidInputError: Neither a metric nor a message was passed, or one is not legal.
            StorageError: The storage failed. The note counts if it became durable before that.

        Example:
            >>> import ckptstore
            >>> repo = ckptstore.init("memory://")
            >>> for step in range(3):
            ...     _ = repo.commit({"epoch": step}, step=step)
            >>> for step, accuracy in enumerate([0.7, 0.9, 0.8]):
            ...     _ = repo.annotate(f"main@step={step}", metrics={"val_acc": accuracy})
            >>> repo.resolve("best:val_acc").step
            1
        """
        facts = Facts.of(metrics=metrics, message=message)
        if not facts.metrics and not facts.message:
            raise InvalidInputError("There is nothing to note. Pass metrics, a message, or both.")
        id, manifest = self._resolver.resolved(rev)
        told = ", ".join(f"{name}={value:g}" for name, value in facts.metrics.items())
        done = f"annotated {id.short}: {told or facts.message.strip().split(chr(10))[0]}"
        self._refs.annotate(id, facts.metrics, facts.message, done=done)
        return self._checkpoint(id, manifest)

    def lost(self) -> list[Checkpoint]:
        """Return the checkpoints whose operations are missing, newest first.

        A copy that was cut short, or older operations put over newer ones, leave checkpoints that
        no branch reaches and that no operation explains. Gc never deletes them. `branch(NAME,
        at=ID)` makes a branch at one; once such a branch is deleted, gc may delete them.

        Example:
            >>> import ckptstore
            >>> repo = ckptstore.init("memory://")
            >>> _ = repo.commit({"lr": 0.1})
            >>> repo.lost()
            []
        """
        live = self._catalog.live()
        newest = self._oplog.newest()
        reached = {id for id, _ in ancestors(newest.refs.values(), self._catalog.lookup)}
        found = lost_among(
            live.keys() - reached,
            reached=reached,
            newest=newest,
            oplog=self._oplog,
            catalog=self._catalog,
        )
        ids = sorted(found, key=lambda id: (-found[id].created, id))
        return [self._checkpoint(id, found[id]) for id in ids]

    def branch(
        self,
        name: str,
        at: str = DEFAULT_BRANCH,
        *,
        include: Patterns = None,
        exclude: Patterns = None,
        rename: Mapping[str, str] | None = None,
        reset: Sequence[str] = RESET,
    ) -> Checkpoint:
        r"""Make a branch at a revision, or at a derived checkpoint. No array is read or written.

        Without include, exclude and rename the branch begins at the checkpoint itself. With them it
        begins with a checkpoint derived from it, whose parent it is, and which holds what the globs
        choose, as checkout would return it, with arrays under new paths. The message of that
        checkpoint names its source, and its meta records what was chosen and renamed.

        Args:
            name: The new branch.
            at: The revision to begin at.
            include: Globs over paths, such as "model/**".
            exclude: Globs over paths to leave out.
            rename: Replacements by regular expression. A pattern must match the whole path of an
                array; the first that does wins, and a replacement may use its groups. One that
                matches no array may match a key, with which all that is below it moves, plain
                values too: `{"model_state_dict": "model"}`. Only keys of dicts can change.
            reset: Which of "step" and "metrics" the derived checkpoint does not take over.

        Returns:
            The checkpoint that the branch begins at.

        Raises:
            ConflictError: The name is that of a branch or a tag.
            ExpiredError: The arrays of the checkpoint were deleted by a gc.
            InvalidInputError: The name is not legal, nothing is chosen, or two arrays would have
                the same path.

        Example:
            >>> import ckptstore, numpy as np
            >>> repo = ckptstore.init("memory://")
            >>> model = {"backbone.w": np.ones(2), "head.w": np.zeros(2)}
            >>> _ = repo.commit({"model": model, "epoch": 3}, step=100)
            >>> made = repo.branch(
            ...     "task", include="model/back*", rename={r"model/backbone.(.*)": r"model/enc.\1"}
            ... )
            >>> [array.path for array in made.arrays], made.step
            (['model/enc.w'], None)
        """
        check_ref_name(name, kind="branch")
        reset = check_strings(reset, what="facts to reset")
        if include is None and exclude is None and rename is None and reset == RESET:
            return self._branch_at(name, at)
        from ckptstore.commit.derive import Derivation

        derivation = Derivation.of(include, exclude, rename, reset)
        if derivation.is_everything:
            return self._branch_at(name, at)
        with self._resolver.naming(at):
            made = self._committer().derive(
                derivation, branch=name, source=partial(self._resolver.durable, at)
            )
        return self._checkpoint(*made, expired=False)

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
        """Compare two checkpoints, or a checkpoint and a state.

        Shared pages are not read, so the cost follows the differences.

        Args:
            a: The revision to compare with.
            b: A revision; or a state, which is compared as commit would store it and is not stored.
            numeric: Whether to read the arrays that changed and measure by how much. Others are
                never read.
            include: Globs over the paths to compare.
            exclude: Globs over paths to leave out.
            other: The repository that `b` is a revision of; this one when None.

        Returns:
            The arrays and plain values that differ, in path order.

        Raises:
            NotFoundError: A revision names nothing.
            ExpiredError: The arrays of a checkpoint were deleted by a gc.
            CorruptError: Something that had to be read is damaged or missing.
            InvalidInputError: `other` is given and `b` is not a revision.

        Example:
            >>> import ckptstore, numpy as np
            >>> repo = ckptstore.init("memory://")
            >>> _ = repo.commit({"w": np.array([3.0, 4.0]), "lr": 0.1})
            >>> found = repo.diff("main", {"w": np.array([3.0, 9.0]), "lr": 0.1}, numeric=True)
            >>> [(change.path, change.kind, change.numbers.relative_l2) for change in found.arrays]
            [('w', 'changed', 1.0)]
        """
        from ckptstore.arrays.codecs import decode_known
        from ckptstore.diff.compare import compare

        selection = Selection.of(include, exclude)
        if not isinstance(b, str):
            if other is not None:
                raise InvalidInputError("Pass a revision of the other repository, or a state.")
            other, b = self._holding(b, beside=a), DEFAULT_BRANCH
        other = self if other is None else other
        if not isinstance(other, Repository):
            raise InvalidInputError(f"other is {shown(other)}; a Repository is expected.")
        reading, source, opener = self._diffed(a)
        other_reading, other_source, other_opener = other._diffed(b)  # noqa: SLF001 - the same class
        with reading, other_reading:
            with paused_collector():
                found = compare(source, other_source, selection, decode=decode_known)
            if not numeric:
                return found
            from ckptstore.diff.numeric import measure

            return measure(
                found,
                before=self._objects,
                after=other._objects,  # noqa: SLF001
                openers=(opener, other_opener),
            )

    def follow(
        self,
        branch: str = DEFAULT_BRANCH,
        *,
        unevaluated: str | None = None,
        start: str = "latest",
        poll_seconds: float = 1.0,
    ) -> Follower:
        """Follow a branch: wait for new checkpoints, and keep a model at the newest one.

        Args:
            branch: The branch that another process commits to. It need not exist yet.
            unevaluated: A metric. The follower then yields the checkpoints without it: first the
                existing live ones, oldest first, then new ones. An evaluator adds the metric with
                `annotate`.
            start: Which checkpoint comes first: "latest" for the newest of the branch, "next" for
                the first that comes after now, or a revision for the one after it.
            poll_seconds: Seconds between two looks at the repository.

        Returns:
            A follower. `Follower.update` reads only what changed since the last update (ADR 0015).

        Raises:
            InvalidInputError: `poll_seconds` is not above 0, or a name is not legal.
            NotFoundError: `start` names no checkpoint.

        Example:
            >>> import ckptstore
            >>> repo = ckptstore.init("memory://")
            >>> for step in range(4):
            ...     _ = repo.commit({"epoch": step}, step=step)
            >>> follower = repo.follow(start="main@step=1")
            >>> follower.poll().step, follower.poll().step, follower.poll()
            (2, 3, None)
        """
        from ckptstore.follow.follower import Follower

        check_ref_name(branch, kind="branch")
        if not isinstance(start, str):
            raise InvalidInputError(
                f"start is {shown(start)}; latest, next or a revision is expected."
            )
        seen = None
        if start == "next":
            seen = self._oplog.newest().heads.get(branch)
        elif start != "latest":
            seen, _ = self._resolver.resolved(start)
        if unevaluated is not None:
            check_metric_name(unevaluated)
        return Follower(
            branch,
            oplog=self._oplog,
            catalog=self._catalog,
            notes=self._notes,
            checkpoint=self._checkpoint,
            unevaluated=unevaluated,
            poll_seconds=poll_seconds,
            seen=seen,
        )

    def hold(self, branch: str) -> Hold:
        """Hold a branch, as a CheckpointManager does until it is closed.

        No manager of another process can then be made for the branch. Nothing else is excluded. In
        a repository in memory, or one that this process may not write to, nothing is.

        Args:
            branch: The branch, which need not exist.

        Returns:
            The hold, which `release` ends. Several holds of one process share the branch.

        Raises:
            ConflictError: Another process holds the branch. The message names the process.

        Example:
            >>> import ckptstore
            >>> repo = ckptstore.init("memory://")
            >>> hold = repo.hold("main")
            >>> hold.release()
        """
        try:
            return self._storage.hold(_hold_name(branch))
        except ConflictError as error:
            raise ConflictError(
                f"Branch {branch!r} of {self.url} is held by {error}, whose CheckpointManager "
                "saves to it."
            ) from None

    def holder(self, branch: str) -> str | None:
        """Return the process that holds a branch, as far as the system tells.

        Args:
            branch: The branch.

        Returns:
            A text such as "process 4711 of user ada"; None if no process on this machine, or on a
            network drive with locks, holds it.
        """
        return self._storage.holder(_hold_name(branch))

    def branches(self) -> dict[str, Checkpoint]:
        """Return the head of each branch, by name."""
        newest = self._oplog.newest()
        return self._at(newest.heads, newest)

    def delete_branch(self, name: str) -> Digest:
        """Delete a branch and its own policy.

        Its checkpoints stay for the grace time. After that, a gc deletes those that no branch or
        tag reaches.

        Args:
            name: An existing branch.

        Returns:
            The id of its head; `branch(name, at=id)` makes the branch again.

        Raises:
            NotFoundError: There is no such branch.
        """
        from ckptstore.retention import with_policy

        def without(settings: Mapping[str, Any]) -> Mapping[str, Any]:
            return with_policy(without_branch(settings, name), branch=name, policy=None)

        return self._refs.delete_branch(name, settings=without)

    def rename_branch(self, old: str, new: str) -> Digest:
        """Rename a branch. Its checkpoints and its own policy stay with it.

        Args:
            old: An existing branch.
            new: Its new name.

        Returns:
            The id of its head.

        Raises:
            NotFoundError: There is no such branch.
            ConflictError: A branch or a tag has the new name.
            InvalidInputError: The new name is not legal.
        """
        return self._refs.rename_branch(old, check_ref_name(new, kind="branch"))

    def reset_branch(self, name: str, to: str) -> Digest:
        """Move a branch to any checkpoint.

        Checkpoints that only the branch reached stay for the grace time.

        Args:
            name: An existing branch.
            to: The revision to move it to.

        Returns:
            The id of its old head; `reset_branch(name, id)` moves it back.

        Raises:
            NotFoundError: There is no such branch or revision.
            ExpiredError: The arrays of the checkpoint were deleted by a gc.

        Example:
            >>> import ckptstore
            >>> repo = ckptstore.init("memory://")
            >>> made = [repo.commit({"epoch": step}, step=step) for step in range(3)]
            >>> repo.reset_branch("main", "main@step=1") == made[2].id
            True
            >>> repo.resolve("main").step
            1
        """
        id = self._resolver.durable(to)
        with self._resolver.naming(to):
            return self._refs.reset_branch(name, id)

    def keep_resumed(self, branch: str, rev: str) -> None:
        """Keep a checkpoint as the one that the run on a branch was resumed from.

        It stays while the branch lives, or until the next call for the branch. A CheckpointManager
        calls this where the history of the branch does not tell.

        Args:
            branch: An existing branch.
            rev: The revision to keep.

        Raises:
            NotFoundError: There is no such branch or revision.
            ExpiredError: The checkpoint has expired.

        Example:
            >>> import ckptstore
            >>> repo = ckptstore.init("memory://")
            >>> for step in range(3):
            ...     _ = repo.commit({"epoch": step}, step=step)
            >>> repo.keep_resumed("main", "main~1")
            >>> print(repo.resolve("main~1").why[0])
            resumed from by the run on main
        """
        id, _ = self._resolver.readable(rev)

        def change(settings: Mapping[str, Any]) -> Mapping[str, Any]:
            check_known(branch, self._oplog.newest().heads, kind="branch")
            return with_part(settings, f"{RESUMED}/{branch}", id)

        check_ref_name(branch, kind="branch")
        done = f"kept {id.short}, which the run on {branch} was resumed from"
        self._refs.change_settings(change, done=done)

    @contextmanager
    def lease(self, rev: str, ttl: float | str = "6h") -> Iterator[Checkpoint]:
        """Keep a checkpoint while a block runs, or for a limited time if the process dies.

        The lease is a tag named `lease/` and random digits; the end of the block deletes it.

        Args:
            rev: The revision to keep.
            ttl: The longest time, as for `tag`.

        Yields:
            The checkpoint.

        Raises:
            ExpiredError: As `tag`.
            InvalidInputError: As `tag`.

        Example:
            >>> import ckptstore
            >>> repo = ckptstore.init("memory://")
            >>> _ = repo.commit({"epoch": 1})
            >>> with repo.lease("main", ttl="10min") as checkpoint:
            ...     state = repo.checkout(checkpoint.id)
            >>> repo.tags()
            {}
        """
        name = f"lease/{secrets.token_hex(6)}"
        checkpoint = self.tag(name, rev, ttl=ttl)
        try:
            yield checkpoint
        finally:
            with suppress(NotFoundError):  # the lease has ended
                self.delete_tag(name)

    def leases(self) -> dict[str, datetime]:
        """Return the tags with a limited life, each with its end in UTC."""
        leases = self._oplog.newest().leases
        return {
            name: datetime.fromtimestamp(until / 1e6, tz=UTC)
            for name, until in sorted(leases.items())
        }

    def tag(
        self,
        name: str,
        at: str = DEFAULT_BRANCH,
        *,
        ttl: float | str | None = None,
        move: bool = False,
    ) -> Checkpoint:
        """Give a checkpoint a name that no commit moves. Gc keeps what a tag names.

        Args:
            name: The new tag.
            at: The revision to name.
            ttl: Seconds, or a text such as "90min", "6h" or "2d", after which the tag is gone. Each
                process goes by its own clock. None: the tag stays until it is deleted.
            move: Whether to move the tag if there is one of that name.

        Returns:
            The checkpoint.

        Raises:
            ConflictError: The name is that of a branch, or of a tag that may not move.
            ExpiredError: The arrays of the checkpoint were deleted by a gc.
            InvalidInputError: The name or `ttl` is not legal.
        """
        check_ref_name(name, kind="tag")
        until = None
        if ttl is not None:
            until = min(self._now() + int(ttl_seconds(ttl) * 1e6), CREATED_MAX)
        id = self._resolver.durable(at)
        with self._resolver.naming(at):
            self._refs.make_tag(name, id, until=until, moves=move)
        return self._checkpoint(id, self._catalog.manifest(id))

    def tags(self) -> dict[str, Checkpoint]:
        """Return the checkpoint of each tag, by name."""
        newest = self._oplog.newest()
        return self._at(newest.tags, newest)

    def delete_tag(self, name: str) -> Digest:
        """Delete a tag.

        Args:
            name: An existing tag.

        Returns:
            The id of its checkpoint; `tag(name, at=id)` makes the tag again.

        Raises:
            NotFoundError: There is no such tag.
        """
        return self._refs.delete_tag(name)

    def ref_names(self) -> tuple[dict[str, Digest], dict[str, Digest]]:
        """Return the ids of branches and of tags, by name, sorted. No checkpoint is read."""
        newest = self._oplog.newest()
        refuse_without_operations(newest, self._oplog, self._catalog)
        return dict(sorted(newest.heads.items())), dict(sorted(newest.tags.items()))

    def operations(self, limit: int | None = None) -> list[OperationInfo]:
        """Return the operations on this repository, newest first.

        Commits, undos, gcs and all changes of branches, tags and settings are operations. Each
        tells who did it, when, and which names it moved. At least the newest 1,000 are kept.

        Args:
            limit: The most operations to return.

        Raises:
            InvalidInputError: The limit is not a number of operations.

        Example:
            >>> import ckptstore
            >>> repo = ckptstore.init("memory://")
            >>> made = repo.commit({"lr": 0.1})
            >>> _ = repo.tag("v1")
            >>> [operation.description for operation in repo.operations()] == [
            ...     f"made tag v1 at {made.id.short}",
            ...     f"committed {made.id.short} to main",
            ... ]
            True
        """
        found = operations(self._oplog, self._oplog.newest())
        return list(islice(found, _length(limit)))

    def plan_undo(self, operation: int | None = None) -> UndoPlan:
        """Plan an undo: which operation it takes back, and which newer ones it leaves alone.

        Args:
            operation: As for `undo`.

        Returns:
            The plan. Nothing is changed before `UndoPlan.execute` is called.

        Raises:
            NotFoundError: As `undo`.
            ConflictError: As `undo`.
            ExpiredError: As `undo`.
            InvalidInputError: As `undo`.
        """
        if operation is not None and type(operation) is not int:
            raise InvalidInputError(
                f"operation is {shown(operation)}; the number of an operation is expected."
            )
        return self._refs.plan_undo(operation)

    def undo(self, operation: int | None = None) -> Undone:
        """Take back one operation: put back the branches, tags and settings that it moved.

        Everything else stays as it is, so later operations of other processes are kept. Without a
        number, undo takes back this user's newest operation that was not taken back yet. These
        operations count: commands, calls of a handle opened with `by_hand`, changes of names and
        settings by a program, and commits of this process. Commits of other programs and all
        operations of a CheckpointManager do not (ADR 0044).

        Args:
            operation: The number of any operation, as `operations` lists them. Undoing an undo
                does the operation again.

        Returns:
            The operation that was taken back, and the number that undoes this undo.

        Raises:
            NotFoundError: There is nothing to take back, or no operation of this number.
            ConflictError: A name or setting that it moved was moved since. The error names the
                operation that did it.
            ExpiredError: A branch or tag would name a checkpoint whose arrays were
                deleted. The error names what can be undone instead.
            InvalidInputError: The operation moved nothing, such as a gc.

        Example:
            >>> import ckptstore
            >>> repo = ckptstore.init("memory://")
            >>> _ = repo.commit({"lr": 0.1})
            >>> _ = repo.branch("task")
            >>> _ = repo.delete_branch("task")
            >>> undone = repo.undo()
            >>> undone.description, sorted(repo.branches())
            ('deleted branch task', ['main', 'task'])
            >>> _ = repo.undo(undone.redo)
            >>> sorted(repo.branches())
            ['main']
        """
        return self.plan_undo(operation).execute()

    def retention(self, branch: str | None = None) -> Policy | None:
        """Return the policy that is saved in the repository and applied by `gc`.

        Args:
            branch: The branch whose own policy to return; None for the policy of all branches
                without one of their own.

        Returns:
            The policy, or None if none is saved.
        """
        from ckptstore.retention import saved_policy

        return saved_policy(self._oplog.newest().settings, branch)

    def set_retention(self, policy: Policy | None, *, branch: str | None = None) -> None:
        """Save a policy in the repository.

        Saving deletes nothing. The next gc without a policy applies it, and so may a running
        CheckpointManager at its next save.

        Args:
            policy: The policy that `gc` applies when it is called without one; None removes the
                saved one.
            branch: The branch to which it applies, in place of the policy of all branches. None:
                all branches without a policy of their own.

        Raises:
            InvalidInputError: The value is not a policy, holds a function, or is too large.
        """
        from ckptstore.retention import with_policy

        if branch is not None:
            check_ref_name(branch, kind="branch")
        with_policy({}, branch, policy)  # raises unless it is a policy, before a message names it
        self._refs.change_settings(
            lambda settings: with_policy(settings, branch, policy),
            done=f"saved{f' for {branch}' if branch else ''}: {policy or 'no retention'}",
        )

    def grace(self) -> float:
        """Return the seconds for which a gc keeps a checkpoint that lost its branch or tag.

        A day, unless `set_grace` saved another time.
        """
        return grace_of(self._oplog.newest().settings)

    def set_grace(self, seconds: float | None) -> None:
        """Save the grace time, which every gc uses that is not given another.

        Args:
            seconds: The time; None for a day.

        Raises:
            InvalidInputError: The time is not a number of seconds of 0 or more.
        """
        saved = None if seconds is None else checked_grace(seconds)
        text = "a day" if saved is None else f"{saved:g} s"
        self._refs.change_settings(
            lambda settings: with_part(settings, GRACE, saved), done=f"saved a grace time of {text}"
        )

    def plan_gc(
        self,
        policy: Policy | None = None,
        *,
        branches: Sequence[str] | None = None,
        grace: float | None = None,
        keep_seeds: bool = True,
    ) -> GcPlan:
        """Plan a gc: which checkpoints stay and why, which expire, and how much space that frees.

        Nothing is changed before `GcPlan.execute` is called.

        Args:
            policy: Decides which checkpoints of each branch stay. When None, the saved policy of
                each branch decides, else that of all branches; without one, the branch keeps all.
            branches: The branches to judge. Others keep all their own checkpoints. All when None.
            grace: Seconds for which a checkpoint that lost its branch or tag is left alone, counted
                from that operation; the saved time, or a day, when None. Objects and manifests that
                no operation named, which another process may be committing, are left alone as long,
                but an hour at most, or a day on an object store.
            keep_seeds: Whether a checkpoint stays because a branch was started from it. If False,
                the policy of its own branch decides.

        Raises:
            NotFoundError: There is no branch of that name.
            CorruptError: A page that has to be read is damaged or missing.

        Example:
            >>> import ckptstore
            >>> from ckptstore.retention import MaxToKeep
            >>> repo = ckptstore.init("memory://")
            >>> for step in range(3):
            ...     _ = repo.commit({"epoch": step}, step=step)
            >>> plan = repo.plan_gc(MaxToKeep(1))
            >>> len(plan.kept), len(plan.expired)
            (1, 2)
        """
        from ckptstore.gc import plan_gc

        rules_at = self._asked(policy, branches, grace, keep_seeds=keep_seeds)
        return plan_gc(self._stores(), rules_at)

    def why(self, rev: str) -> Verdict:
        """Return whether a gc by the saved policies keeps a checkpoint, and every reason why.

        Args:
            rev: The revision.

        Raises:
            NotFoundError: The revision names nothing.

        Example:
            >>> import ckptstore
            >>> repo = ckptstore.init("memory://")
            >>> _ = repo.commit({"lr": 0.1})
            >>> _ = repo.tag("v1")
            >>> repo.why("main").kept, *map(str, repo.resolve("main").why[:2])
            (True, 'head of main', 'tag v1')
            >>> repo.resolve("main").why[1].tag
            'v1'
        """
        from ckptstore.retention import Reason, Verdict

        id, manifest = self._resolver.resolved(rev)
        if self._catalog.is_expired(id):
            expiry = self._catalog.expiry(id)
            reason = Reason(kind="expired", text=f"expired {expiry}" if expiry else "expired")
            return Verdict(id=id, manifest=manifest, branches=(), kept=False, reasons=(reason,))
        for verdict in self.verdicts():
            if verdict.id == id:
                return verdict
        raise NotFoundError(f"Checkpoint {id.short} is not stored.")

    def verdicts(self) -> tuple[Verdict, ...]:
        """Return whether a gc by the saved policies keeps each live checkpoint, and why.

        This is `plan_gc().verdicts` without a listing of all objects.

        Example:
            >>> import ckptstore
            >>> repo = ckptstore.init("memory://")
            >>> _ = repo.commit({"lr": 0.1})
            >>> [verdict.kept for verdict in repo.verdicts()]
            [True]
        """
        from ckptstore.gc import verdicts

        return verdicts(self._stores(), self._asked(None, None, None))

    def gc(
        self,
        policy: Policy | None = None,
        *,
        branches: Sequence[str] | None = None,
        grace: float | None = None,
        keep_seeds: bool = True,
        leftovers: bool = True,
    ) -> GcReport:
        """Expire the checkpoints that a policy does not keep, and delete unreachable objects.

        Other processes may commit, read and collect meanwhile (ADR 0011). The manifests of expired
        checkpoints are kept, with their step and metrics.

        Args:
            policy: As for `plan_gc`.
            branches: As for `plan_gc`.
            grace: As for `plan_gc`.
            keep_seeds: As for `plan_gc`.
            leftovers: Whether to look for objects that interrupted commits left, which lists all
                objects. If False, that is done at the first gc of this handle and then once an
                hour, and otherwise the cost follows what changed since the last gc.

        Returns:
            The checkpoints that expired, and what was deleted.

        Raises:
            CorruptError: A page that has to be read is damaged or missing. Nothing was deleted.
            ConflictError: On an object store: another gc makes no progress, or took over this one.
            StorageError: The storage failed. On a full disk a gc can still free (ADR 0035).

        Example:
            >>> import ckptstore
            >>> from ckptstore.retention import MaxToKeep
            >>> repo = ckptstore.init("memory://")
            >>> for step in range(3):
            ...     _ = repo.commit({"epoch": step}, step=step)
            >>> len(repo.gc(MaxToKeep(1)).expired)
            2
        """
        from ckptstore.gc import expire

        stores = self._stores()
        if leftovers or stores.is_listing_due():
            plan = self.plan_gc(policy, branches=branches, grace=grace, keep_seeds=keep_seeds)
            return plan.execute()
        return expire(stores, self._asked(policy, branches, grace, keep_seeds=keep_seeds))

    def expire(self, revs: str | Sequence[str]) -> GcPlan:
        """Plan to expire the chosen checkpoints, whatever the policies, and no others.

        Nothing is changed before `GcPlan.execute` is called, which deletes the arrays that no other
        checkpoint shares. No undo brings them back. Step and metrics remain.

        Args:
            revs: One revision, or several.

        Returns:
            The plan.

        Raises:
            ConflictError: One of them is the head of a branch, has a tag or a lease, or is the
                checkpoint that a branch was started from.
            ExpiredError: One of them has expired already.
            NotFoundError: A revision names nothing.

        Example:
            >>> import ckptstore
            >>> repo = ckptstore.init("memory://")
            >>> for step in range(3):
            ...     _ = repo.commit({"epoch": step}, step=step)
            >>> plan = repo.expire("main@step=1")
            >>> len(plan.execute().expired)
            1
            >>> [checkpoint.step for checkpoint in repo.log(expired=False)]
            [2, 0]
        """
        from ckptstore.gc import plan_expiry

        names = check_strings(revs, what="revisions")
        ids = {self._resolver.readable(rev)[0] for rev in names}
        return plan_expiry(self._stores(), ids)

    def verify(
        self,
        revs: str | Sequence[str] | None = None,
        *,
        sample: float = 1.0,
        progress: Callable[[int, int], object] | None = None,
    ) -> VerifyReport:
        """Check every byte and every reference, and go on past what is wrong.

        Args:
            revs: The only checkpoints to check, with everything they refer to. All when None.
            sample: The share of all objects that is read, above 0 and at most 1; each call chooses
                others. Manifests, operations, pages and references are always checked.
            progress: Called with the bytes checked so far, and the bytes in all, instead of the
                listener of `on_progress`.

        Returns:
            The problems found, with the checkpoints that each affects; `ok` when there are none.

        Raises:
            NotFoundError: A revision names nothing.
            ExpiredError: It names a checkpoint whose arrays were deleted by a gc.
            InvalidInputError: An argument is invalid.

        Example:
            >>> import ckptstore
            >>> repo = ckptstore.init("memory://")
            >>> _ = repo.commit({"lr": 0.1})
            >>> repo.verify().ok
            True
        """
        if progress is not None and not callable(progress):
            raise InvalidInputError(f"progress is {shown(progress)}; a function is expected.")
        if isinstance(sample, bool) or not isinstance(sample, int | float) or not 0 < sample <= 1:
            raise InvalidInputError(
                f"sample is {shown(sample)}; a share above 0 and at most 1 is expected."
            )
        from ckptstore.verify import verify

        names = None if revs is None else check_strings(revs, what="revs")
        only = None if names is None else {self._resolver.stored(name) for name in names}
        meter = self._objects.meter
        with meter.heard_by(_verified(progress)) if progress else nullcontext():
            return verify(
                self._storage,
                only=only,
                window=(secrets.randbelow(SAMPLE_PLACES) / SAMPLE_PLACES, sample),
                meter=meter,
                repair=self._set_aside,
            )

    def usage(self, *, by_checkpoint: bool = False) -> Usage:
        """Return the contents of the repository and their size on disk, by branch.

        Args:
            by_checkpoint: Whether to return the share of each checkpoint too, for which the pages
                of each have to be searched.
        """
        from ckptstore.store.usage import usage

        return usage(
            self._storage,
            self._catalog,
            self._oplog,
            self._notes,
            with_checkpoints=by_checkpoint,
        )

    def free_bytes(self) -> int | None:
        """Return the room that the file system has for new bytes; None if that is not known.

        Example:
            >>> import ckptstore
            >>> ckptstore.init("memory://").free_bytes() is None
            True
        """
        return self._storage.free_bytes()

    def _side_at(self, url: str | Path) -> Side:
        return open(url, clock=self._clock, **self._author.keywords)._side()  # noqa: SLF001

    def _side(self) -> Side:
        from ckptstore.transfer.side import Side

        return Side(
            chunk_bytes=self._chunk_bytes,
            storage=self._storage,
            objects=self._objects,
            catalog=self._catalog,
            oplog=self._oplog,
            notes=self._notes,
            refs=self._refs,
            resolver=self._resolver,
            now=self._now,
            author=self._author,
        )

    def _diffed(self, rev: str) -> tuple[AbstractContextManager[None], Source, ArrayOpener]:
        """A checkpoint as a diff loads it."""
        from ckptstore.checkout.opener import ArrayOpener
        from ckptstore.diff.compare import Source

        id, manifest = self._resolver.readable(rev)
        opener = ArrayOpener(id, manifest, self._catalog)
        source = Source(
            manifest=manifest,
            load_pages=lambda refs: self._catalog.pages(replace(manifest, pages=tuple(refs))),
            load_structure=lambda: self._catalog.structure(manifest),
            load_encoded=opener.encoded_entries,
        )
        return self._catalog.reading(id), source, opener

    def _holding(self, value: object, *, beside: str) -> Repository:
        """A repository in memory whose only checkpoint is a state, cut into chunks as in this one.

        Objects that the checkpoint `beside` has too are read from here instead of being stored.
        """
        from ckptstore.store.reach import reached_by

        id, _ = self._resolver.readable(beside)
        storage = self._objects.beside(reached_by(id, self._catalog).digests)
        marker = Marker(store=secrets.token_hex(16), chunk_bytes=self._chunk_bytes)
        storage.create(MARKER_KEY, marker.encode())
        made = Repository(storage, marker)
        made._hooks = Hooks()
        with self._catalog.reading(id):
            made.commit(value)
        return made

    def _branch_at(self, name: str, at: str) -> Checkpoint:
        """Make a branch that begins at the checkpoint itself."""
        id = self._resolver.durable(at)
        with self._resolver.naming(at):
            self._refs.make_branch(name, id)
        return self._checkpoint(id, self._catalog.manifest(id))

    def _committer(self) -> Committer:
        from ckptstore.commit.committer import Committer

        return Committer(
            catalog=self._catalog,
            oplog=self._oplog,
            refs=self._refs,
            chunk_bytes=self._chunk_bytes,
            now=self._now,
            committed=self._committed,
        )

    def _asked(
        self,
        policy: Policy | None,
        branches: Sequence[str] | None,
        grace: float | None,
        *,
        keep_seeds: bool = True,
    ) -> RulesAt:
        """The checked arguments of a gc; those not given are taken from an operation's settings."""
        from ckptstore.gc import Rules
        from ckptstore.retention import Policies

        newest = self._oplog.newest()
        names = None if branches is None else check_strings(branches, what="branches")
        for name in names or ():
            check_known(name, newest.heads, kind="branch")
        given = None if policy is None else Policies.given(policy, only=names)
        seconds = None if grace is None else checked_grace(grace)

        def rules_at(operation: Operation) -> Rules:
            policies = given or Policies.of(operation.settings, only=names)
            return Rules(
                policies=replace(policies, keep_seeds=keep_seeds),
                grace=grace_of(operation.settings) if seconds is None else seconds,
            )

        return rules_at

    def _stores(self) -> Stores:
        from ckptstore.gc import Stores

        if self._gc_stores is None:
            self._gc_stores = Stores(
                storage=self._storage,
                objects=self._objects,
                oplog=self._oplog,
                catalog=self._catalog,
                live=self._live,
                now=self._now,
                author=self._author,
            )
        return self._gc_stores

    def _set_aside(self, damaged: Sequence[Digest]) -> tuple[Digest, ...]:
        """Move those of some objects aside that are damaged still, and return them."""
        from ckptstore.gc import set_aside

        return set_aside(self._stores(), damaged)

    def _wait_for_gc(self, met: Condemned | None) -> None:
        """Wait until a gc has deleted what a writer met, and finish one that died."""
        from ckptstore.gc import wait_for_gc

        wait_for_gc(self._stores(), met)

    def _checkpoint(
        self, id: Digest, manifest: Manifest, expired: bool | None = None
    ) -> Checkpoint:
        return Checkpoint.of(
            id,
            manifest,
            self._catalog,
            self._notes.of(id),
            judge=self._reasons,
            seed_of=self._resolver.seed_of,
            expired=expired,
        )

    def _reasons(self, id: Digest) -> tuple[Reason, ...]:
        """The reasons why a checkpoint is kept, or not."""
        return self.why(id).reasons

    def _at(self, refs: Mapping[str, Digest], newest: Operation) -> dict[str, Checkpoint]:
        self._resolver.check(refs, newest)
        ids = {*refs.values()}
        jobs = (partial(self._checkpoint, id, self._catalog.manifest(id)) for id in ids)
        made = dict(zip(ids, gather(jobs, threads=self._catalog.threads), strict=True))
        return {name: made[id] for name, id in sorted(refs.items())}

    def _now(self) -> int:
        """UTC now, in microseconds since 1970."""
        seconds: object = self._clock()
        microseconds = CREATED_MAX + 1
        if isinstance(seconds, SupportsFloat):
            with suppress(TypeError, ValueError, OverflowError):  # not one number, NaN, infinite
                microseconds = max(0, int(float(seconds) * 1e6))
        if microseconds > CREATED_MAX:
            raise InvalidInputError(
                f"The clock returned {shown(seconds)}; seconds since 1970 are expected, up to the "
                "year 9999. Divide milliseconds by 1,000."
            )
        return microseconds


def picklable(url: str) -> str:
    """Return the URL of a repository that other processes can open."""
    if url.startswith("memory://"):
        raise InvalidInputError(
            f"{url} cannot be pickled: it is in the memory of this process. Use a folder."
        )
    return url


def _pickled(checkpoint: Checkpoint) -> tuple[object, ...]:
    """Pickle a checkpoint as the place where it is."""
    return _unpickled, (picklable(checkpoint.repository_url), checkpoint.id)


def _unpickled(url: str, id: Digest) -> Checkpoint:
    return open(url).resolve(id)


# A checkpoint does not know how to open its repository.
copyreg.pickle(Checkpoint, _pickled)  # type: ignore[arg-type]


def _hold_name(branch: str) -> str:
    """Return the name under which a storage holds a branch, whose own may have any characters."""
    return Digest.of(check_ref_name(branch, kind="branch").encode())[:HOLD_DIGITS]


def _length(limit: int | None) -> int:
    """A checked limit of a list."""
    if limit is not None and (not isinstance(limit, int) or limit < 0):
        raise InvalidInputError(f"The limit is {shown(limit)}; a number of 0 or more is expected.")
    return sys.maxsize if limit is None else min(limit, sys.maxsize)


def _verified(progress: Callable[[int, int], object]) -> Callable[[Progress], object]:
    """Return a listener that passes on the bytes checked so far, and the bytes in all."""
    return lambda told: progress(told.done, told.total) if told.kind == "verified" else None
