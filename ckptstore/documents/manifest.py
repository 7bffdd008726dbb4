"""Manifest: the small immutable document that describes one checkpoint. Its digest is the id.

Everything a commit records about a checkpoint is here, except the arrays (listed by pages) and the
structure (an object of its own). Whether a checkpoint is live or expired is a matter of the folder
its manifest is in, and which branches point at it a matter of operations, so neither is recorded.

Described in docs/reference/format.md, section 9. `new_bytes` is ADR 0004, `hierarchy` ADR 0016 and
`branch` ADR 0021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from ckptstore.documents import canonical
from ckptstore.documents.canonical import Fields, check_digest, check_integer
from ckptstore.documents.facts import MESSAGE_LENGTH_MAX, METRICS_MAX, STEP_MAX, check_meta
from ckptstore.documents.names import PATH_LENGTH_MAX, check_metric_name, check_ref_name
from ckptstore.errors import CorruptError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptstore.digest import Digest

MANIFEST_BYTES_MAX = 16 << 20
PAGES_MAX = 1 << 14  # of at least 32 arrays each: more than a structure can name
PARENTS_MAX = 16
CREATED_MAX = 253_402_300_799_999_999  # the last microsecond of the year 9999

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_KNOWN = frozenset(
    {
        "format",
        "pages",
        "structure",
        "hierarchy",
        "parents",
        "branch",
        "step",
        "metrics",
        "message",
        "created",
        "new_bytes",
        "meta",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRef:
    """A page as the manifest lists it, with enough about it to skip it without reading it.

    Attributes:
        first: Path of the first array, or of the first Zarr node.
        digest: The page.
        arrays: How many arrays the page lists. Zarr groups are not counted.
        bytes: Size of these arrays; of Zarr nodes, the size of all their values as encoded.
    """

    first: str
    digest: Digest
    arrays: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One checkpoint: the digests of its contents, and the facts recorded about it.

    Attributes:
        pages: The pages that list its arrays, in path order.
        structure: The object that holds everything in the state except the arrays.
        hierarchy: The pages of Zarr nodes; None for a checkpoint not committed through Zarr.
        parents: Ids of the checkpoints it was made from; empty for the first of a history.
        branch: The branch it was committed to; None for a checkpoint made before this was recorded.
        step: The training step.
        metrics: Numbers by name.
        message: Text for people.
        created: Time of the commit, UTC, in microseconds since 1970.
        new_bytes: Bytes of the objects this commit had to store.
        meta: Plain JSON supplied by the user.
        other: Fields of later versions, kept so that moving a manifest never changes its bytes.
    """

    pages: tuple[PageRef, ...]
    structure: Digest
    hierarchy: tuple[PageRef, ...] | None = None
    parents: tuple[Digest, ...] = ()
    branch: str | None = None
    step: int | None = None
    metrics: Mapping[str, int | float] = field(default_factory=dict)
    message: str = ""
    created: int = 0
    new_bytes: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)
    other: Mapping[str, Any] = field(default_factory=dict)

    @property
    def refs(self) -> tuple[PageRef, ...]:
        """All pages, those of Zarr nodes last."""
        return (*self.pages, *(self.hierarchy or ()))

    @property
    def array_bytes(self) -> int:
        """Bytes of all arrays; arrays committed through Zarr count as encoded."""
        return sum(ref.bytes for ref in self.refs)

    def documents(self) -> set[Digest]:
        """The digests that the manifest itself names: its structure and its pages."""
        return {self.structure, *(ref.digest for ref in self.refs)}

    def encode(self) -> bytes:
        """Return the canonical bytes whose digest is the checkpoint's id."""
        document: dict[str, Any] = {
            "format": 1,
            "pages": [_ref_to_json(ref) for ref in self.pages],
            "structure": self.structure,
            "parents": list(self.parents),
            "step": self.step,
            "metrics": {name: _metric_to_json(value) for name, value in self.metrics.items()},
            "message": self.message,
            "created": self.created,
            "new_bytes": self.new_bytes,
            "meta": self.meta,
            **self.other,
        }
        if self.branch is not None:
            document["branch"] = self.branch
        if self.hierarchy is not None:
            document["hierarchy"] = [_ref_to_json(ref) for ref in self.hierarchy]
        return canonical.encode(document, name="The manifest", bytes_max=MANIFEST_BYTES_MAX)

    @classmethod
    def decode(cls, data: bytes, *, name: str) -> Self:
        """Decode a manifest and check every field.

        Raises:
            CorruptError: A field is missing, of the wrong type or out of range.
            InvalidInputError: A newer version wrote the manifest.
        """
        fields = Fields(canonical.decode(data, name=name, bytes_max=MANIFEST_BYTES_MAX), name=name)
        if fields.integer("format", low=1) != 1:
            raise InvalidInputError(f"{name} was written by a newer ckptstore. Upgrade to read it.")
        step = fields.get("step")
        parents = fields.array("parents")
        if len(fields.array("pages")) > PAGES_MAX:
            raise CorruptError(f"{name} has more than {PAGES_MAX} pages.")
        if len(parents) > PARENTS_MAX:
            raise CorruptError(
                f"{name} has {len(parents)} parents; at most {PARENTS_MAX} are allowed."
            )
        return cls(
            pages=tuple(_page_ref(item, name=name) for item in fields.array("pages")),
            structure=check_digest(fields.get("structure"), name=name),
            hierarchy=_hierarchy(fields, name=name),
            parents=tuple(check_digest(parent, name=name) for parent in parents),
            branch=_branch(fields, name=name),
            step=None if step is None else fields.integer("step", low=-STEP_MAX, high=STEP_MAX),
            metrics=_metrics_from_json(fields.object("metrics"), name=name),
            message=fields.text("message", length_max=MESSAGE_LENGTH_MAX),
            created=fields.integer("created", high=CREATED_MAX),
            new_bytes=fields.integer("new_bytes"),
            meta=_meta_from_json(fields.object("meta"), name=name),
            other={key: value for key, value in fields.document.items() if key not in _KNOWN},
        )


def _metric_to_json(value: int | float) -> int | float | str:
    if isinstance(value, int) or math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")


def _metrics_from_json(document: dict[str, Any], *, name: str) -> dict[str, int | float]:
    if len(document) > METRICS_MAX:
        raise CorruptError(f"{name} has more than {METRICS_MAX} metrics.")
    try:
        return {
            check_metric_name(key): _metric_from_json(value, name=name)
            for key, value in document.items()
        }
    except InvalidInputError as error:
        raise CorruptError(f"{name}: {error}") from error


def _metric_from_json(value: object, *, name: str) -> int | float:
    if isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    if type(value) is float or (type(value) is int and abs(value) <= STEP_MAX):
        return value
    raise CorruptError(f"{name} holds a metric that is not a number of at most 63 bits.")


def _meta_from_json(document: dict[str, Any], *, name: str) -> dict[str, Any]:
    try:
        return check_meta(document)
    except InvalidInputError as error:
        raise CorruptError(f"{name}: {error}") from error


def _ref_to_json(ref: PageRef) -> dict[str, Any]:
    return {"first": ref.first, "digest": ref.digest, "arrays": ref.arrays, "bytes": ref.bytes}


def _page_ref(document: object, *, name: str, arrays_min: int = 1) -> PageRef:
    fields = Fields(document, name=f"{name}, page")
    return PageRef(
        first=fields.text("first", length_max=PATH_LENGTH_MAX),
        digest=check_digest(fields.get("digest"), name=name),
        arrays=check_integer(fields.get("arrays"), name=f"{name}: arrays", low=arrays_min),
        bytes=fields.integer("bytes"),
    )


def _branch(fields: Fields, *, name: str) -> str | None:
    if "branch" not in fields.document:
        return None
    try:
        return check_ref_name(fields.get("branch"), kind="branch")
    except InvalidInputError as error:
        raise CorruptError(f"{name}: {error}") from error


def _hierarchy(fields: Fields, *, name: str) -> tuple[PageRef, ...] | None:
    if "hierarchy" not in fields.document:
        return None
    listed = fields.array("hierarchy")
    if len(listed) > PAGES_MAX:
        raise CorruptError(f"{name} has more than {PAGES_MAX} pages of Zarr nodes.")
    return tuple(_page_ref(item, name=f"{name}, hierarchy", arrays_min=0) for item in listed)
