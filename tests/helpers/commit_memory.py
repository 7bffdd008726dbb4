"""The extra memory of commits and checkouts: python -m tests.helpers.commit_memory FOLDER MIB."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

import ckptstore
from tests.helpers.peak import MIB, extra_mib


def views(size: int) -> dict[str, torch.Tensor]:
    """Arrays of so many bytes whose elements lie in memory in various ways."""
    base = torch.rand(2, size // 8000, 1000)
    pairs = torch.view_as_complex(torch.rand(size // 8000, 1000, 2))
    return {
        "contiguous": base[0],
        "transposed": base[0].T,
        "every second": base.reshape(1, -1)[:, ::2],
        "conjugate transposed": pairs.conj().T,
        "one number": torch.rand(1, 1).expand(size // 4000, 1000),
    }


def measure(folder: Path, size: int) -> dict[str, int]:
    """The peaks by what was done."""
    ckptstore.init("memory://").commit({"w": torch.zeros(1 << 20)})  # every import is behind us
    found = {}
    for name, tensor in views(size).items():
        repo = ckptstore.init(folder / name)
        found[f"commit {name}"] = extra_mib(lambda repo=repo, w=tensor: repo.commit({"w": w}))
        target: dict[str, Any] = {"w": tensor if tensor.stride(0) else torch.empty(tensor.shape)}
        expected = tensor[0, 7].item()
        target["w"].zero_()
        found[f"into {name}"] = extra_mib(lambda repo=repo, into=target: repo.checkout(into=into))
        assert target["w"][0, 7].item() == expected
    tensors = {str(n): torch.rand(16_000) for n in range(size // 64_000)}
    repo = ckptstore.init(folder / "many")
    found["commit many"] = extra_mib(lambda: repo.commit(tensors))
    found["into many"] = extra_mib(lambda: repo.checkout(into=tensors))
    return found


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]) * MIB)))
