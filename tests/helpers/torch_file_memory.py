"""The extra memory of committing a file of torch and of writing one.

python -m tests.helpers.torch_file_memory FORM FOLDER MIB
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

import ckptstore
from ckptstore.formats import read_file, write_file
from tests.helpers.peak import MIB, extra_mib

SMALL_BYTES = 256 << 10


def make(path: Path, form: str, mib: int) -> None:
    """A file (a folder for "dcp") of so many MiB without repetition, in two or many arrays."""
    if form == "numpy":
        torch.save({"a": np.arange(mib * MIB // 8).reshape(-1, 1024), "b": np.zeros(3)}, path)
        return
    if form == "small numpy":
        torch.save(
            {f"a{n}": np.full(SMALL_BYTES // 8, n) for n in range(mib * MIB // SMALL_BYTES)}, path
        )
        return
    whole = torch.arange(mib * MIB // 4, dtype=torch.int32).reshape(2, -1, 1024)
    if form == "dcp":
        import torch.distributed.checkpoint as dcp

        dcp.save({"a": whole[0], "b": whole[1].clone()}, checkpoint_id=path)
        return
    first = whole[0].T if form == "transposed" else whole[0].clone()
    torch.save(
        {"a": first, "b": whole[1].clone()}, path, _use_new_zipfile_serialization=form != "old"
    )


def measure(form: str, folder: Path, mib: int) -> dict[str, int]:
    """The peaks by what was done; small ones are done first, so that every import is behind us.

    What making the files takes is gone with the process that makes them: a fork, while torch has no
    threads here yet.
    """
    suffix = "" if form == "dcp" else ".pt"
    paths = {size: folder / f"{size}{suffix}" for size in (1, mib)}
    maker = multiprocessing.get_context("fork").Process(target=_make_all, args=(form, paths))
    maker.start()
    maker.join()
    assert maker.exitcode == 0
    for size, path in paths.items():
        repo = ckptstore.init(folder / f"store-{size}")
        found = {
            "commit": extra_mib(lambda repo=repo, path=path: repo.commit(read_file(path).state)),
            "checkout": extra_mib(
                lambda repo=repo, size=size: write_file(
                    repo.checkout("main", lazy=True), folder / f"again-{size}.pt"
                )
            ),
        }
    return found


def _make_all(form: str, paths: dict[int, Path]) -> None:
    warnings.simplefilter("ignore")
    for size, path in paths.items():
        make(path, form, size)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
