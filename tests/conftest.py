"""Hypothesis profiles, and fixtures that several folders of tests share.

Profiles: quick for `make quick`, dev for daily work, ci with more and always the same examples,
deep for a night.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

from ckptstore.state import codecs
from ckptstore.store import disk_cache
from ckptstore.store.objects import ObjectStore
from tests.helpers import frameworks, judges
from tests.helpers.counts import pytest_terminal_summary  # noqa: F401 a hook
from tests.helpers.crash.parts import some
from tests.helpers.forks import Forks
from tests.helpers.judges import Judge

MEMORY = "/dev/shm"
PAUSE_SECONDS = 30  # of the collector, on a machine with much else to do

os.environ.setdefault("KERAS_BACKEND", "torch")  # read when Keras is imported
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"  # read when JAX is imported

# Workers share the processors: with as many threads in each, torch's would mostly wait for one
# another. Read when torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline, and slow generation is no failure: a test is never judged by a clock, and workers
# share the processors.
_COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

settings.register_profile("quick", _COMMON, max_examples=5)
settings.register_profile("dev", _COMMON, max_examples=50)
settings.register_profile("ci", _COMMON, max_examples=150, derandomize=True, print_blob=True)
settings.register_profile("deep", _COMMON, max_examples=5000, print_blob=True)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") == "true" else "dev")
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out modules that import a framework, unless their tests are wanted.

    It may not be installed, and no process may fork any more once JAX is imported.
    """
    if frameworks.are_wanted(config.option.markexpr):
        return None
    return frameworks.imports_framework(collection_path) or None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what Hypothesis draws, before `-m` selects."""
    for item in items:
        if is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker("property")


def is_grouped() -> bool:
    """True if torch.distributed has a group, in which every later test would run as a rank."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


@pytest.fixture(autouse=True)
def process_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After a test its codecs and its group of processes are gone, and Python's collector runs.

    A save in the background, which nothing waits for, may pause the collector for a moment.
    """
    monkeypatch.setattr(codecs, "_registered", codecs._registered.copy())
    had_group = is_grouped()
    yield
    if is_grouped() and not had_group:
        sys.modules["torch"].distributed.destroy_process_group()
    until = time.monotonic() + PAUSE_SECONDS
    while not gc.isenabled() and time.monotonic() < until:
        time.sleep(0.01)
    assert gc.isenabled()


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Far repositories are not cached: that would hide what a test loses or damages.

    No test writes to the real cache of the user, not even one that turns it on.
    """
    folder = tmp_path_factory.getbasetemp() / "cache-of-the-user"
    monkeypatch.setenv(disk_cache.FOLDER_VARIABLE, str(folder))
    monkeypatch.setenv(disk_cache.BYTES_VARIABLE, "0")


@pytest.fixture
def cache_of_the_user(monkeypatch: pytest.MonkeyPatch, no_cache: None) -> Iterator[Path]:
    """The folder of the cache of far repositories, which is on, and empty at first."""
    monkeypatch.delenv(disk_cache.BYTES_VARIABLE)
    disk_cache._cache_in.cache_clear()
    folder = Path(os.environ[disk_cache.FOLDER_VARIABLE])
    yield folder
    if folder.exists():
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """A server of forks: starts in seconds, and saves each program the import of torch."""
    server = Forks()
    yield server
    server.close()


@pytest.fixture(scope="session")
def started() -> Iterator[Callable[[str], Judge]]:
    """Servers that others have written, each started when a test first needs it."""
    with ExitStack() as stack:
        yield cache(lambda name: stack.enter_context(judges.JUDGES[name]()))


@pytest.fixture(params=some(["ministack"], judges.JUDGES))
def judge(
    request: pytest.FixtureRequest,
    started: Callable[[str], Judge],
    monkeypatch: pytest.MonkeyPatch,
) -> Judge:
    """Such a server, with its credentials in the environment."""
    if request.param == "azurite" and not judges.AZURITE.exists():
        pytest.skip("Azurite is not installed, as there is no npm.")
    server = started(request.param)
    for name, value in server.credentials.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def scratch() -> Iterator[Path]:
    """An empty folder, in memory if possible: tests of system calls need no disk."""
    place = MEMORY if os.access(MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="ckptstore-", dir=place)).resolve()
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)  # shutil gives up on very deep folders


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library without threads: the same calls in the same order."""
    from tests.helpers.crash.threads import COUNTS

    for module, name in COUNTS:
        monkeypatch.setattr(module, name, 1)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each read of an object, or of a part of one."""
    found: list[int] = []
    whole, part = ObjectStore.read_into, ObjectStore.read_range

    def read_into(self: ObjectStore, digest: Any, buffer: memoryview) -> None:
        found.append(len(buffer))
        whole(self, digest, buffer)

    def read_range(self: ObjectStore, digest: Any, buffer: memoryview, **options: Any) -> None:
        found.append(len(buffer))
        part(self, digest, buffer, **options)

    monkeypatch.setattr(ObjectStore, "read_into", read_into)
    monkeypatch.setattr(ObjectStore, "read_range", read_range)
    return found
