"""Repositories with planted links and special files in place of regular files."""

from __future__ import annotations

import json
import os
import pickle
import socket
import stat
from typing import TYPE_CHECKING

from tests.helpers.hostile.cases import Case, repository
from tests.helpers.hostile.forge import Forge, digest_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Plant = Callable[[Path, Forge], None]


def _moved(path: Path, forge: Forge) -> Path:
    """Move a file or folder out of the repository; where it went."""
    target = forge.outside / path.name
    path.rename(target)
    return target


def _link(path: Path, forge: Forge) -> None:
    path.symlink_to(_moved(path, forge))


def _dangling(path: Path, forge: Forge) -> None:
    _moved(path, forge)
    path.symlink_to("nowhere")


def _loop(path: Path, forge: Forge) -> None:
    _moved(path, forge)
    path.symlink_to(path.name)


def _link_to_secrets(path: Path, forge: Forge) -> None:
    _moved(path, forge)
    path.symlink_to("/etc/passwd")


def _fifo(path: Path, forge: Forge) -> None:
    _moved(path, forge)
    os.mkfifo(path)


def _socket(path: Path, forge: Forge) -> None:
    _moved(path, forge)
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)  # the address of a socket has at most 107 characters
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)
    os.fchdir(here)


def _device(path: Path, forge: Forge) -> None:
    """/dev/zero by another name; a folder where only root could make one."""
    _moved(path, forge)
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        path.mkdir()


def _folder(path: Path, forge: Forge) -> None:
    _moved(path, forge)
    path.mkdir()


def _full_folder(path: Path, forge: Forge) -> None:
    _folder(path, forge)
    (path / "x").write_bytes(b"x")


def _terabyte(path: Path, forge: Forge) -> None:
    """A file of 1 TB that is one hole."""
    del forge
    os.truncate(path, 10**12)


def _pickle(path: Path, forge: Forge) -> None:
    del forge
    path.write_bytes(pickle.dumps({"w": [0.0, 0.0]}))


PLANTS: dict[str, Plant] = {
    "a link to itself elsewhere": _link,
    "a link to nowhere": _dangling,
    "a link to itself": _loop,
    "a link to /etc/passwd": _link_to_secrets,
    "a FIFO": _fifo,
    "a socket": _socket,
    "a device": _device,
    "an empty folder": _folder,
    "a folder with something in it": _full_folder,
    "a file of 1 TB": _terabyte,
    "a pickle": _pickle,
}


def _marker(forge: Forge) -> Path:
    forge.honest()
    return forge.marker_path


def _operation(forge: Forge) -> Path:
    """The newest of two."""
    id = forge.honest()
    return forge.operation(at=2, heads={"main": id})


def _manifest(forge: Forge) -> Path:
    return forge.manifest_path(forge.honest())


def _page(forge: Forge) -> Path:
    document = json.loads(forge.manifest_path(forge.honest()).read_bytes())
    return forge.object_path(document["pages"][0]["digest"])


def _structure(forge: Forge) -> Path:
    document = json.loads(forge.manifest_path(forge.honest()).read_bytes())
    return forge.object_path(document["structure"])


def _chunk(forge: Forge) -> Path:
    forge.honest()
    return forge.object_path(digest_of(bytes(8)))


def _bundle(forge: Forge) -> Path:
    forge.honest(arrays=[forge.small()], page_fields=forge.bundle())
    return forge.object_path(digest_of(bytes(8)))


VICTIMS: dict[str, tuple[Callable[[Forge], Path], tuple[str, ...]]] = {
    "the marker": (_marker, ("open",)),
    "the newest operation": (_operation, ("refs", "log", "checkout", "into", "verify", "commit")),
    "a manifest": (_manifest, ("resolve", "log", "checkout", "into", "verify")),
    "a page": (_page, ("checkout", "into", "show", "verify")),
    "a structure": (_structure, ("checkout", "into", "show", "verify")),
    "a chunk": (_chunk, ("checkout", "into", "verify")),
    "a bundle": (_bundle, ("checkout", "into", "verify")),
}


def _planted(victim: str, story: str) -> Case:
    find, refused = VICTIMS[victim]

    def given(forge: Forge) -> None:
        PLANTS[story](find(forge), forge)

    return repository(f"{story} in place of {victim}", given, refused=refused)


def _linked_folder(name: str, *refused: str) -> Case:
    def given(forge: Forge) -> None:
        forge.honest()
        _link(forge.root / name, forge)

    return repository(f"a link in place of the folder {name}", given, refused=refused)


def _file_for_folder(name: str, *refused: str) -> Case:
    def given(forge: Forge) -> None:
        forge.honest()
        _moved(forge.root / name, forge)
        (forge.root / name).write_bytes(b"")

    return repository(f"a file in place of the folder {name}", given, refused=refused)


def _linked_shelf(forge: Forge) -> None:
    """A link in place of one of the folders in objects."""
    forge.honest()
    _link(forge.object_path(digest_of(bytes(8))).parent, forge)


def _deep_folders(forge: Forge) -> None:
    """Folders in one another, 1,500 deep, among the objects."""
    forge.honest()
    here = os.open(".", os.O_RDONLY)
    os.chdir(forge.root / "objects")
    for _ in range(1_500):
        os.mkdir("d")
        os.chdir("d")
    os.fchdir(here)


def _odd_objects(forge: Forge) -> None:
    """Names that no object has."""
    forge.honest()
    folder = os.fsencode(forge.root / "objects")
    for name in (b"\xff\xfe", b"a b", b"\n", b"..x", b"00" * 60):
        with open(os.path.join(folder, name), "wb"):
            pass


CASES = (
    *(_planted(victim, story) for victim in VICTIMS for story in PLANTS),
    _linked_folder("ops", "refs", "checkout", "verify", "commit"),
    _linked_folder("checkpoints", "checkout", "verify", "commit"),
    _linked_folder("objects", "checkout", "verify", "commit"),
    _linked_folder("tmp", "commit"),
    _linked_folder("history", "verify"),
    _file_for_folder("ops", "refs", "checkout", "verify", "commit"),
    _file_for_folder("checkpoints", "checkout", "verify", "commit"),
    _file_for_folder("objects", "checkout", "verify", "commit"),
    _file_for_folder("tmp", "commit"),
    _file_for_folder("history", "verify"),
    repository("a link in place of a folder of objects", _linked_shelf),
    repository("folders 1,500 deep among the objects", _deep_folders, refused=()),
    repository("files among the objects with names that no object has", _odd_objects, refused=()),
)
