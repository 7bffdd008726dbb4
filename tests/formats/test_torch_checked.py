"""The CRC of each record of a .pt is compared before its bytes are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import ckptstore
from ckptstore import InvalidInputError
from ckptstore.arrays.file import ByteSource, OpenFile
from ckptstore.formats import read_file
from ckptstore.formats.torch.load import load

if TYPE_CHECKING:
    from pathlib import Path

STATE = {"a": torch.arange(1000.0), "b": torch.arange(1000, 3000), "name": "abcdefgh"}


class Counted(ByteSource):
    """Counts the bytes that are read."""

    def __init__(self, file: OpenFile) -> None:
        self._file, self.path, self.nbytes, self.read_bytes = file, file.path, file.nbytes, 0

    def read_into(self, buffer: memoryview, start: int) -> None:
        self.read_bytes += len(buffer)
        self._file.read_into(buffer, start)


def flipped(path: Path, contents: bytes) -> None:
    """Flip a bit within some bytes of a file."""
    data = bytearray(path.read_bytes())
    data[data.index(contents) + 5] ^= 1
    path.write_bytes(data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(STATE, tmp_path / "x.pt")
    return tmp_path / "x.pt"


def test_a_flipped_bit_of_a_tensor_is_named_when_it_is_read(path: Path) -> None:
    flipped(path, STATE["b"].numpy().tobytes())
    state = read_file(path).state
    assert committed_state({"a": state["a"]})["a"].tolist() == STATE["a"].tolist()
    with pytest.raises(InvalidInputError, match=r"x\.pt is damaged: .* record 'data/1' do not"):
        committed_state({"b": state["b"]})


def test_a_flipped_bit_of_a_value_is_named(path: Path) -> None:
    flipped(path, b"abcdefgh")
    with pytest.raises(InvalidInputError, match=r"its record 'data\.pkl' do not match the CRC"):
        read_file(path)


def test_a_file_without_checksums_is_read(path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert committed_state(read_file(path).state)["b"].tolist() == STATE["b"].tolist()


def test_each_record_is_read_once_to_check_it(path: Path) -> None:
    file = Counted(OpenFile(path))
    state = load(file)
    file.read_bytes = 0
    for _ in range(2):
        committed_state({"a": state["a"]})
    assert file.read_bytes == 3 * STATE["a"].nbytes  # once for its CRC, and for each commit


def committed_state(state: Any) -> Any:
    """Return a state from a repository that it was committed to."""
    repo = ckptstore.init("memory://")
    return repo.checkout(repo.commit(state).id)
