"""A rank as a program: `python -m tests.helpers.rank_script URL async|sync`, started by torchrun.

It saves twice, and loads into the shards of fresh tensors. Everything it needs of the repository it
opens itself.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from ckptstore.integrations.dcp import StoreReader, StoreWriter
from tests.helpers.layouts import sharded, whole

NAMES = ("rows", "columns", "uneven rows", "both", "few")


def main() -> None:
    """Save and load."""
    url, how = sys.argv[1:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for step in (1, 2):
        state: dict[str, Any] = {name: sharded(name, whole(name) + step) for name in NAMES}
        state["step"] = step
        writer = StoreWriter(url, step=step)
        if how == "async":
            kind = AsyncCheckpointerType.PROCESS
            dcp.async_save(state, storage_writer=writer, async_checkpointer_type=kind).result()
        else:
            dcp.save(state, storage_writer=writer)
    for rev, step in (("main~1", 1), ("main", 2)):
        state = {name: sharded(name, torch.zeros_like(whole(name))) for name in NAMES}
        state["step"] = 0
        dcp.load(state, storage_reader=StoreReader(url, rev))
        assert state["step"] == step
        for name in NAMES:
            expected = sharded(name, whole(name) + step)
            assert torch.equal(state[name].to_local(), expected.to_local()), name
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
