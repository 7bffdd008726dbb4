"""Manifests, pages and structures by id."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckptstore.digest import Digest
from ckptstore.documents import structure
from ckptstore.documents.manifest import Manifest, PageRef
from ckptstore.documents.page import ArrayEntry, Page
from ckptstore.errors import CorruptError, NotFoundError
from ckptstore.storage import MemoryStorage
from ckptstore.store import catalog as catalog_module
from ckptstore.store.catalog import EXPIRED, Catalog, key_of
from ckptstore.store.objects import ObjectStore


def entry(path: str) -> ArrayEntry:
    return ArrayEntry(path=path, dtype="uint8", shape=(0,), chunk_shape=(1,))


PAGES = (Page(entries=(entry("a"), entry("b"))), Page(entries=(entry("c"),)))


class Fixture:
    """A storage with a catalog, and a second catalog that has not seen anything yet."""

    def __init__(self) -> None:
        self.storage = MemoryStorage()
        self.objects = ObjectStore(self.storage)
        self.catalog = Catalog(self.storage, self.objects)

    @property
    def fresh(self) -> Catalog:
        return Catalog(self.storage, self.objects)

    def put(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        self.objects.put(digest, data)
        return digest

    def manifest(self, *pages: Page) -> Manifest:
        refs = (
            PageRef(
                first=page.first, digest=self.put(page.encode()), arrays=len(page.entries), bytes=0
            )
            for page in pages
        )
        return Manifest(pages=tuple(refs), structure=self.put(structure.encode(None)))


@pytest.fixture
def made() -> Fixture:
    return Fixture()


def test_a_manifest_is_found_by_the_digest_of_its_bytes(made: Fixture) -> None:
    manifest = made.manifest(*PAGES)
    id = made.catalog.store(manifest)
    assert id == Digest.of(manifest.encode())
    assert made.storage.get(key_of(id), bytes_max=10_000) == manifest.encode()
    for catalog in (made.catalog, made.fresh):
        assert catalog.manifest(id) == manifest
        assert list(catalog.pages(manifest)) == list(PAGES)
        assert catalog.structure(manifest) is None
        assert not catalog.is_expired(id)


def test_an_expired_checkpoint_keeps_its_manifest(made: Fixture) -> None:
    id = made.catalog.store(made.manifest())
    data = made.storage.get(key_of(id), bytes_max=10_000)
    made.storage.put(key_of(id, EXPIRED), data)
    assert not made.fresh.is_expired(id)
    made.storage.delete([key_of(id)])
    assert made.fresh.manifest(id) == made.manifest()
    assert made.fresh.is_expired(id)
    assert list(made.fresh.ids()) == [id]


def test_a_manifest_moved_between_the_looks_is_found() -> None:
    class Moving(MemoryStorage):
        """Puts back under the live name what it did not have there a moment ago."""

        def get(self, key: str, *, bytes_max: int) -> bytes:
            if key.startswith(EXPIRED):
                self.put(key_of(id), data)
            return super().get(key, bytes_max=bytes_max)

    storage = Moving()
    objects = ObjectStore(storage)
    data = Manifest(pages=(), structure=Digest.of(b"")).encode()
    id = Digest.of(data)
    assert Catalog(storage, objects).manifest(id).encode() == data


def test_what_is_not_there_is_not_found_and_what_is_damaged_is_not_read(made: Fixture) -> None:
    id = made.catalog.store(made.manifest())
    with pytest.raises(NotFoundError, match=Digest.of(b"").short):
        made.catalog.manifest(Digest.of(b""))
    data = made.storage.get(key_of(id), bytes_max=10_000)
    for damaged in (data[:-1], data.replace(b'"created":0', b'"created":1'), b""):
        made.storage.put(key_of(id), damaged)
        with pytest.raises(CorruptError, match=key_of(id)):
            made.fresh.manifest(id)


@pytest.mark.parametrize("change", [{"first": "A"}, {"arrays": 3}, {"bytes": 1}])
def test_a_page_that_is_not_what_its_manifest_says_is_refused(
    made: Fixture, change: dict[str, object]
) -> None:
    manifest = made.manifest(*PAGES)
    wrong = replace(manifest.pages[0], **change)  # type: ignore[arg-type]
    with pytest.raises(CorruptError, match="does not match its manifest"):
        list(made.catalog.pages(replace(manifest, pages=(wrong, manifest.pages[1]))))


def test_pages_out_of_order_and_pages_twice_are_refused(made: Fixture) -> None:
    for pages in ((PAGES[1], PAGES[0]), (PAGES[0], PAGES[0]), (PAGES[0], PAGES[0], PAGES[1])):
        with pytest.raises(CorruptError, match="does not follow"):
            list(made.catalog.pages(made.manifest(*pages)))


def test_ids_are_found_by_prefix_and_other_files_passed_over(made: Fixture) -> None:
    ids = {made.catalog.store(replace(made.manifest(), created=n)) for n in range(30)}
    for key in ("checkpoints/x.json", f"checkpoints/{'a' * 63}.json", f"checkpoints/{'a' * 64}"):
        made.storage.put(key, b"x")
    assert set(made.catalog.ids()) == ids
    some = next(iter(ids))
    assert set(made.catalog.ids(some[:2])) == {id for id in ids if id.startswith(some[:2])}


def test_only_so_many_manifests_are_held(made: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = catalog_module.MANIFEST_PARTS + len(made.manifest().refs)
    monkeypatch.setattr(catalog_module, "CACHED_MANIFEST_PARTS", 3 * parts)
    catalog = made.fresh
    ids = [catalog.store(replace(made.manifest(), created=n)) for n in range(5)]
    for id in ids:
        catalog.manifest(id)
    made.storage.delete(map(key_of, ids))
    for id in ids[:2]:
        with pytest.raises(NotFoundError):
            catalog.manifest(id)
    assert [catalog.manifest(id).created for id in ids[2:]] == [2, 3, 4]
