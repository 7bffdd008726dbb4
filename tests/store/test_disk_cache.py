"""The cache of far repositories: never wrong, never in the way, never too large."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore.digest import Digest
from ckptstore.errors import CorruptError, ExpiredError, InvalidInputError, NotFoundError
from ckptstore.retention import MaxToKeep
from ckptstore.store import disk_cache, oplog
from ckptstore.store.disk_cache import DiskCache, default_cache
from ckptstore.testing.s3_server import S3Server
from tests.helpers.children import do_in_child, exit_code, fork, held_by_thread
from tests.helpers.disks import NOBODY, failing, read_only

MIB = 1 << 20
DATA = bytes(range(256)) * 8192 + b"tail"  # two steps, and a little
DIGEST = Digest.of(DATA)


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", bytes_max=64 * MIB)


def _file(cache: DiskCache, digest: Digest = DIGEST) -> Path:
    return Path(cache._path(digest))


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _read(cache: DiskCache, digest: Digest, size: int) -> bytes | None:
    buffer = bytearray(size)
    return bytes(buffer) if cache.read_into(digest, memoryview(buffer)) else None


def test_what_was_put_is_read_back_whole_and_in_parts(cache: DiskCache) -> None:
    assert cache.get(DIGEST, bytes_max=len(DATA)) is None
    cache.put(DIGEST, DATA)
    assert cache.get(DIGEST, bytes_max=len(DATA)) == DATA
    assert _read(cache, DIGEST, len(DATA)) == DATA
    part, expected = bytearray(100), Digest.of(DATA[7:107])
    assert cache.read_range(DIGEST, memoryview(part), start=7, expected=expected)
    assert part == DATA[7:107]


def test_a_part_is_kept_by_its_own_digest_and_never_as_the_whole(cache: DiskCache) -> None:
    part = DATA[7:107]
    cache.put(Digest.of(part), part)
    assert _read(cache, DIGEST, len(part)) is None
    buffer = memoryview(bytearray(len(part)))
    assert cache.read_range(DIGEST, buffer, start=7, expected=Digest.of(part))
    assert buffer == part


def test_only_this_user_can_read_entries_and_the_folder_is_marked_as_a_cache(
    cache: DiskCache,
) -> None:
    cache.put(DIGEST, DATA)
    folder = _file(cache).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(_file(cache).stat().st_mode) == 0o600
    assert (folder / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886")


@pytest.mark.hostile
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_can_write_to_is_not_used(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    with caplog.at_level(logging.WARNING):
        cache = DiskCache(tmp_path / "cache")
    cache.put(DIGEST, DATA)
    assert cache.get(DIGEST, bytes_max=len(DATA)) is None
    assert list((tmp_path / "cache").iterdir()) == []
    assert "chmod 700" in caplog.text


@pytest.mark.hostile
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    os.chown(tmp_path / "cache", NOBODY, NOBODY)
    DiskCache(tmp_path / "cache").put(DIGEST, DATA)
    assert list((tmp_path / "cache").iterdir()) == []


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _link(path: Path) -> None:
    """A link to a file with exactly the right bytes."""
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": _flip,
    "truncated": lambda path: os.truncate(path, len(DATA) - 1),
    "emptied": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(len(DATA))),  # after a power failure
    "longer": lambda path: path.write_bytes(DATA + b"x"),
    "other": lambda path: path.write_bytes(DATA[::-1]),
    "link": _link,
    "folder": _folder,
    "fifo": _fifo,
}


@pytest.mark.hostile
@pytest.mark.parametrize("way", ["get", "read_into"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_planted_entry_is_a_miss_and_can_be_put_again(
    cache: DiskCache, damage: str, way: str
) -> None:
    read = {
        "get": lambda: cache.get(DIGEST, bytes_max=2 * len(DATA)),
        "read_into": lambda: _read(cache, DIGEST, len(DATA)),
    }[way]
    cache.put(DIGEST, DATA)
    DAMAGES[damage](_file(cache))
    assert read() is None
    cache.put(DIGEST, DATA)
    assert read() == (None if damage == "folder" else DATA)  # which stays in the way


@pytest.mark.hostile
def test_a_range_of_a_damaged_entry_is_a_miss(cache: DiskCache) -> None:
    cache.put(DIGEST, DATA)
    middle = len(DATA) // 2
    _flip(_file(cache))
    buffer = memoryview(bytearray(100))
    expected = Digest.of(DATA[middle - 50 : middle + 50])
    assert not cache.read_range(DIGEST, buffer, start=middle - 50, expected=expected)
    assert not _file(cache).exists()


@given(
    entries=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 6000)), max_size=60),
    bytes_max=st.sampled_from([64 << 10, 100_000, 1 << 20]),
)
def test_the_size_holds_after_any_puts_and_the_newest_is_there(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[int, int]], bytes_max: int
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = DiskCache(folder / "cache", bytes_max=bytes_max)
    for number, size in entries:
        data = number.to_bytes(4, "little") * (size // 4)
        cache.put(Digest.of(data), data)
        files = [path for path in (folder / "cache").iterdir() if path.name != disk_cache.TAG]
        assert sum(max(4096, path.stat().st_size) for path in files) <= bytes_max
        has_room = disk_cache._room_of(len(data)) <= bytes_max // disk_cache.ENTRY_SHARE
        assert (cache.get(Digest.of(data), bytes_max=size) == data) == has_room
    shutil.rmtree(folder)


def test_the_least_recently_used_entries_go_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", bytes_max=20 * MIB)
    entries = [bytes([number]) * MIB for number in range(30)]
    for number, data in enumerate(entries):
        cache.put(Digest.of(data), data)
        os.utime(_file(cache, Digest.of(data)), ns=(number, number))
        assert cache.get(Digest.of(entries[0]), bytes_max=MIB)  # which is used again and again
    kept = [number for number, data in enumerate(entries) if _file(cache, Digest.of(data)).exists()]
    assert kept[0] == 0
    assert kept[1:] == list(range(kept[1], 30))
    assert len(kept) >= 0.7 * 20


def test_what_is_large_beside_the_cache_is_passed_by(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", bytes_max=16 * len(DATA) - 1)
    cache.put(DIGEST, DATA)
    assert cache.get(DIGEST, bytes_max=len(DATA)) is None


def test_files_that_are_no_entries_are_never_evicted(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    (folder / "thesis.tex").write_bytes(bytes(MIB))
    cache = DiskCache(folder, bytes_max=MIB)
    for number in range(60):
        data = bytes([number]) * 50_000
        cache.put(Digest.of(data), data)
    assert (folder / "thesis.tex").stat().st_size == MIB


def test_what_a_dead_writer_left_is_evicted_in_its_turn(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", bytes_max=MIB)
    left = tmp_path / "cache" / f"{DIGEST}.0123456789abcdef"
    left.write_bytes(bytes(60_000))
    os.utime(left, (1, 1))
    for number in range(30):
        data = bytes([number]) * 50_000
        cache.put(Digest.of(data), data)
    assert not left.exists()
    assert _bytes_in(tmp_path / "cache") <= MIB


def test_the_folder_may_be_deleted_at_any_time(cache: DiskCache) -> None:
    cache.put(DIGEST, DATA)
    shutil.rmtree(_file(cache).parent)
    assert cache.get(DIGEST, bytes_max=len(DATA)) is None
    cache.put(DIGEST, DATA)
    assert cache.get(DIGEST, bytes_max=len(DATA)) == DATA
    assert stat.S_IMODE(_file(cache).parent.stat().st_mode) == 0o700


def test_a_file_in_place_of_the_folder_is_only_a_miss(tmp_path: Path) -> None:
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        (tmp_path / "file").write_bytes(b"")
        cache = DiskCache(folder)
        cache.put(DIGEST, DATA)
        assert cache.get(DIGEST, bytes_max=len(DATA)) is None


def test_a_folder_that_is_read_only_is_read(cache: DiskCache) -> None:
    other = Digest.of(b"other")
    cache.put(DIGEST, DATA)
    with read_only():
        cache.put(other, b"other")
        assert cache.get(DIGEST, bytes_max=len(DATA)) == DATA
    assert cache.get(other, bytes_max=9) is None


@pytest.mark.parametrize("call", ["write", "rename", "open", "statvfs", "scandir", "utime"])
def test_no_error_of_the_disk_reaches_the_caller(
    cache: DiskCache, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with patch.object(os, call, failing(errno.ENOSPC)):
        cache.put(DIGEST, DATA)
        cache.get(DIGEST, bytes_max=len(DATA))
    left = [path.name for path in _file(cache).parent.iterdir() if "." in path.name]
    assert left == ["CACHEDIR.TAG"]
    monkeypatch.setattr(cache, "_paused_until", 0.0)
    cache.put(DIGEST, DATA)
    assert cache.get(DIGEST, bytes_max=len(DATA)) == DATA


def test_after_an_error_nothing_is_written_for_a_while(cache: DiskCache) -> None:
    with patch("os.write", failing(errno.ENOSPC)):
        cache.put(DIGEST, DATA)
    cache.put(DIGEST, DATA)
    assert not _file(cache).exists()


def test_what_is_more_than_half_of_what_the_disk_has_left_is_passed_by(cache: DiskCache) -> None:
    real = list(os.statvfs(_file(cache).parent))
    block, available = 1, 4
    for blocks, is_kept in ((2 * len(DATA) // 4096, False), (2 * len(DATA) // 4096 + 2, True)):
        cache = DiskCache(_file(cache).parent, bytes_max=64 * MIB)
        real[block], real[available] = 4096, blocks
        with patch("os.statvfs", return_value=os.statvfs_result(real)):
            cache.put(DIGEST, DATA)
        assert _file(cache).exists() == is_kept


def test_an_interrupted_write_leaves_nothing(cache: DiskCache) -> None:
    with patch("os.rename", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        cache.put(DIGEST, DATA)
    assert [path.name for path in _file(cache).parent.iterdir()] == ["CACHEDIR.TAG"]


def _fill(folder: Path, seed: int) -> None:
    cache = DiskCache(folder, bytes_max=4 * MIB)
    for number in range(80):
        data = (seed * 1000 + number).to_bytes(4, "little") * 20_000
        cache.put(Digest.of(data), data)
        found = cache.get(Digest.of(data), bytes_max=len(data))
        assert found in (None, data)


@pytest.mark.concurrency
def test_processes_evict_at_once(tmp_path: Path) -> None:
    children = [fork(lambda seed=seed: _fill(tmp_path / "cache", seed)) for seed in range(3)]
    assert [exit_code(child) for child in children] == [0, 0, 0]
    assert _bytes_in(tmp_path / "cache") <= 4 * MIB * (1 + 2 / 16)


@pytest.mark.concurrency
def test_threads_read_and_write_while_the_folder_is_deleted(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", bytes_max=4 * MIB)
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for number in range(100):
                data = (seed % 2 * 1000 + number).to_bytes(4, "little") * 20_000
                cache.put(Digest.of(data), data)
                assert cache.get(Digest.of(data), bytes_max=len(data)) in (None, data)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert not failed


@pytest.mark.concurrency
def test_a_child_uses_the_cache_while_a_thread_of_its_parent_holds_its_lock(
    cache: DiskCache,
) -> None:
    def work() -> None:
        cache.put(DIGEST, DATA)
        assert cache.get(DIGEST, bytes_max=len(DATA)) == DATA

    with held_by_thread(cache._lock):
        do_in_child(work)
    assert cache.get(DIGEST, bytes_max=len(DATA)) == DATA


def test_the_folder_and_the_size_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CKPTSTORE_CACHE")
    monkeypatch.delenv("CKPTSTORE_CACHE_BYTES")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard has ignored
    assert default_cache()._folder == tmp_path / ".cache/ckptstore"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache()._folder == tmp_path / "xdg/ckptstore"
    monkeypatch.setenv("CKPTSTORE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("CKPTSTORE_CACHE_BYTES", "1000000")
    assert default_cache()._folder == tmp_path / "own"
    assert default_cache()._bytes_max == 1_000_000
    assert default_cache() is default_cache()
    monkeypatch.setenv("CKPTSTORE_CACHE_BYTES", "0")
    default_cache().put(DIGEST, DATA)
    assert default_cache().get(DIGEST, bytes_max=len(DATA)) is None
    for wrong in ("10GB", "-1", "1e9"):
        monkeypatch.setenv("CKPTSTORE_CACHE_BYTES", wrong)
        with pytest.raises(InvalidInputError, match="CKPTSTORE_CACHE_BYTES"):
            default_cache()


# Repositories


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, cache_of_the_user: Path) -> Iterator[S3Server]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setattr(oplog, "CONFIRM_SECONDS", 1e9)
    with S3Server() as server:
        yield server


def _state(first: float = 0.0) -> dict[str, torch.Tensor]:
    large = {f"large.{number}": torch.full((40_000,), first + number) for number in range(9)}
    return large | {f"small.{number}": torch.full((9,), first + number) for number in range(9)}


def _requests(server: S3Server, call: Callable[[], object]) -> int:
    server.counts.clear()
    call()
    return sum(server.counts.values())


def test_a_second_checkout_in_a_new_process_makes_at_most_five_requests(server: S3Server) -> None:
    """A new handle knows as little as a new process."""
    url, state = server.url("run"), _state()
    repo = ckptstore.open(url, create=True)
    for step in range(3):
        repo.commit(_state(step), step=step)
    repo.annotate("main", metrics={"acc": 0.5})
    for rev in ("main", "main~2"):
        ckptstore.open(url).checkout(rev)
    found = {}
    assert _requests(server, lambda: found.update(ckptstore.open(url).checkout("main"))) <= 5
    assert all(torch.equal(found[name], value + 2) for name, value in state.items())
    assert _requests(server, lambda: ckptstore.open(url).checkout("main", part="small.3")) <= 5


def test_small_arrays_that_were_read_by_ranges_are_not_read_again(server: S3Server) -> None:
    url = server.url("run")
    ckptstore.open(url, create=True).commit(_state())
    first = _requests(server, lambda: ckptstore.open(url).checkout("main", include="small.3"))
    again = _requests(server, lambda: ckptstore.open(url).checkout("main", include="small.3"))
    assert (first > 5, again <= 5) == (True, True)


def test_a_local_repository_is_not_cached(tmp_path: Path, cache_of_the_user: Path) -> None:
    repo = ckptstore.init(tmp_path / "store")
    repo.commit(_state())
    repo.checkout("main")
    assert not cache_of_the_user.exists()


@pytest.mark.hostile
def test_damaged_entries_are_read_again_from_the_storage(
    server: S3Server, cache_of_the_user: Path
) -> None:
    url, state = server.url("run"), _state()
    ckptstore.open(url, create=True).commit(state)
    ckptstore.open(url).checkout("main")
    entries = [path for path in cache_of_the_user.iterdir() if path.name != disk_cache.TAG]
    for path in entries:
        _flip(path)
    found = ckptstore.open(url).checkout("main")
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert all(Digest.of(path.read_bytes()) == path.name for path in entries)


def test_what_is_damaged_in_the_storage_is_never_cached(server: S3Server) -> None:
    url = server.url("run")
    ckptstore.open(url, create=True).commit({"w": torch.zeros(40_000)})
    (name,) = (key for key, data in server.objects.items() if len(data) == 160_000)
    right = server.objects[name]
    server.damage(name.removeprefix("bucket/"), right[:-1] + b"x")
    for _ in range(2):
        with pytest.raises(CorruptError):
            ckptstore.open(url).checkout("main")
    server.damage(name.removeprefix("bucket/"), right)
    assert not ckptstore.open(url).checkout("main")["w"].any()


def test_verify_reads_the_storage_itself(server: S3Server) -> None:
    url = server.url("run")
    ckptstore.open(url, create=True).commit(_state())
    ckptstore.open(url).checkout("main")
    name = max(server.objects, key=lambda key: len(server.objects[key]))
    server.damage(name.removeprefix("bucket/"), b"damaged")
    assert ckptstore.open(url).checkout("main")
    assert not ckptstore.open(url).verify().ok
    server.damage(name.removeprefix("bucket/"), None)
    assert not ckptstore.open(url).verify().ok


def test_a_checkpoint_that_a_gc_took_does_not_live_on(server: S3Server) -> None:
    url = server.url("run")
    repo = ckptstore.open(url, create=True)
    old = repo.commit(_state(), step=1).id
    repo.commit(_state(5.0), step=2)
    repo.checkout(old)
    ckptstore.open(url).gc(MaxToKeep(1), grace=0)
    for rev in (old, "main~1", old[:9]):
        with pytest.raises(ExpiredError):
            ckptstore.open(url).checkout(rev)
    with pytest.raises(ExpiredError):
        ckptstore.open(url).resolve(old).array("large.1")
    assert ckptstore.open(url).resolve(old).expired


def test_a_checkpoint_of_another_repository_is_not_in_this_one(server: S3Server) -> None:
    """Its manifest and all of its arrays are in the cache."""
    one, two = (ckptstore.open(server.url(name), create=True) for name in ("one", "two"))
    id = one.commit(_state(), step=1).id
    one.checkout(id)
    ckptstore.open(one.url).checkout(id)
    two.commit({"x": 1})
    for rev in (id, id[:9]):
        with pytest.raises(NotFoundError):
            ckptstore.open(two.url).checkout(rev)
        with pytest.raises(NotFoundError):
            ckptstore.open(two.url).resolve(rev)


def test_a_checkpoint_that_is_gone_without_a_trace_is_missing(server: S3Server) -> None:
    url = server.url("run")
    repo = ckptstore.open(url, create=True)
    id = repo.commit(_state(), step=1).id
    ckptstore.open(url).checkout(id)
    server.damage(f"run/checkpoints/{id}.json", None)
    for rev in ("main", id):
        with pytest.raises(CorruptError, match="missing"):
            ckptstore.open(url).checkout(rev)


def test_notes_are_read_once(server: S3Server, cache_of_the_user: Path) -> None:
    url = server.url("run")
    repo = ckptstore.open(url, create=True)
    for step in range(5):
        repo.commit({"x": step}, step=step)
        repo.annotate("main", metrics={"acc": step})
    shutil.rmtree(cache_of_the_user)
    first = _requests(server, lambda: ckptstore.open(url).log())
    again = _requests(server, lambda: ckptstore.open(url).log())
    assert again <= first - 5
    assert [found.metrics["acc"] for found in ckptstore.open(url).log()] == [4, 3, 2, 1, 0]
