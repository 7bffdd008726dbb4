"""Makes data/v1_branches: a repository of version 1 without the fields that ADRs 0020 to 0022
added.

It holds what v1 does not: expired checkpoints, a gc that died after it condemned objects, a derived
branch, and a Zarr hierarchy. `python -m tests.compat.data.make_v1_branches FOLDER` made it with the
last version of ckptstore before manifests recorded their branch. A later version makes other bytes,
so this script is here to say what is in the repository, not to make it again.
"""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from zarr.core.buffer import cpu

from ckptstore.retention import MaxToKeep
from tests.compat.deterministic import deterministic
from tests.compat.neutral import neutral

ARRAY = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [6],
    "data_type": "uint8",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "fill_value": 0,
    "codecs": [{"name": "bytes"}],
    "attributes": {"unit": "nat"},
}
GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {"run": "a"}}
HIERARCHY = {
    "zarr.json": json.dumps(GROUP).encode(),
    "curves/zarr.json": json.dumps({**GROUP, "attributes": {}}).encode(),
    "curves/loss/zarr.json": json.dumps(ARRAY).encode(),
    "curves/loss/c/0": bytes([1, 2, 3, 4]),
    "curves/loss/c/1": bytes([5, 6, 0, 0]),
}


class Died(BaseException):
    """The process of a gc ends here."""


def state(number: int) -> dict[str, Any]:
    """A model of a large and a small array, of which each checkpoint changes a part."""
    large = np.zeros((9, 90, 90), np.uint8)
    large[8] = number
    return {
        "model": {"encoder.weight": torch.from_numpy(large), "head.bias": torch.full((5,), number)},
        "optimizer": {"state": {0: {"step": number}}, "lr": 0.5**number},
    }


def die(*_: object, **__: object) -> None:
    """Stand in for a call that is never reached."""
    raise Died


def make(folder: Path) -> None:
    """Make the repository, and expected.json, in a folder."""
    with deterministic(folder / "store", chunk_size=64 << 10) as repo:
        for number in range(1, 5):
            repo.commit(state(number), step=number, metrics={"loss": 1 / number})
        repo.set_retention(MaxToKeep(2))
        expired = list(repo.gc().expired)
        repo.tag("lowest", at="main@best:loss:min")
        repo.branch("task", include="model/**", rename={"model/encoder[.](.*)": "model/base.\\1"})
        repo.commit({"only": np.arange(4, dtype=np.int16)}, branch="task", step=1)
        with repo.session("curves") as session:
            for key, data in HIERARCHY.items():
                session.store.set_sync(key, cpu.Buffer.from_bytes(data))
            session.commit(step=2, message="curves")
        repo.commit(state(5), step=5)
        repo.commit(state(6), step=6)
        with patch.object(type(repo._objects), "delete", die), suppress(Died):
            repo.gc(MaxToKeep(1), branches=["main"])
        newest = repo._oplog.newest()
        assert newest.condemned
        assert newest.condemned.digests
        expired += newest.condemned.checkpoints
        revs = ("main", "lowest", "task", "task~1", "curves")
        expected = {
            "heads": {name: found.id for name, found in repo.branches().items()},
            "tags": {name: found.id for name, found in repo.tags().items()},
            "expired": sorted(expired),
            "condemned": sorted(newest.condemned.digests),
            "states": {repo.resolve(rev).id: neutral(repo.checkout(rev)) for rev in revs},
        }
    shutil.rmtree(folder / "store" / "tmp")
    text = json.dumps(expected, sort_keys=True, separators=(",", ":"))
    (folder / "expected.json").write_text(text + "\n", encoding="ascii")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
