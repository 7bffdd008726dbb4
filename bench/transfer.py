"""Push and pull against DVC, and commit and checkout against icechunk, in one S3 server.

The server is ministack, in a process of its own on this machine, for all of them: that of
`ckptstore.testing` has no uploads in parts and no If-Match, which the others need. Its own work
takes the same processors, and the same time from each.

Push and pull are measured as programs, from their start to their end, as DVC is used as one. DVC
keeps the file that torch.save wrote, so a change of 2 % of its bytes is a new file. `dvc pull` also
puts the file into the working folder. DVC is in an environment of its own (`make bench`).
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import icechunk
import obstore
import torch
import zarr
from obstore.store import S3Store

import ckptstore
from bench import remote, workloads
from bench.bench import Bench
from bench.figures import Figure, comparisons
from bench.measure import Contender
from bench.workloads import State
from ckptstore.store.disk_cache import BYTES_VARIABLE
from tests.helpers.judges import AWS, BUCKET, Judge, ministack

DVC = Path(sys.prefix) / "dvc" / "bin" / "dvc"
CKPTSTORE = Path(sys.prefix) / "bin" / "ckptstore"
ENVIRONMENT = {
    **AWS,
    BYTES_VARIABLE: "0",
    "DVC_NO_ANALYTICS": "1",
    "AWS_DEFAULT_REGION": "us-east-1",
}

_number = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Where all contenders keep things.

    Attributes:
        judge: The server.
        store: The bucket, for plain objects.
        folder: A folder for what is local.
    """

    judge: Judge
    store: S3Store
    folder: Path

    @property
    def endpoint(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.judge.port}"

    def keys(self, prefix: str) -> set[str]:
        """The keys under a prefix."""
        return {item["path"] for page in obstore.list(self.store, prefix) for item in page}

    def clear(self, prefix: str, *, but: set[str] | frozenset[str] = frozenset()) -> None:
        """Remove all under a prefix, except some."""
        obstore.delete(self.store, sorted(self.keys(prefix) - but))

    def new_folder(self) -> Path:
        """An empty local folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))


def figures(bench: Bench) -> Iterator[Figure]:
    """Push, pull, commit and checkout of the training state."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        with ministack() as judge:
            store = S3Store(
                BUCKET,
                endpoint=f"http://127.0.0.1:{judge.port}",
                region="us-east-1",
                client_options={"allow_http": True},
            )
            bucket = Bucket(judge=judge, store=store, folder=bench.scratch)
            yield from _states(bench, bucket)
            yield from _transfers(bench, bucket)
    finally:
        remote.restore(before)


def _states(bench: Bench, bucket: Bucket) -> Iterator[Figure]:
    """Commits and checkouts, with plain puts and gets of the same bytes."""
    state = bench.training.second
    place = remote.Place(
        name="ministack",
        is_slow=False,
        repository=lambda prefix: ckptstore.open(bucket.judge.url(prefix), create=True),
        put=lambda key, data: obstore.put(bucket.store, key, data, use_multipart=False),
        get=lambda key: bytes(obstore.get(bucket.store, key).bytes()),
        clear=bucket.clear,
    )
    pieces = remote.pieces_of(state)
    series = bench.run(
        Contender(
            name="ckptstore",
            prepare=lambda: _new(place.repository),
            call=lambda made: made[1].commit(state),
            clean=lambda made: bucket.clear(made[0]),
        ),
        Contender(
            name="icechunk",
            prepare=lambda: _new(
                lambda prefix: icechunk.Repository.create(_icechunk_storage(bucket, prefix))
            ),
            call=lambda made: _icechunk_commit(made[1], state),
            clean=lambda made: bucket.clear(made[0]),
        ),
        remote.plain_puts(place, pieces),
    )
    yield from comparisons("ministack: commit, all new", series)
    place.repository("kept").commit(state)
    kept = _icechunk_storage(bucket, "ice")
    _icechunk_commit(icechunk.Repository.create(kept), state)
    for number, piece in enumerate(pieces):
        place.put(f"pieces/{number}", piece)
    series = bench.run(
        Contender(
            name="ckptstore",
            prepare=lambda: place.repository("kept"),
            call=lambda repository: repository.checkout("main"),
        ),
        Contender(
            name="icechunk",
            prepare=lambda: icechunk.Repository.open(kept),
            call=_icechunk_checkout,
        ),
        remote.plain_gets(place, [f"pieces/{number}" for number in range(len(pieces))]),
    )
    yield from comparisons("ministack: checkout, fresh", series)
    for prefix in ("kept", "ice", "pieces"):
        bucket.clear(prefix)


def _transfers(bench: Bench, bucket: Bucket) -> Iterator[Figure]:
    """Pushes of all and of a change, and pulls into an empty place, of one contender each."""
    ours, theirs = _Ours(bucket, bench), _Dvc(bucket, bench)
    contenders = (ours, theirs)
    for what, prepare in (
        ("push, all new", "into_nothing"),
        ("push, 2 % changed", "changed"),
        ("push, nothing new", "unchanged"),
    ):
        series = bench.run(
            *(
                Contender(
                    name=side.name,
                    prepare=getattr(side, prepare),
                    call=side.push,
                    clean=side.clean,
                )
                for side in contenders
            )
        )
        yield from comparisons(f"ministack: {what}, as a program", series)
    series = bench.run(
        *(
            Contender(
                name=side.pull_name,
                prepare=bucket.new_folder,
                call=side.pull,
                clean=shutil.rmtree,
            )
            for side in contenders
        )
    )
    yield from comparisons("ministack: pull of all, as a program", series)


class _Ours:
    """A local repository and its copy in the bucket."""

    name, pull_name = "ckptstore push", "ckptstore clone"

    def __init__(self, bucket: Bucket, bench: Bench) -> None:
        self._bucket, self._bench = bucket, bench
        self._path = bucket.new_folder() / "run"
        self._repository = ckptstore.init(self._path)
        self._repository.commit(bench.training.second)
        self._kept = "ours"
        ckptstore.init(bucket.judge.url(self._kept))
        self.push(self._kept)

    def into_nothing(self) -> str:
        """A repository without a checkpoint."""
        prefix = f"push-{next(_number)}"
        ckptstore.init(self._bucket.judge.url(prefix))
        return prefix

    def changed(self) -> str:
        """The copy, of which the local one is ahead by a commit."""
        self._repository.commit(changed(self._bench.training.second))
        return self._kept

    def unchanged(self) -> str:
        """The copy, which has everything."""
        self.push(self._kept)
        return self._kept

    def push(self, prefix: str) -> None:
        """Push to a prefix."""
        _run(CKPTSTORE, "-r", self._path, "push", self._bucket.judge.url(prefix))

    def clean(self, prefix: str) -> None:
        """Free what a push left, unless the next one builds on it."""
        if prefix != self._kept:
            self._bucket.clear(prefix)

    def pull(self, folder: Path) -> None:
        """Copy the newest checkpoint to this machine."""
        url = self._bucket.judge.url(self._kept)
        _run(CKPTSTORE, "clone", "--depth", "1", url, folder / "copy")


class _Dvc:
    """A file under DVC's control and its copy in the bucket."""

    name, pull_name = "dvc push", "dvc pull"

    def __init__(self, bucket: Bucket, bench: Bench) -> None:
        self._bucket, self._bench = bucket, bench
        self._path = bucket.new_folder()
        self._kept = "dvc"
        _run(DVC, "init", "--no-scm", "-q", cwd=self._path)
        self._add(bench.training.second)
        self.push(self._kept)

    def into_nothing(self) -> str:
        """A prefix without an object."""
        return f"dvc-{next(_number)}"

    def changed(self) -> str:
        """The copy, which lacks the newest file."""
        self._add(changed(self._bench.training.second))
        return self._kept

    def unchanged(self) -> str:
        """The copy, which has the newest file."""
        self.push(self._kept)
        return self._kept

    def push(self, prefix: str) -> None:
        """Push to a prefix."""
        self._point(self._path, prefix)
        _run(DVC, "push", "-q", cwd=self._path)

    def clean(self, prefix: str) -> None:
        """Free what a push left, unless the next one builds on it."""
        if prefix != self._kept:
            self._bucket.clear(prefix)

    def pull(self, folder: Path) -> None:
        """Copy the newest file to this machine, and into a working folder."""
        (folder / ".dvc").mkdir()
        self._point(folder, self._kept)
        shutil.copy(self._path / "state.pt.dvc", folder)
        _run(DVC, "pull", "-q", cwd=folder)

    def _add(self, state: State) -> None:
        shutil.rmtree(self._path / ".dvc" / "cache", ignore_errors=True)
        torch.save(state, self._path / "state.pt")
        _run(DVC, "add", "-q", "state.pt", cwd=self._path)

    def _point(self, folder: Path, prefix: str) -> None:
        (folder / ".dvc" / "config").write_text(
            "[core]\n    no_scm = True\n    analytics = false\n    check_update = false\n"
            "    remote = far\n"
            f"['remote \"far\"']\n    url = s3://{BUCKET}/{prefix}\n"
            f"    endpointurl = {self._bucket.endpoint}\n"
        )


def changed(state: State) -> State:
    """A copy in which 2 % of the bytes, in as many arrays, are new each time."""
    total, done = workloads.array_bytes(state), 0
    number = float(next(_number))

    def copied(value: Any) -> Any:
        nonlocal done
        if isinstance(value, dict):
            return {key: copied(part) for key, part in value.items()}
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            size = value.numel() * value.element_size()
            if done + size <= total * 0.02:
                done += size
                return value + number + 1
        return value

    copy: State = copied(state)
    return copy


def _new(make: Callable[[str], Any]) -> tuple[str, Any]:
    prefix = f"new-{next(_number)}"
    return prefix, make(prefix)


def _icechunk_storage(bucket: Bucket, prefix: str) -> icechunk.Storage:
    return icechunk.s3_storage(
        bucket=BUCKET,
        prefix=prefix,
        endpoint_url=bucket.endpoint,
        region="us-east-1",
        allow_http=True,
        force_path_style=True,
        access_key_id=AWS["AWS_ACCESS_KEY_ID"],
        secret_access_key=AWS["AWS_SECRET_ACCESS_KEY"],
    )


def _icechunk_commit(repository: icechunk.Repository, state: State) -> None:
    """Write every tensor as an uncompressed array, on 16 threads, and commit."""
    session = repository.writable_session("main")
    group = zarr.open_group(session.store, mode="w")

    def write(item: tuple[str, torch.Tensor]) -> None:
        name, tensor = item
        array = tensor.numpy()
        chunks = list(array.shape)
        if chunks and array.nbytes > remote.PIECE_BYTES:
            chunks[0] = max(1, chunks[0] * remote.PIECE_BYTES // array.nbytes)
        made = group.create_array(
            name, shape=array.shape, dtype=array.dtype, chunks=tuple(chunks), compressors=None
        )
        made[...] = array

    with ThreadPoolExecutor(remote.PEER_THREADS) as pool:
        list(pool.map(write, workloads.tensors(state).items()))
    session.commit("state")


def _icechunk_checkout(repository: icechunk.Repository) -> list[Any]:
    """Read every array, on 16 threads."""
    group = zarr.open_group(repository.readonly_session("main").store, mode="r")
    with ThreadPoolExecutor(remote.PEER_THREADS) as pool:
        return list(pool.map(lambda name: group[name][...], sorted(group.array_keys())))


def _run(*command: object, cwd: Path | None = None) -> None:
    subprocess.run([str(word) for word in command], cwd=cwd, check=True, capture_output=True)
