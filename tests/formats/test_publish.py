"""Exports on disks that lack hard links, an fsync of folders, or the difference of case."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import ckptstore
from ckptstore.errors import InvalidInputError, NotFoundError, StorageError
from ckptstore.formats import publish, read_file, write_file
from tests.helpers import disks
from tests.helpers.flat_files import bits_of, committed
from tests.helpers.root import ROOT

STATE = {"w": np.arange(3.0)}
NEW = {"w": np.arange(5.0)}
FILES = ["x.safetensors", "x.npz", "x.pt"]
FOLDERS = ["x.zarr", "x"]


def write(path: Path, state: Any = STATE, **options: Any) -> None:
    write_file(state, path, shard_bytes=None if path.suffix else 10**6, **options)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "number", [errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS, errno.EXDEV]
)
def test_a_new_file_is_written_where_there_are_no_hard_links(
    tmp_path: Path, name: str, number: int
) -> None:
    with disks.without_links(number):
        write(tmp_path / name)
        with pytest.raises(InvalidInputError, match="exists"):
            write(tmp_path / name, NEW)
    assert os.listdir(tmp_path) == [name]
    assert bits_of(committed(tmp_path / name)) == bits_of(STATE)


def test_without_hard_links_a_name_taken_meanwhile_is_left_to_its_owner(tmp_path: Path) -> None:
    """Whether it was taken before the claim, or the claim itself was replaced or written to."""
    path = tmp_path / "x.npz"

    def theirs(*args: Any, **options: Any) -> None:
        path.write_bytes(b"theirs")
        disks.failing(errno.EPERM)()

    with patch("os.link", theirs), pytest.raises(InvalidInputError, match="exists"):
        write(path)
    assert path.read_bytes() == b"theirs"
    path.unlink()
    is_ours = publish._is_empty_claim
    for replaced in (True, False):

        def lost(claim: int, path: Path, replaced: bool = replaced) -> bool:
            if replaced:
                path.unlink()
            path.write_bytes(b"theirs")
            return is_ours(claim, path)

        with (
            disks.without_links(),
            patch.object(publish, "_is_empty_claim", lost),
            pytest.raises(InvalidInputError, match="exists"),
        ):
            write(path)
        assert path.read_bytes() == b"theirs"
        assert os.listdir(tmp_path) == ["x.npz"]
        path.unlink()


def test_a_claim_goes_when_the_file_cannot_follow_it(tmp_path: Path) -> None:
    with (
        disks.without_links(),
        patch("os.replace", disks.failing(errno.EIO)),
        pytest.raises(StorageError, match="Input/output error"),
    ):
        write(tmp_path / "x.npz")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP])
def test_exports_do_without_an_fsync_of_folders(tmp_path: Path, name: str, number: int) -> None:
    with disks.without_folder_fsync(number):
        write(tmp_path / name)
        write(tmp_path / name, NEW, overwrite=True)
    assert bits_of(committed(tmp_path / name)) == bits_of(NEW)


@pytest.mark.parametrize("name", ["x.npz", "x.zarr"])
def test_a_failed_fsync_of_a_folder_is_an_error(tmp_path: Path, name: str) -> None:
    with disks.without_folder_fsync(errno.EIO), pytest.raises(StorageError, match="output error"):
        write(tmp_path / name)


@pytest.mark.parametrize("name", ["x.npz", "x.zarr"])
def test_the_name_of_an_export_is_made_durable(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that holds it is flushed once the name is there."""
    seen: list[list[str]] = []
    fsync = os.fsync

    def noting(fd: int) -> None:
        if os.path.samestat(os.fstat(fd), os.stat(tmp_path)):
            seen.append(os.listdir(tmp_path))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noting)
    write(tmp_path / name)
    assert seen == [[name]]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_an_overlay_s_lower_layer_is_replaced(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    with disks.without_renames_of(tmp_path / name):
        write(tmp_path / name, NEW, overwrite=True)
    assert os.listdir(tmp_path) == [name]
    assert bits_of(committed(tmp_path / name)) == bits_of(NEW)


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed_when_what_it_leads_to_is_overwritten(
    tmp_path: Path, name: str, exists: bool
) -> None:
    """The export is written beside the target: it may be on a larger disk."""
    (tmp_path / "large").mkdir()
    (tmp_path / name).symlink_to(f"large/{name}")
    if exists:
        write(tmp_path / "large" / name)
    with pytest.raises(InvalidInputError, match="exists"):
        write(tmp_path / name, NEW)
    write(tmp_path / name, NEW, overwrite=True)
    assert (tmp_path / name).is_symlink()
    assert os.listdir(tmp_path / "large") == [name]
    assert bits_of(committed(tmp_path / "large" / name)) == bits_of(NEW)


def test_a_link_that_leads_nowhere_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.npz").symlink_to("x.npz")
    (tmp_path / "y.npz").symlink_to("missing/y.npz")
    (tmp_path / "z.npz").symlink_to(tmp_path)
    for name, error in (
        ("x.npz", StorageError),
        ("y.npz", NotFoundError),
        ("z.npz", InvalidInputError),
    ):
        with pytest.raises(error):
            write(tmp_path / name, overwrite=True)
        assert (tmp_path / name).is_symlink()


def test_names_that_differ_by_case_are_refused_where_they_are_one(tmp_path: Path) -> None:
    """Arrays, groups and the keys of a Zarr hierarchy; nothing is left behind."""
    one, other = {"A": np.arange(3.0)}, {"a": np.arange(4.0)}
    for state in (one | other, {"g": one, "G": other}, {"É": np.ones(1), "é": np.ones(1)}):
        write(tmp_path / "apart.zarr", state, overwrite=True)
        with disks.without_case(tmp_path), pytest.raises(InvalidInputError, match="are one name"):
            write(tmp_path / "x.zarr", state)
        assert os.listdir(tmp_path) == ["apart.zarr"]
    repo = ckptstore.init("memory://")
    with repo.session() as session:
        import zarr

        group = zarr.open_group(session.store)
        group["A"], group["a"] = one["A"], other["a"]
        values = session.commit().zarr_values()
    with disks.without_case(tmp_path), pytest.raises(InvalidInputError, match=r"'A.* and 'a.* are"):
        write(tmp_path / "x.zarr", values)
    assert os.listdir(tmp_path) == ["apart.zarr"]


@pytest.mark.parametrize("name", ["#1?a=%20b", "new\nline", "~", " ", "ä", os.fsdecode(b"\xff")])
@pytest.mark.parametrize("suffix", [".pt", ".npz", ".safetensors", ".zarr", ""])
def test_a_path_is_taken_as_it_is(
    tmp_path: Path, name: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever characters and bytes it has, given in full or from the working folder."""
    folder = tmp_path / name
    folder.mkdir()
    write(folder / f"{name}{suffix}")
    monkeypatch.chdir(folder)
    assert bits_of(committed(Path(f"{name}{suffix}"))) == bits_of(STATE)
    write(Path(f"{name}{suffix}"), NEW, overwrite=True)
    assert os.listdir(folder) == [f"{name}{suffix}"]
    assert bits_of(committed(folder / f"{name}{suffix}")) == bits_of(NEW)


def test_in_a_working_folder_that_is_gone_only_an_absolute_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(StorageError, match="the working folder is gone"):
        write(Path("x.npz"))
    with pytest.raises(NotFoundError):
        read_file("x.npz")
    write(tmp_path / "x.npz")
    assert bits_of(committed(tmp_path / "x.npz")) == bits_of(STATE)


WRITER = """
import os, signal, sys
from pathlib import Path
from ckptstore.formats import publish
with publish.published(Path(sys.argv[1]), overwrite=False) as temporary:
    temporary.write_bytes(b"half")
    print("written", flush=True)
    sys.stdin.read(1)
"""


def left_by(path: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process in the middle of an export, and its folder, which seems to be old."""
    command = [sys.executable, "-c", WRITER, str(path)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    (left,) = path.parent.glob(".ckptstore-*")
    os.utime(left, (1, 1))
    return process, left


def test_what_a_killed_export_left_goes_with_the_next_export(tmp_path: Path) -> None:
    process, left = left_by(tmp_path / "y.npz")
    with process:
        write(tmp_path / "x.npz")
        assert left.exists()  # its process lives
        process.kill()
    assert (left / publish.CONTENT).read_bytes() == b"half"
    new = left.with_name(f"{left.name}-new")
    new.mkdir()  # its process may be about to lock it
    other = left.with_name(".ckptstore-0000beef-1-00")
    other.mkdir()
    os.utime(other, (1, 1))  # of another machine, or of an earlier start of this one
    write(tmp_path / "z.npz")
    assert sorted(tmp_path.iterdir()) == sorted(
        [new, other, tmp_path / "x.npz", tmp_path / "z.npz"]
    )


def test_a_folder_that_was_being_replaced_is_not_swept(tmp_path: Path) -> None:
    process, left = left_by(tmp_path / "y.npz")
    with process:
        process.kill()
    (left / publish.FORMER).mkdir()
    os.utime(left, (1, 1))
    write(tmp_path / "x.npz")
    assert left.exists()
