"""Hostile cases: a story, a setting to build, and calls that must stay within bounds.

Every call may return or raise a CkptStoreError, within the bounds of `work.py`; those listed in
`refused` must raise, and those in `accepted` return. Nothing else may happen: no other error, no
code run, no file touched outside of the repository.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from zarr.core.buffer import cpu

import ckptstore
from ckptstore.errors import CkptStoreError
from ckptstore.retention import MaxToKeep
from tests.helpers.hostile.forge import Forge

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

SENTINEL = -7.0  # the values of a destination that a checkout must not touch

GROUP = b'{"zarr_format":3,"node_type":"group"}'

READING = "checkout"  # reads everything a checkpoint needs


@dataclass(slots=True)
class World:
    """The setting of a case: a repository, an unrelated folder, and its arguments."""

    folder: Path
    given: Any = None
    repo: ckptstore.Repository = field(init=False)

    @property
    def store(self) -> Path:
        """The folder of the repository."""
        return self.folder / "store"

    @property
    def outside(self) -> Path:
        """A folder that no case may change."""
        return self.folder / "outside"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One hostile thing.

    given: builds it, without bounds. calls: the calls to make, by name. refused: the calls that
    must raise `error`. says: text that the error of each refused call must contain. accepted: the
    calls that must not raise.
    """

    story: str
    given: Callable[[World], Any]
    calls: Mapping[str, Callable[[World], object]]
    refused: Collection[str]
    error: type[CkptStoreError] = CkptStoreError
    says: str = ""
    accepted: Collection[str] = ()


def _open(world: World) -> object:
    world.repo = ckptstore.open(world.store)
    return world.repo


def _log(world: World) -> object:
    return [(found.metrics, found.meta, found.created) for found in world.repo.log()]


def _show(world: World) -> object:
    found = world.repo.resolve("main")
    return found.arrays, found.values


def _into(world: World) -> object:
    destination = {"w": torch.full((2,), SENTINEL)}
    try:
        return world.repo.checkout(into=destination)
    except CkptStoreError:
        assert destination["w"].tolist() == [SENTINEL, SENTINEL], "a refused checkout wrote"
        raise


def _into_optimizer(world: World) -> object:
    module = torch.nn.Linear(1, 1)
    return world.repo.checkout(into=torch.optim.AdamW(module.parameters()))


def _verify(world: World) -> object:
    report = world.repo.verify()
    if report.problems:
        raise ckptstore.CorruptError(f"{report.problems[0].error}"[:900] + ".")
    return report


# Every public verb, reading ones first. A verb after one that failed has the repository that `open`
# gave; where that failed there is nothing to call.
VERBS: dict[str, Callable[[World], object]] = {
    "open": _open,
    "refs": lambda world: (world.repo.ref_names(), world.repo.branches(), world.repo.tags()),
    "resolve": lambda world: world.repo.resolve("main"),
    "best": lambda world: world.repo.resolve("best:loss"),
    "log": _log,
    "show": _show,
    "usage": lambda world: world.repo.usage(),
    READING: lambda world: world.repo.checkout(),
    "include": lambda world: world.repo.checkout(include="**", exclude="nothing"),
    "into": _into,
    "optimizer": _into_optimizer,
    "verify": _verify,
    "branch": lambda world: world.repo.branch("mine"),
    "annotate": lambda world: world.repo.annotate("main", metrics={"noted": 1}),
    "operations": lambda world: world.repo.operations(),
    "commit": lambda world: world.repo.commit({"w": torch.zeros(2)}, branch="work"),
    "undo": lambda world: world.repo.undo(),
}


def _zarr(world: World) -> object:
    group = world.repo.resolve("main").zarr()
    return group.attrs.asdict()


def _session(world: World) -> object:
    with world.repo.session("main") as session:
        session.store.set_sync("new/zarr.json", cpu.Buffer.from_bytes(GROUP))
        made = session.commit()
    world.repo.resolve("main").values  # noqa: B018 - the commit can be read
    return made


def _follow(world: World) -> object:
    with world.repo.follow("main") as follower:
        return follower.update({"w": torch.zeros(2), "x": np.zeros(2, np.float32)})


# More of them, for checkpoints that were committed through Zarr.
ZARR_VERBS: dict[str, Callable[[World], object]] = {
    "zarr": _zarr,
    "lazy": lambda world: world.repo.checkout(lazy=True),
    "array": lambda world: world.repo.resolve("main").array("x")[...],
    "diff": lambda world: world.repo.diff("main", {"w": torch.ones(2)}, numeric=True),
    "seed": lambda world: world.repo.branch("seeded", "main", include="x"),
    "follow": _follow,
    "session": _session,
    "gc": lambda world: world.repo.gc(MaxToKeep(1), grace=0),
}


def repository(
    story: str,
    given: Callable[[Forge], object],
    *,
    refused: Collection[str] = (READING, "into", "verify"),
    error: type[CkptStoreError] = CkptStoreError,
    says: str = "",
    verbs: Collection[str] = tuple(VERBS),
) -> Case:
    """A hostile repository, on which every public verb is tried, or the named ones."""
    return Case(
        story=story,
        given=lambda world: given(Forge(world.store, world.outside)),
        calls={name: VERBS[name] for name in verbs},
        refused=refused,
        error=error,
        says=says,
    )


def call(
    story: str,
    action: Callable[[World], object],
    *,
    given: Callable[[World], Any] = lambda world: None,
    refused: bool = True,
    error: type[CkptStoreError] = ckptstore.InvalidInputError,
    says: str = "",
) -> Case:
    """A hostile argument to one call, on a small honest repository."""

    def prepare(world: World) -> Any:
        Forge(world.store, world.outside).honest()
        world.repo = ckptstore.open(world.store)
        return given(world)

    return Case(
        story=story,
        given=prepare,
        calls={"call": action},
        refused=("call",) if refused else (),
        error=error,
        says=says,
    )
