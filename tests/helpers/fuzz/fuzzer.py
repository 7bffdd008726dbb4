"""Fuzzes one target, guided by the coverage of ckptstore, until a time or a count is up.

    python -m tests.helpers.fuzz.fuzzer TARGET FOLDER [BUG] [libFuzzer's options and corpora]

It runs in a fork of a process that has imported `tests.helpers.fuzz.instrumented`.

An input ends the run if it raises anything but a CkptStoreError, ends the process, or takes more
processor time or memory than an input may; libFuzzer writes it into FOLDER/finds. BUG names a
mistake to make first.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path

import atheris

from ckptstore.errors import CkptStoreError
from tests.helpers.fuzz.bugs import BUGS
from tests.helpers.fuzz.mutate import change
from tests.helpers.fuzz.targets import TARGETS, Target
from tests.helpers.peak import begin_peak, status

SECONDS_MAX = 2.0  # of processor time, which neighbours do not use up
HANG_SECONDS = 60  # by the clock
MEMORY_MAX = 512 << 20
BYTES_MAX = 8 << 10


class TooMuchError(Exception):
    """An input took too long, or too much memory."""


def judge(target: Target, data: bytes, folder: Path, memory: int) -> None:
    """Do what the target does; an error unless the input is refused or harmless.

    memory: the resident bytes from which its own are counted.
    """
    begin = time.process_time()
    with tempfile.TemporaryDirectory(dir=folder) as place, suppress(CkptStoreError):
        target.call(data, Path(place))
    seconds = time.process_time() - begin
    taken = status("VmHWM") - memory
    if seconds > SECONDS_MAX or taken > MEMORY_MAX:
        raise TooMuchError(f"{seconds:.1f} s of processor time, {taken >> 20} MiB")


def main() -> None:
    """Fuzz as the command line says."""
    name, text, *rest = sys.argv[1:]
    folder, target = Path(text), TARGETS[name]
    warnings.simplefilter("ignore")
    for place in ("seeds", "made", "corpus", "finds", "work"):
        (folder / place).mkdir()
    for number, data in enumerate(target.seeds(folder / "made")):
        (folder / "seeds" / f"{number:03}").write_bytes(data)
        judge(target, data, folder / "work", sys.maxsize)  # imports and caches are made now
    if rest and rest[0] in BUGS:
        BUGS[rest.pop(0)]()
    memory = begin_peak()
    atheris.Setup(
        [
            sys.argv[0],
            str(folder / "corpus"),
            str(folder / "seeds"),
            f"-artifact_prefix={folder / 'finds'}/",
            f"-timeout={HANG_SECONDS}",
            f"-report_slow_units={HANG_SECONDS}",  # by the clock too: a slow input is no find
            f"-max_len={BYTES_MAX}",
            "-rss_limit_mb=0",  # `judge` counts from what there was before
            "-keep_seed=1",
            "-print_final_stats=1",
            *rest,
        ],
        lambda data: judge(target, data, folder / "work", memory),
        **({"custom_mutator": _change} if target.is_text else {}),
    )
    atheris.Fuzz()


def _change(data: bytes, size_max: int, seed: int) -> bytes:
    return change(data, size_max, seed, atheris.Mutate)


if __name__ == "__main__":
    main()
