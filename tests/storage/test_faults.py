"""Every verb of a repository on an object store, through every fault that a server can have."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import ckptstore
from ckptstore.documents.marker import MARKER_BYTES_MAX, MARKER_KEY, Marker
from ckptstore.errors import CkptStoreError
from ckptstore.storage import remote
from ckptstore.storage.remote import RemoteStorage, Timeouts
from ckptstore.storage.remote_url import RemoteUrl
from ckptstore.store import disk_cache
from ckptstore.testing.s3_server import FAULTS, Request, S3Server
from tests.helpers.crash.parts import some
from tests.helpers.verbs import VERBS, facts, prepared

pytestmark = [pytest.mark.hostile]

SHARE = 0.02  # of the requests that fail
AIMED = {
    "dropped": "create",
    "conflict": "create",
    "duplicated": "create",
    "truncated": "get",
    "flipped": "get",
}
TIMEOUTS = Timeouts(connect=5, quick=5, slow=5, silence=5, retry=20)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv(disk_cache.BYTES_VARIABLE, "0")  # as for each test
        with S3Server(stall_seconds=0.1) as server:
            prepared(ckptstore.init(server.url("run"), chunk_size=64 << 10))
            yield Served(server)


class Served:
    """A server, and repositories on it that are all as `prepared` left the first."""

    def __init__(self, server: S3Server) -> None:
        self.server = server
        self._storage = RemoteStorage(RemoteUrl.parse(server.url("run")), timeouts=TIMEOUTS)
        self._marker = Marker.decode(self._storage.get(MARKER_KEY, bytes_max=MARKER_BYTES_MAX))
        self._objects = dict(server._objects)

    def fresh(self) -> ckptstore.Repository:
        """The repository as at the beginning, to a process that has just opened it."""
        self.server.fault = lambda request: None
        self.server._objects = dict(self._objects)
        self._storage._is_probed = False
        return self.opened()

    def opened(self) -> ckptstore.Repository:
        """The repository as it is."""
        self.server.fault = lambda request: None
        return ckptstore.Repository(self._storage, self._marker)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.001)


def _at(fault: str, kind: str, number: int) -> Callable[[Request], str | None]:
    """A fault of one request of a kind."""
    numbers = itertools.count()

    def inject(request: Request) -> str | None:
        return fault if request.kind == kind and next(numbers) == number else None

    return inject


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_does_as_without_after_each_fault(served: Served, tmp_path: Path, verb: str) -> None:
    """One fault each, of a request drawn from those that the verb makes.

    A fault that is worst for some kind of request meets one of that kind.

    A flipped bit is found by a digest. It may also be one of a listing, or of another answer that
    only the protocol protects; then the result is an error.
    """
    rng, server = random.Random(verb), served.server
    repo = served.fresh()
    server.counts.clear()
    result = VERBS[verb](repo, tmp_path)
    counts = dict(server.counts)
    expected = result, facts(served.opened())
    for fault in FAULTS:
        repo = served.fresh()
        kind = AIMED.get(fault, "")
        if kind not in counts:
            (kind,) = rng.choices([*counts], [*counts.values()])
        number = rng.randrange(counts[kind])
        server.fault = _at(fault, kind, number)
        allowed = CkptStoreError if fault == "flipped" else ()
        with suppress(allowed):
            result = VERBS[verb](repo, tmp_path)
            assert (result, facts(served.opened())) == expected, (fault, kind, number)
        assert served.opened().verify().problems == ()


@pytest.mark.parametrize("seed", some([0], range(20)))
def test_all_verbs_after_each_other_on_a_server_that_fails_often(
    served: Served, tmp_path: Path, seed: int
) -> None:
    """They do as in memory, where nothing fails."""
    rng = random.Random(seed)
    faults = [fault for fault in FAULTS if fault != "flipped"]
    near = ckptstore.init(f"memory://{tmp_path}", chunk_size=64 << 10)
    prepared(near)
    repo = served.fresh()
    served.server.fault = lambda request: rng.choice(faults) if rng.random() < SHARE else None
    for name, verb in VERBS.items():
        assert verb(repo, tmp_path) == verb(near, tmp_path), name
    assert facts(served.opened()) == facts(near)
    assert repo.verify().problems == ()
