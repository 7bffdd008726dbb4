"""A training on some ranks, as a program: `python -m tests.helpers.chaos_training OUT`.

It saves every step to a repository in OUT, resumes from what is there, and writes its result at the
end. ckpt-chaos kills a rank of it at each change of a file. It learns of these by audit events,
which lack the folder where a call names a file in an open folder, as all calls of ckptstore do. So
such calls raise another event here, with a whole path. Random names are the same in all of these,
as ckpt-chaos compares the events of two runs.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import ckptstore
from ckptstore.integrations.dcp import Saver, StoreReader
from ckptstore.integrations.dcp.gloo_exit import expect_collectives

STEPS = 3
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def announce() -> None:
    """Raise an audit event with the whole path before each change of a file in an open folder."""

    def whole(path: Any, folder: int) -> str:
        name = re.sub(r".*[0-9a-f]{20}.*", "file", os.fspath(path))
        return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)

    opened, rename, link, unlink = os.open, os.rename, os.link, os.unlink

    def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None and flags & WRITES:
            sys.audit("open", whole(path, dir_fd), None, flags)
        return opened(path, flags, mode, dir_fd=dir_fd)

    def rename_(old: Any, new: Any, *, src_dir_fd: Any = None, dst_dir_fd: Any = None) -> None:
        if dst_dir_fd is not None:
            sys.audit("os.rename", whole(new, dst_dir_fd), "", -1, -1)
        rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def link_(old: Any, new: Any, *, dst_dir_fd: Any = None, **options: Any) -> None:
        if dst_dir_fd is not None:
            sys.audit("open", whole(new, dst_dir_fd), None, os.O_CREAT)
        link(old, new, dst_dir_fd=dst_dir_fd, **options)

    def unlink_(path: Any, *, dir_fd: int | None = None) -> None:
        if dir_fd is not None:
            sys.audit("os.remove", whole(path, dir_fd), -1)
        unlink(path, dir_fd=dir_fd)

    os.open, os.rename, os.link, os.unlink = open_, rename_, link_, unlink_  # type: ignore[assignment]


def main() -> None:
    """Train, and save every step."""
    announce()
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    expect_collectives()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    # No two shards alike: of those, the rank that comes first would put the chunks.
    start = torch.arange(160_000.0).reshape(4000, 40)
    weights = distribute_tensor(start, mesh, [Shard(0)])
    state: dict[str, Any] = {"model": {"w": weights}, "step": 0}
    if dist.get_rank() == 0:
        ckptstore.open(out / "store", create=True)
    dist.barrier()
    repo = ckptstore.open(out / "store")
    if repo.log(limit=1):
        dcp.load(state, storage_reader=StoreReader(repo))
    print(f"resumed from step {state['step']}", flush=True)
    with Saver(repo) as saver:
        for step in range(state["step"] + 1, STEPS + 1):
            weights += torch.sin(weights + step)  # of what came before, so a lost step shows
            state["step"] = step
            saver.save(state, step=step)
    result = weights.full_tensor().double().sum().item()
    if dist.get_rank() == 0:
        (out / "result").write_text(repr(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
