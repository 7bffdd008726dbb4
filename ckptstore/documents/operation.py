"""Operation: one entry of the repository's own log, holding the whole mutable state after it.

The newest operation is the truth: which branches and tags there are, the settings, and what gc has
condemned (docs/reference/format.md, section 8).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from ckptstore.digest import Digest
from ckptstore.documents import sealed
from ckptstore.documents.author import Author
from ckptstore.documents.canonical import Fields
from ckptstore.documents.expiry import WHY_LENGTH_MAX
from ckptstore.documents.let_go import LET_GO_MAX, LetGo, let_go, limited
from ckptstore.documents.manifest import CREATED_MAX
from ckptstore.documents.ref_page import check_page_name, decode_refs
from ckptstore.documents.settings import (
    LEASES,
    RENAMED,
    RESUMED,
    by_name,
    claim_of,
    former_names,
    mirrored_of,
    with_part,
)
from ckptstore.errors import CorruptError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ckptstore.documents.settings import Claim, Mirrored

OPERATION_BYTES_MAX = 4 << 20  # names of 50,000 pages of refs; operations are read whole
PAGED_FORMAT = 2  # of operations with pages of refs, which earlier versions refuse
SEQ_MAX = 10**12 - 1  # twelve digits in the file's name
DONE_LENGTH_MAX = 1 << 16
OWNER_LENGTH_MAX = 64
NOTE_NAME_LENGTH_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Condemned:
    """The checkpoints and objects that a running gc will delete (ADR 0020).

    Attributes:
        checkpoints: Those that are about to expire.
        digests: The objects.
        why: The reason that the expiries of the checkpoints record.
        owner: A random text that names the gc; "" in entries of versions that wrote none.
        since: The number of the operation that condemned just this, carried along by later ones;
            0 without an owner.
    """

    checkpoints: tuple[Digest, ...] = ()
    digests: tuple[Digest, ...] = ()
    why: str = ""
    owner: str = ""
    since: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form inside an operation."""
        form: dict[str, Any] = {
            "checkpoints": self.checkpoints,
            "digests": self.digests,
            "why": self.why,
        }
        return form | {"owner": self.owner, "since": self.since} if self.owner else form

    @classmethod
    def from_json(cls, document: object, *, name: str, seq: int) -> Self:
        """Check every field. seq: the number of the operation that carries the entry."""
        fields = Fields(document, name=name)
        owner, since = "", 0
        if "owner" in fields.document or "since" in fields.document:
            owner = fields.text("owner", length_max=OWNER_LENGTH_MAX)
            since = fields.integer("since", low=1, high=seq)
            if not owner:
                raise CorruptError(f"{name}: the owner has no name.")
        return cls(
            owner=owner,
            since=since,
            checkpoints=fields.digests("checkpoints"),
            digests=fields.digests("digests"),
            why=fields.text("why", length_max=WHY_LENGTH_MAX),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """The mutable state of a repository after one operation.

    Attributes:
        seq: The number of the operation; 0 before the first.
        nonce: Random text by which a writer recognises its own operation after a lost answer.
        time: UTC in microseconds since 1970.
        heads: The id of the newest checkpoint of each branch, by name.
        tags: The id of the checkpoint of each tag, by name.
        settings: Plain JSON by name, such as the saved retention policy.
        condemned: What a running gc may delete; None when no gc runs.
        done: One line for people saying what this operation did.
        let_go: The checkpoints that lost a name by this and earlier operations. A gc counts the
            grace time from then.
        undoes: The number of the operation that this one took back by restoring the whole state
            before it, as earlier versions always do.
        reverts: The number of the operation that this one took back.
        by: The process that appended it; None in operations of versions that did not record it.
        note: The name of the note that it published.
        head_pages: The names of the pages that hold the branches; empty when the operation does.
        tag_pages: The same of the tags.
    """

    seq: int = 0
    nonce: str = ""
    time: int = 0
    heads: Mapping[str, Digest] = field(default_factory=dict)
    tags: Mapping[str, Digest] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    condemned: Condemned | None = None
    done: str = ""
    undoes: int | None = None
    let_go: tuple[LetGo, ...] = ()
    reverts: int | None = None
    by: Author | None = None
    note: str | None = None
    head_pages: tuple[str, ...] = ()
    tag_pages: tuple[str, ...] = ()

    @property
    def refs(self) -> dict[str, Digest]:
        """Branches and tags together; a branch hides a tag of the same name."""
        return {**self.tags, **self.heads}

    @property
    def state(self) -> tuple[object, ...]:
        """The part of the state that an undo may restore."""
        return dict(self.heads), dict(self.tags), dict(self.settings)

    def after(self, newest: Operation, *, time: int, moves_on: bool = False) -> Self:
        """Return this state with entries for the checkpoints that lost a name since `before`.

        The end of a lease adds no entry: the lease itself said how long it keeps its checkpoint.
        moves_on: True for a commit, whose old head is the parent of the new one, and for a rename.
        """
        leases = newest.leases
        tags = {name: id for name, id in newest.tags.items() if name not in leases}
        entries = (
            []
            if moves_on
            else [
                *let_go(newest.heads, self.heads, kind="branch", time=time),
                *let_go(tags, self.tags, kind="tag", time=time),
            ]
        )
        if not entries and not newest.let_go:
            return replace(self, let_go=())
        refs = self.refs
        kept = [
            entry
            for entry in (*newest.let_go, *entries)
            if entry.id is None or refs.get(entry.name) != entry.id
        ]
        return replace(self, let_go=limited(kept))

    @property
    def took_back(self) -> int | None:
        """The number of the operation that this one took back, recorded by any version."""
        return self.undoes if self.reverts is None else self.reverts

    def claim_of(self, branch: str) -> Claim:
        """Return which checkpoints in the history of a branch are its own."""
        return claim_of(self.settings, branch)

    def was_name(self, name: str) -> bool:
        """Whether a branch had this name before it was renamed."""
        return any(
            name in former_names(self.settings, branch)
            for branch in by_name(self.settings, RENAMED)
            if branch in self.heads and branch != name
        )

    @property
    def leases(self) -> dict[str, int]:
        """The tags that are leases, each with its end in microseconds since 1970."""
        return {
            name: entry["until"]
            for name, entry in by_name(self.settings, LEASES).items()
            if name in self.tags
            and isinstance(entry, dict)
            and entry.get("id") == self.tags[name]
            and type(entry.get("until")) is int
        }

    @property
    def resumed(self) -> dict[str, Digest]:
        """The checkpoints that runs were resumed from, by branch, beside those in its history."""
        found: dict[str, Digest] = {}
        for name, text in by_name(self.settings, RESUMED).items():
            if name in self.heads:
                with suppress(InvalidInputError):
                    found[name] = Digest.parse(text)
        return found

    @property
    def mirrored(self) -> dict[str, Mirrored]:
        """The mirrors of branches that exist, by branch."""
        found = mirrored_of(self.settings)
        return {name: entry for name, entry in found.items() if name in self.heads}

    def at(self, now: Callable[[], int]) -> Self:
        """Return this state without ended leases. now: called only if there are leases."""
        leases = self.leases
        if not leases:
            return self
        time = now()
        ended = {name for name, until in leases.items() if until <= time}
        settings = self.settings
        for name in ended:
            settings = with_part(settings, f"{LEASES}/{name}", None)
        tags = {name: id for name, id in self.tags.items() if name not in ended}
        return replace(self, tags=tags, settings=settings) if ended else self

    def stamped(
        self,
        *,
        time: int,
        done: str,
        by: Author | None,
        undoes: int | None = None,
        reverts: int | None = None,
        note: str | None = None,
    ) -> Self:
        """Return this state with the time, description and author of a new operation."""
        return replace(self, time=time, done=done, by=by, undoes=undoes, reverts=reverts, note=note)

    def encode(self) -> bytes:
        """Encode to the bytes of ops/<seq>.json. What is in pages is not encoded."""
        document: dict[str, Any] = {
            "format": PAGED_FORMAT if self.head_pages or self.tag_pages else 1,
            "seq": self.seq,
            "nonce": self.nonce,
            "time": self.time,
            "heads": {} if self.head_pages else self.heads,
            "tags": {} if self.tag_pages else self.tags,
            "settings": self.settings,
            "condemned": self.condemned,
            "done": self.done,
            "undoes": self.undoes,
        }
        if self.let_go:
            document["let_go"] = self.let_go
        if self.by is not None:
            document["by"] = self.by
        if self.reverts is not None:
            document["reverts"] = self.reverts
        if self.note is not None:
            document["note"] = self.note
        if self.head_pages or self.tag_pages:
            document |= {"head_pages": self.head_pages, "tag_pages": self.tag_pages}
        return sealed.seal("operation", document, bytes_max=OPERATION_BYTES_MAX)

    @classmethod
    def decode(cls, data: bytes, *, name: str) -> Self:
        """Decode an operation, without the refs that are in pages.

        Raises:
            CorruptError: A field is missing, or not what format.md allows.
            InvalidInputError: A newer version wrote it.
        """
        fields = Fields(sealed.unseal("operation", data, name=name), name=name)
        is_paged = fields.version(newest=PAGED_FORMAT) == PAGED_FORMAT
        seq = fields.integer("seq", low=1, high=SEQ_MAX)
        return cls(
            seq=seq,
            nonce=fields.text("nonce", length_max=64),
            time=fields.integer("time", high=CREATED_MAX),
            heads=decode_refs(fields.object("heads"), kind="branch", name=name),
            tags=decode_refs(fields.object("tags"), kind="tag", name=name),
            note=fields.optional("note", partial(fields.text, length_max=NOTE_NAME_LENGTH_MAX)),
            head_pages=_pages(fields, "head_pages") if is_paged else (),
            tag_pages=_pages(fields, "tag_pages") if is_paged else (),
            settings=fields.object("settings"),
            condemned=_condemned(fields, seq=seq),
            done=fields.text("done", length_max=DONE_LENGTH_MAX),
            undoes=fields.integer_or_none("undoes", low=1, high=seq - 1),
            let_go=fields.optional("let_go", partial(_let_go, fields)) or (),
            reverts=fields.optional(
                "reverts", lambda key: fields.integer(key, low=1, high=seq - 1)
            ),
            by=fields.optional(
                "by", lambda key: Author.from_json(fields.get(key), name=f"{fields.name}, {key}")
            ),
        )


def _condemned(fields: Fields, *, seq: int) -> Condemned | None:
    document = fields.get("condemned")
    if document is None:
        return None
    return Condemned.from_json(document, name=f"{fields.name}, condemned", seq=seq)


def _let_go(fields: Fields, key: str) -> tuple[LetGo, ...]:
    name = f"{fields.name}, {key}"
    return tuple(LetGo.from_json(item, name=name) for item in fields.array(key, high=LET_GO_MAX))


def _pages(fields: Fields, key: str) -> tuple[str, ...]:
    return tuple(check_page_name(text, name=fields.name) for text in fields.array(key))
