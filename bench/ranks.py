"""Saves and loads of many ranks, by torch.distributed.checkpoint, against its own files.

The ranks are processes on this machine (torchrun, gloo). Each holds a part of the training state,
cut along the first dimension as FSDP2 cuts it, and nothing else. All make the same calls in the
same order, and a time is that of the first rank, from a barrier to the end of the call. Its peer is
`FileSystemWriter`, durable by `sync_files=True`, and `FileSystemReader`.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench import repositories, workloads
from bench.bench import Bench
from bench.figures import Figure, comparisons
from bench.measure import Contender, Patience, Series, Time, compete, keep
from bench.workloads import State

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

WORLDS = (2, 4)
SAVE, UNCHANGED, LOAD = "save, all new, durable", "save, nothing changed, durable", "load, verified"
MUST = {SAVE: 1.0, UNCHANGED: 5.0, LOAD: 1.0}
AIM = {SAVE: 1.3}
PEER = "DCP's own files"

_number = itertools.count()


def figures(bench: Bench) -> Iterator[Figure]:
    """The figures of each number of ranks."""
    for world in WORLDS:
        times = bench.scratch / f"ranks-{world}.json"
        folder = bench.scratch / f"ranks-{world}"
        folder.mkdir()
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(world), "-m", "bench.ranks"),
            *(str(bench.rounds), str(bench.cache), str(folder), str(times)),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for what, series in json.loads(times.read_text()).items():
            yield from comparisons(
                f"{world} ranks: {what}",
                [
                    Series(name=name, times=tuple(Time(**time) for time in taken))
                    for name, taken in series.items()
                ],
                must={PEER: MUST[what]},
                aim={PEER: AIM[what]} if what in AIM else {},
            )


def main(rounds: int, cache: Path, folder: Path, times: Path) -> None:
    """Time all saves and loads on this rank; rank 0 writes the times."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    first, second = (
        _sharded(torch.load(workloads.training_file(cache, moment), mmap=True), mesh)
        for moment in ("first", "second")
    )
    taken = {}
    for what, contenders in _contenders(folder, first, second):
        series = compete(contenders, rounds=rounds, patience=Patience(0))
        taken[what] = {
            one.name: [{name: getattr(time, name) for name in Time.__slots__} for time in one.times]
            for one in series
        }
    if dist.get_rank() == 0:
        times.write_text(json.dumps(taken))
    dist.barrier()
    dist.destroy_process_group()


def _sharded(value: Any, mesh: DeviceMesh) -> Any:
    """A copy of the part of a state that this rank holds."""
    from torch.distributed.tensor import Shard, distribute_tensor

    if isinstance(value, dict):
        return {key: _sharded(item, mesh) for key, item in value.items()}
    if not isinstance(value, torch.Tensor) or not value.dim():
        return value
    return distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None)


def _contenders(folder: Path, first: State, second: State) -> Iterator[tuple[str, list[Contender]]]:
    import torch.distributed.checkpoint as dcp

    from ckptstore.integrations.dcp import StoreReader, StoreWriter

    base, files = folder / "store", folder / "files"

    def save(repository: Any, state: State, step: int) -> object:
        return dcp.save(state, storage_writer=StoreWriter(repository, step=step))

    def save_files(path: Path, state: State) -> object:
        return dcp.save(state, storage_writer=dcp.FileSystemWriter(path, sync_files=True))

    save(_copy(base, make=True), first, 1)
    ours = Contender(
        name="ckptstore",
        prepare=lambda: _copy(base),
        call=lambda repository: save(repository, second, 2),
        clean=_keep,
    )
    theirs = Contender(
        name=PEER,
        prepare=lambda: _together(lambda: folder / f"dcp-{next(_number)}"),
        call=lambda path: save_files(path, second),
        clean=_keep,
    )
    yield SAVE, [ours, theirs]
    opened = _copy(base, make=True)  # as a training holds it, step after step
    save(opened, second, 2)
    unchanged = Contender(
        name="ckptstore",
        prepare=lambda: _together(lambda: opened),
        call=lambda repository: save(repository, second, 3 + next(_number)),
    )
    yield UNCHANGED, [unchanged, theirs]
    save_files(files, second)
    yield (
        LOAD,
        [
            Contender(
                name="ckptstore",
                prepare=lambda: _copy(base, make=True),
                call=lambda repository: dcp.load(first, storage_reader=StoreReader(repository)),
            ),
            Contender(
                name=PEER,
                prepare=lambda: _together(lambda: files),
                call=lambda path: dcp.load(first, storage_reader=dcp.FileSystemReader(path)),
            ),
        ],
    )


def _copy(base: Path, *, make: bool = False) -> Any:
    """A repository of its own, as `repositories.commit` has it; with `make`, the one itself."""
    import torch.distributed as dist

    import ckptstore

    path = base if make else base.with_name(f"copy-{next(_number)}")
    if dist.get_rank() == 0 and make:
        ckptstore.open(path, create=True)
    elif dist.get_rank() == 0:
        repositories.linked_copy(base, path, has_folders=True)
    dist.barrier()
    repository = ckptstore.open(path)
    if repository.branches():
        assert repository.resolve(repositories.BRANCH).arrays
    return _together(lambda: repository)


def _together(make: Callable[[], Any]) -> Any:
    """Call a function, and return its result once all ranks have come here."""
    import torch.distributed as dist

    made = make()
    dist.barrier()
    return made


def _keep(written: Any) -> None:
    """Have what was written removed later, and its pages now, by one rank."""
    import torch.distributed as dist

    dist.barrier()
    if dist.get_rank() == 0:
        keep(written if isinstance(written, Path) else Path(written.url))
    dist.barrier()


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(Path, sys.argv[2:]))
