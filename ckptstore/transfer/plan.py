"""Plan: what a transfer will copy and move, and its execution.

Nothing becomes visible before the one operation at the end. Everything it refers to is durable by
then: objects first, then manifests. A transfer that is killed leaves garbage, which the next one
uses and a gc deletes (docs/adr/0061).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from ckptstore.documents.expiry import Expiry
from ckptstore.documents.settings import (
    BEGUN,
    MIRRORED,
    RENAMED,
    Mirrored,
    parts,
    with_part,
    without_branch,
)
from ckptstore.errors import ConflictError, CorruptError, InvalidInputError, NotFoundError
from ckptstore.retention import policy_parts, with_policy
from ckptstore.store.condemned import refuse_condemned
from ckptstore.threads import gather
from ckptstore.transfer.copying import copy_objects
from ckptstore.transfer.lacking import Lacking, find_lacking
from ckptstore.transfer.moves import RefMove, moves
from ckptstore.transfer.side import Sides

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ckptstore.digest import Digest
    from ckptstore.documents.note import NoteName
    from ckptstore.documents.operation import Operation
    from ckptstore.store.meter import Meter
    from ckptstore.transfer.side import Side
    from ckptstore.transfer.wanted import Named, Wanted

ATTEMPTS_MAX = 20  # each lost one means that another writer moved one of the refs
NAMES_MAX = 5  # of refs, in the description of an operation


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferReport:
    """The result of a transfer.

    Attributes:
        source: The URL of the repository that was read.
        target: The URL of the repository that was changed.
        checkpoints: The checkpoints that were copied with their arrays, the newest first.
        expired: Those of which only step, metrics and lineage were copied.
        objects: How many objects were sent.
        bytes: The bytes of these.
        notes: How many notes were copied.
        policies: How many saved policies were copied.
        moves: The branches and tags that were made, moved or deleted.
    """

    source: str
    target: str
    checkpoints: tuple[Digest, ...] = ()
    expired: tuple[Digest, ...] = ()
    objects: int = 0
    bytes: int = 0
    notes: int = 0
    policies: int = 0
    moves: tuple[RefMove, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferPlan(TransferReport):
    """What a transfer will do, unless the repositories change meanwhile.

    Attributes:
        source: The URL of the repository that is read.
        target: The URL of the repository that is changed.
        checkpoints: The checkpoints to copy with their arrays, the newest first.
        expired: Those of which only step, metrics and lineage are copied.
        objects: How many objects are sent.
        bytes: The bytes of these.
        notes: How many notes are copied.
        policies: How many saved policies are copied.
        moves: The branches and tags that are made, moved or deleted.
    """

    _work: _Work = field(repr=False, compare=False)

    def execute(self) -> TransferReport:
        """Copy what the plan names, then move the refs by one operation.

        If the repositories changed meanwhile, it is planned again.

        Returns:
            What was done in the end.

        Raises:
            ConflictError: A branch of the target moved, and not to what the source has.
            CorruptError: An object of the source is damaged. Nothing of it was made visible.
        """
        return self._work.execute()


class MovedError(Exception):
    """A ref of the target moved since the plan, or a checkpoint of the source expired."""


def plan_transfer(source: Side, target: Side, wanted: Wanted, *, meter: Meter) -> TransferPlan:
    """Plan to copy what is wanted of a source to a target.

    Args:
        source: Where to read.
        target: Where to write.
        wanted: The refs, and how much of their history.
        meter: Counts the bytes that are copied.

    Raises:
        ConflictError: A branch of the target would not move forward.
        InvalidInputError: Both are one repository.
        NotFoundError: There is no such branch or tag.
    """
    if source.storage.url == target.storage.url:
        raise InvalidInputError(f"{source.place} is the repository itself.")
    work = _Work(source, target, wanted, meter)
    return work.plan


class _Work:
    """One plan after another, until one is carried out."""

    def __init__(self, source: Side, target: Side, wanted: Wanted, meter: Meter) -> None:
        self._source, self._target, self._wanted, self._meter = source, target, wanted, meter
        self._is_current = False
        self._look(target.oplog.newest_listed())

    def execute(self) -> TransferReport:
        """Carry out the plan, and make another when something came between."""
        for _ in range(ATTEMPTS_MAX):
            try:
                self._target.refs.beside_gc(self._attempt)
            except MovedError:
                continue
            plan = self.plan
            self._note_mirrored()
            names = (name for name in TransferReport.__slots__)
            return TransferReport(**{name: getattr(plan, name) for name in names})
        raise ConflictError(
            f"{self._target.place} changed {ATTEMPTS_MAX} times meanwhile. Retry when fewer write."
        )

    def _attempt(self) -> None:
        if not self._is_current:
            self._look(self._target.oplog.newest())
        self._is_current = False
        try:
            self._copy()
        except (CorruptError, NotFoundError) as error:
            catalog = self._source.catalog
            if any(not catalog.is_live(id) for id in self._lacking.whole):
                raise MovedError from error  # a gc deleted it meanwhile
            raise
        self._publish()

    def _look(self, newest: Operation) -> None:
        """Make the plan from what is there now. newest: the newest operation of the target."""
        source, target, wanted = self._source, self._target, self._wanted
        self._since = newest
        self._from = source.oplog.newest()
        self._sides = sides = Sides(source, target)
        named = wanted.named(source, self._from)
        if wanted.tags is None and not wanted.mirror:
            named = self._followed(named)
        self._named = {item.name: item.id for item in named if item.name == item.source}
        self._moves = tuple(moves(wanted, named, sides, newest))
        # The heads of refs that do not move may be behind those of the target.
        starts = [move.after for move in self._moves if move.after]
        if wanted.depth is not None:
            starts += [item.id for item in named if item.id in newest.refs.values()]
        self._starts = tuple(dict.fromkeys(starts))
        self._lacking = lacking = Lacking()
        if self._starts:
            self._lacking = lacking = find_lacking(self._starts, sides, newest, depth=wanted.depth)
        self._notes = self._lacking_notes({item.id for item in named})
        self._policies = self._lacking_policies(named)
        self._is_current = True
        self.plan = TransferPlan(
            source=source.storage.url,
            target=target.storage.url,
            checkpoints=tuple(lacking.whole),
            expired=tuple(lacking.history),
            objects=len(lacking.objects),
            bytes=sum(lacking.objects.values()),
            notes=len(self._notes),
            policies=len(self._policies),
            moves=self._moves,
            _work=self,
        )

    def _followed(self, named: list[Named]) -> list[Named]:
        """Leave out the tags that only follow and are not in the history of what is wanted."""
        tags = [item for item in named if item.is_followed]
        new = [item for item in tags if self._since.tags.get(item.name) != item.id]
        if not new:
            return [item for item in named if not item.is_followed]
        asked = [item for item in named if not item.is_followed]
        history = self._sides.history(item.id for item in asked)
        return [*asked, *(item for item in new if item.id in history)]

    def _lacking_notes(self, ids: set[Digest]) -> tuple[NoteName, ...]:
        """Return the notes on what is wanted and its history that the target lacks."""
        ours = self._source.notes.names(self._from)
        if not ours:
            return ()
        theirs = {name for name, _ in self._target.notes.list() if name}
        lacking = sorted(ours - theirs)
        if not lacking:
            return ()
        history = self._sides.history(ids)
        return tuple(name for name in lacking if name.checkpoint in history)

    def _lacking_policies(self, named: list[Named]) -> dict[str, Any]:
        """Return the parts of the settings with the policies that the target is to get."""
        if not self._wanted.policies:
            return {}
        chosen = {item.source: item.name for item in named if item.kind == "branch"}
        is_all = self._wanted.branches is None and not self._wanted.under
        found = policy_parts(self._from.settings, None if is_all else chosen)
        known = parts(self._since.settings)
        return {name: document for name, document in found.items() if known.get(name) != document}

    def _copy(self) -> None:
        """Make all durable that the operation will refer to."""
        lacking, target = self._lacking, self._target
        copy_objects(lacking.objects, lacking.documents, self._sides, self._meter)
        target.objects.flush([*lacking.objects, *lacking.in_place])
        threads = self._sides.threads
        source = self._source
        past = dict(gather([partial(self._expired, id) for id in lacking.history], threads=threads))
        whole = {id: source.catalog.document(id) for id in lacking.whole}
        if lacking.is_chain:
            past |= {id: (data, None) for id, data in whole.items()}
        if past:
            target.catalog.take_expired(past, threads=threads)
        if lacking.revived:
            self._let_walks_in()
        if self._notes:
            documents = gather(
                [partial(source.notes.document, name) for name in self._notes], threads=threads
            )
            target.notes.take(dict(zip(self._notes, documents, strict=True)), threads=threads)
        if lacking.is_chain:
            # Live checkpoints that others were made from, and that no operation names, would be
            # those of a copy that was cut short. From here on, this operation names their heads,
            # and the history leads from there to the others.
            heads = [(move.kind, move.name, move.after) for move in self._moves if move.after]
            target.refs.announce(heads, done="a transfer began")
        if whole:
            target.catalog.take(whole, threads=threads)

    def _expired(self, id: Digest) -> tuple[Digest, tuple[bytes, Expiry | None]]:
        """Return the manifest of a checkpoint that becomes history, and its expiry.

        What the source knows of nearest ancestors does not hold at the target, which may have
        others.
        """
        expiry = None
        if id not in self._lacking.left_behind:
            expiry = self._source.catalog.expiry(id)
        if expiry is None:
            why = "It was left behind by a transfer"
            depth = self._wanted.depth
            why += "." if depth is None else f" with depth {depth}."
            expiry = Expiry(time=self._target.now(), why=why, by=self._target.author())
        return id, (self._source.catalog.document(id), replace(expiry, ancestors=None))

    def _let_walks_in(self) -> None:
        """Correct expiries at the target that name no nearest ancestor but one comes back."""
        catalog = self._target.catalog
        changed: dict[Digest, tuple[bytes, Expiry | None]] = {}
        for id in self._sides.history(self._starts) - self._lacking.whole.keys():
            if id not in self._sides.live_at_target and id not in self._lacking.history:
                expiry = catalog.expiry(id)
                if expiry is not None and expiry.ancestors is not None:
                    changed[id] = catalog.document(id), replace(expiry, ancestors=None)
        catalog.take_expired(changed, threads=self._target.threads)

    def _publish(self) -> None:
        """Move the refs, by one operation."""
        lacking = self._lacking
        if not (self._moves or self._notes or self._policies or lacking.whole or lacking.history):
            return
        ids = {*lacking.base, *lacking.whole, *self._starts}

        def decide(newest: Operation) -> Operation:
            self._refuse_moved(newest)
            refuse_condemned(
                self._target.oplog,
                newest,
                since=self._since.seq,
                digests=lacking.relied,
                ids=ids,
            )
            return replace(
                newest,
                heads=self._moved(newest.heads, "branch"),
                tags=self._moved(newest.tags, "tag"),
                settings=self._settings(newest.settings),
            )

        if self._since.seq:
            self._target.oplog.make_durable(self._since)
        self._target.refs.transfer(
            decide,
            done=self._done(),
            placed={
                move.name: move.after
                for move in self._moves
                if move.kind == "branch" and move.after and move.name != move.source
            },
            moves_on=not any(move.is_forced for move in self._moves),
            has_notes=bool(self._notes),
        )
        if past := lacking.whole if lacking.is_chain else lacking.revived:
            self._target.catalog.revive(past)

    def _refuse_moved(self, newest: Operation) -> None:
        """Raise MovedError unless every ref is where the plan found it."""
        for move in self._moves:
            refs, others = newest.heads, newest.tags
            if move.kind == "tag":
                refs, others = others, refs
            if refs.get(move.name) != move.before:
                raise MovedError
            is_freed = any(other.name == move.name and other.after is None for other in self._moves)
            if move.after and move.name in others and not is_freed:
                raise MovedError

    def _moved(self, refs: Mapping[str, Digest], kind: str) -> dict[str, Digest]:
        result = dict(refs)
        for move in self._moves:
            if move.kind == kind:
                result.pop(move.name, None)
                if move.after:
                    result[move.name] = move.after
        return result

    def _settings(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the settings with what tells the own checkpoints of each branch."""
        known = parts(self._from.settings)
        for move in self._moves:
            if move.kind != "branch":
                continue
            if move.after is None:
                settings = with_policy(settings, branch=move.name, policy=None)
                settings = without_branch(settings, move.name)
            if move.name == move.source or move.after is None:
                for key in (RENAMED, BEGUN):
                    part = f"{key}/{move.name}"
                    settings = with_part(settings, part, known.get(part) if move.after else None)
        for name, document in self._policies.items():
            settings = with_part(settings, name, document)
        return settings

    def _note_mirrored(self) -> None:
        """Record at the source what of its branches is in their mirror now."""
        url, ids = self._target.storage.url, self._named
        changed = {
            name: Mirrored(url=url, id=ids[name]).to_json()
            for name, entry in self._from.mirrored.items()
            if entry.url == url and name in ids and entry.id != ids[name]
        }

        def change(settings: Mapping[str, Any]) -> Mapping[str, Any]:
            for name, entry in changed.items():
                settings = with_part(settings, f"{MIRRORED}/{name}", entry)
            return settings

        if changed and not self._wanted.is_pull:
            done = f"noted that {', '.join(changed)} is in the mirror"
            self._source.refs.change_settings(change, done=done, frees=True)

    def _done(self) -> str:
        """Describe the transfer for the log of operations."""
        names = [move.name for move in self._moves]
        listed = ", ".join(names[:NAMES_MAX]) + (", …" if len(names) > NAMES_MAX else "")
        what = listed or (
            f"{len(self._notes)} notes"
            if self._notes
            else "policies"
            if self._policies
            else "checkpoints"
        )
        return f"{self._wanted.verb} {what}"
