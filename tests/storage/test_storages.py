"""The storages that ship, against the contract; and what only a file system can do wrong."""

from __future__ import annotations

import os
import socket
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import pytest

import ckptstore
from ckptstore.errors import CkptStoreError, CorruptError, InvalidInputError, StorageError
from ckptstore.storage import LocalStorage, MemoryStorage, open_storage
from ckptstore.testing.storage_suite import KEY, StorageSuite


class TestMemoryStorage(StorageSuite):
    @pytest.fixture
    def storage(self) -> MemoryStorage:
        return MemoryStorage()


class TestLocalStorage(StorageSuite):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> LocalStorage:
        return LocalStorage(tmp_path)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/x",
        "../x",
        "a/../b",
        "a//b",
        ".x",
        "a/.b",
        "a/b/c/d",
        "a\\b",
        "a\0",
        "ä",
        "x" * 300,
        "a/",
    ],
)
def test_a_key_outside_the_grammar_is_refused_before_the_disk_sees_it(
    tmp_path: Path, key: str
) -> None:
    storage = LocalStorage(tmp_path / "root")
    (tmp_path / "root").mkdir()
    (tmp_path / "x").write_bytes(b"outside")
    with pytest.raises(CkptStoreError):
        storage.get(key, bytes_max=100)
    with pytest.raises(CkptStoreError):
        storage.put(key, b"")
    assert (tmp_path / "x").read_bytes() == b"outside"


def test_links_are_never_followed(tmp_path: Path) -> None:
    """Neither as the file, nor as a folder above it, nor when writing or listing."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "cd").write_bytes(b"secret")
    root = tmp_path / "root"
    (root / "objects" / "ab").mkdir(parents=True)
    (root / "objects" / "ab" / "cd").symlink_to(outside / "cd")
    (root / "objects" / "ef").symlink_to(outside)
    storage = LocalStorage(root)
    for key in (KEY, "objects/ef/cd"):
        with pytest.raises(CorruptError):
            storage.get(key, bytes_max=100)
        with pytest.raises(CorruptError):
            storage.read_into(key, memoryview(bytearray(6)))
        with pytest.raises(CorruptError):
            storage.size(key)
    with pytest.raises(CorruptError):
        storage.put("objects/ef/new", b"")
    listed = {item.key: item.size for item in storage.list("")}
    assert listed == {KEY: 0, "objects/ef": 0}  # seen, so that verify reports them
    assert sorted(os.listdir(outside)) == ["cd"]


def test_a_put_in_place_of_a_link_replaces_the_link_and_not_its_target(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "x").symlink_to(tmp_path / "secret")
    LocalStorage(tmp_path / "root").put("x", b"new")
    assert (tmp_path / "secret").read_bytes() == b"secret"
    assert (tmp_path / "root" / "x").read_bytes() == b"new"


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    LocalStorage(tmp_path / "link").put(KEY, b"x")
    assert (tmp_path / "real" / KEY).read_bytes() == b"x"


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    """A FIFO that nobody writes to, a socket, a folder."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(tmp_path)  # the address of a socket is short
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        for key in ("fifo", "folder", "socket"):
            with pytest.raises(CorruptError):
                LocalStorage(tmp_path).get(key, bytes_max=100)
            with pytest.raises(CorruptError):
                LocalStorage(tmp_path).size(key)


def test_no_temporary_file_is_left_and_none_is_listed(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put(KEY, b"x")
    storage.create("ops/1", b"x")
    storage.create("ops/1", b"y")
    assert os.listdir(tmp_path / "tmp") == []
    (tmp_path / "tmp" / "1-left-by-a-crash").write_bytes(b"x")
    assert sorted(item.key for item in storage.list("")) == [KEY, "ops/1"]
    assert sorted(storage.keys("")) == [KEY, "ops/1"]


def test_folders_of_other_programs_are_listed_and_not_entered(tmp_path: Path) -> None:
    """They may hold anything, and may not even be readable."""
    storage = LocalStorage(tmp_path)
    storage.put(KEY, b"x")
    others = [f"objects/{name}" for name in ("lost+found", "@eaDir", ".snapshot")]
    for other in others:
        (tmp_path / other).mkdir()
        (tmp_path / other / "file").write_bytes(b"x")
    sizes = {item.key: item.size for item in storage.list("")}
    assert sizes == {KEY: 1, **dict.fromkeys(others, 0)}
    assert set(storage.keys("objects/")) == set(sizes)


def test_a_folder_that_is_deleted_while_others_are_listed_ends_no_listing(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    keys = [f"objects/{number:02x}/a" for number in range(8)]
    for key in keys:
        storage.put(key, b"x")
    listing = storage.list("objects/")
    listed = {next(listing).key}
    for key in set(keys) - listed:
        (tmp_path / key).unlink()
        (tmp_path / key).parent.rmdir()
        break
    listed.update(item.key for item in listing)
    assert listed == set(keys) - {key}


def test_a_folder_that_is_gone_or_takes_no_files_is_a_storage_error_that_names_the_key(
    tmp_path: Path,
) -> None:
    for root in (tmp_path / "missing", "/proc/self"):
        with pytest.raises(StorageError, match=KEY):
            LocalStorage(root).put(KEY, b"x")
        with pytest.raises(StorageError, match=KEY):
            LocalStorage(root).create(KEY, b"x")


def test_a_url_means_a_storage_or_is_refused(tmp_path: Path) -> None:
    assert open_storage(tmp_path).url == str(tmp_path)
    assert open_storage(f"file://{tmp_path}/a%20b").url == f"{tmp_path}/a b"
    assert open_storage("memory://shared") is open_storage("memory://shared")
    assert open_storage("memory://") is not open_storage("memory://")
    for url in ("s3://", "", "ftp://host", "\0"):
        with pytest.raises(InvalidInputError):
            open_storage(url)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///a/b%20c", "/a/b c"),
        ("file://localhost/a", "/a"),
        ("FILE:///a/", "/a"),
        ("file:///a%23b%3Fc%25", "/a#b?c%"),
        ("file:///a%FFb", os.fsdecode(b"/a\xffb")),
        ("file:///a\nb", "/a\nb"),
        ("file:///~/a", "/~/a"),
        ("/a#b?c%20", "/a#b?c%20"),
        ("/a/../b//c/", "/b/c"),
    ],
)
def test_a_url_of_a_path_is_that_path_to_the_byte(url: str, path: str) -> None:
    """And what a storage says of itself finds it again."""
    assert open_storage(url).url == path
    assert open_storage(open_storage(url).url).url == path


@pytest.mark.parametrize(
    "url", ["file:///a#b", "file:///a?b", "file://host/a", "file://", "file:/a"]
)
def test_a_url_that_is_no_path_is_refused_and_not_cut(url: str) -> None:
    with pytest.raises(InvalidInputError, match=r"%23|%3F|file:///path|two slashes"):
        open_storage(url)


def test_a_url_that_pathlib_has_shortened_is_no_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for url in (PurePosixPath("s3://bucket/x"), "s3:/bucket/x", "memory:/x"):
        with pytest.raises(InvalidInputError, match="looks like a URL"):
            open_storage(Path(url) if isinstance(url, PurePosixPath) else url)
    assert open_storage("./s3:/x").url == f"{tmp_path}/s3:/x"
    assert open_storage(tmp_path / "s3:/x").url == f"{tmp_path}/s3:/x"


@pytest.mark.parametrize("name", ["#1?a=%20b", "new\nline", "~", " ", "ä", os.fsdecode(b"\xff")])
def test_a_repository_may_have_any_name(scratch: Path, name: str) -> None:
    repo = ckptstore.init(scratch / name)
    assert repo.url == f"{scratch}/{name}"
    made = repo.commit({"lr": 0.1})
    assert ckptstore.open(repo.url).resolve("main").id == made.id
    url = "file://" + quote(os.fsencode(scratch / name))
    assert ckptstore.open(url).resolve("main").id == made.id


def test_in_a_working_folder_that_is_gone_only_an_absolute_path_is_opened(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = ckptstore.init(scratch / "store")
    (scratch / "gone").mkdir()
    monkeypatch.chdir(scratch / "gone")
    (scratch / "gone").rmdir()
    with pytest.raises(InvalidInputError, match="Pass an absolute path"):
        ckptstore.open("store")
    ckptstore.open(scratch / "store").commit({"lr": 0.1})
    assert repo.verify().ok
