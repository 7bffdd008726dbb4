"""Ranks: forked processes that form a group of torch.distributed, as torchrun would start them."""

from __future__ import annotations

import pickle
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from tests.helpers.children import exit_code, fork

WAIT = timedelta(seconds=60)  # for a rank that died


SECONDS = 200  # of a rank; only one that waits for ever needs so long


class DiedError(Exception):
    """A rank ended without an answer.

    code: its exit code; less than 0 for a signal.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def on_ranks(world: int, work: Callable[..., object], *arguments: object) -> list[Any]:
    """What `work` returns on each rank; of a rank that raises, the exception; or DiedError."""
    folder = Path(tempfile.mkdtemp(prefix="ranks-"))

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world, timeout=WAIT
        )
        try:
            answer = work(*arguments)
        except (Exception, CheckpointException) as error:  # noqa: BLE001 - the test judges it
            traceback.print_exc()
            answer = error
        (folder / str(rank)).write_bytes(pickle.dumps(answer))
        dist.destroy_process_group()

    children = [fork(partial(run, rank), seconds=SECONDS) for rank in range(world)]
    codes = [exit_code(child) for child in children]
    answers = [
        pickle.loads((folder / str(rank)).read_bytes())
        if (folder / str(rank)).exists()
        else DiedError(code)
        for rank, code in enumerate(codes)
    ]
    shutil.rmtree(folder)
    return answers


def checked(answers: list[Any]) -> list[Any]:
    """The answers, of which none is an exception."""
    assert [one for one in answers if isinstance(one, BaseException)] == []
    return answers
