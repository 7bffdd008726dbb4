"""The values that people keep in a state come back as they were (ADR 0052)."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ckptstore
from ckptstore import NamedValue
from ckptstore.arrays import codecs
from ckptstore.errors import CkptStoreError, CorruptError, InvalidInputError, UnsupportedValueError
from ckptstore.formats import write_file
from ckptstore.state import classes
from tests.helpers.equality import difference

if TYPE_CHECKING:
    from collections.abc import Iterator


class Color(Enum):
    RED = 1
    BLUE = "b"
    ODD = object


class Level(IntEnum):
    LOW = 1


class Mark(Flag):
    A = 1
    B = 2


class Point(NamedTuple):
    x: Any
    y: Any = 2


@dataclass
class Config:
    lr: float = 0.1
    layers: list[Any] = field(default_factory=list)
    weight: Any = None

    def __post_init__(self) -> None:
        Config.made += 1


Config.made = 0  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Frozen:
    a: Any


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "_registered", {})
    for cls in (Color, Level, Mark, Point, Config, Frozen):
        ckptstore.register_codec(cls)


@pytest.fixture
def repo() -> ckptstore.Repository:
    return ckptstore.init("memory://")


VALUES = [
    {1, "a", None, (1, 2)},
    set(),
    frozenset({frozenset({1}), 2.5}),
    deque([1, [2]], maxlen=3),
    deque(),
    defaultdict(list, {"a": [1]}),
    defaultdict(None, {1: 2}),
    OrderedDict([("b", 1), ("a", 2)]),
    Counter("abca"),
    Namespace(lr=0.1, layers=[1, 2]),
    SimpleNamespace(a=SimpleNamespace(b=1)),
    range(3, 10, 2),
    slice(None, 5, "x"),
    Decimal("1.50"),
    Decimal("-Infinity"),
    Decimal("1E+999999999999999999"),
    UUID(int=5),
    PurePosixPath("a/b"),
    PureWindowsPath("c:/x"),
    Path("x/\udcff"),
    date(2026, 1, 31),
    datetime(2026, 1, 31, 12, 30, 15, 999_999, fold=1),  # noqa: DTZ001
    datetime(2026, 1, 31, tzinfo=UTC),
    datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=-3.5), "here")),
    time(23, 59, tzinfo=timezone(timedelta(minutes=1))),
    timedelta(days=-3, microseconds=5),
    UTC,
    2 + 3j,
    {None: 1, True: 2, 0.9: 3, (1, ("a", None)): 4, b"x": 5, "x": 6, 2**80: 7, -0.5j: 8},
    OrderedDict([(0.5, "a"), (0.25, "b")]),
    {1.0: "one", "1.0": "text", "1.0'": "both"},
    Counter({None: 1, (1, 2): 3}),
    torch.device("cpu"),
    torch.Size([1]),
    np.float32(1.5),
]


@pytest.mark.parametrize(
    "value", VALUES, ids=[f"{n}-{type(v).__name__}" for n, v in enumerate(VALUES)]
)
def test_a_value_comes_back_with_its_type_and_order(repo: ckptstore.Repository, value: Any) -> None:
    repo.commit({"v": value, "list": [value]})
    found = repo.checkout()
    assert type(found["v"]) is type(value)
    assert found["v"] == value == found["list"][0]
    if isinstance(value, dict | deque):
        assert list(found["v"]) == list(value)
        assert list(map(type, found["v"])) == list(map(type, value))
    for name in ("maxlen", "default_factory", "fold"):
        assert getattr(found["v"], name, None) == getattr(value, name, None)
    assert repo.resolve("main").values


def test_a_set_is_stored_alike_in_every_process(tmp_path: Path) -> None:
    code = """
        import sys, ckptstore
        repo = ckptstore.open(sys.argv[1], create=True)
        words = {"alpha", "beta", "gamma", None, 3, (1, "x")}
        print(repo.commit({"words": words, "frozen": frozenset(words)})._manifest.structure)
    """
    digests = {
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "s")],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def _instances() -> dict[str, Any]:
    weight = torch.arange(3.0)
    return {
        "point": Point(weight, [1]),
        "config": Config(0.5, [Point(1)], weight),
        "frozen": Frozen({1: Color.RED}),
        "color": Color.BLUE,
        "odd": Color.ODD,
        "level": Level.LOW,
        "mark": Mark.A | Mark.B,
        "by color": {Color.RED: 1, Color.BLUE: 2},
        "colors": {Color.RED, Color.BLUE},
    }


@pytest.mark.usefixtures("registered")
def test_registered_classes_come_back_without_being_called(repo: ckptstore.Repository) -> None:
    state = _instances()
    repo.commit(state)
    before = Config.made  # type: ignore[attr-defined]
    found = repo.checkout()
    assert Config.made == before  # type: ignore[attr-defined]
    assert list(map(type, found.values())) == list(map(type, state.values()))
    for name in ("frozen", "color", "odd", "level", "mark", "by color", "colors"):
        assert found[name] == state[name]
    assert found["point"].x is found["config"].weight
    assert (found["config"].lr, found["config"].layers) == (0.5, [Point(1)])
    paths = [info.path for info in repo.resolve("main").arrays]
    assert paths == ["config/weight", "point/x"]


def test_classes_that_are_not_registered_come_back_as_their_fields(
    repo: ckptstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classes, "_registered", {})
    first = repo.commit(_instances())
    found = repo.checkout()
    config = found["config"]
    assert isinstance(config, NamedValue)
    assert (config.lr, config.layers[0].x, found["point"].y) == (0.5, 1, [1])
    assert (found["color"].name, found["color"].value) == ("BLUE", "b")
    assert config.class_name == f"{__name__}.Config"
    assert "not registered" in repr(config)
    with pytest.raises(AttributeError, match=r"register_codec\(Config\)"):
        _ = config.momentum
    assert list(found["by color"].values()) == [1, 2]
    again = repo.commit(found)  # nothing is lost on the way
    assert again._manifest.structure == first._manifest.structure
    ckptstore.register_codec(Config)
    assert type(repo.checkout()["config"]) is Config


def test_a_checkout_imports_nothing_that_a_file_names(tmp_path: Path) -> None:
    (tmp_path / "bait.py").write_text("raise SystemExit('imported')")
    repo = ckptstore.init(tmp_path / "store")
    for kind, form in (("dataclass", {"a": 1}), ("enum", {"name": "A", "value": 1})):
        repo.commit({"v": NamedValue(kind, "bait.Thing", form)})
        code = f"import ckptstore; print(ckptstore.open({repo.url!r}).checkout())"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={"PYTHONPATH": ":".join(["", str(tmp_path), *sys.path])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, "bait.Thing" in done.stdout) == (0, True), done.stderr


def test_a_class_that_changed_is_an_error_with_the_way_out(
    repo: ckptstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classes, "_registered", {})
    names = {kind: f"{__name__}.{cls.__qualname__}" for kind, cls in _CLASSES.items()}
    for cls in _CLASSES.values():
        ckptstore.register_codec(cls)

    def committed(kind: str, fields: dict[str, Any]) -> Any:
        repo.commit({"v": NamedValue(kind, names[kind], fields)})
        return repo.checkout()["v"]

    assert committed("dataclass", {"lr": 1.0}) == Config(1.0)  # new fields have their defaults
    assert committed("namedtuple", {"x": 1}) == Point(1)
    for kind, fields in (
        ("dataclass", {"lr": 1.0, "momentum": 0.9}),
        ("namedtuple", {"y": 1}),
        ("namedtuple", {"x": 1, "z": 2}),
        ("enum", {"name": "GREEN", "value": 3}),
    ):
        with pytest.raises(InvalidInputError, match="changed"):
            committed(kind, fields)
    repo.commit({"v": NamedValue("enum", names["dataclass"], {"name": "A", "value": 1})})
    with pytest.raises(InvalidInputError, match="no enum any more"):
        repo.checkout()


_CLASSES: dict[str, Any] = {"dataclass": Config, "namedtuple": Point, "enum": Color}


def test_what_a_checkpoint_cannot_hold_is_refused_by_name(repo: ckptstore.Repository) -> None:
    extra = Config()
    extra.more = 1  # type: ignore[attr-defined]

    class Record(dict[str, int]):
        """A dict of another type."""

    refused = {
        "MaskedArray": np.ma.masked_array([1, 2], [0, 1]),
        "attributes .*more": extra,
        "defaultdict": defaultdict(lambda: 0),
        "the key .*Tensor": {torch.ones(1): 1},
        "the key .*object": {object(): 1},
        "Record": Record(),
        "ZoneInfo": datetime(2026, 1, 1, tzinfo=_zone()),
        "EnumType": Color,
    }
    for match, value in refused.items():
        with pytest.raises(UnsupportedValueError, match=match) as caught:
            repo.commit({"state": {"v": value}})
        assert "'state/v" in str(caught.value)


def _zone() -> Any:
    from zoneinfo import ZoneInfo

    return ZoneInfo("Europe/Berlin")


def test_register_codec_without_functions_is_for_classes_of_fields() -> None:
    with pytest.raises(InvalidInputError, match="encode and decode"):
        ckptstore.register_codec(bytearray_like := type("Own", (), {}))
    with pytest.raises(InvalidInputError, match="both encode and decode"):
        ckptstore.register_codec(bytearray_like, encode=str)


def test_a_program_may_keep_the_codec_it_had_for_a_type_of_the_standard_library(
    repo: ckptstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptstore.state.codecs._registered", {})
    ckptstore.register_codec(
        PurePosixPath, lambda path: list(path.parts), lambda f: PurePosixPath(*f)
    )
    repo.commit([PurePosixPath("a/b")])
    assert repo.checkout() == [PurePosixPath("a/b")]
    with pytest.raises(InvalidInputError, match="own form"):
        ckptstore.register_codec(torch.Size, list, torch.Size)


def test_modules_optimizers_and_schedulers_are_taken_by_their_state(
    repo: ckptstore.Repository,
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    state = {"model": model, "optimizer": optimizer, "all": [scheduler]}
    repo.commit(state)
    found = repo.checkout()
    expected = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    expected["all"] = [scheduler.state_dict()]
    assert difference(expected, found) is None
    again = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    others = torch.optim.AdamW(again.parameters())
    repo.checkout(into={"model": again, "optimizer": others}, exclude="all/**")
    assert difference(model.state_dict(), again.state_dict()) is None
    assert repo.commit(model).new_bytes < 2000
    assert difference(model.state_dict(), repo.checkout()) is None


def test_an_export_of_random_states_is_read_by_a_plain_torch_load(tmp_path: Path) -> None:
    import random

    from ckptstore.training.random_state import Generator, RandomState

    generators = [
        np.random.Generator(kind(3))
        for kind in (np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64)
    ]
    tracked = [
        RandomState(),
        *map(Generator, (*generators, random.Random(1), np.random.RandomState(2))),
    ]
    write_file([one.state_dict() for one in tracked], tmp_path / "rng.pt")
    loaded = torch.load(tmp_path / "rng.pt", weights_only=True)
    drawn = [random.random(), np.random.random(), torch.rand(1)]
    numbers = [generator.random() for generator in generators]
    for one, state in zip(tracked, loaded, strict=True):
        one.load_state_dict(state)
    assert [random.random(), np.random.random(), torch.rand(1)] == drawn
    assert [generator.random() for generator in generators] == numbers


def test_random_states_of_earlier_versions_are_taken() -> None:
    import random

    from ckptstore.training.random_state import RandomState

    state = RandomState().state_dict()
    for part, name in (("python", "words"), ("numpy", "keys")):
        state[part][name] = state[part][name].numpy().view(np.uint32)
    drawn = random.random(), np.random.random()
    RandomState().load_state_dict(state)
    assert (random.random(), np.random.random()) == drawn


def _hashables() -> st.SearchStrategy[Any]:
    plain = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=3),
        st.binary(max_size=3), st.sampled_from([Color.RED, Level.LOW, Mark.A | Mark.B]),
    )  # fmt: skip
    return st.recursive(plain, lambda inner: st.tuples(inner, inner), max_leaves=4)


def _states() -> st.SearchStrategy[Any]:
    leaves = st.one_of(
        _hashables(),
        st.dates(), st.datetimes(timezones=st.just(UTC) | st.none()), st.times(), st.timedeltas(),
        st.decimals(allow_nan=False), st.uuids(), st.sampled_from([range(4), Path("a"), slice(1)]),
        st.integers(0, 9).map(lambda n: torch.full((n,), n)),
    )  # fmt: skip
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(_hashables(), inner, max_size=3),
            st.sets(_hashables(), max_size=3),
            st.frozensets(_hashables(), max_size=3),
            st.lists(inner, max_size=3).map(deque),
            st.dictionaries(_hashables(), inner, max_size=2).map(lambda d: defaultdict(int, d)),
            st.dictionaries(st.text(max_size=2), inner, max_size=2).map(lambda d: Namespace(**d)),
            st.builds(Point, inner, inner),
            st.builds(Config, st.just(0.5), st.lists(inner, max_size=2), inner),
            st.builds(Frozen, inner),
        ),
        max_leaves=8,
    )


@pytest.mark.property
@pytest.mark.usefixtures("registered")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(state=_states())
def test_any_nesting_comes_back(state: Any) -> None:
    repo = ckptstore.init("memory://")
    checkpoint = repo.commit(state)
    found = repo.checkout()
    assert _plain(found) == _plain(state)
    assert repo.commit(found)._manifest.structure == checkpoint._manifest.structure
    checkpoint.values  # noqa: B018  the plain forms are made of it too


def _plain(value: Any) -> Any:
    """A form that tells types apart, and compares arrays by their bits."""
    kind = type(value).__qualname__
    if isinstance(value, torch.Tensor):
        return kind, value.tolist()
    if isinstance(value, dict):
        return kind, [(_plain(key), _plain(item)) for key, item in value.items()]
    if isinstance(value, list | tuple | deque):
        return kind, [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return kind, sorted(repr(_plain(item)) for item in value)
    if isinstance(value, Config | Namespace):
        return kind, _plain(vars(value))
    if isinstance(value, Frozen):
        return kind, _plain(value.a)
    return kind, repr(value)


def _colliding() -> Iterator[Any]:
    """Values with one hash: of complex numbers a step in one part undoes one in the other."""
    return (complex(10**15 - 1_000_003 * n, n) for n in range(1, 200))


_DEEP: Any = 1
for _ in range(45):
    _DEEP = frozenset({_DEEP})

FORGED: dict[str, list[Any]] = {
    "builtins.set": [1, "ab", [1, 1], [[1]], [{}], {"a": 1}, [1, True], list(_colliding()), None],
    "builtins.frozenset": [[[]], 7, [1.0, 1]],
    "builtins.range": [[1], [1, 2, 0], [1.5, 2, 1], [0, 1, 1, 1], "abc", [True, 1, 1], {}, None],
    "builtins.slice": [[], [1, 2, 3, 4], "abc", 5],
    "dict": [
        5, [], {}, {"keys": [1]}, {"keys": [1], "items": {}}, {"keys": [[]], "items": {"a": 1}},
        {"keys": [1, 1.0], "items": {"a": 1, "b": 2}}, {"keys": "ab", "items": {"a": 1, "b": 2}},
        {"keys": list(_colliding()), "items": {str(n): n for n in range(199)}},
    ],
    "collections.OrderedDict": [{"keys": [1], "items": [1]}, 1],
    "collections.defaultdict": [
        {}, {"factory": "os.system", "items": {}}, {"factory": [], "items": {}},
        {"factory": "int", "items": [1]}, [],
    ],
    "collections.deque": [{}, {"maxlen": -1, "items": []}, {"maxlen": "a", "items": []}, [1]],
    "argparse.Namespace": [1, [1], "a"],
    "types.SimpleNamespace": [1, [[1, 2]], None],
    "datetime.datetime": [
        [], [2026], [2026, 13, 1, 0, 0, 0, 0, 0, None], [2026, 1, 1, 0, 0, 0, 0, 2, None],
        [2026, 1, 1, 0, 0, 0, 0, 0, "UTC"], [b"\x07\xea\x01\x01\x00\x00\x00\x00\x00\x00"],
        [2**80, 1, 1, 0, 0, 0, 0, 0, None], ["2026", 1, 1, 0, 0, 0, 0, 0, None],
    ],
    "datetime.date": [[], [0, 1, 1], [b"\x07\xea\x01\x01"], "2026", [2026, 1]],
    "datetime.time": [[], [24, 0, 0, 0, 0, None], [b"\x01\x01\x01\x01\x01\x01", 0, 0, 0, 0, None]],
    "datetime.timedelta": [[2**80, 0, 0], [1.5, 0, 0], "abc", ["1", 0, 0]],
    "datetime.timezone": [[], [5, 0, 0], [0, 0, 0, 7], [0, 0, 0, "a", "b"], None],
    "decimal.Decimal": ["x", 1, [0, [1], 2], "1E+99999999999999999999", ""],
    "uuid.UUID": ["", 5, "zz" * 16, [], None],
    "pathlib.PosixPath": [5, ["a"], None],
    "pathlib.PureWindowsPath": [5, {}],
    "enum:a.B": [5, [], {}, {"name": "A"}, {"name": "A", "value": 1, "more": 2}],
    "dataclass:a.B": [5, [], {1: 2}, "x"],
    "namedtuple:a.B": [[1], None, {0: 1}],
}  # fmt: skip


@pytest.mark.hostile
@pytest.mark.parametrize("name", FORGED)
def test_a_forged_form_is_damage(name: str) -> None:
    for form in FORGED[name]:
        with pytest.raises(CorruptError):
            codecs.decode(name, form)


@pytest.mark.hostile
@pytest.mark.usefixtures("registered")
def test_forged_fields_of_a_registered_class_are_errors() -> None:
    module = __name__
    for name, form in (
        (f"enum:{module}.Color", {"name": "__class__", "value": 1}),
        (f"enum:{module}.Color", {"name": ["RED"], "value": 1}),
        (f"enum:{module}.Mark", {"name": None, "value": 2**70}),
        (f"enum:{module}.Mark", {"name": None, "value": "1"}),
        (f"dataclass:{module}.Config", {"__class__": int}),
        (f"dataclass:{module}.Frozen", {}),
        (f"namedtuple:{module}.Point", {"__class__": 1, "x": 1}),
        ("enum:", {"x": 1}),
        ("lambda:os.system", {"x": 1}),
        ("os.system", "true"),
    ):
        with pytest.raises(CkptStoreError):
            codecs.decode(name, form)
    assert isinstance(codecs.decode("dataclass:", {}), NamedValue)


@pytest.mark.hostile
def test_sets_in_sets_are_made_in_time() -> None:
    repo = ckptstore.init("memory://")
    repo.commit({"deep": _DEEP})
    assert repo.checkout() == {"deep": _DEEP}


def test_a_namedtuple_of_the_function_is_one_too(repo: ckptstore.Repository) -> None:
    Pair = namedtuple("Pair", ["a", "class"], rename=True)
    repo.commit({"pair": Pair(1, 2)})
    assert repo.checkout()["pair"].fields == {"a": 1, "_1": 2}


def test_a_export_holds_plain_fields_in_place_of_unknown_classes(
    repo: ckptstore.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classes, "_registered", {})
    repo.commit({"point": Point(1, torch.ones(2)), "lr": 0.1})
    write_file(repo.checkout(lazy=True), tmp_path / "out.pt")
    loaded = torch.load(tmp_path / "out.pt", weights_only=True)
    assert loaded["point"]["x"] == 1
    assert loaded["point"]["y"].equal(torch.ones(2))
