"""Public calls with extreme arguments: an error of the family, and a repository that still works.

Every parameter of every public call is given every extreme value, one at a time; Hypothesis draws
several at once. A call may succeed or raise CkptStoreError. If it changed anything, a fresh handle
then has to read, commit, undo, collect and verify.
"""

from __future__ import annotations

import enum
import inspect
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.api import CheckpointException

import ckptstore
from ckptstore import (
    Checkpoint,
    CkptStoreError,
    CorruptError,
    Follower,
    InvalidInputError,
    Repository,
    retention,
)
from ckptstore.commit_hooks import Hooked
from ckptstore.integrations.dcp import Saver, StoreReader, StoreWriter
from ckptstore.retention import KeepBest, KeepEveryNHours, KeepIf, KeepSteps, MaxToKeep, Union
from ckptstore.storage import open_storage
from ckptstore.training import CheckpointManager
from ckptstore.transfer.transfers import Transfers
from ckptstore.zarr.session import Session

MESSAGE_LENGTH_MAX = 3000
# Not saved; and there is no ref of that name.
NEVER = {"KeepIf", "delete_branch", "delete_tag", "reset_branch"}
LONG = "x" * 70_000
HUGE = 10**5000


class Text(str):
    """A subclass of str."""


class Whole(int):
    """A subclass of int."""


class Real(float):
    """A subclass of float."""


class Color(enum.IntEnum):
    """An enumeration of integers."""

    RED = 1


class Counted:
    """An object that a manager tracks."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"n": 0}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def print_nothing(event: Any) -> None:
    """A hook."""


THE_REPOSITORY = object()  # in place of the one that is tried


def nested(depth: int, value: Any = 1) -> Any:
    """A list in a list, and so on."""
    for _ in range(depth):
        value = [value]
    return value


def round_(length: int = 1) -> Any:
    """A list that holds itself."""
    made: list[Any] = [0] * length
    made[0] = made
    return made


def named(name: str) -> Callable[[Any], bool]:
    """A function of another name."""

    def accepts(manifest: Any) -> bool:
        return manifest is None

    accepts.__name__ = name
    return accepts


def returning(value: Any) -> Callable[[], Any]:
    """A clock that returns one value."""
    return lambda: value


ANYTHING: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**63 - 1,
    2**63,
    -(2**64),
    HUGE,
    -HUGE,
    math.nan,
    math.inf,
    -math.inf,
    -0.0,
    5e-324,
    1e308,
    1j,
    Decimal("NaN"),
    Fraction(1, 3),
    "",
    " ",
    "main",
    "\ud800",
    "a\0b",
    "../..",
    "\x1b[31m",
    "é" * 300,
    LONG,
    "[" * 5000,
    "(" * 5000,
    "~" * 500,
    "main~" + "9" * 600,
    "main@step=" + "9" * 19,
    "best:" + "x" * 900,
    b"main",
    bytearray(b"x"),
    [],
    (),
    {},
    set(),
    ["main", None],
    [LONG],
    ["\ud800"],
    [HUGE],
    {"a": HUGE},
    {"a": math.nan},
    {"\ud800": 1},
    {1: 2, "1": 3},
    {None: 1},
    {LONG: 1},
    {"a": nested(600)},
    {"a": "\ud800"},
    {"a": {"b": 2**64}},
    {"(" * 5000: "x"},
    {"a{99999999999}": "x"},
    {".*": "\\g<99999999999999999999>"},
    {"(.*)": "\\1/\\1"},
    {".*": "\ud800"},
    nested(50),
    nested(600),
    round_(),
    {f"m{number}": number for number in range(2000)},
    range(10**9),
    np.int64(3),
    np.float32("nan"),
    np.str_("main"),
    np.array([1, 2]),
    np.array(None, dtype=object),
    Text("main"),
    Whole(3),
    Real(1.5),
    Color.RED,
    object(),
    len,
    int,
    OrderedDict(a=1),
    MaxToKeep(1),
    KeepIf(named(LONG)),
    KeepIf(named("\ud800\n")),
    KeepBest("x" * 200, "min"),
    KeepBest("loss"),
    Union(tuple(KeepBest(f"a loss whose name is rather long, of task {n}") for n in range(1200))),
    Union(tuple(KeepIf(named(LONG)) for n in range(1200))),
    KeepSteps(range(100_000)),
    KeepEveryNHours(2**63 - 1),
    MaxToKeep(2**63 - 1),
)

# What each parameter usually gets. Every extreme value is tried beside the first of these.
USUAL: dict[str, tuple[Any, ...]] = {
    "state": ({"a": np.ones(3), "n": 1}, {}, torch.ones(2)),
    "branch": ("main", "new"),
    "step": (7, None),
    "metrics": ({"loss": 0.5}, None),
    "message": ("words", ""),
    "meta": ({"host": "here"}, None),
    "retry": (False, True),
    "parent": (None,),
    "resume": ("auto", "never"),
    "fallback": (False, True),
    "save_on_start": (False, True),
    "compare_next_batch": (False, True),
    "ranks": ("all", "first"),
    "rank_timeout": (60.0, None),
    "verbose": (False, True),
    "on_full": ("raise", "gc"),
    "start": ("latest", "next", "main~1"),
    "rev": ("main", "v1", "main~1", None),
    "into": (None, {"m": {"a": np.zeros(20)}}),
    "strict": (True, False),
    "include": (None, "m", "m/**", ["m/a"]),
    "exclude": (None, "m/b"),
    "part": (None, "m"),
    "device": (None, "cpu"),
    "lazy": (False, True),
    "limit": (None, 1),
    "bytes_max": (None, 1 << 30),
    "expired": (True, False),
    "own": (True, False),
    "leftovers": (True, False),
    "name": ("new", "v1", "seed"),
    "at": ("main", "main~1"),
    "rename": (None, {"m/a": "m/c"}, {"m": "k"}),
    "reset": ((), ("step", "metrics"), "step"),
    "policy": (MaxToKeep(1), KeepBest("loss"), None),
    "branches": (None, ["main"]),
    "grace": (0.0, 3600.0),
    "progress": (None, lambda done, total: None),
    "poll_seconds": (1.0,),
    "a": ("main", "main~1"),
    "b": ("main", {"a": 1}),
    "numeric": (False, True),
    "other": (None,),
    "url": ("memory://", "memory://other"),
    "create": (True, False),
    "chunk_size": (1 << 16,),
    "clock": (time.time,),
    "path": ("m/a", "m/b"),
    "framework": (None, "numpy"),
    "n": (1, 2),
    "metric": ("loss",),
    "mode": ("auto", "max"),
    "steps": ([1, 2],),
    "predicate": (named("chosen"),),
    "timeout": (None, 0.0),
    "model": ({"m": {"a": np.zeros(20), "b": np.zeros(20_000)}, "n": 0}, {}),
    "full": (False, True),
    "store": (THE_REPOSITORY, "memory://other"),
    "max_to_keep": (None, 2),
    "keep_best": (None, "loss"),
    "keep_every_n_hours": (None, 1.0),
    "keep_every_n_steps": (None, 10),
    "save_interval_steps": (None, 1),
    "save_interval_minutes": (None, 0.5),
    "async_save": (False, True),
    "when_busy": ("wait", "skip"),
    "save_on_signal": (False, True),
    "rng": (False, True),
    "init_fn": (None, lambda: None),
    "epoch": (None, 1),
    "batch": (None, 1),
    "force": (False, True),
    "tag": (None, "good"),
    "move": (False, True),
    "operation": (None, 1),
    "revs": ("main~2", ["main~2"]),
    "unevaluated": (None, "loss"),
    "old": ("side",),
    "new": ("renamed",),
    "to": ("main~1", "main"),
    "ttl": ("6h", 1.0, None),
    "by_hand": (False, True),
    "where": (None, "loss < 1"),
    "sort": (None, "loss"),
    "seconds": (3600.0, None),
    "sample": (1.0, 0.5),
    "by_checkpoint": (False, True),
    "pending": (2, 0),
    "hours": (6.0, 0.5),
    "record_run": (False,),
    "keep_seeds": (True, False),
    "gc_every": (1, 3),
    "listener": (None,),
    "hook": (print_nothing,),
    "on_commit": (None, print_nothing),
    "created": (None, datetime(2024, 1, 1, tzinfo=UTC)),
    "remote": ("there", None),
    "tags": (None, True, ["v1"]),
    "depth": (None, 1),
    "mirror": (False, True),
    "mirror_retention": (None,),
    "policies": (False, True),
    "members": ((MaxToKeep(1), KeepBest("loss")),),
}
SWITCHES = (
    *("retry", "strict", "lazy", "numeric", "create", "expired", "leftovers", "full", "own"),
    *("async_save", "save_on_signal", "rng", "force", "by_hand", "by_checkpoint"),
    *("record_run", "keep_seeds", "fallback", "save_on_start"),
    *("compare_next_batch", "verbose", "mirror", "policies"),
)
EXTREME: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        SWITCHES, tuple(value for value in ANYTHING if not isinstance(value, np.ndarray))
    ),
    **dict.fromkeys(
        ("state", "into", "b"),
        (
            *ANYTHING,
            np.zeros((0, 2**40)),
            np.ones([1] * 64),
            np.broadcast_to(np.float32(1), (2**40, 2**20)),
            torch.ones([1] * 65),
            torch.zeros(1).expand(2**40),
            torch.zeros(0, 2**62),
            torch.ones(2, requires_grad=True),
        ),
    ),
    # Functions among the values would raise errors of their own.
    **dict.fromkeys(
        ("progress", "init_fn"), tuple(value for value in ANYTHING if not callable(value))
    ),
    "clock": tuple(
        returning(value)
        for value in (*ANYTHING, time.time() * 1e3, time.time_ns(), -5.0, 253_402_300_799.9999)
    ),
}

PROPERTIES = {
    "url",
    "retention",
    "remotes",
    "mirrors",
}  # which `still_works` reads, or that take nothing


def repository() -> Repository:
    """A repository with three checkpoints, the first of which may expire, a branch and a tag."""
    made = ckptstore.init("memory://", chunk_size=64 << 10)
    for step in range(3):
        state = {"m": {"a": np.arange(20.0) + step, "b": np.ones(20_000)}, "n": step}
        made.commit(state, step=step, metrics={"loss": float(step)})
    made.tag("v1")
    made.branch("side", "main~1")
    made.set_remote("there", ckptstore.init("memory://").url)
    return made


def method(name: str) -> Callable[..., object]:
    """A call of a method."""
    return lambda repo, **arguments: getattr(repo, name)(**arguments)


def policy(name: str) -> Callable[..., object]:
    """A policy, saved and applied."""

    def call(repo: Repository, **arguments: Any) -> None:
        made = getattr(retention, name)(**arguments)
        try:
            repo.set_retention(made)
        finally:
            repo.gc(made, grace=0)

    return call


def by_clock(act: Callable[[Repository], object]) -> Callable[..., object]:
    """Change a repository by a clock."""
    return lambda repo, *, clock: act(ckptstore.open(repo.url, clock=clock))


def leased(repo: Repository, **arguments: Any) -> None:
    """Do something while a lease lasts."""
    with repo.lease(**arguments):
        repo.tag("while-it-lasts")


def session_commit(repo: Repository, **arguments: Any) -> None:
    """Commit what a Zarr session has set."""
    import zarr

    with repo.session("main") as session:
        zarr.open_group(session.store).attrs["x"] = 1
        session.commit(**arguments)


def managed(act: Callable[..., object]) -> Callable[..., object]:
    """Do something with a manager."""

    def call(repo: Repository, **arguments: Any) -> None:
        with CheckpointManager(repo, rng=False, async_save=False, counted=Counted()) as manager:
            act(manager, **arguments)

    return call


def manage(repo: Repository, *, store: Any, mirror: Any = None, **arguments: Any) -> None:
    """Save twice with a manager, and restore. The mirror of a push is a switch."""
    store = repo if store is THE_REPOSITORY else store
    arguments["mirror"] = None if mirror is False else mirror
    manager = CheckpointManager(store, counted=Counted(), **arguments)
    try:
        for step in (5, 6):
            manager.save(step, metrics={"loss": 0.5})
        manager.restore()
    finally:
        manager.close(timeout=0)


def cloned(repo: Repository, **arguments: Any) -> None:
    """Clone it."""
    ckptstore.clone(repo.url, "memory://", **arguments)


def load_weights(repo: Repository, *, store: Any, **arguments: Any) -> None:
    """Fill a model."""
    ckptstore.load_weights(store=repo if store is THE_REPOSITORY else store, **arguments)


def saved_by_ranks(repo: Repository, *, store: Any, **arguments: Any) -> None:
    """Save through torch.distributed.checkpoint, and load."""
    store = repo if store is THE_REPOSITORY else store
    with unwrapped_failures():
        dcp.save({"n": 1}, storage_writer=StoreWriter(store, **arguments), no_dist=True)


def saved_beside_a_training(repo: Repository, **arguments: Any) -> None:
    """Save at once, and in the background."""
    with Saver(repo) as saver:
        saver.async_save(**arguments)
        saver.save(**arguments)


def loaded_by_ranks(repo: Repository, *, store: Any, **arguments: Any) -> None:
    """Load through torch.distributed.checkpoint."""
    store = repo if store is THE_REPOSITORY else store
    with unwrapped_failures():
        dcp.load({}, storage_reader=StoreReader(store, **arguments), no_dist=True)


@contextmanager
def unwrapped_failures() -> Iterator[None]:
    """Raise the error of the one rank there is. torch turns one of metadata into another."""
    try:
        yield
    except CheckpointException as error:
        raised = error.failures[0][0]
        known = isinstance(raised, AssertionError) and str(raised).startswith("metadata is None")
        raise InvalidInputError(str(raised)) if known else raised from error


MANAGED = (
    *("save", "should_save", "restore", "restore_or_initialize"),
    *("close", "wait_for_mirror"),
)
FOLLOWED = ("wait", "update", "forget")
POLICIES = [
    name
    for name in retention.__all__
    if name not in ("Policy", "Reason", "Verdict") and name[0].isupper()
]
CALLS: dict[str, tuple[Any, Callable[..., object]]] = {
    **{
        name: (member, method(name))
        for name, member in {**vars(Transfers), **vars(Hooked), **vars(Repository)}.items()
        if not name.startswith("_") and name not in PROPERTIES
    },
    "lease": (Repository.lease, leased),
    **{name: (getattr(retention, name), policy(name)) for name in POLICIES},
    "init": (ckptstore.init, lambda repo, **arguments: ckptstore.init(**arguments)),
    "open": (ckptstore.open, lambda repo, **arguments: ckptstore.open(**arguments)),
    "Session.commit": (Session.commit, session_commit),
    "Checkpoint.array": (
        Checkpoint.array,
        lambda repo, **arguments: repo.resolve("main").array(**arguments)[0:1],
    ),
    **{
        f"Follower.{name}": (
            getattr(Follower, name),
            lambda repo, name=name, **arguments: getattr(repo.follow("main"), name)(**arguments),
        )
        for name in FOLLOWED
    },
    "clone": (lambda *, branches, depth, policies: None, cloned),
    "load_weights": (ckptstore.load_weights, load_weights),
    "StoreWriter": (StoreWriter, saved_by_ranks),
    "StoreReader": (StoreReader, loaded_by_ranks),
    "Saver.async_save": (
        lambda *, state, step, metrics, message, meta, retry: None,
        saved_beside_a_training,
    ),
    "CheckpointManager": (CheckpointManager, manage),
    **{
        f"CheckpointManager.{name}": (
            getattr(CheckpointManager, name),
            managed(getattr(CheckpointManager, name)),
        )
        for name in MANAGED
    },
    **{
        f"{name} by a clock": (lambda *, clock: None, by_clock(act))
        for name, act in {
            "commit": lambda repo: repo.commit({"a": 2}),
            "tag": lambda repo: repo.tag("late"),
            "derive": lambda repo: repo.branch("early", include="m"),
            "delete": lambda repo: repo.delete_branch("side"),
            "configure": lambda repo: repo.set_retention(MaxToKeep(3)),
            "collect": lambda repo: repo.gc(MaxToKeep(1), grace=0),
            "undo": lambda repo: repo.undo(),
        }.items()
    },
}


def parameters(name: str) -> list[str]:
    """The parameters of a call."""
    signature = inspect.signature(CALLS[name][0])
    return [
        name
        for name, item in signature.parameters.items()
        if name != "self" and item.kind is not item.VAR_KEYWORD
    ]


def contents(repo: Repository) -> dict[str, bytes]:
    """Everything that is stored."""
    storage = open_storage(repo.url)
    return {item.key: storage.get(item.key, bytes_max=1 << 30) for item in storage.list("")}


def no_damage(act: Callable[[], object]) -> bool:
    """Act; False after an error of the family, which must not be about damage nor endless."""
    try:
        act()
    except CkptStoreError as error:
        if isinstance(error, CorruptError) or len(str(error)) > MESSAGE_LENGTH_MAX:
            raise AssertionError(f"{type(error).__name__}: {str(error)[:200]}") from error
        return False
    return True


def check_works(repo: Repository) -> None:
    """A fresh handle can do everything. An error other than of damage has another reason."""
    fresh = ckptstore.open(repo.url)
    assert fresh.log()
    kept = fresh.retention() or MaxToKeep(2)
    for act in (
        fresh.branches,
        fresh.tags,
        partial(fresh.checkout, "latest"),
        partial(fresh.commit, {"z": 1}),
        fresh.undo,
        partial(fresh.gc, kept, grace=0),
    ):
        no_damage(act)
    assert fresh.verify().ok


class Tried:
    """A repository that a call is tried on, made again once the call has changed it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.make()

    def make(self) -> None:
        self.repo = repository()
        if self.name.startswith("CheckpointManager.restore"):
            managed(CheckpointManager.save)(self.repo, step=5)
        self.before = contents(self.repo)

    def __call__(self, arguments: dict[str, Any]) -> bool:
        """Call, and see that the repository still works; return False for an error."""
        done = no_damage(partial(CALLS[self.name][1], self.repo, **arguments))
        if contents(self.repo) != self.before:
            check_works(self.repo)
            self.make()
        return done


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the values are paths."""
    monkeypatch.chdir(tmp_path)


def test_each_parameter_of_each_public_call_is_tried() -> None:
    """A new method, or a new parameter, needs an entry above."""
    assert {item for name in CALLS for item in parameters(name)} == USUAL.keys()


@pytest.mark.filterwarnings("ignore:Branch 'main' has checkpoint:UserWarning")
@pytest.mark.parametrize("name", CALLS)
def test_every_extreme_value_of_every_parameter(name: str) -> None:
    tried = Tried(name)
    usual = {item: USUAL[item][0] for item in parameters(name)}
    assert tried(usual) or name in NEVER
    for item in usual:
        for value in EXTREME.get(item, ANYTHING):
            tried({**usual, item: value})


@pytest.mark.filterwarnings("ignore:Branch 'main' has checkpoint:UserWarning")
@given(st.data())
def test_several_extreme_values_at_once(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(CALLS)))
    arguments = {
        item: data.draw(
            st.sampled_from(USUAL[item]) | st.sampled_from(EXTREME.get(item, ANYTHING)), label=item
        )
        for item in parameters(name)
    }
    Tried(name)(arguments)
