"""Checkpoints through zarr-python, against its own LocalStore with the same arrays and chunks."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zarr
from zarr.storage import LocalStore, MemoryStore

import ckptstore
from bench import repositories, workloads
from bench.bench import Bench
from bench.figures import Bound, Figure, comparisons
from bench.measure import Contender

READ_MUST, WRITE_MUST = 0.8, 0.6
MANY_ARRAYS, OPEN_SECONDS = 1_000, 1.0

_number = itertools.count()


def figures(bench: Bench) -> Iterator[Figure]:
    """Reading all arrays of a checkpoint, committing a hierarchy, and opening 1,000 arrays."""
    base = repositories.prepared(bench.scratch, "hierarchy", bench.training.second)
    checkpoint = ckptstore.open(base).resolve("main")
    plain = bench.scratch / "plain.zarr"
    copy_group(checkpoint.zarr(), zarr.open_group(LocalStore(plain), mode="w"))
    zarr.consolidate_metadata(LocalStore(plain))
    yield from comparisons(
        "reading a checkpoint through Zarr",
        bench.run(
            Contender(
                name="ckptstore",
                call=lambda _: read_all(ckptstore.open(base).resolve("main").zarr()),
            ),
            Contender(
                name="LocalStore",
                call=lambda _: read_all(zarr.open_group(LocalStore(plain), mode="r")),
            ),
        ),
        must={"LocalStore": READ_MUST},
    )
    yield from _writing(bench, checkpoint.zarr())
    yield from _opening(bench)


def _writing(bench: Bench, group: zarr.Group) -> Iterator[Figure]:
    """Copying a hierarchy from memory, array by array (zarr-python 3 has no zarr.copy)."""
    source = zarr.open_group(MemoryStore(), mode="w")
    copy_group(group, source)

    def commit(folder: Path) -> None:
        with ckptstore.open(folder, create=True).session("main") as session:
            copy_group(source, zarr.open_group(session.store, mode="w"))
            session.commit(step=1)

    def copied(folder: Path) -> None:
        copy_group(source, zarr.open_group(LocalStore(folder), mode="w"))

    yield from comparisons(
        "committing a hierarchy, durable",
        bench.run(
            _into_folder(bench, "ckptstore", commit),
            _into_folder(bench, "copy to LocalStore", copied),
        ),
        must={"copy to LocalStore": WRITE_MUST},
    )


def _into_folder(bench: Bench, name: str, call: Any) -> Contender:
    return Contender(
        name=name,
        prepare=lambda: bench.scratch / f"hierarchy-{next(_number)}",
        call=call,
        clean=shutil.rmtree,
    )


def _opening(bench: Bench) -> Iterator[Figure]:
    """Opening a checkpoint of 1,000 arrays and each of its arrays."""
    tensors = dict(list(workloads.small_tensors(seed=1).items())[:MANY_ARRAYS])
    base = repositories.prepared(bench.scratch, "many", tensors)

    def open_all(_: object) -> int:
        group = ckptstore.open(base).resolve("main").zarr()
        return sum(array.size for _, array in group.arrays())

    (series,) = bench.run(Contender(name="ckptstore", call=open_all))
    yield Bound(
        what=f"opening {len(tensors):,} arrays of a checkpoint through Zarr",
        values=tuple(series.seconds),
        unit="s",
        must=OPEN_SECONDS,
    )


def copy_group(source: zarr.Group, target: zarr.Group) -> None:
    """Copy a group as zarr.copy did: create every group and array, and copy the elements."""
    for path, member in source.members(max_depth=None):
        if isinstance(member, zarr.Group):
            target.require_group(path)
            continue
        array = target.create_array(
            path,
            shape=member.shape,
            chunks=member.chunks,
            dtype=member.metadata.data_type,
            compressors=None,
            filters=None,
            fill_value=member.fill_value,
            config={"write_empty_chunks": True},
        )
        array[...] = member[...]


def read_all(group: zarr.Group) -> int:
    """Read every array, and return the number of bytes."""
    return sum(
        member[...].nbytes
        for _, member in group.members(max_depth=None)
        if isinstance(member, zarr.Array)
    )
