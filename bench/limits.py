"""How costs grow with the length of a history, and with the numbers of tags, arrays and objects.

Repositories of each size are made in the format, without the fsyncs that committing them would
take. Every call is measured in a handle of its own: processor time, as fsync depends on the disk,
the calls of the storage, and the peak of extra memory.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import ckptstore
from bench import memory
from bench.scale import slope
from ckptstore.digest import Digest
from ckptstore.documents.expiry import Expiry
from ckptstore.documents.marker import MARKER_BYTES_MAX, MARKER_KEY, Marker
from ckptstore.documents.page import ArrayEntry, Page
from ckptstore.repository import Repository
from ckptstore.retention import MaxToKeep
from ckptstore.storage import LocalStorage
from ckptstore.store import catalog, objects
from ckptstore.store.reach import page_ref

LIVE = 3
NAME = "curves"
STATE = {"weight": np.arange(64)}
OBJECT_PAGES = 10
CHECKPOINTS = 100  # that share the objects of a repository of many


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The cost of one call over the size of one thing: processor seconds, calls, and peak bytes."""

    grows: str
    call: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    calls: tuple[int, ...]
    peak_bytes: tuple[int, ...]

    @property
    def slope(self) -> float:
        """0 for a constant cost, 1 for one in proportion."""
        return slope(self.sizes, [max(seconds, 1e-3) for seconds in self.seconds])

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        columns = zip(self.sizes, self.seconds, self.calls, self.peak_bytes, strict=True)
        return (
            self.grows,
            self.call,
            *(
                f"{size:,}: {1e3 * seconds:,.0f} ms, {calls:,} calls, {peak / 1e6:.0f} MB"
                for size, seconds, calls, peak in columns
            ),
            f"{self.slope:.2f}",
        )

    def to_json(self) -> dict[str, Any]:
        """All numbers of the row."""
        return {name: getattr(self, name) for name in self.__slots__} | {"slope": self.slope}


def headings(curves: Sequence[Curve]) -> tuple[str, ...]:
    """The first row of the table."""
    sizes = [f"size {number}" for number in range(1, 1 + len(curves[0].sizes))]
    return ("what grows", "call", *sizes, "slope")


class CountedStorage:
    """A storage that counts the calls of its methods."""

    def __init__(self, storage: LocalStorage) -> None:
        self._storage = storage
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        self.calls += 1
        return getattr(self._storage, name)


@dataclass(frozen=True, slots=True)
class Thing:
    """What grows: its sizes, how a repository of a size is made, and the calls to measure in it."""

    name: str
    sizes: tuple[int, ...]
    make: Callable[[Repository, int], object]
    calls: dict[str, Callable[[Repository], object]]


def curves(folder: Path, *, sizes: Sequence[int] | None = None) -> Iterator[Curve]:
    """Measure everything, one thing after the other. sizes: in place of those of each thing."""
    for thing in THINGS:
        costs: dict[str, list[tuple[float, int, int]]] = {name: [] for name in thing.calls}
        for size in sizes or thing.sizes:
            path = folder / NAME
            thing.make(ckptstore.init(path, chunk_size=64 << 10), size)
            for name, call in thing.calls.items():
                costs[name].append(_cost(path, call))
            shutil.rmtree(path)
        for name, listed in costs.items():
            seconds, calls, peaks = zip(*listed, strict=True)
            yield Curve(
                grows=thing.name,
                call=name,
                sizes=tuple(sizes or thing.sizes),
                seconds=seconds,
                calls=calls,
                peak_bytes=peaks,
            )


def _cost(path: Path, call: Callable[[Repository], object]) -> tuple[float, int, int]:
    """Processor seconds, storage calls and peak bytes of a call in a new handle."""
    storage = CountedStorage(LocalStorage(path))
    marker = Marker.decode(storage.get(MARKER_KEY, bytes_max=MARKER_BYTES_MAX))
    repository = Repository(storage, marker)  # type: ignore[arg-type]
    storage.calls = 0
    seconds = 0.0

    def timed() -> None:
        nonlocal seconds
        start = time.process_time()
        call(repository)
        seconds = time.process_time() - start

    peak = memory.extra_bytes(timed) if memory.SUPPORTED else 0
    return seconds, storage.calls, max(0, peak)


def _history(repository: Repository, count: int) -> None:
    """A branch with this many checkpoints, of which the last ones are live."""
    root = Path(repository.url)
    (root / "history").mkdir()
    (root / "expired").mkdir()
    made = repository.commit(STATE)
    parents: tuple[Digest, ...] = ()
    for number in range(count):
        manifest = replace(made._manifest, parents=parents, step=number, created=number)  # noqa: SLF001
        data = manifest.encode()
        id = Digest.of(data)
        is_live = number >= count - LIVE
        (root / catalog.key_of(id, catalog.LIVE if is_live else catalog.EXPIRED)).write_bytes(data)
        if not is_live:
            expiry = Expiry(time=1, why="Keep the newest 3 of each branch.", ancestors=())
            (root / catalog.key_of(id, catalog.EXPIRIES)).write_bytes(expiry.encode())
        parents = (id,)
    repository._oplog.append(  # noqa: SLF001
        lambda newest: replace(newest, heads={"main": parents[0]})
    )
    repository.gc(MaxToKeep(LIVE), grace=0)  # the first commit, which nothing reaches


def _save(repository: Repository) -> None:
    repository.commit({"weight": np.random.default_rng().random(64)}, metrics={"loss": 1.0})
    repository.gc(MaxToKeep(LIVE), leftovers=False)


def _saves(repository: Repository) -> None:
    for _ in range(10):
        _save(repository)


def _tags(repository: Repository, count: int) -> None:
    ids = [repository.commit({"weight": np.arange(64) + number}).id for number in range(20)]
    tags = {f"release-{number:06}": ids[number % 20] for number in range(count)}
    repository._oplog.append(lambda newest: replace(newest, tags=tags))  # noqa: SLF001


def _arrays(repository: Repository, count: int) -> None:
    repository.commit({"model": {f"layer.{number}": np.full(4, number) for number in range(count)}})


def _objects(repository: Repository, count: int) -> None:
    """Checkpoints that share nothing, with this many objects of a few bytes in all."""
    root = Path(repository.url)
    made = repository.commit({str(page): np.zeros(0, np.uint64) for page in range(OBJECT_PAGES)})
    for prefix in range(256):
        (root / f"objects/{prefix:02x}").mkdir(exist_ok=True)

    def put(data: bytes) -> Digest:
        digest = Digest.of(data)
        (root / objects.key_of(digest)).write_bytes(data)
        return digest

    parents: tuple[Digest, ...] = ()
    chunks = count // CHECKPOINTS // OBJECT_PAGES
    for number in range(CHECKPOINTS):
        refs = []
        for path in map(str, range(OBJECT_PAGES)):
            values = np.arange(chunks, dtype=np.uint64) + len(refs) * chunks
            values += np.uint64(number * OBJECT_PAGES * chunks)
            digests = tuple(put(value.tobytes()) for value in values)
            entry = ArrayEntry(
                path=path, dtype="uint64", shape=(chunks,), chunk_shape=(1,), digests=digests
            )
            page = Page(entries=(entry,))
            refs.append(page_ref(page, put(page.encode())))
        manifest = replace(
            made._manifest,  # noqa: SLF001
            pages=tuple(refs),
            parents=parents,
            created=number,
        )
        encoded = manifest.encode()
        parents = (Digest.of(encoded),)
        (root / catalog.key_of(parents[0])).write_bytes(encoded)
    repository._oplog.append(  # noqa: SLF001
        lambda newest: replace(newest, heads={"main": parents[0]})
    )


def _sound(repository: Repository) -> None:
    assert repository.verify().ok


def _renamed(repository: Repository) -> None:
    repository.branch("renamed", rename={r"model/layer\.(.*)": r"net/block.\1"})


THINGS = (
    Thing(
        "checkpoints behind, 3 of them live",
        (100, 1_000, 10_000),
        _history,
        {
            "first save of a process, with a policy": _save,
            "ten saves with a policy": _saves,
            "log of ten": lambda repository: repository.log("main", limit=10),
            "log of live ones": lambda repository: repository.log("main", expired=False),
            "resolve best:loss": lambda repository: repository.resolve("best:loss"),
        },
    ),
    Thing(
        "tags",
        (500, 5_000, 50_000),
        _tags,
        {
            "one more tag": lambda repository: repository.tag("one-more"),
            "ten more in an open handle": lambda repository: [
                repository.tag(f"more-{number}") for number in range(10)
            ],
            "resolve": lambda repository: repository.resolve("release-000007"),
            "commit": lambda repository: repository.commit(STATE),
            "gc": lambda repository: repository.gc(MaxToKeep(1), grace=0),
        },
    ),
    Thing(
        "arrays",
        (300, 3_000, 30_000),
        _arrays,
        {"branch with renames": _renamed, "checkout": lambda repository: repository.checkout()},
    ),
    Thing(
        "objects",
        (10_000, 100_000, 1_000_000),
        _objects,
        {
            "verify": _sound,
            "plan of a gc": lambda repository: repository.plan_gc(MaxToKeep(50), grace=0),
            "gc of half of them": lambda repository: repository.gc(MaxToKeep(50), grace=0),
        },
    ),
)
