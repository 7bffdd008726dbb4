"""Makes data/v1: a small repository of format version 1, and what it holds in a form of its own.

Run it as `python -m tests.compat.data.make_v1 FOLDER`. The README beside this file says when to run
it, and when not.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.compat.deterministic import deterministic
from tests.compat.neutral import neutral

HERE = Path(__file__).parent


def first_state() -> dict[str, Any]:
    """One value of every kind that a structure knows, and one array of every dtype."""
    weights = OrderedDict(
        [("0.weight", torch.arange(6, dtype=torch.float32).reshape(2, 3)), ("0.bias", _nans())]
    )
    weights._metadata = OrderedDict([("", {"version": 1})])  # type: ignore[attr-defined]
    large = np.full((2, 32_769), 7, dtype=np.uint8)
    return {
        "model": weights,
        "tied": weights["0.weight"],
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"params": [0]}]},
        "dtypes": _dtypes(),
        "large": large,
        "large tied": large,
        "empty": torch.empty(0, 5),
        "keys": {
            "": 1,
            "0": 2,
            0: 3,
            "a/b": 4,
            "100%": 5,
            "\x00": 6,
            "\u00e9": 7,
            "\ud800": 8,
            -1: 9,
        },
        "numbers": [
            0,
            -1,
            2**64 - 1,
            2**64,
            -(2**70),
            0.1,
            -0.0,
            1e16,
            5e-324,
            math.inf,
            -math.inf,
        ],
        "nan": struct.unpack(">d", bytes.fromhex("7ff8000000000123"))[0],
        "complex": complex(-0.0, math.inf),
        "others": (
            None,
            True,
            False,
            "text \U0001f600",
            "\udcff",
            b"\x00\xff",
            bytearray(b"ab"),
            (),
        ),
        "types": [torch.Size([2, 3]), torch.bfloat16, torch.device("cpu"), np.float32(1.5)],
    }


def second_state() -> dict[str, Any]:
    """The first with one array changed, so that most objects are shared."""
    return {**first_state(), "empty": torch.ones(1, 5)}


def _nans() -> torch.Tensor:
    """NaNs with payloads, negative zero and a subnormal."""
    bits = [0x7FC00001, -0x00400000, -0x80000000, 1]
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32)


def _dtypes() -> dict[str, Any]:
    names = """bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64
        bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu
        float4_e2m1fn_x2 complex32 complex64 complex128"""
    some = torch.arange(1, 33, dtype=torch.uint8)
    made = {
        name: some.clone().view(getattr(torch, name)) for name in names.split() if name != "bool"
    }
    return {"bool": torch.tensor([True, False, True]), **made}


def make(folder: Path) -> None:
    """Make the repository and expected.json in a folder."""
    with deterministic(folder / "store", chunk_size=64 << 10) as repo:
        repo.commit(
            first_state(),
            step=1,
            metrics={"loss": math.nan, "best": math.inf, "low": -math.inf, "acc": 0.5, "count": 3},
            message="first \u2713",
            meta={"run": "r1", "seed": 1, "rate": 1e-05, "tags": [None, True, {"a": 1.0}]},
        )
        repo.tag("v1.0")
        repo.commit(second_state(), step=2, metrics={"loss": 0.25})
        repo.branch("seed/a", at="v1.0")
        repo.commit({"only": np.float32([1, 2])}, branch="seed/a")
        repo.commit([], branch="plain", message="a list without anything in it")
        repo.delete_branch("plain")
        repo.undo()
        expected = {
            "heads": {name: found.id for name, found in repo.branches().items()},
            "tags": {name: found.id for name, found in repo.tags().items()},
            "states": {
                repo.resolve("v1.0").id: neutral(first_state()),
                repo.resolve("main").id: neutral(second_state()),
                repo.resolve("seed/a").id: neutral({"only": np.float32([1, 2])}),
                repo.resolve("plain").id: neutral([]),
            },
        }
    shutil.rmtree(folder / "store" / "tmp")
    text = json.dumps(expected, sort_keys=True, separators=(",", ":"))
    (folder / "expected.json").write_text(text + "\n", encoding="ascii")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
