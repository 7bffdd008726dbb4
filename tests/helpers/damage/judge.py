"""Complaints about how a damaged repository is read and verified."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ckptstore.errors import CkptStoreError
from ckptstore.storage import LocalStorage
from ckptstore.verify import verify
from tests.helpers.damage import world as worlds
from tests.helpers.equality import difference

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Iterator

    from tests.helpers.damage.world import World

UNTOUCHED = 77  # the state that a target holds before a checkout


def complaints(world: World, *keys: str, ids: Collection[str] | None = None) -> Iterator[str]:
    """Complaints about what readers of checkpoints (by default all) get.

    keys: the files that are damaged.
    """
    for id in world.states if ids is None else ids:
        needed = any(id in world.needs[key] for key in keys)
        for reading in (_fresh, _into):
            error = yield from reading(world, id)
            if error is None and needed:
                yield f"{id} was read whole, though it needs a damaged file"
            if error is not None and not needed:
                yield f"{id} was not read, though it needs no damaged file: {error}"
            if error is not None and not any(named(world, key, str(error)) for key in keys):
                yield f"the error names no damaged file: {error}"


def sample(world: World, key: str, chance: random.Random) -> list[str]:
    """A checkpoint that needs a file, and sometimes one that does not."""
    needing = sorted(world.needs[key])
    others = sorted(world.states.keys() - world.needs[key])
    asked = (needing, others) if chance.random() < 0.2 or not needing else (needing,)
    return [chance.choice(ids) for ids in asked if ids]


def unverified(world: World, key: str) -> Iterator[str]:
    """What verify fails to report about one damaged file."""
    report = verify(LocalStorage(world.root))
    hit = [problem for problem in report.problems if problem.key == key]
    if report.ok or len(hit) != 1:
        yield f"verify reports {report.problems}"
    elif hit[0].checkpoints != tuple(sorted(world.suffer(key))):
        yield f"verify says that {hit[0].checkpoints} suffer, and it is {world.suffer(key)}"
    elif {problem.key for problem in report.problems} != {key}:
        yield f"verify blames more than the damaged file: {report.problems}"


def named(world: World, key: str, text: str) -> bool:
    """Whether the error names the key, or the id or digest that the key stands for."""
    digest = key.removeprefix("objects/").replace("/", "").removeprefix("checkpoints")
    short = digest.removesuffix(".json")
    if key == worlds.MARKER and f"{world.root} is not a repository" in text:
        return True
    return key in text or short in text or short[:8] in text


def _fresh(world: World, id: str) -> Iterator[str]:
    try:
        found = world.open().checkout(id)
    except CkptStoreError as error:
        return error
    if difference(world.states[id], found) is not None:
        yield f"{id} came out wrong"
    return None


def _into(world: World, id: str) -> Iterator[str]:
    target, before = worlds.state(UNTOUCHED), worlds.state(UNTOUCHED)
    error = None
    try:
        world.open().checkout(id, into=target)
    except CkptStoreError as raised:
        error = raised
    yield from touched(target, world.states[id], before)
    if error is None and difference(world.states[id], target) is not None:
        yield f"{id} did not fill what it was read into"
    return error


def touched(target: Any, truth: Any, before: Any, path: str = "state") -> Iterator[str]:
    """Complaints about elements of a target that are neither the committed ones nor the old."""
    if isinstance(target, dict):
        for name, value in target.items():
            yield from touched(value, truth[name], before[name], f"{path}/{name}")
    elif isinstance(target, np.ndarray | torch.Tensor):
        as_before, as_committed = target == before, target == truth
        if not bool((as_before | as_committed).all()):
            yield f"wrong bytes reached {path}"
    elif target not in (truth, before):
        yield f"a wrong value reached {path}"
