"""Forked children: no lock, job or pause of another thread of the parent reaches them."""

from __future__ import annotations

import ast
import ctypes
import fcntl
import gc
import importlib
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore
from ckptstore.documents.marker import Marker
from ckptstore.follow.rwlock import RWLock
from ckptstore.forks import cached_property, free_in_child, renewed
from ckptstore.python_gc import paused_collector
from ckptstore.repository import Repository
from ckptstore.retention import MaxToKeep
from ckptstore.storage import LocalStorage, MemoryStorage
from tests.helpers.children import (
    DEADLINE_SECONDS,
    HeldStorage,
    do_in_child,
    exit_code,
    fork,
    held_by_thread,
    living_child,
)

pytestmark = pytest.mark.concurrency

LIBRARY = Path(ckptstore.__file__).parent

# What lives only during a call, so that a child never meets it.
OF_A_CALL = {
    ("commit/put.py", "Lock"),
    ("threads.py", "ThreadPoolExecutor"),
    ("threads.py", "Condition"),
}
MADE_HERE = {("forks.py", "RLock")}
# Renewed as a part of its owner.
OF_AN_OWNER = {
    ("follow/rwlock.py", "Condition"),
    ("rank_group.py", "SimpleQueue"),
    ("rank_group.py", "Thread"),
    ("store/live.py", "RLock"),
    ("store/notes.py", "RLock"),
    ("training/background.py", "ThreadPoolExecutor"),
    ("training/mirror.py", "Condition"),
    ("training/mirror.py", "ThreadPoolExecutor"),
    ("zarr/array.py", "BoundedSemaphore"),
}
# Python itself marks it as ended in a child, and its owner asks no more or refuses to.
ENDED_BY_PYTHON = {
    ("storage/requests.py", "Thread"),
    ("training/callbacks/remote_monitor.py", "Thread"),
}
LASTING = {
    "Lock",
    "RLock",
    "Condition",
    "Event",
    "Semaphore",
    "BoundedSemaphore",
    "Barrier",
    "Thread",
    "Timer",
    "ThreadPoolExecutor",
    "Queue",
    "SimpleQueue",
}


def test_every_lock_and_thread_of_the_library_is_renewed_in_a_child() -> None:
    found = set()
    for path in LIBRARY.rglob("*.py"):
        module = str(path.relative_to(LIBRARY))
        if module.startswith("testing/"):
            continue
        renewed_calls = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _name(node.func) in ("free_in_child", "renewed"):
                renewed_calls |= set(map(id, node.args))
            if isinstance(node, ast.Call) and id(node) not in renewed_calls:
                found |= {(module, _name(node.func))} if _name(node.func) in LASTING else set()
            if isinstance(node, ast.ImportFrom) and node.module == "functools":
                assert "cached_property" not in [name.name for name in node.names], module
    assert found == OF_A_CALL | OF_AN_OWNER | MADE_HERE | ENDED_BY_PYTHON


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Subscript):
        return _name(function.value)
    return getattr(function, "attr", getattr(function, "id", ""))


@pytest.mark.parametrize("make", [threading.Lock, threading.RLock, threading.Condition])
def test_a_lock_that_another_thread_holds_is_free_in_a_child(make: Callable[[], Any]) -> None:
    lock = free_in_child(make())
    with held_by_thread(lock):
        do_in_child(lock.acquire)
    assert lock.acquire(blocking=False)
    lock.release()


def test_a_property_that_another_thread_computes_can_be_computed_in_a_child() -> None:
    computing, go_on = threading.Event(), threading.Event()

    class Slow:
        process = os.getpid()

        @cached_property
        def value(self) -> int:
            computing.set()
            return 5 if os.getpid() != self.process else int(go_on.wait())

    thread = threading.Thread(target=lambda: Slow().value)
    thread.start()
    computing.wait()
    do_in_child(lambda: Slow().value)
    go_on.set()
    thread.join()


def test_owners_that_are_gone_are_not_renewed() -> None:
    class Owner:
        pass

    calls: list[object] = []
    kept = renewed(Owner(), calls.append)
    renewed(Owner(), calls.append)
    gc.collect()
    reader, writer = os.pipe()
    exit_code(fork(lambda: os.write(writer, bytes([len(calls), calls[0] is kept]))))
    assert os.read(reader, 2) == bytes([1, 1])
    assert not calls
    os.close(reader)
    os.close(writer)


def test_a_child_does_not_keep_the_lock_of_a_repository(tmp_path: Path) -> None:
    with ExitStack() as stack:
        with held_by_thread(LocalStorage(tmp_path).lock()):
            stack.enter_context(living_child())
            assert _is_locked(tmp_path)
        assert not _is_locked(tmp_path)


def test_a_child_does_not_keep_the_lock_of_a_parent_that_died(tmp_path: Path) -> None:
    def lock_and_fork() -> None:
        with held_by_thread(LocalStorage(tmp_path).lock()), living_child() as pid:
            os.write(writer, pid.to_bytes(4, "little"))
            signal.pause()

    reader, writer = os.pipe()
    parent = fork(lock_and_fork)
    grandchild = int.from_bytes(os.read(reader, 4), "little")
    assert _is_locked(tmp_path)
    os.kill(parent, signal.SIGKILL)
    exit_code(parent)
    assert not _is_locked(tmp_path)
    os.kill(grandchild, signal.SIGKILL)
    os.close(reader)
    os.close(writer)


def test_a_child_that_python_knows_nothing_of_does_not_keep_the_lock(tmp_path: Path) -> None:
    library = ctypes.PyDLL(None)
    with LocalStorage(tmp_path).lock():
        pid = library.fork()
        if not pid:
            library.alarm(DEADLINE_SECONDS)
            library.pause()
        assert _is_locked(tmp_path)
    is_locked = _is_locked(tmp_path)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not is_locked


def test_a_child_that_is_forked_inside_the_lock_leaves_it_to_the_parent(tmp_path: Path) -> None:
    parent = os.getpid()
    with LocalStorage(tmp_path).lock():
        child = fork(lambda: None) if os.getpid() == parent else 0
        assert exit_code(child) == 0
        assert _is_locked(tmp_path)

    def leave_in_child() -> None:
        lock = LocalStorage(tmp_path).lock()
        lock.__enter__()
        pid = os.fork()
        lock_is_kept = pid == 0 or (exit_code(pid) == 0 and _is_locked(tmp_path))
        lock.__exit__(None, None, None)
        os._exit(0 if lock_is_kept else 1)

    assert exit_code(fork(leave_in_child)) == 0


def _is_locked(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_the_collector_runs_in_a_child_that_is_forked_while_another_thread_pauses_it() -> None:
    assert gc.isenabled()
    with held_by_thread(paused_collector()):
        assert not gc.isenabled()
        do_in_child(lambda: _check(gc.isenabled()))
    assert gc.isenabled()


def test_a_pause_of_the_forking_thread_ends_once_in_the_child() -> None:
    def pause_fork_and_disable() -> None:
        pause = paused_collector()
        pause.__enter__()
        pid = os.fork()
        if pid:
            os._exit(exit_code(pid))
        gc.disable()  # by the program, after the fork
        pause.__exit__(None, None, None)
        _check(not gc.isenabled())

    do_in_child(pause_fork_and_disable)


def test_torch_allows_no_more_in_a_child_than_before() -> None:
    torch = pytest.importorskip("torch")
    from ckptstore.formats.torch.numpy import allowed

    def names() -> set[object]:
        return set(torch.serialization.get_safe_globals())

    before = names()
    with held_by_thread(allowed()):
        assert names() != before
        do_in_child(lambda: _check(names() == before))
        do_in_child(allowed().__enter__)
    assert names() == before


def test_readers_and_writers_of_other_threads_do_not_reach_a_child() -> None:
    for enter in (RWLock.reading, RWLock.writing):
        lock = RWLock()
        with held_by_thread(enter(lock)):
            do_in_child(lock.writing().__enter__)


@pytest.mark.parametrize("at", ["lock", "put"])
def test_a_child_uses_the_repository_in_memory_of_its_parent(at: str) -> None:
    storage = MemoryStorage()
    marker = Marker(store="0" * 32, chunk_bytes=64 << 10)
    storage.create("ckptstore.json", marker.encode())
    repo = Repository(storage, marker)
    repo.commit({"x": np.arange(9.0)}, step=1)
    held = storage.lock() if at == "lock" else storage._lock

    def work() -> None:
        repo.commit({"x": np.arange(9.0) + 1}, step=2)
        repo.gc(MaxToKeep(1))
        _check(repo.verify().ok)

    with held_by_thread(held):
        do_in_child(work)
    assert [checkpoint.step for checkpoint in repo.log()] == [1]


def test_a_child_commits_with_the_handle_that_a_thread_of_the_parent_commits_with(
    tmp_path: Path,
) -> None:
    repo = ckptstore.init(tmp_path / "store")
    repo.commit({"x": np.arange(9.0)}, branch="parent")
    held = HeldStorage(tmp_path / "store")
    shared = held.repository()
    thread = threading.Thread(
        target=lambda: shared.commit({"x": np.arange(99.0)}, branch="parent", step=1)
    )
    thread.start()
    held.has_begun.wait()
    do_in_child(lambda: shared.commit({"x": np.arange(999.0)}, branch="child", step=2))
    held.go_on.set()
    thread.join()
    assert {name: c.step for name, c in repo.branches().items()} == {"child": 2, "parent": 1}
    assert repo.verify().ok


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_every_start_method_commit_while_the_parent_does(
    method: str, tmp_path: Path
) -> None:
    repo = ckptstore.init(tmp_path / "store")
    held = HeldStorage(tmp_path / "store")
    shared = held.repository()
    thread = threading.Thread(target=lambda: shared.commit({"x": np.arange(99.0)}, step=1))
    thread.start()
    held.has_begun.wait()
    child = get_context(method).Process(target=_commit_in_child, args=(repo.url,))
    child.start()
    child.join()
    held.go_on.set()
    thread.join()
    assert child.exitcode == 0
    assert {name: c.step for name, c in repo.branches().items()} == {"child": 2, "main": 1}


def _commit_in_child(url: str) -> None:
    ckptstore.open(url).commit({"x": np.arange(9.0)}, branch="child", step=2)


def test_a_fork_waits_for_modules_of_the_library_that_are_being_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "ckptstore.made_for_this_test"
    importing, go_on = threading.Event(), threading.Event()

    class Loader(importlib.abc.Loader):
        def exec_module(self, module: Any) -> None:
            importing.set()
            go_on.wait()
            module.value = 5

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, fullname: str, path: object, target: object = None) -> Any:
            return importlib.util.spec_from_loader(name, Loader()) if fullname == name else None

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    thread = threading.Thread(target=importlib.import_module, args=(name,))
    thread.start()
    importing.wait()
    real = importlib.import_module

    def import_module(wanted: str) -> Any:
        go_on.set()  # the fork has found what it has to wait for
        return real(wanted)

    monkeypatch.setattr(importlib, "import_module", import_module)
    do_in_child(lambda: _check(real(name).value == 5))
    assert go_on.is_set()
    thread.join()
    del sys.modules[name]


def _check(is_right: bool) -> None:
    assert is_right
