"""A name is held by one process."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from ckptstore import ConflictError
from ckptstore.storage import LocalStorage, MemoryStorage, hold
from tests.helpers.children import do_in_child

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    made = LocalStorage(tmp_path / "store")
    made.prepare(["objects/"])
    return made


def files(storage: LocalStorage) -> list[str]:
    return [name for name in os.listdir(f"{storage.url}/tmp") if name.startswith("held-")]


def test_holds_of_one_process_share_the_file_and_the_last_removes_it(storage: LocalStorage) -> None:
    one, other = storage.hold("a"), LocalStorage(storage.url).hold("a")
    assert files(storage) == ["held-a"]
    one.release()
    one.release()
    assert files(storage) == ["held-a"]
    other.release()
    assert files(storage) == []


def test_another_process_is_refused_and_learns_who_holds_it(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold, "PROBE_SECONDS", 0.0)
    held = storage.hold("a")

    def refused() -> None:
        with pytest.raises(ConflictError, match=f"process {parent} of user"):
            storage.hold("a")
        assert str(parent) in (storage.holder("a") or "")
        assert storage.holder("b") is None
        storage.hold("b").release()
        held.release()  # the parent's

    parent = os.getpid()
    do_in_child(refused)
    assert files(storage) == ["held-a"]
    held.release()
    do_in_child(lambda: storage.hold("a").release())


def test_a_file_that_a_killed_process_left_is_held_again_or_swept(storage: LocalStorage) -> None:
    do_in_child(lambda: storage.hold("a"))  # which ends without a release
    assert files(storage) == ["held-a"]
    assert storage.temporaries() == ()
    held = storage.hold("a")
    storage.sweep()
    assert files(storage) == ["held-a"]
    held.release()
    do_in_child(lambda: storage.hold("a"))
    storage.sweep()
    assert files(storage) == []


def test_a_link_in_its_place_is_not_followed(storage: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"x")
    os.symlink(tmp_path / "outside", f"{storage.url}/tmp/held-a")
    storage.hold("a").release()
    assert (tmp_path / "outside").read_bytes() == b"x"


def test_the_file_is_empty_and_private_to_its_writer(storage: LocalStorage) -> None:
    held = storage.hold("a")
    status = os.stat(f"{storage.url}/tmp/held-a")
    assert status.st_size == 0
    assert not stat.S_IMODE(status.st_mode) & 0o022
    held.release()


def test_memory_is_held_by_nobody() -> None:
    storage = MemoryStorage()
    storage.hold("a").release()
    assert storage.holder("a") is None
    assert storage.free_bytes() is None


def test_a_folder_tells_its_free_space(storage: LocalStorage) -> None:
    assert 0 < (storage.free_bytes() or 0) < 1 << 60
