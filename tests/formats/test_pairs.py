"""Every format to every other through a repository: name, dtype, shape and bits survive."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ckptstore
from ckptstore.documents.dtypes import ITEM_BYTES, ML_DTYPES, NUMPY_DTYPES
from ckptstore.errors import InvalidInputError
from ckptstore.formats import read_file, safetensors, write_file
from ckptstore.testing.strategies import arrays
from tests.helpers.flat_files import Bits, bits_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Format:
    """A format to write: what the path is called, and the dtypes that it has names for."""

    name: str
    dtypes: frozenset[str]
    shard_bytes: int | None = None

    def holds(self, bits: Bits) -> bool:
        """True for a state of these dtypes."""
        halves = self.dtypes != ALL and any(
            dtype == "float4_e2m1fn_x2" and not shape for dtype, shape, _ in bits.values()
        )
        return not halves and {dtype for dtype, _, _ in bits.values()} <= self.dtypes


ALL = frozenset(ITEM_BYTES)
FORMATS = {
    "safetensors": Format("x.safetensors", frozenset(safetensors.DTYPES)),
    "sharded": Format("shards", frozenset(safetensors.DTYPES), shard_bytes=100_000),
    "npz": Format("x.npz", NUMPY_DTYPES),
    "h5": Format("x.h5", NUMPY_DTYPES | ML_DTYPES),
    "pt": Format("x.pt", ALL),
    "zarr": Format("x.zarr", ALL),
}
PAIRS = [
    pair
    for pair in itertools.product(FORMATS, repeat=2)
    if "h5" not in pair or {*pair} & {"pt", "zarr"}  # its other pairs take the same ways
]
KEYS = st.text(max_size=4) | st.sampled_from(["a", "a/b", "a.b", "%", "..", "w.npy", "é", "0"])
COMMON = arrays().filter(lambda array: str(array.dtype).rpartition(".")[2] in NUMPY_DTYPES)


def states() -> st.SearchStrategy[dict[str, Any]]:
    """Arrays by name, some nested; half of the states use dtypes that every format knows."""
    return st.sampled_from([arrays(), COMMON]).flatmap(
        lambda leaves: st.dictionaries(
            KEYS, leaves | st.dictionaries(KEYS, leaves, min_size=1, max_size=3), max_size=5
        )
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A new folder each time it is asked."""
    return (tmp_path_factory.mktemp("pair") for _ in itertools.count())


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=[f"{a}-{b}" for a, b in PAIRS])
@settings(
    max_examples=max(20, settings().max_examples // 10),
    suppress_health_check=[HealthCheck.filter_too_much],
)
@given(state=states())
def test_every_bit_is_kept(
    folders: Iterator[Path], first: str, second: str, state: dict[str, Any]
) -> None:
    expected = bits_of(state)
    repo = ckptstore.init("memory://", chunk_size=64 << 10)
    for name in (first, second):
        target = FORMATS[name]
        path = next(folders) / target.name
        if not target.holds(expected):
            with pytest.raises(InvalidInputError, match=r"cannot hold the dtype|has no form in it"):
                write_file(state, path, shard_bytes=target.shard_bytes)
            return
        write_file(state, path, shard_bytes=target.shard_bytes)
        made = repo.commit(read_file(path).state, branch=name, step=len(repo.log()))
        assert bits_of(repo.checkout(made.id)) == expected
        state = repo.checkout(made.id, lazy=True)
        assert bits_of(state) == expected
