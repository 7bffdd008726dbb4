"""The cost of saving for a training loop: how long `save` blocks it, and the memory it takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import ckptstore
from bench import memory, workloads
from bench.bench import Bench
from bench.figures import Bound, Figure, comparisons
from bench.measure import Contender
from ckptstore.training import CheckpointManager

STALL_MUST, STALL_AIM = 1 / 1.15, 1 / 1.1
MEMORY_MEGABYTES = 128
SAVES = 3


class StatefulState:
    """A state as a stateful object."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def figures(bench: Bench) -> Iterator[Figure]:
    """The stall of a save against one copy of the state, and the memory of saving."""
    state = bench.training.second
    manager = CheckpointManager(
        bench.scratch / "training", state=StatefulState(state), max_to_keep=2
    )
    step = iter(range(1_000_000))

    def settle() -> None:
        manager.wait()

    yield from comparisons(
        "what save() costs the loop",
        bench.run(
            Contender(
                name="ckptstore",
                prepare=settle,
                call=lambda _: manager.save(next(step)),
                clean=lambda _: settle(),
            ),
            copied(state),
            Contender(
                name="torch.save",
                prepare=settle,
                call=lambda _: torch.save(state, bench.scratch / "training.pt"),
            ),
        ),
        must={"memcpy": STALL_MUST},
        aim={"memcpy": STALL_AIM},
    )
    if memory.SUPPORTED:
        path = workloads.training_file(bench.cache, "second")
        command = [sys.executable, "-m", "bench.training", str(bench.scratch / "peak"), str(path)]
        root = Path(__file__).parents[1]
        finished = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
        size = workloads.array_bytes(state)
        yield Bound(
            what="peak memory of saving beside a loop, beyond one copy of the state",
            values=((int(finished.stdout) - size) / 1e6,),
            unit="MB",
            must=MEMORY_MEGABYTES,
        )


def copied(state: object) -> Contender:
    """Copy every tensor to memory that is allocated already."""
    tensors = list(workloads.tensors(state).values())
    copies = [tensor.clone() for tensor in tensors]

    def call(_: object) -> None:
        for copy, tensor in zip(copies, tensors, strict=True):
            copy.copy_(tensor)

    return Contender(name="memcpy", call=call)


def main(store: str, path: str) -> None:
    """Print by how many bytes the resident size rises while a state is saved in the background."""
    state = torch.load(path)
    small = CheckpointManager(
        store, branch="small", state=StatefulState({"w": torch.zeros(1 << 18)})
    )
    small.save(1)
    small.wait()
    manager = CheckpointManager(ckptstore.open(store), state=StatefulState(state), max_to_keep=2)

    def saves() -> None:
        for step in range(SAVES):
            manager.save(step)
        manager.wait()

    print(memory.extra_bytes(saves))


if __name__ == "__main__":
    main(*sys.argv[1:])
