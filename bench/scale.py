"""How costs grow with the number of checkpoints: 100, 1,000 and 10,000 in one repository.

Each checkpoint has 1,000 arrays of 96 KiB, and differs from the one before in two arrays, a
different pair each time. Every figure is measured in a fresh process, as at a terminal: `log -n 20`
and `branch` against `python -c "import click"`, the least that a command line in Python can cost,
all with compiled modules, as installed; the plan of a gc against reading the arrays that it decides
about; a full gc and its memory.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ckptstore
from bench import memory, repositories
from bench.figures import Bound, Figure
from bench.measure import Contender, Patience, Series, compete, paired_ratios
from ckptstore.retention import KeepBest, KeepEveryNSteps, MaxToKeep

SIZES = (100, 1_000, 10_000)
ARRAYS = 1_000
ARRAY_ITEMS = 24_576  # of float32: 96 KiB, so that each is an object of its own
CHANGED = 2
READ = 20  # checkpoints that are read to estimate the time of one
POLICY = MaxToKeep(5) | KeepBest("loss") | KeepEveryNSteps(1_000)
COMMAND_TIMES = 3
PLAN_TIMES = 200
GC_MEGABYTES = 1_024
HEADINGS = (
    "checkpoints",
    "unique pages",
    "commit",
    "log -n 20",
    "branch",
    "import click",
    "plan",
    "reading the arrays",
    "full gc",
    "expired",
    "peak of gc",
)

_number = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The measurements at one number of checkpoints, in seconds and bytes."""

    checkpoints: int
    pages: int
    commit: float
    log: Series
    branch: Series
    click: Series
    plan: tuple[float, ...]
    reading: float
    gc: float
    expired: int
    gc_peak: int

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        return (
            f"{self.checkpoints:,}",
            f"{self.pages:,}",
            f"{1e3 * self.commit:.0f} ms",
            f"{1e3 * self.log.median:.0f} ms",
            f"{1e3 * self.branch.median:.0f} ms",
            f"{1e3 * self.click.median:.0f} ms",
            f"{statistics.median(self.plan):.2f} s",
            f"{self.reading:.0f} s",
            f"{self.gc:.2f} s",
            f"{self.expired:,}",
            f"{self.gc_peak / 1e6:.0f} MB",
        )

    def to_json(self) -> dict[str, Any]:
        """All numbers of the row."""
        series = {name: getattr(self, name).seconds for name in ("log", "branch", "click")}
        plain = {
            name: getattr(self, name)
            for name in self.__slots__
            if name not in series and name != "plan"
        }
        return {**plain, **series, "plan": list(self.plan)}

    def figures(self) -> Iterator[Figure]:
        """The requirements on this stage."""
        for name, series in (("log -n 20", self.log), ("branch", self.branch)):
            yield Bound(
                what=f"{name} of {self.checkpoints:,} checkpoints, times import click",
                values=(1 / statistics.median(paired_ratios(series, self.click)),),
                unit="x",
                must=COMMAND_TIMES,
            )
        yield Bound(
            what=f"plan of {self.checkpoints:,} checkpoints, part of reading their arrays",
            values=(1e3 * statistics.median(self.plan) / self.reading,),
            unit="thousandths",
            must=1e3 / PLAN_TIMES,
        )
        yield Bound(
            what=f"peak memory of a gc of {self.checkpoints:,} checkpoints",
            values=(self.gc_peak / 1e6,),
            unit="MB",
            must=GC_MEGABYTES,
        )


def stages(
    folder: Path, *, rounds: int, patience: Patience, sizes: Sequence[int] = SIZES
) -> Iterator[Stage]:
    """Commit checkpoints, and measure at each of these sizes."""
    path = folder / "scale"
    repository = ckptstore.init(path)
    state = {f"layers.{number}.weight": _array(number) for number in range(ARRAYS)}
    committed = 0
    for size in sizes:
        start = time.perf_counter()
        for step in range(committed, size):
            for which in range(CHANGED):
                number = (step * CHANGED + which) % ARRAYS
                state[f"layers.{number}.weight"] = _array(ARRAYS + step * CHANGED + which)
            repository.commit(state, step=step, metrics={"loss": 1 / (1 + step)})
        commit = (time.perf_counter() - start) / (size - committed)
        committed = size
        yield _stage(path, size, commit, rounds=rounds, patience=patience)


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent of growth: 0 for a constant cost, 1 for a proportional one.

    Least squares of logarithms.
    """
    return statistics.linear_regression(
        [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    ).slope


def slopes(stages: Sequence[Stage]) -> tuple[str, ...]:
    """The last row of the table: the slope of each cost over the number of checkpoints."""
    sizes = [stage.checkpoints for stage in stages]
    costs = [
        [stage.pages for stage in stages],
        [stage.commit for stage in stages],
        [stage.log.median for stage in stages],
        [stage.branch.median for stage in stages],
        [stage.click.median for stage in stages],
        [statistics.median(stage.plan) for stage in stages],
        [stage.reading for stage in stages],
        [stage.gc for stage in stages],
        [stage.expired for stage in stages],
        [stage.gc_peak for stage in stages],
    ]
    return ("slope", *(f"{slope(sizes, cost):.2f}" for cost in costs))


def _array(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(ARRAY_ITEMS, dtype=np.float32)


def _stage(path: Path, size: int, commit: float, *, rounds: int, patience: Patience) -> Stage:
    log, branch, click = compete(
        [
            _command("log -n 20", path, ["log", "-n", "20"]),
            _command("branch", path, ["branch", "NAME"]),
            Contender(
                name="import click",
                call=lambda _: _run([sys.executable, "-c", "import click"]),
            ),
        ],
        rounds=rounds,
        patience=patience,
    )
    plans = [_in_process("plan", path) for _ in range(rounds)]
    collected = repositories.linked_copy(path)
    gc = _in_process("gc", collected)
    shutil.rmtree(collected)
    return Stage(
        checkpoints=size,
        pages=int(plans[0]["pages"]),
        commit=commit,
        log=log,
        branch=branch,
        click=click,
        plan=tuple(plan["seconds"] for plan in plans),
        reading=_reading(path) * size,
        gc=gc["seconds"],
        expired=int(gc["expired"]),
        gc_peak=int(gc["peak"]),
    )


def _command(name: str, path: Path, arguments: list[str]) -> Contender:
    program = Path(sys.executable).with_name("ckptstore")

    def call(_: object) -> object:
        own = [f"branch-{next(_number)}" if word == "NAME" else word for word in arguments]
        return _run([str(program), "-r", str(path), *own])

    return Contender(name=name, call=call)


def _run(command: list[str]) -> str:
    compiled = {
        name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=root, env=compiled, check=True, capture_output=True, text=True
    )
    return done.stdout


def _reading(path: Path) -> float:
    """Seconds of a checkout of one checkpoint with warm caches."""
    repository = ckptstore.open(path)
    checkpoints = repository.log("main", limit=READ)
    repository.checkout(checkpoints[0].id)
    start = time.perf_counter()
    for checkpoint in checkpoints:
        repository.checkout(checkpoint.id)
    return (time.perf_counter() - start) / len(checkpoints)


def _in_process(what: str, path: Path) -> dict[str, float]:
    return dict(json.loads(_run([sys.executable, "-m", "bench.scale", what, str(path)])))


def main(what: str, path: str) -> None:
    """Plan or execute a gc in this process, and print its cost as JSON."""
    repository = ckptstore.open(path)
    start = time.perf_counter()
    plan = repository.plan_gc(POLICY)
    if what == "gc":
        report = plan.execute()
        seconds = time.perf_counter() - start
        counts = {"expired": len(report.expired), "bytes": report.bytes}
    else:
        seconds = time.perf_counter() - start
        refs = {ref.digest for verdict in plan.verdicts for ref in verdict.manifest.pages}
        counts = {"pages": len(refs)}
    print(json.dumps({"seconds": seconds, "peak": memory.peak_of_process(), **counts}))


if __name__ == "__main__":
    main(*sys.argv[1:])
