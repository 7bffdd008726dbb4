"""What an error of the operating system is told as: the place, the reason and the way out."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from ckptstore.errors import CkptStoreError, InvalidInputError, StorageError
from ckptstore.storage import LocalStorage
from ckptstore.storage.os_errors import translated

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "Free some space, or run gc"),
        (errno.EDQUOT, "Free some space, or run gc"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "Input/output error."),
    ],
)
def test_the_way_out_is_told_where_there_is_one(tmp_path: Path, number: int, hint: str) -> None:
    with (
        pytest.raises(StorageError, match=hint) as raised,
        translated("a temporary file", str(tmp_path), writing=True),
    ):
        raise OSError(number, os.strerror(number))
    assert f"a temporary file in {tmp_path} could not be used" in str(raised.value)
    assert raised.value.is_full == (number in (errno.ENOSPC, errno.EDQUOT))


@pytest.mark.parametrize("below", ["", "store", "a/b"])
def test_a_file_in_place_of_a_folder_is_named_by_every_call(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file.pt"
    file.write_bytes(b"weights")
    storage = LocalStorage(file / below)
    for call in (
        lambda: storage.get("ckptstore.json", bytes_max=9),
        lambda: storage.put("ops/1", b""),
        lambda: storage.prepare(set()),
        lambda: list(storage.list("ops/")),
    ):
        with pytest.raises(InvalidInputError, match=r"/file\.pt is a file; a folder is expected\."):
            call()
    assert file.read_bytes() == b"weights"


def test_a_folder_that_cannot_be_made_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(CkptStoreError, match=r"^/proc/none/store could not be made"):
        LocalStorage("/proc/none/store").prepare(set())
    long = tmp_path / ("x" * 300)
    with pytest.raises(StorageError, match=r"could not be made or used: File name too long"):
        LocalStorage(long).prepare(set())
