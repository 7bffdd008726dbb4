"""The cost of an object store: commits and checkouts against plain puts and gets of the same bytes.

Two stores, both through obstore. The S3 server of `ckptstore.testing` runs in a process of its own,
with 0 and 50 ms a request; on a machine with few processors its own work counts too. The sleeping
store is obstore's memory, where each request sleeps for 50 ms: nothing but the client takes
processor time, as with a server elsewhere.

A plain peer puts or gets the same bytes on 16 threads, in pieces of 8 MiB at most, and no more.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import obstore
from obstore.store import MemoryStore, S3Store

import ckptstore
from bench import peers, workloads
from bench.bench import Bench
from bench.figures import Bound, Figure, comparisons
from bench.measure import Contender
from ckptstore.documents.marker import MARKER_KEY, Marker
from ckptstore.documents.page import SMALL_BYTES
from ckptstore.repository import Repository
from ckptstore.storage import remote
from ckptstore.storage.remote_url import RemoteUrl
from ckptstore.store.disk_cache import BYTES_VARIABLE
from ckptstore.store.opening import read_marker
from ckptstore.testing.s3_server import S3Server

PEER_THREADS = 16
PIECE_BYTES = 8 << 20
LATENCY_SECONDS = 0.05
OF_PLAIN = 0.8  # of the speed of the plain peer
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    BYTES_VARIABLE: "0",  # what was read before is not cached
}
# Seconds at 50 ms a request.
UNCHANGED_SECONDS, PARTLY_SECONDS, NEW_SECONDS, CHECKOUT_SECONDS = 0.3, 0.4, 0.9, 0.9

_number = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where repositories and plain objects are kept.

    Attributes:
        name: For the table.
        is_slow: Whether a request takes 50 ms.
        repository: Makes a handle on a repository under a prefix, and the repository if need be.
        put: Puts one plain object.
        get: Gets one plain object.
        clear: Removes all under a prefix.
    """

    name: str
    is_slow: bool
    repository: Callable[[str], Repository]
    put: Callable[[str, memoryview], object]
    get: Callable[[str], object]
    clear: Callable[[str], object]


def figures(bench: Bench) -> Iterator[Figure]:
    """Commits and checkouts of the training state, in each store."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        for latency in (0.0, LATENCY_SECONDS):
            with served(latency) as place:
                yield from _of_place(bench, place)
        yield from _of_place(bench, sleeping(LATENCY_SECONDS))
    finally:
        restore(before)


@contextmanager
def served(latency: float) -> Iterator[Place]:
    """The S3 server in a process of its own, until the end of the block."""
    with Server.running(latency) as server:
        store = S3Store(
            server.bucket,
            endpoint=server.endpoint,
            region="us-east-1",
            client_options={"allow_http": True},
        )
        yield Place(
            name=f"S3, {1e3 * latency:g} ms",
            is_slow=bool(latency),
            repository=lambda prefix: ckptstore.open(server.url(prefix), create=True),
            put=lambda key, data: obstore.put(store, key, data, use_multipart=False),
            get=lambda key: bytes(obstore.get(store, key).bytes()),
            clear=server.clear,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server in another process.

    Attributes:
        endpoint: Its address.
        bucket: Its bucket.
        url: Returns the URL of a repository under a prefix.
        clear: Removes all under a prefix.
    """

    endpoint: str
    bucket: str
    url: Callable[[str], str]
    clear: Callable[[str], object]

    @classmethod
    @contextmanager
    def running(cls, latency: float) -> Iterator[Server]:
        """A server until the end of the block. latency: of each request, in seconds."""
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(theirs, latency), daemon=True)
        process.start()
        try:
            endpoint, bucket, url = ours.recv()

            def clear(prefix: str) -> None:
                ours.send(prefix)
                ours.recv()

            yield cls(
                endpoint=endpoint,
                bucket=bucket,
                url=lambda prefix: url.replace("PREFIX", prefix),
                clear=clear,
            )
        finally:
            ours.send(None)
            process.join()


def _serve(connection: Connection, latency: float) -> None:
    """Run a server, and remove what is under each prefix that is received, until None is."""
    with S3Server(latency=latency) as server:
        url = server.url("PREFIX")
        connection.send((server.endpoint, url.removeprefix("s3://").partition("/")[0], url))
        while (prefix := connection.recv()) is not None:
            for key in server.objects:
                bucket, _, rest = key.partition("/")
                if rest.startswith(f"{prefix}/"):
                    server.damage(rest, None)
            connection.send(bucket)


def sleeping(latency: float) -> Place:
    """Stores in the memory of this process, one for each prefix, where each request sleeps."""
    stores: defaultdict[str, MemoryStore] = defaultdict(MemoryStore)

    def put(key: str, data: memoryview) -> None:
        time.sleep(latency)
        store = stores[key.partition("/")[0]]
        obstore.put(store, key, bytes(data), use_multipart=False)  # it keeps what it is given

    def get(key: str) -> bytes:
        time.sleep(latency)
        return bytes(obstore.get(stores[key.partition("/")[0]], key).bytes())

    return Place(
        name=f"sleeping store, {1e3 * latency:g} ms",
        is_slow=True,
        repository=lambda prefix: _repository(_SleepingStorage(stores[prefix], latency)),
        put=put,
        get=get,
        clear=lambda prefix: stores.pop(prefix, None),
    )


class _SleepingStorage(remote.RemoteStorage):
    """A bucket in memory, where each request of this process sleeps."""

    def __init__(self, store: MemoryStore, latency: float) -> None:
        super().__init__(RemoteUrl.parse("s3://bench/sleeping?region=us-east-1&anonymous=1"))
        self._quick = self._reads = self._writes = store
        self._latency = latency

    async def _request(self, *args: Any, **options: Any) -> Any:
        await asyncio.sleep(self._latency)
        return await super()._request(*args, **options)

    def _pages(self, *args: Any, **options: Any) -> Any:
        time.sleep(self._latency)
        return super()._pages(*args, **options)


def _repository(storage: remote.RemoteStorage) -> Repository:
    """A handle on the repository in a storage, which is made if it is missing."""
    storage.create(MARKER_KEY, Marker(store="0" * 32, chunk_bytes=PIECE_BYTES).encode())
    marker, end = read_marker(storage)
    return Repository(storage, marker, end=end)


def _of_place(bench: Bench, place: Place) -> Iterator[Figure]:
    """Commits and checkouts in one store."""
    second, partly = bench.training.second, bench.training.partly
    pieces = pieces_of(second)
    must = {"plain puts": OF_PLAIN, "plain gets": OF_PLAIN}

    def new() -> tuple[str, Repository]:
        prefix = f"new-{next(_number)}"
        return prefix, place.repository(prefix)

    commit, *others = bench.run(
        Contender(
            name="ckptstore",
            prepare=new,
            call=lambda made: made[1].commit(second),
            clean=lambda made: place.clear(made[0]),
        ),
        plain_puts(place, pieces),
    )
    yield from comparisons(f"{place.name}: commit, all new", [commit, *others], must=must)
    repository = place.repository("kept")
    repository.commit(second)
    for number, piece in enumerate(pieces):
        place.put(f"pieces/{number}", piece)
    checkout, *others = bench.run(
        Contender(
            name="ckptstore",
            prepare=lambda: place.repository("kept"),
            call=lambda repository: repository.checkout("main"),
        ),
        plain_gets(place, [f"pieces/{number}" for number in range(len(pieces))]),
    )
    yield from comparisons(f"{place.name}: checkout, fresh", [checkout, *others], must=must)
    if not place.is_slow:
        return
    (unchanged,) = bench.run(Contender(name="ckptstore", call=lambda _: repository.commit(second)))

    def back() -> None:
        repository.commit(second)

    (changed,) = bench.run(
        Contender(name="ckptstore", prepare=back, call=lambda _: repository.commit(partly))
    )
    for what, series, seconds in (
        ("commit, all new", commit, NEW_SECONDS),
        ("commit, nothing changed", unchanged, UNCHANGED_SECONDS),
        ("commit, 2 % changed", changed, PARTLY_SECONDS),
        ("checkout, fresh", checkout, CHECKOUT_SECONDS),
    ):
        yield Bound(
            what=f"{place.name}: {what}, median", values=(series.median,), unit="s", must=seconds
        )


def plain_puts(place: Place, pieces: Sequence[memoryview]) -> Contender:
    """Put the same bytes on 16 threads."""

    def call(prefix: str) -> None:
        with ThreadPoolExecutor(PEER_THREADS) as pool:
            keys = [f"{prefix}/{number}" for number in range(len(pieces))]
            list(pool.map(place.put, keys, pieces))

    return Contender(
        name="plain puts",
        prepare=lambda: f"plain-{next(_number)}",
        call=call,
        clean=place.clear,
    )


def plain_gets(place: Place, keys: Sequence[str]) -> Contender:
    """Get these objects on 16 threads, and keep what came."""

    def call(_: object) -> list[object]:
        with ThreadPoolExecutor(PEER_THREADS) as pool:
            return list(pool.map(place.get, keys))

    return Contender(name="plain gets", call=call)


def pieces_of(state: object) -> list[memoryview]:
    """The bytes of a state as as many objects as a repository makes of them.

    Tensors of less than 64 KiB are joined, larger ones than 8 MiB are split.
    """
    views = peers.raw_views(workloads.tensors(state).values())
    small = b"".join(view for view in views if len(view) < SMALL_BYTES)
    large = (view for view in views if len(view) >= SMALL_BYTES)
    return [
        view[start : start + PIECE_BYTES]
        for view in (*large, memoryview(small))
        for start in range(0, len(view), PIECE_BYTES)
    ]


def restore(environment: dict[str, str | None]) -> None:
    """Set environment variables, or unset those that are None."""
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
