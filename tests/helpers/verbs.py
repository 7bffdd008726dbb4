"""All that a repository can do, as functions whose results are the same in every storage.

Each works in any repository that `prepared` has filled, whatever others of them have done to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

import ckptstore
from ckptstore import Checkpoint, Repository
from ckptstore.retention import MaxToKeep
from ckptstore.training import CheckpointManager
from tests.helpers.transfers import state

Verb = Callable[[Repository, Path], object]

VERBS: dict[str, Verb] = {}
_numbers = itertools.count()


def _verb(function: Verb) -> Verb:
    VERBS[function.__name__.replace("_", " ")] = function
    return function


def prepared(repo: Repository) -> None:
    """A run of three checkpoints, the first of which expired, with a branch, a tag and a note."""
    for number in range(3):
        repo.commit(state(number), step=number, metrics={"loss": 1.0 / (number + 1)})
    repo.branch("fine", at="main~1")
    repo.tag("v1", at="main~1")
    repo.annotate("main~1", metrics={"acc": 0.5})
    repo.expire("main~2").execute()


def facts(repo: Repository) -> dict[str, object]:
    """The content of a repository, as far as it does not depend on times and places."""
    branches, tags = repo.ref_names()
    return {
        "branches": {name: _log(repo, name) for name in sorted(branches)},
        "heads": {
            name: _plain(repo.checkout(name))
            for name in sorted(branches)
            if name != "trained"  # has random states
        },
        "tags": {name: _shown(repo.resolve(name)) for name in sorted(tags)},
        "retention": str(repo.retention()),
    }


def assert_all_verbs_do_as_in_memory(url: str, folder: Path) -> None:
    """Call each verb, one after the other, on a new repository there and on one in memory."""
    far = ckptstore.init(url, chunk_size=64 << 10)
    near = ckptstore.init(f"memory://{folder}", chunk_size=64 << 10)
    for repo in (far, near):
        prepared(repo)
    for name, verb in VERBS.items():
        assert verb(far, folder) == verb(near, folder), name
    assert facts(ckptstore.open(url)) == facts(near)
    assert far.verify().problems == ()


@_verb
def commit(repo: Repository, folder: Path) -> object:
    return _shown(repo.commit(state(7), step=7, metrics={"loss": 0.1}))


@_verb
def commit_of_the_same(repo: Repository, folder: Path) -> object:
    return _shown(repo.commit(repo.checkout("fine"), branch="fine", step=8))


@_verb
def checkout(repo: Repository, folder: Path) -> object:
    return _plain(repo.checkout("v1"))


@_verb
def lazy_checkout(repo: Repository, folder: Path) -> object:
    return _plain(repo.checkout("v1", lazy=True)["model"]["kept"][5:9])


@_verb
def checkout_into(repo: Repository, folder: Path) -> object:
    model, target = _linear(1), _linear(2)
    repo.commit({"model": model}, branch="linear", step=1)
    repo.checkout("linear", into={"model": target})
    return torch.equal(target.weight, model.weight)


@_verb
def load_weights(repo: Repository, folder: Path) -> object:
    model, target = _linear(3), _linear(4)
    repo.commit({"model": model.state_dict()}, branch="weights", step=1)
    ckptstore.load_weights(target, repo, "weights", part="model")
    return torch.equal(target.weight, model.weight)


@_verb
def log(repo: Repository, folder: Path) -> object:
    return _log(repo, "main")


@_verb
def resolve(repo: Repository, folder: Path) -> object:
    return _shown(repo.resolve("main@best:loss"))


@_verb
def branch(repo: Repository, folder: Path) -> object:
    for name in ("new", "old", "gone"):
        repo.branch(name, at="v1")
    repo.rename_branch("old", "renamed")
    repo.delete_branch("gone")
    repo.reset_branch("new", "main")
    return sorted(repo.branches())


@_verb
def tag(repo: Repository, folder: Path) -> object:
    for name in ("v2", "v3"):
        repo.tag(name, at="main")
    repo.delete_tag("v3")
    return sorted(repo.tags())


@_verb
def lease(repo: Repository, folder: Path) -> object:
    with repo.lease("v1") as checkpoint:
        return _shown(checkpoint), len(repo.leases())


@_verb
def annotate(repo: Repository, folder: Path) -> object:
    repo.annotate("v1", metrics={"f1": 0.25}, message="fine")
    return _shown(repo.resolve("v1"))


@_verb
def follow(repo: Repository, folder: Path) -> object:
    follower = repo.follow("fine", start="v1")
    before = follower.poll()
    repo.commit(state(9), branch="fine", step=9)
    after = follower.poll()
    return before and _shown(before), after and _shown(after)


@_verb
def diff(repo: Repository, folder: Path) -> object:
    return sorted(array.path for array in repo.diff("v1", "main").changed)


@_verb
def zarr_view(repo: Repository, folder: Path) -> object:
    array: Any = repo.resolve("v1").zarr()["model/trained"]
    return _plain(array[5:9])


@_verb
def zarr_session(repo: Repository, folder: Path) -> object:
    with repo.session("zarr") as session:
        zarr.open_group(session.store)["x"] = np.arange(30_000.0)
        session.commit(step=1)
    with repo.session("zarr") as session:
        array: Any = zarr.open_group(session.store)["x"]
        array[7] = 0.5
        changed: Any = session.commit(step=2).array("x")
    return _plain(changed[:])


@_verb
def training(repo: Repository, folder: Path) -> object:
    model, target = _linear(1), _linear(2)
    with CheckpointManager(repo, model=model, branch="trained") as manager:
        for step in range(2):
            with torch.no_grad():
                model.weight.fill_(step)
            manager.save(step)
    with CheckpointManager(repo, model=target, branch="trained") as manager:
        is_restored = manager.restore_or_initialize() is not None
    return is_restored, torch.equal(target.weight, model.weight)


@_verb
def settings(repo: Repository, folder: Path) -> object:
    repo.set_retention(MaxToKeep(50))
    repo.set_grace(0)
    return str(repo.retention()), repo.grace()


@_verb
def undo(repo: Repository, folder: Path) -> object:
    repo.tag("mistake", at="main")
    repo.undo()
    return sorted(repo.ref_names()[1]), len(repo.operations(3))


@_verb
def usage(repo: Repository, folder: Path) -> object:
    return repo.usage().checkpoints


@_verb
def verify(repo: Repository, folder: Path) -> object:
    return repo.verify().problems


@_verb
def push(repo: Repository, folder: Path) -> object:
    local = _beside()
    for number in (3, 4):
        local.commit(state(number), branch="pushed", step=number)
    local.push(repo.url, branches="pushed")
    local.commit(state(5), branch="pushed", step=5)
    local.push(repo.url, branches="pushed")
    return _log(repo, "pushed")


@_verb
def pull(repo: Repository, folder: Path) -> object:
    local = _beside()
    local.pull(repo.url, branches="main")
    return _log(local, "main"), local.verify().problems


@_verb
def fetch(repo: Repository, folder: Path) -> object:
    local = _beside()
    local.set_remote("far", repo.url)
    local.fetch("far", branches="main")
    return _log(local, "far/main")


@_verb
def clone(repo: Repository, folder: Path) -> object:
    copy = ckptstore.clone(repo.url, folder / f"clone-{next(_numbers)}")
    return facts(copy)["heads"], copy.verify().problems


@_verb
def gc(repo: Repository, folder: Path) -> object:
    repo.branch("collected", at="main")
    for number in (5, 6, 7):
        repo.commit(state(number), branch="collected", step=number)
    repo.gc(MaxToKeep(1), branches=["collected"], grace=0)
    repo.commit(state(5), branch="collected", step=8)
    return _log(repo, "collected"), _plain(repo.checkout("collected"))


def _beside() -> Repository:
    """A repository of its own in memory."""
    return ckptstore.init(f"memory://verbs-{next(_numbers)}")


def _linear(value: float) -> torch.nn.Linear:
    model = torch.nn.Linear(150, 150)
    with torch.no_grad():
        model.weight.fill_(value)
        model.bias.fill_(value)
    return model


def _log(repo: Repository, rev: str) -> list[object]:
    return [_shown(item) for item in repo.log(rev)]


def _shown(checkpoint: Checkpoint) -> object:
    notes = [note.message for note in checkpoint.notes]
    return checkpoint.step, sorted(checkpoint.metrics.items()), notes, checkpoint.expired


def _plain(value: Any) -> Any:
    """A state with its arrays as bytes, which `==` can compare."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (np.ndarray, torch.Tensor)):
        array = np.asarray(value)
        return array.dtype.str, array.shape, array.tobytes()
    return value
