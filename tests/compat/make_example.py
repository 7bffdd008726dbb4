"""Makes the repository that the end of docs/reference/format.md shows, and prints it as it stands
there.

Run it as `python -m tests.compat.make_example`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from tests.compat.deterministic import deterministic


def make(root: Path) -> dict[str, bytes]:
    """Make the repository, and return its files by their paths below the root."""
    with deterministic(root, chunk_size=64 << 10) as repo:
        state = {
            "model": {"weight": np.array([1.0, -2.0, 0.5], "f4")},
            "lr": 0.1,
            "betas": (0.9, 0.999),
        }
        repo.commit(state, step=7, metrics={"val_loss": 0.25}, message="first", meta={"run": "a"})
        repo.tag("v1")
    return files(root)


def files(root: Path) -> dict[str, bytes]:
    """All files below a folder that readers look at: none of `tmp/`."""
    found = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*"))}
    return {
        key: path.read_bytes()
        for key, path in found.items()
        if path.is_file() and not key.startswith("tmp/")
    }


def shown(key: str, data: bytes) -> str:
    """One file as the document shows it."""
    kind, text = ("json", data.decode()) if data.startswith(b"{") else ("text", data.hex(" "))
    return f"**`{key}`**, {len(data)} bytes\n\n```{kind}\n{text}\n```\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print("\n".join(shown(*file) for file in make(Path(folder) / "store").items()))
