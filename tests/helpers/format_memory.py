"""The extra memory of committing a file and of writing one.

python -m tests.helpers.format_memory FORMAT FOLDER MIB
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import numpy as np

import ckptstore
from ckptstore.formats import read_file, write_file
from tests.helpers.peak import MIB, extra_mib

PATTERN = np.random.default_rng(0).integers(0, 256, 4 * MIB, np.uint8)


def make_columns(path: Path, size: int) -> None:
    """A Zarr folder of another program: one array whose chunks span all rows."""
    import zarr

    group = zarr.open_group(path, mode="w")
    array = group.create_array("w", shape=(1024, size // 4096), chunks=(1024, 1024), dtype="f4")
    for at in range(0, array.shape[1], 1024):
        array[:, at : at + 1024] = PATTERN.view("u1").reshape(1024, -1)[:, :1024] + np.float32(at)


def make(path: Path, size: int) -> None:
    """A file of one array of so many bytes, no two pieces of it alike, but for a compressed one."""
    with zipfile.ZipFile(path.with_suffix(".npz"), "w") as archive:
        packed = path.stem == "packed"
        archive.compression = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
        archive.compresslevel = 1
        with archive.open("model/w.npy", "w", force_zip64=True) as member:
            header = {
                "descr": "<f4",
                "fortran_order": path.stem == "turned",
                "shape": (size // 4096, 1024),
            }
            np.lib.format.write_array_header_1_0(member, header)
            for number in range(size // PATTERN.nbytes):
                piece = np.zeros_like(PATTERN) if packed else PATTERN
                piece[:8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
                member.write(piece)


def measure(name: str, folder: Path, size: int) -> dict[str, int]:
    """The peaks by task. A rehearsal of each has done all imports before."""
    path = folder / name
    if path.stem == "columns":
        make_columns(path, size)
    else:
        make(path, size)
    if path.suffix != ".npz" and path.stem != "columns":
        source = path.with_suffix(".npz")
        write_file(read_file(source).state, path, shard_bytes=None if path.suffix else size // 3)
        source.unlink()
    small = ckptstore.init("memory://")
    small.commit({"w": np.zeros(100_000)})
    write_file(small.checkout("main", lazy=True), folder / "small.npz")
    repo = ckptstore.init(folder / "store")
    other = ckptstore.init(folder / "other")
    again = folder / f"again-{'x.npz' if path.stem == 'columns' else name}"
    return {
        "commit": extra_mib(lambda: repo.commit(read_file(path, bytes_max=2 * size).state)),
        "checkout": extra_mib(
            lambda: write_file(
                repo.checkout("main", lazy=True),
                again,
                shard_bytes=None if path.suffix else size // 3,
            )
        ),
        "commit of a lazy checkout": extra_mib(
            lambda: other.commit(repo.checkout("main", lazy=True))
        ),
        "torch": int("torch" in sys.modules),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) * MIB)))
