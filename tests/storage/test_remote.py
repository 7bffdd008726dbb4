"""Object stores against the contract, on a server that can be slow, wrong and unlucky."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from blake3 import blake3

import ckptstore
from ckptstore.documents.marker import MARKER_BYTES_MAX, MARKER_KEY, Marker
from ckptstore.errors import CkptStoreError, CorruptError, NotFoundError, StorageError
from ckptstore.retention import MaxToKeep
from ckptstore.storage import open_storage, remote
from ckptstore.storage.remote import RemoteStorage, Timeouts
from ckptstore.storage.remote_url import RemoteUrl
from ckptstore.testing.s3_server import FAULTS, Request, S3Server
from ckptstore.testing.storage_suite import KEY, StorageSuite
from tests.helpers.races import WRITERS, assert_one_winner
from tests.helpers.verbs import assert_all_verbs_do_as_in_memory

SECRET = "S3CR3T"
DATA = random.Random(0).randbytes(2 << 20)  # without a period, so that every offset counts
GCS_KEY = (
    '{{"gcs_base_url": "{}", "disable_oauth": true, "client_email": "", "private_key": "",'
    ' "private_key_id": ""}}'
)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any, the client would look for the role of this machine."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.001)


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server(stall_seconds=0.5) as server:
        yield server


class TestS3(StorageSuite):
    @pytest.fixture
    def storage(self, server: S3Server) -> RemoteStorage:
        return _storage(server)


@pytest.fixture
def google(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a place on the server, which is spoken to as to Google."""
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", GCS_KEY.format(server.endpoint))
    return f"gs://bucket/a/run?endpoint={server.endpoint}"


class TestGoogle(StorageSuite):
    @pytest.fixture
    def storage(self, google: str) -> object:
        return open_storage(google)


def test_all_verbs_do_as_in_memory_in_the_dialect_of_google(google: str, tmp_path: Path) -> None:
    assert_all_verbs_do_as_in_memory(google, tmp_path)


def _storage(server: S3Server, prefix: str = "runs/a") -> RemoteStorage:
    """A storage whose requests give up soon."""
    short = Timeouts(connect=2, quick=0.3, slow=0.3, silence=0.3, retry=20)
    return RemoteStorage(RemoteUrl.parse(server.url(prefix)), timeouts=short)


def _once(fault: str, kind: str = "") -> Callable[[Request], str | None]:
    """A fault of the first request of a kind, or of the first one at all."""
    left = [fault]

    def inject(request: Request) -> str | None:
        return left.pop() if left and kind in ("", request.kind) else None

    return inject


# What each call returns from a storage that holds DATA under KEY, and must return after any fault.
CALLS: dict[str, Callable[[RemoteStorage], object]] = {
    "get": lambda storage: storage.get(KEY, bytes_max=len(DATA)),
    "read": lambda storage: _read(storage),
    "put": lambda storage: (storage.put(KEY, b"new"), storage.get(KEY, bytes_max=3)),
    "copy": lambda storage: (storage.copy(KEY, "a/b"), storage.size("a/b")),
    "create": lambda storage: (storage.create("ops/1", b"x"), storage.create("ops/1", b"y")),
    "lost create": lambda storage: storage.create(KEY, b"other"),
    "delete": lambda storage: (storage.delete([KEY, "no/thing"]), storage.size(KEY)),
    "list": lambda storage: [item[:2] for item in storage.list("objects/")],
    "size": lambda storage: (storage.size(KEY), storage.size("no/thing")),
}


def _read(storage: RemoteStorage) -> tuple[bytes, str]:
    buffer, hasher = bytearray(len(DATA) - 7), blake3()
    storage.read_into(KEY, memoryview(buffer), start=7, seen=hasher.update)
    return bytes(buffer), hasher.hexdigest()


@pytest.mark.hostile
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "flipped"])
@pytest.mark.parametrize("verb", CALLS)
def test_after_any_one_fault_each_verb_does_as_without(
    server: S3Server, verb: str, fault: str
) -> None:
    """Also the parts that `seen` is called with: each once, in order."""
    server.fault = lambda request: None
    storage, expected = _storage(server), _storage(server, "expected")
    for one in (storage, expected):
        one.prepare({"objects/"})
        one.put(KEY, DATA)
        one.create("ops/0", b"")
    right = CALLS[verb](expected)
    server.counts.clear()
    server.fault = _once(fault)
    assert CALLS[verb](storage) == right
    assert sum(server.counts.values()) < 12


@pytest.mark.hostile
@pytest.mark.parametrize("kind", ["get", "put", "create", "head", "list"])
@pytest.mark.parametrize("fault", FAULTS)
def test_after_any_one_fault_a_commit_is_there_bit_for_bit(
    server: S3Server, kind: str, fault: str
) -> None:
    """A flipped bit is found by its digest: an error, or no harm, never other bytes."""
    state = {"w": torch.arange(300_000.0), "b": torch.ones(3), "step": 7}
    ckptstore.open(server.url("run"), create=True)
    repo = _opened(server)
    server.fault = _once(fault, kind)
    try:
        id = repo.commit(state, step=1).id
        found = repo.checkout("main")
    except CorruptError:
        assert fault == "flipped"
        server.fault = lambda request: None
        id = repo.commit(state, step=1).id
        found = repo.checkout("main")
    assert repo.resolve("main").id == id
    assert found["step"] == 7
    assert all(torch.equal(found[name], state[name]) for name in ("w", "b"))
    server.fault = lambda request: None
    assert repo.verify().problems == ()


def _opened(server: S3Server) -> ckptstore.Repository:
    """The repository over a storage whose requests give up soon."""
    storage = _storage(server, "run")
    marker = Marker.decode(storage.get(MARKER_KEY, bytes_max=MARKER_BYTES_MAX))
    return ckptstore.Repository(storage, marker)


def test_an_answer_that_is_cut_again_and_again_is_an_error_of_the_storage(
    server: S3Server,
) -> None:
    storage = _storage(server)
    storage.put(KEY, DATA)
    server.fault = lambda request: "error"
    with pytest.raises(StorageError, match=KEY):
        storage.get(KEY, bytes_max=len(DATA))


def test_a_conflict_where_nothing_is_does_not_mean_that_the_key_exists(server: S3Server) -> None:
    """A create beside a delete is answered so; the client calls it "already exists"."""
    storage = _storage(server)
    server.fault = _once("conflict", "create")
    assert storage.create("ops/1", b"mine")
    assert storage.get("ops/1", bytes_max=9) == b"mine"


def test_a_create_that_took_effect_without_an_answer_is_the_callers(server: S3Server) -> None:
    storage = _storage(server)
    server.fault = _once("dropped", "create")
    assert storage.create("ops/1", b"mine")
    assert not storage.create("ops/1", b"another")


@pytest.mark.parametrize("fault", [None, "dropped", "duplicated", "conflict", "error"])
@pytest.mark.parametrize("has_rivals", [False, True], ids=["alone", "with rivals"])
@pytest.mark.parametrize("is_taken", [False, True], ids=["free", "taken"])
def test_what_another_caller_created_is_seen(
    server: S3Server, fault: str | None, has_rivals: bool, is_taken: bool
) -> None:
    """With rivals, it is read while the key is created, whatever comes of that."""
    storage = _storage(server)
    seen: list[bytes] = []
    assert storage.create("ops/1", b"another")
    if has_rivals:
        assert not storage.create("ops/1", b"mine")
    key = "ops/1" if is_taken else "ops/2"
    if fault:
        server.fault = _once(fault, "create")
    assert storage.create(key, b"mine", seen=lambda data: seen.append(bytes(data))) != is_taken
    assert seen == [b"another"] * is_taken
    assert storage.get(key, bytes_max=9) == (b"another" if is_taken else b"mine")


def test_rivals_are_read_with_the_request_that_creates(server: S3Server) -> None:
    storage = _storage(server)
    storage.create("ops/1", b"another")
    kinds: list[str] = []
    for _ in range(3):
        server.counts.clear()
        assert not storage.create("ops/1", b"mine")
        kinds.append(" ".join(sorted(server.counts.elements())))
    assert kinds == ["create get"] * 3


def test_a_server_that_ignores_conditions_is_refused_when_a_repository_is_made() -> None:
    with S3Server(ignores_conditions=True) as server:
        with pytest.raises(StorageError, match="ignores conditions"):
            ckptstore.open(server.url("run"), create=True)
        assert not any("ckptstore.json" in key for key in server.objects)


def test_a_server_that_ignores_conditions_is_refused_at_the_first_write_of_a_process(
    server: S3Server,
) -> None:
    ckptstore.open(server.url("run"), create=True)
    server.ignores_conditions = True
    with pytest.raises(StorageError, match="ignores conditions"):
        ckptstore.open(server.url("run")).commit({"step": 1})


def test_it_is_refused_too_where_nothing_was_put_before(server: S3Server) -> None:
    server.ignores_conditions = True
    with pytest.raises(StorageError, match="ignores conditions"):
        _storage(server).create("ops/1", b"x")


def test_the_first_create_of_a_process_finds_out_about_conditions_meanwhile(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ckptstore.open(server.url("run"), create=True)
    repo = ckptstore.open(server.url("run"))
    both = threading.Barrier(2)
    create_once = RemoteStorage._create_once

    def create_at_once(storage: RemoteStorage, key: str, data: bytes) -> bool:
        both.wait(10)
        return create_once(storage, key, data)

    with monkeypatch.context() as patched:
        patched.setattr(RemoteStorage, "_create_once", create_at_once)
        repo.commit({"step": 1})
    server.counts.clear()
    repo.commit({"step": 2})
    assert server.counts["create"] == 1


def test_what_was_put_long_ago_is_not_sent_again(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gc may have deleted it, and what it refers to."""
    monkeypatch.setattr(remote, "PROBE_SECONDS", -1.0)
    storage = _storage(server)
    storage.put(KEY, b"manifest")
    storage.delete([KEY])
    assert storage.create("ops/1", b"x")
    assert storage.size(KEY) is None
    assert not storage.create("ops/1", b"y")


def test_sixteen_writers_create_sixty_keys_and_each_has_one_winner(server: S3Server) -> None:
    assert_one_winner([_storage(server) for _ in range(WRITERS)])


def test_more_keys_than_a_page_are_listed_and_deleted(server: S3Server) -> None:
    """Also when the listing is interrupted in the middle."""
    storage = _storage(server)
    keys = {f"objects/{number:04}" for number in range(2300)}
    for key in keys:
        storage.put(key, b"x")
    server.fault = lambda request: "reset" if request.number % 2 else None
    assert {item.key for item in storage.list("objects/")} == keys
    storage.delete(keys)
    assert list(storage.list("")) == []


def test_a_forked_child_gets_an_error_instead_of_hanging(server: S3Server) -> None:
    storage = _storage(server)
    storage.put(KEY, b"x")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(storage, server.url("other"), queue))
    child.start()
    errors = [queue.get(timeout=20) for _ in range(2)]
    child.join(20)
    assert child.exitcode == 0
    assert all("fork" in error for error in errors)


def _in_child(storage: RemoteStorage, url: str, queue: object) -> None:
    for use in (lambda: storage.get(KEY, bytes_max=1), lambda: ckptstore.open(url, create=True)):
        try:
            queue.put(f"returned {use()}")  # type: ignore[attr-defined]
        except StorageError as error:
            queue.put(str(error))  # type: ignore[attr-defined]


@pytest.mark.parametrize("many", [False, True], ids=["one request", "a commit"])
def test_an_interrupt_ends_a_program_that_waits_for_a_silent_server(
    server: S3Server, many: bool
) -> None:
    """Within a second, though the requests may take half a minute."""
    ckptstore.open(server.url("run"), create=True)
    stuck = threading.Event()

    def fault(request: Request) -> str | None:
        if request.kind == ("put" if many else "get"):
            stuck.set()
            return "stalled"
        return None

    server.fault, server.stall_seconds = fault, 60
    program = (
        "import sys, ckptstore, torch\n"
        "repo = ckptstore.open(sys.argv[1])\n"
        "repo.commit({str(i): torch.full((300_000,), i) for i in range(20)})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, server.url("run")],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_listen_to_interrupts,
    )
    assert stuck.wait(60)
    threading.Event().wait(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)  # far below the time that requests may take
    assert "KeyboardInterrupt" in errors, errors


def _listen_to_interrupts() -> None:
    """Tests that run in the background of a shell inherit that it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("s3://bucket:80/x", "names no bucket"),
        (f"s3://user:{SECRET}@bucket/x", "credentials"),
        (f"s3://bucket/x?access_key_id={SECRET}", "unknown option"),
        (f"s3://bucket/x?aws_secret_access_key={SECRET}", "unknown option"),
        ("s3://bucket/../x", r"\.\."),
        ("s3://bucket/a%2Fb", "%2F"),
        ("s3://bucket/x#y", "#"),
        ("s3://bucket?endpoint=ftp://host", "endpoint"),
        (f"s3://bucket?endpoint=http://user:{SECRET}@host", "endpoint"),
        ("s3://bucket?anonymous=maybe", "anonymous"),
        ("az://box/x?region=a", "unknown option"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_showing_secrets(
    url: str, message: str
) -> None:
    with pytest.raises(CkptStoreError, match=message) as caught:
        open_storage(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("s3://bucket", "s3://bucket"),
        ("S3A://bucket/a//b/", "s3://bucket/a/b"),
        (
            "s3://bucket/a?region=eu&endpoint=http://h:1",
            "s3://bucket/a?endpoint=http%3A%2F%2Fh%3A1&region=eu",
        ),
        ("gcs://bucket/a", "gs://bucket/a"),
        ("azure://box/a?account=me", "az://box/a?account=me"),
    ],
)
def test_a_url_has_one_spelling_which_can_be_opened_again(given: str, url: str) -> None:
    assert str(RemoteUrl.parse(given)) == url
    assert str(RemoteUrl.parse(url)) == url


def test_errors_and_the_address_hold_no_credentials(server: S3Server) -> None:
    storage = _storage(server)
    server.fault = lambda request: "error"
    with pytest.raises(StorageError) as caught:
        storage.put(KEY, b"x")
    assert SECRET not in f"{caught.value}{caught.value.__cause__}{storage.url}"


def test_an_error_of_azure_does_not_show_the_signature_of_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", f"sv=2020&sig={SECRET}")
    storage = open_storage("az://box/run?endpoint=http://127.0.0.1:9/account")
    with pytest.raises(StorageError) as caught:
        storage.put(KEY, b"x")
    shown = "".join(traceback.format_exception(caught.value))
    assert KEY in shown
    assert SECRET not in shown


def test_a_place_that_is_not_there_is_no_empty_one(server: S3Server) -> None:
    """A repository that was never made is not found; nothing is made by looking for it."""
    with pytest.raises(NotFoundError, match="ckptstore"):
        ckptstore.open(server.url("nowhere"))
    assert server.objects == {}


def test_other_things_in_the_place_are_named_and_stay(server: S3Server) -> None:
    _storage(server, "data/photos").put("cat", b"meow")
    with pytest.raises(CkptStoreError, match="photos"):
        ckptstore.open(server.url("data"), create=True)
    assert list(server.objects.values()) == [b"meow"]


def test_a_gc_deletes_what_nothing_reaches_and_leaves_nothing_condemned(server: S3Server) -> None:
    repo = ckptstore.open(server.url("run"), create=True)
    for step in range(3):
        repo.commit({"w": torch.full((1000,), float(step))}, step=step)
    before = sum("/objects/" in key for key in server.objects)
    assert len(repo.plan_gc(MaxToKeep(1), grace=0).expired) == 2
    assert len(repo.gc(MaxToKeep(1), grace=0).expired) == 2
    assert sum("/objects/" in key for key in server.objects) < before
    again = repo.commit({"w": torch.zeros(1000)}, step=3)
    assert torch.equal(repo.checkout(again.id)["w"], torch.zeros(1000))
    assert repo.verify().ok


def test_a_request_that_was_signed_long_ago_is_refused() -> None:
    """As the margin of a gc counts on."""
    with S3Server(signed_seconds=-5.0) as server, pytest.raises(StorageError):
        _storage(server).delete([KEY])


def test_a_call_that_deletes_ends_in_time_or_fails(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = _storage(server)
    monkeypatch.setattr(remote, "DELETE_SECONDS", 0.0)
    with pytest.raises(StorageError, match="could not be deleted within 0 s"):
        storage.delete([KEY])


def test_everything_else_works_as_on_a_disk(server: S3Server, tmp_path: Path) -> None:
    """Branches, tags, notes, best, diff, undo, verify, usage, follow, Zarr and the manager."""
    from ckptstore.training import CheckpointManager

    url = server.url("run")
    model = torch.nn.Linear(40, 30)
    with CheckpointManager(url, model=model) as manager:
        for step in range(3):
            with torch.no_grad():
                model.weight.fill_(step)
            manager.save(step, metrics={"loss": 3.0 - step})
    repo = ckptstore.open(url)
    assert [item.step for item in repo.log("main")] == [2, 1, 0]
    repo.tag("first", "main~2")
    repo.branch("seed", "first")
    repo.annotate("main", metrics={"acc": 0.5})
    assert repo.resolve("main@best:loss").step == 2
    assert repo.diff("main", "main~1").changed
    assert repo.verify().problems == ()
    assert repo.usage().checkpoints == 3
    copy = torch.nn.Linear(40, 30)
    ckptstore.load_weights(copy, repo, "main", part="model")
    assert torch.equal(copy.weight, model.weight)
    array = repo.resolve("main").array("model/weight")
    assert array[0, 0] == 2
    repo.undo()
    assert ckptstore.open(repo.url).resolve("seed").step == 0


def test_a_pickled_repository_opens_the_same_place(server: S3Server) -> None:
    import pickle

    repo = ckptstore.open(server.url("run"), create=True)
    repo.commit({"step": 1})
    pickled = pickle.dumps(repo)
    assert SECRET.encode() not in pickled
    assert pickle.loads(pickled).resolve("main").id == repo.resolve("main").id


def test_processes_end_without_being_aborted(server: S3Server) -> None:
    """The threads of the client may be about to need the interpreter when it ends."""
    ckptstore.open(server.url("run"), create=True).commit({"step": 1})
    program = "import ckptstore, sys; ckptstore.open(sys.argv[1]).resolve('main')"
    arguments = [sys.executable, "-c", program, server.url("run")]
    processes = [subprocess.Popen(arguments) for _ in range(8)]
    assert [process.wait(100) for process in processes] == [0] * 8


def test_no_proxy_or_server_of_this_machine_is_asked_by_import() -> None:
    """The client and its threads start with the first object store."""
    program = "import ckptstore, sys; print('obstore' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert done.stdout.strip() == "False"
