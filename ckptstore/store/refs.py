"""Refs: the operations that make checkpoints visible, and move branches, tags and settings.

Each is decided on the newest operation, and again when another writer was first. None refers to a
checkpoint whose arrays a gc deleted, and none relies on what a gc condemned meanwhile: that is put
again once the gc has ended (docs/reference/format.md, section 14).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from ckptstore.documents.author import TRAINING
from ckptstore.documents.let_go import LetGo
from ckptstore.documents.note import SEVERAL, Note, NoteName
from ckptstore.documents.operation import DONE_LENGTH_MAX, Operation
from ckptstore.documents.settings import BEGUN, LEASES, claim_of, renamed, with_part
from ckptstore.errors import (
    CkptStoreError,
    ConflictError,
    CorruptError,
    ExpiredError,
    NotFoundError,
    shortened,
    shown,
)
from ckptstore.history import ancestors, first_parents, own_chain
from ckptstore.metric_names import known_names
from ckptstore.revisions import is_prefix
from ckptstore.store.condemned import CondemnedError, refuse_condemned
from ckptstore.store.imported import META, as_one
from ckptstore.store.lost import refuse_without_operations
from ckptstore.store.oplog import KEPT_OPERATIONS
from ckptstore.store.undo import (
    OperationInfo,
    Undone,
    UndoPlan,
    is_undo,
    next_of_hand,
    nothing_to_undo,
    operations,
    without,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from collections.abc import Set as AbstractSet
    from typing import Any

    from ckptstore.digest import Digest
    from ckptstore.documents.author import Author
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.operation import Condemned
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.notes import Notes
    from ckptstore.store.oplog import Oplog

    Change = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # of the settings

Result = TypeVar("Result")

LEFT_MAX = 10  # more checkpoints that no ref reaches are counted, not listed


class Refs:
    """Changes the branches, tags and settings of one repository.

    now: returns UTC in microseconds since 1970. wait_for_gc: waits until a gc has deleted what was
    met, and finishes one that died. author: returns the author of an operation.
    """

    def __init__(
        self,
        oplog: Oplog,
        catalog: Catalog,
        notes: Notes,
        *,
        now: Callable[[], int],
        wait_for_gc: Callable[[Condemned | None], object],
        author: Callable[..., Author],
    ) -> None:
        self._author = author
        self._oplog = oplog
        self._catalog = catalog
        self._notes = notes
        self._now = now
        self._wait_for_gc = wait_for_gc

    def beside_gc(self, act: Callable[[], Result]) -> Result:
        """Repeat `act` until no gc condemns what it relies on, waiting for each gc to end."""
        while True:
            try:
                return act()
            except CondemnedError as error:
                self._wait_for_gc(error.condemned)

    def publish(
        self,
        manifest: Manifest,
        *,
        branch: str,
        retry: bool,
        since: Operation,
        relied: AbstractSet[Digest],
    ) -> tuple[Digest, Manifest]:
        """Make a durable state a checkpoint: store its manifest, then move the branch to it.

        The manifest is only stored when the branch is where it has to be and nothing is condemned
        that it needs, so that a commit that is late leaves none behind.

        retry: when the branch moved meanwhile, make its new head the parent; otherwise that is a
        ConflictError. since: the newest operation before any object was relied on. relied: the
        objects that the manifest reaches. CondemnedError when a gc condemned one of them.
        """
        id: Digest | None = None
        refuse = partial(refuse_condemned, self._oplog, since=since.seq, digests=relied)

        def decide(newest: Operation) -> Operation:
            nonlocal id, manifest
            parents = (newest.heads[branch],) if branch in newest.heads else ()
            if manifest.parents != parents:
                if not retry:
                    raise ConflictError(
                        f"Branch {branch!r} moved to {parents[0].short if parents else 'nothing'} "
                        "while committing. Commit again (from a new session, if it was one), "
                        "or pass retry=True."
                    )
                elapsed = self.elapsed(next(iter(parents), None), created=manifest.created)
                manifest, id = replace(manifest, parents=parents, elapsed=elapsed), None
            _check_unused(branch, newest.tags, kind="tag")
            if not parents:
                self._refuse_id(branch)
            if id is None:
                refuse(newest, ids=frozenset())
                if parents:
                    self._oplog.make_durable(newest)
                id = self._catalog.store(manifest)
            refuse(newest, ids={id})
            return replace(newest, heads={**newest.heads, branch: id})

        def done() -> str:
            assert id is not None
            return f"committed {id.short} to {branch}"

        self._append_made(decide, done, is_commit=True)
        assert id is not None
        return id, manifest

    def elapsed(self, parent: Digest | None, *, created: int) -> int | None:
        """Return the elapsed time of a new checkpoint; None if it is the first one or unknown."""
        if parent is None:
            return None
        try:
            return self._catalog.manifest(parent).elapsed_until(created)
        except CorruptError:  # the head is damaged, and the next checkpoint follows it
            return None

    def publish_derived(
        self,
        manifest: Manifest,
        *,
        branch: str,
        source: Digest,
        since: Operation,
        relied: AbstractSet[Digest],
    ) -> Digest:
        """Make a branch that begins with a checkpoint derived from another, and return its id."""

        def check(newest: Operation, id: Digest) -> None:
            refuse_condemned(self._oplog, newest, since=since.seq, digests=relied, ids={id})

        check(since, source)
        self._oplog.make_durable(self._oplog.newest())
        id = self._catalog.store(manifest)

        def decide(newest: Operation) -> Operation:
            check_new_branch(branch, newest)
            self._refuse_id(branch)
            check(newest, id)
            return replace(newest, heads={**newest.heads, branch: id})

        self._append_made(decide, f"made branch {branch} at {id.short}, from {source.short}")
        return id

    def make_branch(self, name: str, id: Digest) -> None:
        """Make a branch at a checkpoint whose manifest is durable."""

        def decide(newest: Operation) -> Operation:
            check_new_branch(name, newest)
            self._refuse_id(name)
            settings = self._placed(newest, name, id)
            return replace(newest, heads={**newest.heads, name: id}, settings=settings)

        self.beside_gc(lambda: self._append(decide, f"made branch {name} at {id.short}"))

    def delete_branch(self, name: str, *, settings: Change) -> Digest:
        """Delete a branch with its entries in the settings, and return its head.

        settings: returns settings without the entries of the branch. NotFoundError if the branch
        does not exist.
        """
        head: Digest | None = None

        def decide(newest: Operation) -> Operation:
            nonlocal head
            left = _without(newest.heads, name, kind="branch")
            head = newest.heads[name]
            return replace(newest, heads=left, settings=settings(newest.settings))

        # A function, as it is called only once the name is known to be legal.
        self._append(decide, lambda: f"deleted branch {name}", frees=True)
        assert head is not None
        return head

    def rename_branch(self, old: str, new: str) -> Digest:
        """Rename a branch with its settings, and return its head."""
        head: Digest | None = None

        def decide(newest: Operation) -> Operation:
            nonlocal head
            left = _without(newest.heads, old, kind="branch")
            check_new_branch(new, newest)
            self._refuse_id(new)
            head = newest.heads[old]
            settings = self._renamed(newest, old, new)
            return replace(newest, heads={**left, new: head}, settings=settings)

        self._append(decide, lambda: f"renamed branch {old} to {new}", moves_on=True)
        assert head is not None
        return head

    def reset_branch(self, name: str, id: Digest) -> Digest:
        """Move a branch to a checkpoint whose manifest is durable, and return its old head."""
        old: Digest | None = None

        def decide(newest: Operation) -> Operation:
            nonlocal old
            check_known(name, newest.heads, kind="branch")
            old = newest.heads[name]
            settings = self._placed(newest, name, id)
            return replace(newest, heads={**newest.heads, name: id}, settings=settings)

        def done() -> str:
            return f"reset branch {name} from {old.short if old else ''} to {id.short}"

        self.beside_gc(lambda: self._append(decide, done, frees=True))
        assert old is not None
        return old

    def _placed(self, newest: Operation, name: str, id: Digest) -> Mapping[str, Any]:
        """Return the settings after a branch was made at a checkpoint or moved to it.

        They record where its own checkpoints begin if the manifests do not tell: another branch may
        have had its name, or its own may be behind those of another branch.
        """
        begun = newest.claim_of(name).begun
        was_name = newest.was_name(name)
        if begun is None and name in newest.heads:
            if self._is_own(newest, name, id):
                return newest.settings
            begun = ()
        elif begun is None:
            if not was_name:
                return newest.settings
            begun = (id,)
        elif was_name:
            history = first_parents(id, self._catalog.readable)
            if not any(found in begun for found, _ in history):
                begun = (*begun, id)
        return with_part(newest.settings, f"{BEGUN}/{name}", list(begun))

    def _is_own(self, newest: Operation, name: str, id: Digest) -> bool:
        manifest = self._catalog.readable(id)
        return manifest is None or manifest.branch in (None, *newest.claim_of(name).names)

    def _renamed(self, newest: Operation, old: str, new: str) -> Mapping[str, Any]:
        """Return the settings after a rename. Other branches may have had the new name before."""
        start = own_chain(newest.heads[old], newest.claim_of(old), self._catalog.readable).start
        settings = renamed(newest.settings, old, new)
        begun = claim_of(settings, new).begun
        if start is None or start in (begun or ()):
            return settings
        before = self._catalog.readable(start)
        if begun is None and (before is None or before.branch != new):
            return settings
        return with_part(settings, f"{BEGUN}/{new}", [*(begun or ()), start])

    def make_tag(
        self, name: str, id: Digest, *, until: int | None = None, moves: bool = False
    ) -> None:
        """Make a tag at a checkpoint whose manifest is durable; a lease if it has an end.

        moves: whether a tag of that name moves there. If a training moves it, what it named before
        stays for no grace time: it moves on as a branch does (ADR 0057).
        """
        lease = None if until is None else {"id": id, "until": until}
        old: Digest | None = None

        def decide(newest: Operation) -> Operation:
            nonlocal old
            old = newest.tags.get(name)
            if old is not None and not moves:
                raise ConflictError(
                    f"Tag {name!r} already exists, at {newest.tags[name].short}. Choose another "
                    "name, or delete it first."
                )
            _check_unused(name, newest.heads, kind="branch")
            self._refuse_id(name)
            settings = with_part(newest.settings, f"{LEASES}/{name}", lease)
            return replace(newest, tags={**newest.tags, name: id}, settings=settings)

        kind = "tag" if lease is None else "lease"

        def done() -> str:
            if old is None:
                return f"made {kind} {name} at {id.short}"
            return f"moved {kind} {name} from {old.short} to {id.short}"

        is_training = self._author().role == TRAINING
        self.beside_gc(lambda: self._append(decide, done, moves_on=is_training))

    def delete_tag(self, name: str) -> Digest:
        """Delete a tag, and return its checkpoint; NotFoundError if there is no such tag."""
        id: Digest | None = None

        def decide(newest: Operation) -> Operation:
            nonlocal id
            left = _without(newest.tags, name, kind="tag")
            id = newest.tags[name]
            settings = with_part(newest.settings, f"{LEASES}/{name}", None)
            return replace(newest, tags=left, settings=settings)

        self._append(decide, lambda: f"deleted tag {name}", frees=True)
        assert id is not None
        return id

    def announce(self, heads: Iterable[tuple[str, str, Digest]], *, done: str) -> None:
        """Append an operation that names checkpoints which are to become live, without refs yet.

        If their writer dies before the operation that moves refs, they are like those of a deleted
        branch: a gc deletes them after the grace time.

        Args:
            heads: The kind, the name and the checkpoint of each ref to come.
            done: One line for people.
        """

        def entries(time: int) -> Iterator[LetGo]:
            for kind, name, id in heads:
                yield LetGo(id=id, name=name, way=f"{kind} moved", time=time)

        self._append(lambda newest: newest, done, entries=entries)

    def transfer(
        self,
        decide: Callable[[Operation], Operation],
        *,
        done: str,
        placed: Mapping[str, Digest],
        moves_on: bool,
        has_notes: bool,
    ) -> None:
        """Move refs to checkpoints that came from another repository.

        Args:
            decide: Returns the state with the moved refs. May be called again.
            done: One line for people.
            placed: The checkpoints of branches that had other names in that repository.
            moves_on: Whether no ref lets go of a checkpoint.
            has_notes: Whether notes came too.
        """

        def place(newest: Operation) -> Operation:
            decided = decide(newest)
            for name in decided.heads.keys() | decided.tags.keys():
                if name not in newest.heads and name not in newest.tags:
                    self._refuse_id(name)
            for name, id in placed.items():
                before = replace(newest, settings=decided.settings)
                decided = replace(decided, settings=self._placed(before, name, id))
            return decided

        self._append_made(place, done, frees=not moves_on, moves_on=moves_on, has_notes=has_notes)

    def change_settings(self, change: Change, *, done: str, frees: bool = False) -> None:
        """Replace the settings by the result of `change`. frees: as in `_append`."""

        def decide(newest: Operation) -> Operation:
            return replace(newest, settings=change(newest.settings))

        self._append(decide, done, frees=frees)

    def annotate(
        self, id: Digest, metrics: Mapping[str, int | float], message: str, *, done: str
    ) -> None:
        """Publish a note on a checkpoint."""
        note = partial(self._note, id, metrics=metrics, message=message)
        self._append(lambda newest: newest, done, note=note)

    def _note(
        self,
        id: Digest,
        *,
        metrics: Mapping[str, int | float] = MappingProxyType({}),
        message: str = "",
        withdraws: Digest | None = None,
    ) -> Note:
        return Note(
            checkpoint=id,
            metrics=metrics,
            message=message,
            time=self._now(),
            by=self._author(),
            withdraws=withdraws,
        )

    def plan_undo(self, number: int | None = None) -> UndoPlan:
        """Plan to take back an operation: the one of a number, else the newest of this user.

        If the newest operation is damaged and no number is given, the plan goes back to the newest
        readable one, and its result lists the checkpoints that no ref reaches then.
        """
        try:
            newest = self._oplog.newest()
        except CorruptError:
            if number is not None:
                raise
            damaged = OperationInfo(description="the newest operation, which is damaged")
            return UndoPlan(operation=damaged, _execute=self._step_over)
        refuse_without_operations(newest, self._oplog, self._catalog)
        found = as_one(operations(self._oplog, newest), self._is_imported)
        others: list[OperationInfo] = []
        if number is None:
            target = next_of_hand(found, self._author(), others=others)
            if target is None:
                last = next(filter(is_undo, operations(self._oplog, newest)), None)
                raise nothing_to_undo(others, last)
        else:
            target = next((info for info in found if number in (info.number, *info.members)), None)
            if target is None:
                raise NotFoundError(
                    f"There is no operation {shown(number)}. The newest is {newest.seq}, and the "
                    f"newest {KEPT_OPERATIONS} are kept."
                )
        try:
            self._undone_state(target, newest)
        except CondemnedError:  # a gc is running, and execute waits for it
            pass
        except CkptStoreError as error:
            instead = self._instead(found, newest) if number is None else ""
            raise type(error)(f"{error}{instead}") from error
        return UndoPlan(
            operation=target, others=tuple(others), _execute=partial(self._undo, target)
        )

    def _is_imported(self, id: Digest) -> bool:
        """Return whether a checkpoint came from a file of an imported folder."""
        manifest = self._catalog.readable(id)
        return manifest is not None and META in manifest.meta

    def _undo(self, target: OperationInfo) -> Undone:
        """Append the newest state with an operation's moves reversed and its note withdrawn."""
        name = NoteName.parse(target.note)
        appended = self.beside_gc(
            lambda: self._append(
                partial(self._undone_state, target),
                f"undid operation {target.number}: {target.description}",
                reverts=target.number,
                note=name and partial(self._note, name.checkpoint, withdraws=name.digest),
            )
        )
        return Undone(operation=target.number, description=target.description, redo=appended.seq)

    def _undone_state(self, target: OperationInfo, newest: Operation) -> Operation:
        """Return the state after an undo; raise the reason if it is impossible."""
        state = without(target, newest, self._oplog)
        try:
            self._check_live(newest, state)
        except ExpiredError as error:
            raise ExpiredError(
                f"Operation {target.number} ({target.description}) cannot be undone. {error}"
                f"{self._stored(target)}"
            ) from error
        return state

    def _stored(self, target: OperationInfo) -> str:
        """Name the nearest stored ancestor of each expired checkpoint that an undo would need."""
        told = ""
        for move in target.moves or ():
            if move.kind not in ("branch", "tag") or move.before is None:
                continue
            history = first_parents(move.before, self._catalog.lookup)
            nearest = next((id for id, _ in history if self._catalog.is_live(id)), None)
            if nearest is not None and nearest != move.before:
                told += f" The nearest one before it that is stored is {nearest.short}"
                if move.kind == "branch" and move.after is not None:
                    told += f", to which reset_branch moves {move.name!r}"
                told += "."
        return told

    def _instead(self, found: Iterator[OperationInfo], newest: Operation) -> str:
        """Name the next operation of this user that can be taken back."""
        while info := next_of_hand(found, self._author(), others=[]):
            with suppress(CkptStoreError, CondemnedError):
                self._undone_state(info, newest)
                return f" What can be undone is {info}, with undo({info.number})."
        return ""

    def _step_over(self) -> Undone:
        """Go back to the newest operation that can be read, and describe what was lost."""
        seq, restored = self._oplog.step_over(
            now=self._now, check=partial(self._check_live, Operation()), by=self._author()
        )
        description = f"operation {seq}, which is damaged; {self._left(restored)}"
        return Undone(operation=seq, description=description, redo=restored.seq)

    def _left(self, restored: Operation) -> str:
        """Describe the live checkpoints that no ref reaches, the last stored first."""
        live = self._catalog.live()
        reached = {id for id, _ in ancestors(restored.refs.values(), self._catalog.readable)}
        left = sorted(live.keys() - reached, key=lambda id: (-live[id], id))
        if not left:
            return "every checkpoint is reached"
        names = ", ".join(id.short for id in left[:LEFT_MAX])
        more = f" and {len(left) - LEFT_MAX} more" if len(left) > LEFT_MAX else ""
        return f"no branch or tag reaches {names}{more}: make a branch at each one to keep"

    def _refuse_id(self, name: str) -> None:
        """Raise ConflictError for a new name that is the beginning of a checkpoint's id."""
        if is_prefix(name) and (id := next(self._catalog.ids(name), None)):
            raise ConflictError(
                f"{name!r} names checkpoint {id.short} already, whose id begins so. Choose another "
                "name."
            )

    def _append_made(
        self,
        decide: Callable[[Operation], Operation],
        done: str | Callable[[], str],
        is_commit: bool = False,
        frees: bool = False,
        moves_on: bool = False,
        has_notes: bool = False,
    ) -> None:
        """Append an operation that refers to checkpoints that were stored a moment ago."""
        try:
            self._append(
                decide,
                done,
                is_commit=is_commit,
                is_stored=True,
                frees=frees,
                moves_on=moves_on,
                has_notes=has_notes,
            )
        except ExpiredError as error:  # a gc came after `decide` had seen none
            raise CondemnedError from error

    def _append(
        self,
        decide: Callable[[Operation], Operation],
        done: str | Callable[[], str],
        *,
        frees: bool = False,
        is_commit: bool = False,
        is_stored: bool = False,
        moves_on: bool = False,
        reverts: int | None = None,
        note: Callable[[], Note] | None = None,
        has_notes: bool = False,
        entries: Callable[[int], Iterable[LetGo]] = lambda time: (),
    ) -> Operation:
        """Append an operation with its facts, and return it; what it newly names must be live.

        frees: whether a gc can free something because of it, so that it may use the gc's reserve.
        is_commit: whether a branch moves on to a child of its head. is_stored: whether all it newly
        names was stored a moment ago, and no operation since has condemned it. moves_on: whether
        names move on in another way that lets nothing go: a rename, or a tag that a training moves.
        reverts: the number of the operation that it takes back. note: makes a note durable before
        the operation names it. has_notes: whether it publishes several, which are durable. entries:
        returns entries to add for checkpoints without a ref.
        """
        stored: NoteName | None = None

        def complete(newest: Operation) -> Operation:
            nonlocal stored
            decided = decide(newest)
            if not (is_stored and self._catalog.is_far):  # a gc since then would be an operation
                self._check_live(newest, decided)
            if note is not None and stored is None:
                stored = self._notes.store(note(), seq=newest.seq + 1)
            text = done if isinstance(done, str) else done()
            time = self._now()
            before = replace(newest, let_go=(*newest.let_go, *entries(time)))
            return decided.after(before, time=time, moves_on=is_commit or moves_on).stamped(
                time=time,
                done=shortened(text, DONE_LENGTH_MAX),
                by=self._author(is_commit=is_commit),
                undoes=self._restored_by(decided, reverts),
                reverts=reverts,
                note=SEVERAL if has_notes else None if stored is None else str(stored),
            )

        return (self._oplog.append_in_reserve if frees else self._oplog.append)(complete)

    def _restored_by(self, decided: Operation, reverts: int | None) -> int | None:
        """Return the number of an operation if undoing it restores the whole state before it."""
        if reverts is not None:
            with suppress(NotFoundError, CorruptError):
                before = self._oplog.before(reverts, decided)
                return reverts if before.state == decided.state else None
        return None

    def _check_live(self, newest: Operation, decided: Operation) -> None:
        """Raise ExpiredError when a branch or tag would name a checkpoint without arrays."""
        known = set(newest.refs.values())
        for id in dict.fromkeys(decided.refs.values()):
            if id not in known:
                if newest.condemned and id in newest.condemned.checkpoints:
                    raise CondemnedError(newest.condemned)
                self._catalog.refuse_expired(id)


def check_new_branch(name: str, newest: Operation) -> None:
    """Raise ConflictError when a branch or a tag has this name."""
    if name in newest.heads:
        raise ConflictError(
            f"Branch {name!r} already exists, at {newest.heads[name].short}. Choose another "
            "name, or delete it first."
        )
    _check_unused(name, newest.tags, kind="tag")


def check_known(name: object, refs: Mapping[str, Digest], *, kind: str) -> None:
    """Raise NotFoundError, listing the known names, when there is no such branch or tag."""
    if not isinstance(name, str) or name not in refs:
        plural = "branches" if kind == "branch" else f"{kind}s"
        known = f"The repository has no {plural}."
        if refs:
            known = known_names(name if isinstance(name, str) else "", sorted(refs), what=plural)
        raise NotFoundError(f"There is no {kind} {shown(name)}. {known}")


def _check_unused(name: str, others: Mapping[str, Digest], *, kind: str) -> None:
    """Raise ConflictError when the name is in use: it never means both a branch and a tag."""
    if name in others:
        raise ConflictError(
            f"{name!r} is already a {kind}. Choose another name, or delete the {kind}."
        )


def _without(refs: Mapping[str, Digest], name: str, *, kind: str) -> dict[str, Digest]:
    check_known(name, refs, kind=kind)
    return {other: id for other, id in refs.items() if other != name}
