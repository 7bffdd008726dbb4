"""Repositories whose page, as a whole, lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.helpers.hostile.cases import Case, repository
from tests.helpers.hostile.forge import MISSING, Forge, digest_of, dumps

if TYPE_CHECKING:
    from collections.abc import Callable

HUGE_CHUNK = 256 << 20
REFUSED = ("checkout", "into", "verify")
# The page and the bundle's digest agree with the bytes each; only verify compares the two.
FOUND = ("verify",)


def _page(
    story: str, page: bytes | Callable[[], bytes], *, ref: dict[str, Any] | None = None
) -> Case:
    def given(forge: Forge) -> None:
        forge.honest(page=page() if callable(page) else page, ref=ref or {})

    return repository(f"a page {story}", given)


def _arrays(story: str, *entries: dict[str, Any]) -> Case:
    return repository(
        f"a page {story}",
        lambda forge: forge.honest(arrays=[forge.entry(**entry) for entry in entries]),
    )


def _bundled(
    story: str, *, bundle: Any = None, refused: tuple[str, ...] = REFUSED, **entry: Any
) -> Case:
    """A page of one small array, and a bundle of 8 bytes."""

    def given(forge: Forge) -> None:
        fields = forge.bundle() if bundle is None else {"bundle": bundle(forge)}
        forge.honest(arrays=[forge.small(**entry)], page_fields=fields)

    return repository(f"a small array {story}", given, refused=refused)


def _without_bundle(forge: Forge) -> None:
    forge.honest(arrays=[forge.small()])


def _wrong_place(forge: Forge) -> None:
    """Two small arrays of which one has the digest of other bytes than lie at its offset."""
    data = bytes(8) + b"\1" * 8
    forge.honest(
        arrays=[forge.small(path="v"), forge.small(offset=8)],
        page_fields=forge.bundle(data),
        structure={"dict": [["v", {"tensor": "v"}], ["w", {"tensor": "w"}]]},
    )


def _chunk_listed_for_terabytes(forge: Forge) -> None:
    """One real chunk of 64 KiB, listed 450,000 times: 29 GB from a few bytes."""
    chunk = forge.object(bytes(64 << 10))
    count = 450_000
    entry = forge.entry(
        dtype="uint8", shape=[count, 64 << 10], chunk_shape=[1, 64 << 10], digests=[chunk] * count
    )
    forge.honest(arrays=[entry])


def _chunk_listed_for_a_hundred_terabytes(forge: Forge) -> None:
    """One chunk of 256 MiB (a hole in a file), listed for 105 TB."""
    digest = digest_of(b"not worth computing")
    path = forge.object_path(digest)
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(HUGE_CHUNK)
    count = 400_000
    entry = forge.entry(
        dtype="uint8",
        shape=[count, HUGE_CHUNK],
        chunk_shape=[1, HUGE_CHUNK],
        digests=[digest] * count,
    )
    forge.honest(arrays=[entry])


def _claims_of_missing_chunks(forge: Forge) -> None:
    """12 arrays of 1 GiB each whose chunks are not there."""
    entries = [
        forge.entry(
            path=f"a{number:02}",
            shape=[4, 64 << 20],
            chunk_shape=[1, 64 << 20],
            digests=[digest_of(b"%d" % part) for part in range(4)],
        )
        for number in range(12)
    ]
    nodes = [[entry["path"], {"tensor": entry["path"]}] for entry in entries]
    forge.honest(arrays=entries, structure={"dict": nodes})


CASES = (
    _page("of no arrays", dumps({"arrays": []})),
    _page("that is a list", b"[]"),
    _page("that is empty", b""),
    _page("whose arrays are an object", dumps({"arrays": {}})),
    _page("whose array is null", dumps({"arrays": [None]})),
    _page("whose array is a list of lists", dumps({"arrays": [[["w"]]]})),
    _arrays("of 513 arrays", *({"path": f"{number:04}"} for number in range(513))),
    _arrays("that lists an array twice", {"path": "w"}, {"path": "w"}),
    _arrays("whose arrays are not in order", {"path": "w"}, {"path": "a"}),
    _page(
        "that names the shape of an array twice",
        dumps({"arrays": [{"path": "w", "dtype": "float32"}]}).replace(
            b'"path"', b'"shape":[2],"shape":[3],"path"'
        ),
    ),
    _page("that is larger than any page", lambda: b'{"arrays":[' + b" " * (33 << 20) + b"]}"),
    repository("a small array of a page without a bundle", _without_bundle),
    _bundled("that begins beyond its bundle", offset=9),
    _bundled("that ends beyond its bundle", offset=1),
    _bundled("that begins before its bundle", offset=-1),
    _bundled("that begins at half a byte", offset=0.5),
    _bundled("that begins at byte 2^63", offset=2**63),
    _bundled("that begins at text", offset="0"),
    _bundled("of no bytes", shape=[0]),
    _bundled("of 64 KiB", shape=[1 << 14]),
    _bundled("whose digest is not of its bytes", digest=MISSING, refused=FOUND),
    _bundled("whose digest is a path", digest="../../x"),
    _bundled(
        "whose bundle is longer than said",
        bundle=lambda forge: {"digest": forge.object(bytes(9)), "size": 8},
    ),
    _bundled(
        "whose bundle is shorter than said",
        bundle=lambda forge: {"digest": forge.object(bytes(8)), "size": 80},
        refused=FOUND,
    ),
    _bundled("whose bundle is not there", bundle=lambda forge: {"digest": MISSING, "size": 8}),
    _bundled(
        "whose bundle has 10^18 bytes",
        bundle=lambda forge: {"digest": forge.object(bytes(8)), "size": 10**18},
    ),
    _bundled(
        "whose bundle has no bytes", bundle=lambda forge: {"digest": forge.object(b""), "size": 0}
    ),
    _bundled("whose bundle is a string", bundle=lambda forge: forge.object(bytes(8))),
    repository("a small array that lies at another one's place", _wrong_place, refused=FOUND),
    repository(
        "a chunk of 64 KiB that is listed for 29 GB",
        _chunk_listed_for_terabytes,
        refused=("checkout", "into"),
    ),
    repository(
        "a chunk of 256 MiB that is listed for 105 TB", _chunk_listed_for_a_hundred_terabytes
    ),
    repository("12 GiB of arrays whose chunks are not there", _claims_of_missing_chunks),
)
