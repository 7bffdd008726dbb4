"""The states that a power failure may leave of a traced run.

The rules are stricter than any one file system's: the bytes of a file are durable only after fsync
of the file, a name in a folder only after fsync of the folder. Any combination of the other changes
may survive: each name or not, a rename as two names or none, and of each write all of it, its first
half, zeros of its length or nothing. Without a journal a file that was removed, and whose name
comes back, has bytes of other files by then.
"""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from tests.helpers.crash.checker import Told, complaint
from tests.helpers.crash.strace import OPENS
from tests.helpers.crash.victim import state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.helpers.crash.strace import Call

    Choice = Sequence[tuple["Change", "Kept"]]

BASE = 0  # the folder that existed before
REUSED = b"\xe5"  # what is found where a removed file was
FOLDER = None
Tree = dict[str, bytes | None]  # by path: a file's bytes, or FOLDER


class Kept(Enum):
    """How much of a change survived: a name or not; of a write also a part, or zeros."""

    ALL = 0
    HALF = 1
    ZEROS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Name:
    """A name in a folder that now means an inode, or nothing."""

    target: int
    name: str
    inode: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Bytes:
    """Bytes that were written to a file."""

    target: int
    start: int
    data: bytes


Change = Name | Bytes


class Image:
    """The inodes of a volume: folders of names, and files of bytes."""

    def __init__(self) -> None:
        self.folders: defaultdict[int, dict[str, int]] = defaultdict(dict)
        self.files: dict[int, bytes] = {}

    def make(self, change: Change, kept: Kept = Kept.ALL) -> None:
        """Apply a change, or the part of it that survived."""
        if isinstance(change, Name):
            names = dict(self.folders[change.target])
            names.pop(change.name, None)
            if change.inode is not None:
                names[change.name] = change.inode
            self.folders[change.target] = names
        else:
            data = change.data
            if kept is Kept.HALF:
                data = data[: len(data) // 2]
            elif kept is Kept.ZEROS:
                data = bytes(len(data))
            old = self.files.get(change.target, b"")
            self.files[change.target] = (
                old[: change.start].ljust(change.start, b"\0")
                + data
                + old[change.start + len(data) :]
            )

    def with_changes(self, choice: Choice) -> Image:
        """A copy with some changes made."""
        image = Image()
        image.folders.update(self.folders)
        image.files.update(self.files)
        for change, kept in choice:
            image.make(change, kept)
        return image

    def find(self, path: str) -> int | None:
        """The inode of a path."""
        inode: int | None = BASE
        for part in path.split("/") if path else ():
            inode = None if inode is None else self.folders[inode].get(part)
        return inode

    def tree(self, folders: Iterable[int]) -> Tree:
        """Everything that can be reached by a path; `folders` says which inodes are folders."""
        found: Tree = {}
        waiting = [("", BASE)]
        while waiting:
            prefix, folder = waiting.pop()
            for name, inode in self.folders[folder].items():
                if inode in folders:
                    found[f"{prefix}{name}"] = FOLDER
                    waiting.append((f"{prefix}{name}/", inode))
                else:
                    found[f"{prefix}{name}"] = self.files.get(inode, b"")
        return found


class Volume:
    """A volume and the calls on it: its contents, the durable part, and the other changes."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._inodes = BASE
        self.looks, self.durable = Image(), Image()
        self.pending: list[tuple[int, Change]] = []  # each with the end of its call
        self.folders = {BASE}

    def call(self, call: Call) -> None:
        """Apply a call. An unknown one is an error."""
        places = [path.removeprefix(str(self._base)).strip("/") for path in call.paths]
        match call.name:
            case "fsync":
                self._fsync(self.looks.find(places[0]), began=call.began)
            case "sync_file_range":
                pass  # begins to write, and promises nothing
            case "write":
                inode = self._existing(places[0])
                self._change(call, Bytes(inode, len(self.looks.files.get(inode, b"")), call.data))
            case name if name in OPENS and self.looks.find(places[0]) is None:
                self._name(call, places[0], self._new())
            case "mkdir" | "mkdirat":
                inode = self._new()
                self.folders.add(inode)
                self._name(call, places[0], inode)
            case "rename" | "renameat" | "renameat2":
                self._name(call, places[1], self._existing(places[0]))
                self._name(call, places[0], None)
            case "link" | "linkat":
                self._name(call, places[1], self._existing(places[0]))
            case "unlink" | "unlinkat":
                self._name(call, places[0], None)
            case _:
                raise NotImplementedError(
                    f"{call.name}({', '.join(places)}) is not in this model of a power failure."
                )

    def after_failure(self, choice: Choice, *, journal: bool) -> Tree:
        """The tree if only the chosen changes survived of those that were not durable."""
        image = self.durable.with_changes(choice)
        if not journal:
            named = {inode for names in self.looks.folders.values() for inode in names.values()}
            for inode in image.files.keys() - named:
                image.files[inode] = REUSED * len(image.files[inode])
        return image.tree(self.folders)

    def _fsync(self, inode: int | None, *, began: int) -> None:
        """Calls that had ended when the fsync began become durable."""
        later = []
        for ended, change in self.pending:
            if change.target == inode and ended < began:
                self.durable.make(change)
            else:
                later.append((ended, change))
        self.pending = later

    def _name(self, call: Call, path: str, inode: int | None) -> None:
        folder, _, name = path.rpartition("/")
        self._change(call, Name(self._existing(folder), name, inode))

    def _change(self, call: Call, change: Change) -> None:
        self.pending.append((call.ended, change))
        self.looks.make(change)

    def _existing(self, path: str) -> int:
        inode = self.looks.find(path)
        assert inode is not None, f"{path} was never made"
        return inode

    def _new(self) -> int:
        self._inodes += 1
        return self._inodes


def states(
    calls: Iterable[Call],
    base: Path,
    *,
    subsets: int,
    part: int = 0,
    parts: int = 1,
    journal: bool = True,
) -> Iterator[tuple[Told, Tree]]:
    """The different states that a failure at any moment may leave, each with what had been
    acknowledged by then.

    For the moment after each call: everything survived; only what is durable; all but one change
    since the last acknowledgement; and random subsets. part: of all moments only every `parts`-th.
    journal: whether the file system has one.
    """
    volume = Volume(base)
    output = b""
    acknowledged = 0
    seen = set()
    for moment, call in enumerate(_in_effect(calls, base)):
        if call.fd == 1:
            output += call.data
            acknowledged = call.began
        else:
            volume.call(call)
        if moment % parts != part:
            continue
        told = Told.parse(output)
        for choice in _choices(volume.pending, since=acknowledged, subsets=subsets, seed=moment):
            tree = volume.after_failure(choice, journal=journal)
            key = (output, frozenset(tree.items()))
            if key not in seen:
                seen.add(key)
                yield told, tree


def _in_effect(calls: Iterable[Call], base: Path) -> list[Call]:
    """The calls that changed something, in a possible order of effect.

    Where threads or processes overlap, a change may be visible from the start of its call, and an
    fsync has worked at its end.
    """
    worked = (call for call in calls if call.result is not None and call.result >= 0)
    changing = [call for call in worked if call.changes(base)]
    return sorted(changing, key=lambda call: call.ended if call.name == "fsync" else call.began)


def _choices(
    pending: Sequence[tuple[int, Change]], *, since: int, subsets: int, seed: int
) -> Iterator[Choice]:
    """Which of the changes that are not durable survive, and how."""
    everything = [(change, Kept.ALL) for _, change in pending]
    yield everything
    yield []
    for place, (ended, change) in enumerate(pending):
        if ended > since:
            before, after = everything[:place], everything[place + 1 :]
            yield before + after
            if isinstance(change, Bytes):
                yield [*before, (change, Kept.HALF), *after]
                yield [*before, (change, Kept.ZEROS), *after]
    rng = random.Random(seed)
    for _ in range(subsets):
        yield [(change, rng.choice(list(Kept))) for _, change in pending if rng.random() < 0.5]


def complaints(
    found: Iterable[tuple[Told, Tree]],
    folder: Path,
    *,
    url: str,
    writers: int = 1,
    state: Callable[[int], dict[str, Any]] = state,
) -> Iterator[str | None]:
    """Write each state to the folder and check the repository in it; complaints or None."""
    for told, tree in found:
        folder.mkdir()
        lay_out(tree, folder)
        yield complaint(folder / url, told, writers=writers, state=state)
        shutil.rmtree(folder)


def check(
    found: Iterable[tuple[Told, Tree]],
    folder: Path,
    *,
    url: str,
    writers: int = 1,
    state: Callable[[int], dict[str, Any]] = state,
    what: str = "",
) -> int:
    """Assert that no state has a complaint, and return how many states there were."""
    checked = 0
    for complained in complaints(found, folder, url=url, writers=writers, state=state):
        assert complained is None, f"state {checked} {what}"
        checked += 1
    return checked


def lay_out(tree: Mapping[str, bytes | None], base: Path) -> None:
    """Write a tree into an empty folder."""
    for path in sorted(tree):
        data = tree[path]
        if data is FOLDER:
            (base / path).mkdir()
        else:
            (base / path).write_bytes(data)


def new_folder(path: Path) -> Path:
    """An empty folder, whatever was there."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path
