"""Our client against object stores that other people have written.

ministack is asked in every run; moto and Azurite, which `make test-deep` installs, in deep ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ckptstore
from ckptstore.errors import StorageError
from ckptstore.storage.remote import RemoteStorage
from ckptstore.storage.remote_url import RemoteUrl
from ckptstore.storage.requests import RefusedError
from ckptstore.testing.storage_suite import StorageSuite
from tests.helpers import until_closed
from tests.helpers.judges import AWS, BUCKET, Judge, rclone
from tests.helpers.races import WRITERS, assert_one_winner
from tests.helpers.verbs import assert_all_verbs_do_as_in_memory

pytestmark = [pytest.mark.slow]


@pytest.fixture
def url(judge: Judge, tmp_path: Path) -> str:
    """The URL of a place that no other test uses."""
    return judge.url(f"{tmp_path.parent.name}/{tmp_path.name}")


def _storage(url: str) -> RemoteStorage:
    return RemoteStorage(RemoteUrl.parse(url))


class TestJudges(StorageSuite):
    @pytest.fixture
    def storage(self, url: str) -> RemoteStorage:
        return _storage(url)


def test_a_server_ends_with_the_process_that_started_it() -> None:
    """However that dies, as a pipe from it ends then."""
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
    command = [sys.executable, until_closed.__file__, sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        server = int(process.stdout.readline())
        os.kill(server, 0)
        process.stdin.close()
        process.wait(60)
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)


def test_sixteen_writers_create_sixty_keys_and_each_has_one_winner(url: str) -> None:
    assert_one_winner([_storage(url) for _ in range(WRITERS)])


def test_a_bucket_that_is_not_there_is_named(judge: Judge) -> None:
    """At once, by whatever asks first."""
    url = judge.url("run").replace(f"://{BUCKET}", "://nowhere")
    storage = _storage(url)
    uses = (
        lambda: ckptstore.init(url),
        lambda: ckptstore.open(url),
        lambda: list(storage.list("")),
        lambda: storage.put("a", b""),
        lambda: storage.create("a", b""),
    )
    for use in uses:
        with pytest.raises(RefusedError, match=r"There is no (bucket|container) 'nowhere'"):
            use()


def test_more_keys_than_a_page_are_listed_and_deleted(url: str) -> None:
    storage = _storage(url)
    keys = {f"objects/{number:04}" for number in range(1100)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: storage.put(key, b"x"), sorted(keys)))
    assert {item.key for item in storage.list("objects/")} == keys
    storage.delete(keys)
    assert list(storage.list("")) == []


def test_all_verbs_do_as_in_memory(url: str, tmp_path: Path) -> None:
    """Commit, gc, undo, push, pull and all others, one after the other."""
    assert_all_verbs_do_as_in_memory(url, tmp_path)


@pytest.mark.deep
def test_a_server_of_others_that_ignores_conditions_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    with rclone() as judge, pytest.raises(StorageError, match="ignores conditions"):
        ckptstore.init(judge.url("run"))
