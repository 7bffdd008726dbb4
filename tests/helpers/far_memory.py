"""The extra memory of a commit and a checkout on an object store: python -m ... MIB."""

from __future__ import annotations

import json
import multiprocessing
import sys
from typing import TYPE_CHECKING, Any

import torch

import ckptstore
from ckptstore.testing.s3_server import S3Server
from tests.helpers.peak import MIB, extra_mib

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

CHUNK = 8 * MIB
LATENCY_SECONDS = 0.02  # so that many requests are under way


def serve(connection: Connection) -> None:
    """Run a server until something is received."""
    with S3Server(latency=LATENCY_SECONDS) as server:
        connection.send((server.url("warm"), server.url("run")))
        connection.recv()


def measure(warm: str, url: str, size: int) -> dict[str, int]:
    """The peaks by what was done."""
    ckptstore.open(warm, create=True).commit({"w": torch.zeros(1 << 20)})  # imports are behind us
    ckptstore.open(warm).checkout(into={"w": torch.zeros(1 << 20)})
    state = {str(n): torch.rand(CHUNK // 4) for n in range(size // CHUNK)}
    state["transposed"] = torch.rand(2 * CHUNK // 4 // 1024, 1024).T
    repo = ckptstore.open(url, create=True)
    found = {"commit": extra_mib(lambda: repo.commit(state))}
    target: dict[str, Any] = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    found["into"] = extra_mib(lambda: repo.checkout(into=target))
    assert all(torch.equal(target[name], tensor) for name, tensor in state.items())
    return found


def main(size_mib: int) -> None:
    """Print the peaks in MiB."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    server = spawn.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        print(json.dumps(measure(*ours.recv(), size_mib * MIB)))
    finally:
        ours.send(None)
        server.join()


if __name__ == "__main__":
    main(int(sys.argv[1]))
