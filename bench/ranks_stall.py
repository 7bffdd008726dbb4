"""The time that `Saver.async_save` takes from the loop of two ranks, beside a copy of the shards.

The ranks are processes on this machine (torchrun, gloo). Each holds as many bytes as the training
state of the other benches has, in shards. Both make the same calls in the same order, and a time is
that of the first rank. Memory is warm for all of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench import workloads
from bench.bench import Bench
from bench.figures import Figure, comparisons
from bench.measure import Contender, Patience, Series, Time, compete

MUST = {"memcpy": 1 / 1.3}


def figures(bench: Bench) -> Iterator[Figure]:
    """The stall of a save in the background."""
    times, folder = bench.scratch / "ranks-stall.json", bench.scratch / "ranks-stall"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "bench.ranks_stall", str(bench.rounds), str(bench.cache), str(folder), str(times)),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    yield from comparisons(
        "2 ranks: what async_save() costs the loop",
        [
            Series(name=name, times=tuple(Time(**time) for time in taken))
            for name, taken in json.loads(times.read_text()).items()
        ],
        must=MUST,
    )


def main(rounds: int, cache: Path, folder: Path, times: Path) -> None:
    """Time the calls on this rank; rank 0 writes the times."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    from ckptstore.integrations.dcp import Saver, StoreWriter

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    own = dist.new_group(backend="gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    shards = list(workloads.tensors(torch.load(workloads.training_file(cache, "second"))).values())
    shards = [shard for shard in shards if shard.dim()]
    state = {str(n): DTensor.from_local(one, mesh, [Shard(0)]) for n, one in enumerate(shards)}
    copies = [shard.clone() for shard in shards]
    saver = Saver(folder)

    def meet(_: object = None) -> None:
        saver.wait()
        dist.barrier()

    def copy(_: Any) -> None:
        for place, shard in zip(copies, shards, strict=True):
            place.copy_(shard)

    def by_torch(_: Any) -> Any:
        writer = StoreWriter(folder)
        return waited.append(dcp.async_save(state, storage_writer=writer, process_group=own))

    waited: list[Any] = []
    series = compete(
        [
            Contender(
                name="ckptstore", prepare=meet, call=lambda _: saver.async_save(state), clean=meet
            ),
            Contender(name="memcpy", prepare=meet, call=copy),
            Contender(
                name="dcp.async_save",
                prepare=meet,
                call=by_torch,
                clean=lambda _: waited.pop().result(),
            ),
        ],
        rounds=rounds,
        patience=Patience(0),
    )
    if dist.get_rank() == 0:
        taken = {
            one.name: [{name: getattr(time, name) for name in Time.__slots__} for time in one.times]
            for one in series
        }
        times.write_text(json.dumps(taken))
    dist.barrier()
    saver.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(Path, sys.argv[2:]))
