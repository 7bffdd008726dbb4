"""Repositories that a web server publishes: read as they are, never older, never written to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore.errors import (
    CkptStoreError,
    CorruptError,
    ExpiredError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from ckptstore.retention import MaxToKeep
from ckptstore.storage import open_storage, remote
from ckptstore.storage.protocol import UnlistedError
from ckptstore.store import newest, oplog
from ckptstore.store.newest import newest_after, newest_of_all
from tests.helpers.web_server import WebServer

KEPT = 20


@pytest.fixture
def server(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.001)
    with WebServer(scratch) as server:
        yield server


@pytest.fixture
def repo(scratch: Path) -> ckptstore.Repository:
    """A repository with a history: two branches, a tag, a note and an expired checkpoint."""
    repo = ckptstore.init(scratch / "runs" / "a b")
    for step in range(4):
        repo.commit(_state(step), step=step, metrics={"loss": 1.0 - step / 10})
    repo.gc(MaxToKeep(3), grace=0)
    repo.branch("tuned", "main~1")
    repo.commit(_state(9), branch="tuned", step=9, metrics={"loss": 0.05})
    repo.tag("v1", "main")
    repo.annotate("main~1", metrics={"acc": 0.5, "loss": 0.01}, message="seen")
    return repo


@pytest.fixture(params=["listed", "unlisted"])
def published(
    request: pytest.FixtureRequest, server: WebServer, repo: ckptstore.Repository
) -> ckptstore.Repository:
    server.lists_folders = request.param == "listed"
    return ckptstore.open(f"{server.url}/runs/a%20b/")


def _state(first: float) -> dict[str, object]:
    large = {f"large.{number}": torch.full((40_000,), first + number) for number in range(3)}
    return large | {"small": torch.full((9,), first), "lr": first / 10}


def _equal(found: dict[str, object], state: dict[str, object]) -> bool:
    def same(one: object, other: object) -> bool:
        return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other

    return found.keys() == state.keys() and all(same(found[name], state[name]) for name in state)


def test_all_that_is_read_is_as_in_the_folder(
    published: ckptstore.Repository, repo: ckptstore.Repository
) -> None:
    assert published.url.startswith("http://127.0.0.1:")
    assert [str(item) for item in published.log()] == [str(item) for item in repo.log()]
    assert published.branches().keys() == {"main", "tuned"}
    assert published.tags()["v1"].id == repo.resolve("main").id
    for rev in ("main", "tuned", "v1", "main~1", "best:loss", "latest", "main@step=2"):
        assert published.resolve(rev).id == repo.resolve(rev).id
        assert _equal(published.checkout(rev), repo.checkout(rev))
    id = repo.resolve("main").id
    assert published.resolve(id[:8]).id == published.resolve(id).id == id
    assert published.resolve("main~1").metrics == {"acc": 0.5, "loss": 0.01}
    assert published.resolve("main~1").notes == repo.resolve("main~1").notes
    assert published.diff("main", "main~1") == repo.diff("main", "main~1")
    assert [info.path for info in published.resolve("main").arrays] == [
        info.path for info in repo.resolve("main").arrays
    ]
    assert published.resolve("main").array("large.1")[5:7].tolist() == [4.0, 4.0]
    assert published.checkout("main", part="small").tolist() == [3.0] * 9
    assert len(published.operations()) == len(repo.operations())
    with pytest.raises(ExpiredError):
        published.checkout("main~3")
    for rev in ("missing", "f" * 64, "0123456"):
        with pytest.raises(NotFoundError):
            published.resolve(rev)


def test_what_is_committed_later_is_seen_by_the_same_handle_and_by_followers(
    published: ckptstore.Repository, repo: ckptstore.Repository
) -> None:
    follower = published.follow("main")
    first = follower.poll()
    assert first is not None
    assert first.step == 3
    assert follower.poll() is None
    for step in range(10, 30):
        repo.commit(_state(step), step=step)
    repo.annotate("main", metrics={"acc": 0.7})
    assert published.resolve("main").metrics == {"acc": 0.7}
    steps = [found.step for found in iter(follower.poll, None)]
    assert steps[-1] == 29


@pytest.mark.parametrize("into", ["clone", "pull"])
def test_a_clone_and_a_pull_bring_everything(
    published: ckptstore.Repository, repo: ckptstore.Repository, into: str, scratch: Path
) -> None:
    if into == "clone":
        made = ckptstore.clone(published.url, scratch / "copy")
    else:
        made = ckptstore.init(scratch / "copy")
        made.pull(published.url, tags=True)
    assert [(item.id, item.expired, item.metrics) for item in made.log()] == [
        (item.id, item.expired, item.metrics) for item in repo.log()
    ]
    assert made.tags().keys() == {"v1"}
    assert _equal(made.checkout("tuned"), _state(9))
    assert made.verify().ok


def _other() -> ckptstore.Repository:
    other = ckptstore.init("memory://")
    other.commit(_state(7), branch="other")
    return other


WRITES: dict[str, Callable[[ckptstore.Repository], object]] = {
    "commit": lambda repo: repo.commit(_state(5)),
    "commit unchanged": lambda repo: repo.commit(_state(3)),
    "branch": lambda repo: repo.branch("new", "main"),
    "tag": lambda repo: repo.tag("new", "main"),
    "annotate": lambda repo: repo.annotate("main", metrics={"acc": 1}),
    "gc": lambda repo: repo.gc(MaxToKeep(1), grace=0),
    "undo": lambda repo: repo.undo(),
    "delete_tag": lambda repo: repo.delete_tag("v1"),
    "set_remote": lambda repo: repo.set_remote("origin", "memory://x"),
    "reset": lambda repo: repo.reset_branch("main", "main~1"),
    "init": lambda repo: ckptstore.init(f"{repo.url}/new"),
    "create": lambda repo: ckptstore.open(f"{repo.url}/new", create=True),
    "push": lambda repo: _other().push(repo.url),
}


@pytest.mark.parametrize("verb", WRITES)
def test_every_verb_that_writes_is_refused_by_one_sentence(
    published: ckptstore.Repository, verb: str, scratch: Path
) -> None:
    before = sorted(path for path in (scratch / "runs").rglob("*"))
    with pytest.raises(StorageError, match=r"can only be read|in a clone"):  # a gc lists first
        WRITES[verb](published)
    assert sorted(path for path in (scratch / "runs").rglob("*")) == before


def test_with_listings_verify_checks_everything(
    server: WebServer, repo: ckptstore.Repository, scratch: Path
) -> None:
    published = ckptstore.open(f"{server.url}/runs/a%20b")
    there, here = published.verify(), repo.verify()
    assert there.ok
    assert (there.objects, there.bytes, there.checkpoints) == (
        here.objects,
        here.bytes,
        here.checkpoints,
    )
    largest = max((scratch / "runs/a b/objects").rglob("*"), key=lambda path: path.stat().st_size)
    largest.chmod(0o644)
    largest.write_bytes(largest.read_bytes()[:-1] + b"x")
    assert not published.verify().ok


def test_without_listings_verify_says_why_it_cannot(
    server: WebServer, repo: ckptstore.Repository
) -> None:
    server.lists_folders = False
    published = ckptstore.open(f"{server.url}/runs/a%20b")
    for call in (published.verify, published.usage):
        with pytest.raises(UnlistedError, match="lists no folders"):
            call()


def _prune(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oplog, "KEPT_OPERATIONS", KEPT)
    monkeypatch.setattr(oplog, "PRUNE_EVERY", 5)


@pytest.mark.parametrize("count", [1, KEPT - 1, KEPT, 2 * KEPT + 1, 77])
def test_without_listings_the_newest_of_many_operations_is_found_and_notes_are_not_guessed(
    server: WebServer, scratch: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where operations were pruned, notes may be unknown: an error, but not for a checkout."""
    _prune(monkeypatch)
    repo = ckptstore.init(scratch / "many")
    for step in range(count):
        repo.commit({"x": step}, step=step)
    server.lists_folders = False
    published = ckptstore.open(f"{server.url}/many")
    assert published.checkout("main") == {"x": count - 1}
    if count <= KEPT:
        assert published.resolve("main").step == count - 1
    else:
        with pytest.raises(UnlistedError):
            published.resolve("main")
        server.lists_folders = True
        assert ckptstore.open(published.url).resolve("main").step == count - 1


def test_a_handle_that_slept_while_its_operation_was_pruned_finds_the_newest(
    published: ckptstore.Repository, repo: ckptstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert published.checkout("main")["lr"] == 0.3
    _prune(monkeypatch)
    monkeypatch.setattr(oplog, "CONFIRM_SECONDS", -1.0)
    for step in range(3 * KEPT):
        repo.commit({"x": step}, step=step)
    assert published.checkout("main") == {"x": 3 * KEPT - 1}


@given(
    count=st.integers(0, 30_000),
    slack=st.integers(0, 99),
    known=st.integers(1, 30_000),
    hole=st.integers(0, 1100),
)
def test_the_newest_is_found_by_looks_alone_past_a_hole(
    count: int, slack: int, known: int, hole: int
) -> None:
    oldest = max(1, count - 999 - slack)
    there = set(range(oldest, count + 1)) - ({count - hole} if 0 < hole < count else set())
    looks: list[int] = []

    def exists(seq: int) -> bool:
        looks.append(seq)
        return seq in there

    assert newest_of_all(exists, kept=1000) == count or (count - hole) % 1000 == 0
    assert len(looks) <= 2 * newest.SEQ_MAX / 1000 + 12 * len(newest.DISTANCES)
    if known in there:
        assert newest_after(known, exists) == count


@pytest.mark.hostile
@pytest.mark.parametrize("fault", ["truncated", "flipped", "page", 500])
@pytest.mark.parametrize("has_ranges", [True, False])
def test_after_any_one_fault_what_is_read_is_right_or_an_error(
    server: WebServer, repo: ckptstore.Repository, fault: str | int, has_ranges: bool
) -> None:
    server.has_ranges = has_ranges
    errors = []
    for number in range(12):
        published = ckptstore.open(f"{server.url}/runs/a%20b")
        server.fault, server.faulty = fault, number
        try:
            found = published.checkout("main")
        except CkptStoreError as error:
            errors.append(error)
        else:
            assert _equal(found, _state(3))
        server.fault = None
    assert bool(errors) == (fault in ("flipped", "page"))
    assert all(isinstance(error, (CorruptError, StorageError)) for error in errors)


@pytest.mark.parametrize("has_ranges", [True, False])
def test_ranges_are_right_where_the_server_has_none(
    server: WebServer, scratch: Path, has_ranges: bool
) -> None:
    server.has_ranges = has_ranges
    data = bytes(range(256)) * 8192
    (scratch / "key").write_bytes(data)
    storage = open_storage(server.url)
    for start, length in ((0, 10), (7, 100), (1 << 20, 1 << 19), (len(data) - 3, 3)):
        buffer, seen = bytearray(length), bytearray()
        storage.read_into("key", memoryview(buffer), start=start, seen=seen.extend)
        assert buffer == seen == data[start : start + length]
    for start, length in ((len(data), 1), (len(data) - 3, 4)):
        with pytest.raises(CorruptError):
            storage.read_into("key", memoryview(bytearray(length)), start=start)
    with pytest.raises(NotFoundError):
        storage.read_into("none", memoryview(bytearray(4)), start=2)
    server.fault = "truncated"
    buffer, seen = bytearray(len(data)), bytearray()
    storage.read_into("key", memoryview(buffer), seen=seen.extend)
    assert buffer == seen == data


@pytest.mark.hostile
def test_a_page_in_place_of_bytes_is_named(server: WebServer, repo: ckptstore.Repository) -> None:
    published = ckptstore.open(f"{server.url}/runs/a%20b")
    server.fault = "page"
    with pytest.raises(CorruptError, match="web page"):
        ckptstore.open(f"{server.url}/runs/a%20b")
    assert published.checkout("main")


@pytest.mark.hostile
def test_a_server_that_finds_everything_is_refused(
    server: WebServer, repo: ckptstore.Repository
) -> None:
    server.is_soft = True
    with pytest.raises(StorageError, match="answer 404"):
        ckptstore.open(f"{server.url}/runs/a%20b").checkout("main")


@pytest.mark.hostile
def test_a_page_that_lists_other_things_is_no_listing(
    server: WebServer, scratch: Path, repo: ckptstore.Repository
) -> None:
    """An index.html is served in place of the list of the folder's files."""
    (scratch / "runs/a b/index.html").write_text("<a href='about/'>About</a><a href='//x/ops/'>")
    published = ckptstore.open(f"{server.url}/runs/a%20b")
    assert _equal(published.checkout("main"), _state(3))
    with pytest.raises(UnlistedError):
        published.verify()


def test_redirects_are_followed_and_nothing_secret_goes_along(
    server: WebServer, repo: ckptstore.Repository, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "S3CR3T")
    with WebServer(scratch) as first:
        first.moved_to = server.url
        found = ckptstore.open(f"{first.url}/runs/a%20b").checkout("main")
        assert _equal(found, _state(3))
        for _, path, headers in (*first.requests, *server.requests):
            assert "S3CR3T" not in path + str(headers)
            assert not {"authorization", "cookie"} & {name.lower() for name in headers}


@pytest.mark.parametrize(
    "url",
    ["http://user:S3CR3T@host/x", "https://host/x?token=S3CR3T", "http://host/x#a", "https:///x"],
)
def test_urls_with_secrets_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        ckptstore.open(url)
    assert "S3CR3T" not in str(error.value)


def test_what_is_no_repository_is_named(server: WebServer) -> None:
    with pytest.raises(NotFoundError, match="is not a repository"):
        ckptstore.open(f"{server.url}/nothing")
