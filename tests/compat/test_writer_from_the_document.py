"""The plain writer, written from format.md alone, writes what ckptstore writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore
from ckptstore.retention import KeepAll
from tests.compat.deterministic import NOW, deterministic
from tests.compat.make_example import files
from tests.compat.neutral import neutral
from tests.compat.plain_reader import Array, PlainReader
from tests.compat.plain_writer import PlainWriter

CHUNK = 64 << 10


def _state() -> dict[str, Any]:
    """Enough small arrays for several pages, and large ones that are cut in every dimension."""
    rng = np.random.default_rng(0)
    small = {f"s{n}": np.full(n % 40, n, dtype=np.float32) for n in range(400)}
    large = {
        "long": rng.integers(0, 9, 40_000),
        "wide": rng.standard_normal((3, 20_000)),
        "deep": rng.standard_normal((2, 30, 1000)).astype("f4"),
        "even": np.zeros((128, 128, 8)),
        "row": np.ones((2, 65_536), dtype=bool),
        "empty": np.empty((0, 7)),
    }
    return {"lr": 0.1, **small, "text": "\u2713 \U0001f600 \x7f/", **large, "n": [1, -0.0, None]}


def _plain(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    return Array("ndarray", value.dtype.name, value.shape, value.tobytes())


def test_the_plain_writer_makes_the_bytes_that_ckptstore_makes(tmp_path: Path) -> None:
    state = _state()
    with deterministic(tmp_path / "ours", chunk_size=CHUNK) as repo:
        repo.commit(state, step=3, message="one")
    plain = tmp_path / "plain"
    plain.mkdir()
    writer = PlainWriter(plain, store=f"{1:032x}", chunk_size=CHUNK)
    facts: dict[str, Any] = {"time": NOW * 1_000_000, "nonce": f"{1:016x}", "step": 3}
    writer.commit({key: _plain(value) for key, value in state.items()}, **facts, message="one")
    assert files(plain) == files(tmp_path / "ours")
    assert len(repo.resolve("main").arrays) == 406


def test_ckptstore_reads_and_goes_on_with_what_the_plain_writer_wrote(tmp_path: Path) -> None:
    state = _state()
    writer = PlainWriter(tmp_path, store="another program", chunk_size=CHUNK)
    id = writer.commit(
        {key: _plain(value) for key, value in state.items()},
        time=0,
        nonce="",
        step=1,
        message="from elsewhere",
    )
    repo = ckptstore.open(tmp_path)
    assert repo.verify().ok
    found = repo.checkout(id)
    assert list(found) == list(state)
    for key, value in state.items():
        np.testing.assert_array_equal(found[key], value)
    assert repo.commit({**state, "lr": 0.2}, step=2).parents == (id,)
    assert repo.resolve("main").new_bytes == len(Path(_structure(repo)).read_bytes())


GRIDS = [
    ((300, 500), [300, 64]),
    ((300, 500), [77, 131]),
    ((5, 70, 400), [2, 70, 150]),
    ((7, 3, 5), [3, 2, 2]),
    ((9,), [4]),
    ((), []),
    ((0, 5), [1, 2]),
]


@pytest.mark.parametrize(("shape", "grid"), GRIDS, ids=str)
def test_any_grid_that_the_plain_writer_makes_is_read(
    tmp_path: Path, shape: tuple[int, ...], grid: list[int]
) -> None:
    """By ckptstore and by the plain reader, also where one process would cut in another way."""
    array = np.random.default_rng(0).integers(0, 2**31, shape, np.int32)
    state = {"a": np.arange(3), "w": array, "z": array.astype("f8")}
    writer = PlainWriter(tmp_path, store="another program", chunk_size=CHUNK)
    id = writer.commit(
        {key: _plain(value) for key, value in state.items()},
        time=0,
        nonce="",
        step=1,
        message="",
        grids={"w": grid},
    )
    repo = ckptstore.open(tmp_path)
    assert repo.verify().ok
    assert repo.resolve(id).arrays[1].chunk_shape == tuple(grid)
    reader = PlainReader(tmp_path)
    assert neutral(repo.checkout(id)) == neutral(reader.state(reader.manifest(id)))
    assert neutral(repo.checkout(id)) == neutral(state)


@pytest.mark.parametrize("is_kept", [True, False])
def test_the_gc_of_another_program_that_died_is_finished_by_the_next_that_needs_it(
    tmp_path: Path, is_kept: bool
) -> None:
    writer = PlainWriter(tmp_path, store="another program", chunk_size=CHUNK)
    state = {"large": np.arange(40_000)}
    facts: dict[str, Any] = {"time": 0, "nonce": "", "step": 1, "message": ""}
    writer.commit({"large": _plain(state["large"])}, **facts)
    orphan = writer.put(np.ones(8192).tobytes())
    newest = PlainReader(tmp_path).newest()
    writer.condemn(newest, digests=[orphan], owner="another program")
    repo = ckptstore.open(tmp_path)
    repo.tag("carried", "main")
    condemned = PlainReader(tmp_path).newest()["condemned"]
    assert (condemned["owner"], condemned["since"]) == ("another program", 2)
    if is_kept:
        state["ones"] = np.ones(8192)
    repo.commit(state, step=2)
    newest = PlainReader(tmp_path).newest()
    assert (newest["condemned"] is None) == is_kept
    if not is_kept:
        repo.gc(KeepAll())
    assert (tmp_path / "objects" / orphan[:2] / orphan[2:]).exists() == is_kept
    assert PlainReader(tmp_path).newest()["condemned"] is None
    assert repo.verify().problems == ()


def _structure(repo: ckptstore.Repository) -> str:
    """The file of the newest structure, the only object that the second commit put."""
    digest = PlainReader(repo.url).manifest(repo.resolve("main").id)["structure"]
    return f"{repo.url}/objects/{digest[:2]}/{digest[2:]}"
