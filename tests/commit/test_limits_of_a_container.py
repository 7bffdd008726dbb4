"""Commits, reads, verify and gc where a container allows few threads or few open files."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zarr

import ckptstore
from ckptstore import StorageError
from ckptstore.retention import MaxToKeep
from tests.helpers.root import ROOT

STATE = {f"w{n:03}": np.full(20_000, n) for n in range(200)}


@contextmanager
def files_left(count: int) -> Iterator[None]:
    """Allow this process to open so many more files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 1
    for descriptor in range(limit):  # no gap below the limit
        spare += [os.open(os.devnull, os.O_RDONLY)] if not _is_open(descriptor) else []
    for descriptor in spare[:count]:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in spare[count:]:
            os.close(descriptor)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("count", [12, 40, 120])
def test_few_open_files_are_enough(tmp_path: Path, count: int) -> None:
    repo = ckptstore.init(tmp_path / "store")
    repo.commit({"x": 1})
    repo.commit(STATE, step=1)  # imports what it needs
    repo.gc(MaxToKeep(9))
    with repo.session("zarr") as session:
        zarr.open_group(session.store)["first"] = np.arange(9.0)
        session.commit()
    changed = {name: array + 1 for name, array in STATE.items()}
    with files_left(count):
        repo.commit(changed, step=2)
        np.testing.assert_array_equal(repo.checkout()["w007"], changed["w007"])
        with repo.session("zarr") as session:
            group = zarr.open_group(session.store)
            for number in range(40):
                group[f"w{number}"] = STATE["w007"] + number
            session.commit()
        repo.gc(MaxToKeep(1), grace=0)
        assert repo.verify().ok


def test_a_process_without_files_is_told_the_way_out(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store")
    repo.commit(STATE, step=1)
    with files_left(0), pytest.raises(StorageError, match=r"Too many open files\. .*ulimit -n"):
        repo.commit({name: array + 1 for name, array in STATE.items()}, step=2)
    assert [checkpoint.step for checkpoint in repo.log()] == [1]
    assert repo.verify().ok


NO_THREADS = """
import os, resource, sys
import numpy as np, torch
import ckptstore
from ckptstore.retention import MaxToKeep
from ckptstore.training import CheckpointManager

def work(branch):
    state = {f"w{n}": np.full(300_000, n) for n in range(4)} | {"t": np.ones((600, 700)).T}
    repo.commit(state, branch=branch)
    repo.commit({**state, "w0": state["w0"] + 1}, branch=branch)
    repo.diff(branch, branch + "~1", numeric=True)
    assert (repo.checkout(branch, lazy=True)["t"][3:5] == 1).all()
    assert (repo.checkout(branch)["w0"] == 1).all()
    with CheckpointManager(repo, branch=branch, model=torch.nn.Linear(9, 9)) as manager:
        manager.save(1)
    repo.gc(MaxToKeep(1), grace=0)
    assert repo.verify().ok

repo = ckptstore.init(sys.argv[1])
work("with")  # imports what it needs
if not os.getuid():
    for folder, _, _ in os.walk(sys.argv[1]):
        os.chmod(folder, 0o777)
    os.setgid(59_991)
    os.setuid(59_991)
torch.set_num_threads(1)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    __import__("threading").Thread(target=print).start()
except RuntimeError:
    work("without")
    print("done")
"""


def test_no_thread_is_needed(scratch: Path) -> None:
    scratch.chmod(0o777)
    script = scratch / "script.py"
    script.write_text(NO_THREADS)
    done = subprocess.run(
        [sys.executable, script, scratch / "store"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "done\n")
