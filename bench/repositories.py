"""The contenders of ckptstore.

Each commit goes to a repository of its own, made of hard links to the files of a prepared one:
objects never change, so that is equivalent to having committed them, and nothing is written. The
repository is opened and its newest pages are read before the timing starts, as in a training loop
that has committed before.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ckptstore
from bench.measure import Contender, keep

if TYPE_CHECKING:
    from ckptstore import Checkpoint

BRANCH = "main"
OBJECTS = "objects"
OBJECT_FOLDERS = 256

_number = itertools.count()


def prepared(folder: Path, name: str, *states: object, chunk_size: int | None = None) -> Path:
    """Create a repository and commit these states one after another."""
    repository = (
        ckptstore.init(folder / name)
        if chunk_size is None
        else ckptstore.init(folder / name, chunk_size=chunk_size)
    )
    for step, state in enumerate(states):
        repository.commit(state, step=step)
    return folder / name


def commit(
    base: Path,
    state: object,
    *,
    name: str = "ckptstore",
    has_folders: bool = True,
    around: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Contender:
    """Commit a state on top of a prepared repository. `around` surrounds only the commit.

    has_folders: all folders of objects exist, as soon after the first commits of a training.
    """

    def prepare() -> tuple[Path, Any]:
        copy = linked_copy(base, has_folders=has_folders)
        repository = ckptstore.open(copy)
        if repository.branches():
            assert repository.resolve(BRANCH).arrays
        return copy, repository

    def call(copy: tuple[Path, Any]) -> object:
        with around():
            return copy[1].commit(state)

    return Contender(name=name, prepare=prepare, call=call, clean=lambda copy: keep(copy[0]))


def checkout(base: Path, *, name: str = "ckptstore") -> Contender:
    """Check out the newest checkpoint into fresh tensors."""
    return Contender(
        name=name, prepare=lambda: ckptstore.open(base), call=lambda repo: repo.checkout(BRANCH)
    )


def checkout_into(base: Path, into: object, *, name: str = "ckptstore") -> Contender:
    """Check out the newest checkpoint into existing objects."""
    return Contender(
        name=name,
        prepare=lambda: ckptstore.open(base),
        call=lambda repo: repo.checkout(BRANCH, into=into),
    )


def diff(base: Path, a: str, b: str, *, numeric: bool) -> Contender:
    """Compare two revisions."""
    return Contender(
        name="ckptstore",
        prepare=lambda: ckptstore.open(base),
        call=lambda repository: repository.diff(a, b, numeric=numeric),
    )


def branch(base: Path, at: str) -> Contender:
    """Create a branch at a revision."""

    def call(repository: Any) -> object:
        return repository.branch(f"branch-{next(_number)}", at=at)

    return Contender(name="ckptstore", prepare=lambda: ckptstore.open(base), call=call)


def commit_now(base: Path, state: object) -> Checkpoint:
    """Commit a state, untimed."""
    return ckptstore.open(base).commit(state)


def linked_copy(base: Path, copy: Path | None = None, *, has_folders: bool = False) -> Path:
    """A copy of a repository: new folders with hard links to the same files.

    has_folders: all folders of objects are made.
    """
    copy = copy or base.with_name(f"{base.name}-{next(_number)}")
    shutil.copytree(base, copy, copy_function=os.link)
    for number in range(OBJECT_FOLDERS if has_folders else 0):
        (copy / OBJECTS / f"{number:02x}").mkdir(parents=True, exist_ok=True)
    return copy


def object_bytes(base: Path) -> tuple[int, int]:
    """The number of objects in a repository, and their bytes."""
    sizes = [file.stat().st_size for file in (base / OBJECTS).rglob("*") if file.is_file()]
    return len(sizes), sum(sizes)
