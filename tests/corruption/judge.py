"""What is wrong with the way a damaged repository is read and verified: nothing, or complaints as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ckptstore.errors import CkptStoreError
from ckptstore.storage import LocalStorage
from ckptstore.verify import verify
from tests.corruption import world as worlds
from tests.properties.same import difference

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Iterator

    from tests.corruption.world import World

UNTOUCHED = 77  # the state that a target holds before a checkout


def complaints(world: World, key: str, ids: Collection[str] | None = None) -> Iterator[str]:
    """What readers of checkpoints (all of them, unless named) are told that they should not be."""
    for id in world.states if ids is None else ids:
        for reading in (_fresh, _into):
            error = yield from reading(world, id)
            if error is None and id in world.needs[key]:
                yield f"{id} was read whole, though it needs the file"
            if error is not None and id not in world.needs[key]:
                yield f"{id} was not read, though it does not need the file: {error}"
            if error is not None and not named(world, key, str(error)):
                yield f"the error does not name the file: {error}"


def sample(world: World, key: str, chance: random.Random) -> list[str]:
    """A checkpoint that needs a file, and one that does not, as far as there are."""
    needing = sorted(world.needs[key])
    others = sorted(world.states.keys() - world.needs[key])
    return [chance.choice(ids) for ids in (needing, others) if ids]


def unverified(world: World, key: str) -> Iterator[str]:
    """What verify fails to say of one damaged file."""
    report = verify(LocalStorage(world.root))
    hit = [problem for problem in report.problems if problem.key == key]
    if report.ok or len(hit) != 1:
        yield f"verify reports {report.problems}"
    elif hit[0].checkpoints != tuple(sorted(world.suffer(key))):
        yield f"verify says that {hit[0].checkpoints} suffer, and it is {world.suffer(key)}"
    elif {problem.key for problem in report.problems} != {key}:
        yield f"verify blames more than the damaged file: {report.problems}"


def named(world: World, key: str, text: str) -> bool:
    """The error says the key, or the id or digest that the key stands for."""
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
    """Every element of a target must be what was committed, or what it was before."""
    if isinstance(target, dict):
        for name, value in target.items():
            yield from touched(value, truth[name], before[name], f"{path}/{name}")
    elif isinstance(target, np.ndarray | torch.Tensor):
        found, right, old = map(np.asarray, (target, truth, before))
        if not np.all((found == right) | (found == old)):
            yield f"wrong bytes reached {path}"
    elif target not in (truth, before):
        yield f"a wrong value reached {path}"
