"""Power failures of a real ext4, whose disk logs what it is told to write and to flush.

The disk may lose any of the writes that came after the last flush that it finished, in any
combination of blocks, and may be in the middle of writing one block. Sectors of 512 bytes are
written whole or not at all.
"""

from __future__ import annotations

import os
import pickle
import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from tests.helpers import mounts
from tests.helpers.children import exit_code, fork
from tests.helpers.crash.checker import Told
from tests.helpers.crash.logged_disk import Mark, Write, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.helpers.crash.logged_disk import Entry

Result = TypeVar("Result")
BLOCK_BYTES = 4096
SECTOR_BYTES = 512
SUPERBLOCK = 0  # ext4 relies on the two sectors of its superblock being written together
SUBSETS = 4  # drawn at each flush


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What a disk held at first, and what was then written, flushed and reported, in order."""

    image: bytes
    log: Sequence[Entry]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A power failure: the number of writes that it left from the first on, the writes after these
    that survived, and what had been reported.
    """

    whole: int
    survivors: tuple[Write, ...]
    reported: bytes


def record(scratch: Path, work: Callable[[Path], object]) -> Recording:
    """Do work on a new ext4: `work` gets its folder, and reports on its standard output."""
    image, served, folder, log = (scratch / name for name in ("image", "fuse", "disk", "log"))
    served.mkdir()
    folder.mkdir()
    mounts.make_ext4(image)
    before = image.read_bytes()

    def in_own_mounts() -> None:
        with mounts.fuse_mounted(served) as fd:
            server = fork(partial(_serve, fd, before, log), seconds=mounts.CHILD_SECONDS)
            os.close(fd)  # only the server has it: when it ends, no request waits for ever
            with mounts.ext4_mounted(served / "disk", folder):
                worker = fork(partial(_report, served / "marks", partial(work, folder)))
                assert exit_code(worker) == 0
        assert exit_code(server) == 0

    mounts.do_in_own_mounts(in_own_mounts)
    return Recording(image=before, log=blocks(pickle.loads(log.read_bytes())))


def _serve(fd: int, image: bytes, log: Path) -> None:
    mounts.die_with_parent()
    serve(fd, image, log)


def _report(marks: Path, work: Callable[[], object]) -> None:
    mounts.die_with_parent()
    fd = os.open(marks, os.O_WRONLY)
    os.dup2(fd, 1)
    os.close(fd)
    work()


def blocks(log: Sequence[Entry]) -> list[Entry]:
    """The log with each write taken apart into blocks, as a disk may write them in any order."""
    found: list[Entry] = []
    for entry in log:
        if isinstance(entry, Write):
            for place in range(0, len(entry.data), BLOCK_BYTES):
                data = entry.data[place : place + BLOCK_BYTES]
                found.append(Write(entry.start + place, data))
        else:
            found.append(entry)
    return found


def failures(log: Sequence[Entry], *, count: int | None, seed: int = 0) -> list[Failure]:
    """Different power failures, in the order of the log.

    After each flush and each report there is one that leaves only what is durable, and one that
    leaves everything. Of others so many are drawn that there are `count`, or all are taken: before
    each write; each single block lost, or written in part; and random subsets.
    """
    always: dict[Failure, None] = {}
    others: dict[Failure, None] = {}
    rng = random.Random(seed)
    pending: list[Write] = []
    durable, reported = 0, b""

    def note(found: dict[Failure, None], survivors: Sequence[Write]) -> None:
        is_all = len(survivors) == len(pending)
        found[
            Failure(
                whole=durable + len(pending) if is_all else durable,
                survivors=() if is_all else tuple(survivors),
                reported=reported,
            )
        ] = None

    for entry in log:
        if isinstance(entry, Write):
            pending.append(entry)
            note(others, pending)
            continue
        for survivors in _survivors(pending, rng):
            note(others, survivors)
        if isinstance(entry, Mark):
            reported += entry.text
        else:
            durable, pending = durable + len(pending), []
        note(always, pending)
        note(always, [])
    rest = [failure for failure in others if failure not in always]
    if count is not None:
        rest = rng.sample(rest, min(len(rest), max(0, count - len(always))))
    return sorted([*always, *rest], key=lambda failure: failure.whole)


def _survivors(pending: Sequence[Write], rng: random.Random) -> Iterator[list[Write]]:
    """Of writes in any order: all but one, or one of them in part; and random subsets."""
    for place, write in enumerate(pending):
        before, after = pending[:place], pending[place + 1 :]
        yield [*before, *after]
        if write.start != SUPERBLOCK:
            yield [*before, _torn(write, rng), *after]
    for _ in range(SUBSETS):
        yield [write for write in pending if rng.random() < 0.5]


def _torn(write: Write, rng: random.Random) -> Write:
    """The first or the last sectors of a write."""
    cut = rng.randrange(SECTOR_BYTES, len(write.data), SECTOR_BYTES)
    if rng.random() < 0.5:
        return Write(write.start, write.data[:cut])
    return Write(write.start + cut, write.data[cut:])


def complaints(
    recording: Recording,
    found: Sequence[Failure],
    scratch: Path,
    complaint: Callable[[Path, Told], str | None],
    *,
    consume: Callable[[Iterator[str | None]], Result],
) -> Result:
    """Mount the disk after each failure, and return what `consume` makes of the complaints.

    complaint: gets the folder of the disk and what had been reported; a complaint or None.
    """
    image, folder = scratch / "image", scratch / "disk"

    def check() -> Iterator[str | None]:
        for failure in _played(recording, found, image):
            try:
                with mounts.ext4_mounted(image, folder):
                    said = complaint(folder, Told.parse(failure.reported))
            except OSError as error:
                said = f"the disk cannot be mounted: {error}"
            yield said

    return mounts.do_in_own_mounts(lambda: consume(check()))


def _played(recording: Recording, found: Sequence[Failure], image: Path) -> Iterator[Failure]:
    """Each failure, when what it leaves of the disk has been written to a file."""
    writes = [entry for entry in recording.log if isinstance(entry, Write)]
    disk = bytearray(recording.image)
    place = 0
    with image.open("r+b", buffering=0) as file:
        for failure in found:
            for write in writes[place : failure.whole]:
                disk[write.start : write.start + len(write.data)] = write.data
            place = failure.whole
            os.pwrite(file.fileno(), disk, 0)
            for write in failure.survivors:
                os.pwrite(file.fileno(), write.data, write.start)
            yield failure
