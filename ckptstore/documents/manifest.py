"""Manifest: the small immutable document that describes one checkpoint. Its digest is the id.

Everything a commit records about a checkpoint is here, except the arrays (listed by pages) and the
structure (an object of its own). Whether a checkpoint is live or expired is a matter of the folder
its manifest is in, and which branches point at it a matter of operations, so neither is recorded.

Described in docs/reference/format.md, section 9. `new_bytes` is ADR 0004, `hierarchy` ADR 0016,
`branch` ADR 0021, `elapsed` ADR 0043 and format 2 ADR 0048.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from ckptstore.documents import canonical
from ckptstore.documents.canonical import Fields, legal
from ckptstore.documents.facts import MESSAGE_LENGTH_MAX, METRICS_MAX, STEP_MAX, check_meta
from ckptstore.documents.names import PATH_LENGTH_MAX, check_metric_name, check_ref_name
from ckptstore.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptstore.digest import Digest

MANIFEST_BYTES_MAX = 16 << 20
ORDERED_FORMAT = 2  # of checkpoints with arrays that are not in C order; earlier versions refuse it
PAGES_MAX = 1 << 14  # of at least 32 arrays each: more than a structure can name
PARENTS_MAX = 16
SEED = "seed"  # the key in the meta of a derived checkpoint, for the selection and the new names
CREATED_MAX = 253_402_300_799_999_999  # the last microsecond of the year 9999

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


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

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form inside a manifest."""
        return {
            "first": self.first,
            "digest": self.digest,
            "arrays": self.arrays,
            "bytes": self.bytes,
        }

    @classmethod
    def from_json(cls, document: object, *, name: str, arrays_min: int) -> Self:
        """Check every field. arrays_min: how many arrays the page must have."""
        fields = Fields(document, name=name)
        return cls(
            first=fields.text("first", length_max=PATH_LENGTH_MAX),
            digest=fields.digest("digest"),
            arrays=fields.integer("arrays", low=arrays_min),
            bytes=fields.integer("bytes"),
        )


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
        elapsed: Microseconds of the history of first parents, where a clock that went back counts
            as 0; None for one without parents, or made before this was recorded.
        new_bytes: Bytes of the objects this commit had to store.
        meta: Plain JSON supplied by the user.
        format: The version of the format that its pages need.
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
    elapsed: int | None = None
    new_bytes: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)
    format: int = 1
    other: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_derived(self) -> bool:
        """True for a checkpoint made of arrays of another one, with which a branch begins."""
        return isinstance(self.meta.get(SEED), dict)

    @property
    def known_elapsed(self) -> int | None:
        """The same as `elapsed`, but 0 for a checkpoint without parents."""
        return self.elapsed if self.parents else self.elapsed or 0

    def elapsed_until(self, created: int) -> int:
        """Return the `elapsed` of a checkpoint made from this one at a time."""
        return min((self.elapsed or 0) + max(0, created - self.created), STEP_MAX)

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

    def sharing(self, known: dict[PageRef, PageRef]) -> Manifest:
        """Return an equal manifest whose pages are one in memory with those of other manifests."""
        pages, hierarchy = (
            refs and tuple(known.setdefault(ref, ref) for ref in refs)
            for refs in (self.pages, self.hierarchy)
        )
        return dataclasses.replace(self, pages=pages or (), hierarchy=hierarchy)

    def encode(self) -> bytes:
        """Return the canonical bytes whose digest is the checkpoint's id."""
        document: dict[str, Any] = {
            "format": self.format,
            "pages": self.pages,
            "structure": self.structure,
            "parents": self.parents,
            "step": self.step,
            "metrics": {name: metric_to_json(value) for name, value in self.metrics.items()},
            "message": self.message,
            "created": self.created,
            "new_bytes": self.new_bytes,
            "meta": self.meta,
            **self.other,
        }
        if self.branch is not None:
            document["branch"] = self.branch
        if self.elapsed is not None:
            document["elapsed"] = self.elapsed
        if self.hierarchy is not None:
            document["hierarchy"] = self.hierarchy
        return canonical.encode(document, name="The manifest", bytes_max=MANIFEST_BYTES_MAX)

    @classmethod
    def decode(cls, data: bytes, *, name: str) -> Self:
        """Decode a manifest and check every field.

        Raises:
            CorruptError: A field is missing, of the wrong type or out of range.
            InvalidInputError: A newer version wrote the manifest.
        """
        fields = Fields(canonical.decode(data, name=name, bytes_max=MANIFEST_BYTES_MAX), name=name)
        return cls(
            format=fields.version(newest=ORDERED_FORMAT),
            pages=_page_refs(fields, "pages", arrays_min=1),
            structure=fields.digest("structure"),
            hierarchy=fields.optional(
                "hierarchy", lambda key: _page_refs(fields, key, arrays_min=0)
            ),
            parents=fields.digests("parents", high=PARENTS_MAX),
            branch=fields.optional(
                "branch",
                lambda key: legal(check_ref_name, fields.get(key), kind="branch", name=name),
            ),
            step=fields.integer_or_none("step", low=-STEP_MAX, high=STEP_MAX),
            metrics=metrics_from_json(fields.object("metrics"), name=name),
            message=fields.text("message", length_max=MESSAGE_LENGTH_MAX),
            created=fields.integer("created", high=CREATED_MAX),
            elapsed=fields.optional("elapsed", lambda key: fields.integer(key, high=STEP_MAX)),
            new_bytes=fields.integer("new_bytes"),
            meta=legal(check_meta, fields.object("meta"), name=name),
            other={key: value for key, value in fields.document.items() if key not in _KNOWN},
        )


def metric_to_json(value: int | float) -> int | float | str:
    """Return a metric as JSON, which has no NaN and no infinity."""
    if isinstance(value, int) or math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")


def metrics_from_json(document: dict[str, Any], *, name: str) -> dict[str, int | float]:
    """Check names and values of metrics, and return the values as numbers."""
    if len(document) > METRICS_MAX:
        raise CorruptError(f"{name} has more than {METRICS_MAX} metrics.")
    items = document.items()
    return legal(
        lambda: {check_metric_name(key): _metric_from_json(item, name=name) for key, item in items},
        name=name,
    )


def _metric_from_json(value: object, *, name: str) -> int | float:
    if isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    if type(value) is float or (type(value) is int and abs(value) <= STEP_MAX):
        return value
    raise CorruptError(f"{name} holds a metric that is not a number of at most 63 bits.")


def _page_refs(fields: Fields, key: str, *, arrays_min: int) -> tuple[PageRef, ...]:
    name = f"{fields.name}, {key}"
    listed = fields.array(key, high=PAGES_MAX)
    return tuple(PageRef.from_json(item, name=name, arrays_min=arrays_min) for item in listed)


_KNOWN = {field.name for field in dataclasses.fields(Manifest)} - {"other"}
