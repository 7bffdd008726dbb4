"""The plain reader, written from format.md alone, reads what ckptstore writes."""

from __future__ import annotations

import ast
import dataclasses
import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from zarr.core.buffer import cpu

import ckptstore
from tests.compat import plain_reader
from tests.compat.data.make_v1 import first_state, second_state
from tests.compat.neutral import neutral
from tests.compat.plain_reader import BadRepositoryError, PlainReader

CHUNK = 64 << 10


def read(repo: ckptstore.Repository, rev: str = "main") -> Any:
    reader = PlainReader(repo.url)
    return reader.state(reader.manifest(repo.resolve(rev).id))


def test_the_reader_uses_nothing_but_the_standard_library_and_blake3() -> None:
    tree = ast.parse(Path(plain_reader.__file__).read_text(encoding="utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else _names(node))
    }
    assert imported <= {*sys.stdlib_module_names, "blake3"}


def test_every_kind_of_value_and_every_dtype_comes_out_as_it_was_committed(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store", chunk_size=CHUNK)
    for state in (first_state(), second_state(), [], np.float64(1).reshape(()), 5):
        repo.commit(state)
        assert neutral(read(repo)) == neutral(state) == neutral(repo.checkout())


def test_many_branches_and_tags_are_read_from_their_pages(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store", chunk_size=CHUNK)
    id = repo.commit([1]).id
    heads = {f"b/{number}": id for number in range(300)} | {"main": id}
    tags = {f"t{number}": id for number in range(300)}
    repo._oplog.append(lambda newest: dataclasses.replace(newest, heads=heads, tags=tags))
    repo.tag("one-more")
    assert len(list((tmp_path / "store" / "refs").iterdir())) == 7
    newest = PlainReader(repo.url).newest()
    assert (newest["heads"], newest["tags"]) == (heads, {**tags, "one-more": id})


def test_what_came_in_through_zarr_is_read_key_by_key(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store", chunk_size=CHUNK)
    rng = random.Random(0)
    values = {f"g{n % 3}/a{n}/c/{n}/0": rng.randbytes(n * 4000) for n in range(40)}
    values |= {f"g{n % 3}/a{n}/zarr.json": b'{"n": %d}' % n for n in range(40)}
    values |= {"zarr.json": b"root", "\u00fc \u4e2d/x": b"", "big": rng.randbytes(200_001)}
    with repo.session() as session:
        for key, data in values.items():
            session.store.set_sync(key, cpu.Buffer.from_bytes(data))
        session.commit()
        session.store.delete_sync("big")
        session.commit()
    reader = PlainReader(repo.url)
    assert reader.values(reader.manifest(repo.resolve("main~1").id)) == values
    del values["big"]
    assert reader.values(reader.manifest(repo.resolve("main").id)) == values


SHAPES = [
    (300_000,), (65_536,), (131_073,), (3, 70_000), (7, 9, 4000), (2, 3, 5, 3000), (40, 1, 1, 5000),
    (1, 1, 200_000), (70_000, 1), (70_000, 3), (300, 40, 7), (2, 65_536), (2, 65_535, 1),
    (1, 3, 40_000, 2), (5, 0), (0, 70_000),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_arrays_of_many_chunks_come_out_whole(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Shapes cut in the first, a middle or the last dimension, with short last chunks."""
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, shape, dtype=np.uint8)
    state = {"bytes": data, "tensor": torch.from_numpy(data.astype("<i4")), "turned": data.T[::-1]}
    repo = ckptstore.init(tmp_path / "store", chunk_size=CHUNK)
    repo.commit(state)
    assert neutral(read(repo)) == neutral(state)
    counts = {info.path: info.chunk_count for info in repo.resolve("main").arrays}
    assert counts["bytes"] == 0 if 0 in shape else counts["tensor"] > 1


def test_thousands_of_small_arrays_come_out_of_their_bundles(tmp_path: Path) -> None:
    state = {
        f"layer {n}": {"weight": np.full(n % 50, n), "bias": np.int8([n % 7])} for n in range(800)
    }
    repo = ckptstore.init(tmp_path / "store", chunk_size=CHUNK)
    repo.commit(state)
    reader = PlainReader(repo.url)
    pages = reader.manifest(repo.resolve("main").id)["pages"]
    assert len(pages) > 3
    assert all(32 <= ref["arrays"] <= 512 for ref in pages[:-1])
    assert neutral(read(repo)) == neutral(state)


def test_branches_tags_and_the_facts_of_checkpoints_are_there(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store", chunk_size=CHUNK)
    facts = {
        "metrics": {"nan": math.nan, "up": math.inf, "down": -math.inf, "n": 3, "x": 0.1},
        "message": "two\nlines \u2713",
        "meta": {"seed": 2**64 - 1, "rates": [1e-05, 1.0, None, True], "\u00e9": {}},
    }
    first = repo.commit({"a": np.arange(3)}, step=1)
    second = repo.commit({"a": np.arange(4)}, step=2, **facts)
    repo.branch("other/one", at="main~1")
    repo.tag("v1", at="main")
    repo.branch("gone")
    repo.delete_branch("gone")
    reader = PlainReader(repo.url)
    newest = reader.newest()
    assert newest["heads"] == {"main": second.id, "other/one": first.id}
    assert newest["tags"] == {"v1": second.id}
    manifest = reader.manifest(second.id)
    assert manifest["parents"] == [first.id]
    assert manifest["branch"] == "main"
    assert (manifest["step"], manifest["message"]) == (2, facts["message"])
    assert manifest["meta"] == facts["meta"]
    assert repr(manifest["metrics"]) == repr(dict(sorted(facts["metrics"].items())))
    assert manifest["created"] == int(second.created.timestamp() * 1e6 + 0.5)
    repo.undo()
    repo.undo()
    newest = reader.newest()
    assert newest["undoes"] == 5
    assert newest["heads"] == {"main": second.id, "other/one": first.id}


def test_a_flipped_bit_in_any_file_is_seen(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store", chunk_size=CHUNK)
    repo.commit({"large": np.arange(20_000), "small": np.arange(3), "list": [1, 2.5, "x"]}, step=1)
    listed = [path for path in Path(repo.url).rglob("*") if path.is_file()]
    files = [path for path in listed if path.parent.name != "tmp"]
    assert len(files) == 9
    rng = random.Random(0)
    for path in files:
        good = path.read_bytes()
        for _ in range(20):
            bad, position = bytearray(good), rng.randrange(len(good))
            bad[position] ^= 1 << rng.randrange(8)
            path.write_bytes(bad)
            with pytest.raises(BadRepositoryError):
                _read_main(repo.url)
        path.write_bytes(good[:-1])
        with pytest.raises(BadRepositoryError):
            _read_main(repo.url)
        path.write_bytes(good)


def _read_main(root: str) -> Any:
    """Everything that the branch main reaches, without any help of ckptstore."""
    reader = PlainReader(root)
    return reader.state(reader.manifest(reader.newest()["heads"]["main"]))


def _names(node: ast.Import) -> list[str]:
    return [alias.name for alias in node.names]
