"""Measure ckptstore and its peers, print a table, and write the numbers as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import chunk_size, limits, report, scale, table, workloads
from bench.bench import Bench
from bench.figures import HEADINGS, Figure
from bench.measure import PATIENCE_SECONDS, ROUNDS, Patience

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ckptstore-bench"
RESULTS = Path(__file__).parent / "results"
IN_MEMORY = ("tmpfs", "ramfs", "overlay")


def main() -> None:
    """Run the command given on the command line."""
    options = _parser().parse_args()
    if options.command != "compare":
        options.cache = options.cache.resolve()
    if options.command == "compare":
        print(report.compared(options.before, options.after))
    elif options.command == "chunk-size":
        _chunk_sizes(options)
    elif options.command == "scale":
        _scale(options)
    elif options.command == "limits":
        _limits(options)
    else:
        _table(options)


def _table(options: argparse.Namespace) -> None:
    """Print every figure as soon as it is known, then the table, and write the JSON."""
    with _scratch(options.cache) as scratch:
        facts = report.machine(scratch)
        training = workloads.training(options.cache)
        facts["workloads"] = _described(training)
        _print_facts(facts)
        bench = Bench(
            training=training,
            cache=options.cache,
            scratch=scratch,
            rounds=options.rounds,
            patience=Patience(options.patience),
        )
        figures: list[Figure] = []
        for figure in table.figures(bench, options.only or table.PARTS):
            figures.append(figure)
            print(" · ".join(cell for cell in figure.cells() if cell), file=sys.stderr, flush=True)
    print(report.table(HEADINGS, (figure.cells() for figure in figures)))
    report.save(options.json or RESULTS / "table.json", facts, figures)
    if short := report.missed(figures):
        print(f"\nShort of a must: {'; '.join(short)}.")


def _chunk_sizes(options: argparse.Namespace) -> None:
    """Print the table over chunk sizes, and write the JSON."""
    with _scratch(options.cache) as scratch:
        facts = report.machine(scratch)
        training = workloads.training(options.cache)
        rows = chunk_size.rows(
            training, scratch, rounds=options.rounds, patience=Patience(options.patience)
        )
        cells, numbers = zip(*rows, strict=True)
    print(report.table(chunk_size.HEADINGS, cells))
    path = options.json or RESULTS / "chunk-size.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, "chunk_sizes": numbers}, indent=1) + "\n")


def _scale(options: argparse.Namespace) -> None:
    """Print the table over numbers of checkpoints, with slopes, and write the JSON."""
    with _scratch(options.cache) as scratch:
        facts = report.machine(scratch)
        _print_facts(facts)
        stages = []
        for stage in scale.stages(
            scratch,
            rounds=options.rounds,
            patience=Patience(options.patience),
            sizes=options.checkpoints or scale.SIZES,
        ):
            stages.append(stage)
            print(" · ".join(stage.cells()), file=sys.stderr, flush=True)
    print(
        report.table(scale.HEADINGS, [*(stage.cells() for stage in stages), scale.slopes(stages)])
    )
    figures = [figure for stage in stages for figure in stage.figures()]
    print("\n" + report.table(HEADINGS, (figure.cells() for figure in figures)))
    facts["stages"] = [stage.to_json() for stage in stages]
    report.save(options.json or RESULTS / "scale.json", facts, figures)
    if short := report.missed(figures):
        print(f"\nShort of a must: {'; '.join(short)}.")


def _limits(options: argparse.Namespace) -> None:
    """Print how costs grow with history, tags, arrays and objects, and write the JSON."""
    with _scratch(options.cache) as scratch:
        facts = report.machine(scratch)
        _print_facts(facts)
        curves = []
        for curve in limits.curves(scratch, sizes=options.size):
            curves.append(curve)
            print(" · ".join(curve.cells()), file=sys.stderr, flush=True)
    print(report.table(limits.headings(curves), [curve.cells() for curve in curves]))
    facts["curves"] = [curve.to_json() for curve in curves]
    report.save(options.json or RESULTS / "limits.json", facts, [])


def _described(training: workloads.Training) -> dict[str, object]:
    """The size of the training state, and what changed between its moments."""
    second = workloads.change(training.first, training.second)
    partly = workloads.change(training.second, training.partly)
    return {
        "arrays": second.arrays,
        "bytes": second.bytes,
        "second_bytes_changed": second.bytes_changed,
        "partly_arrays_changed": partly.arrays_changed,
        "partly_bytes_of_changed_arrays": partly.bytes_of_changed_arrays,
        "partly_bytes_changed": partly.bytes_changed,
    }


def _print_facts(facts: dict[str, object]) -> None:
    for name, value in facts.items():
        print(f"{name}: {value}", file=sys.stderr)
    if facts["file_system"] in IN_MEMORY:
        print("The cache is not on a disk, so fsync costs nothing. Pass --cache.", file=sys.stderr)


@contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    """A temporary folder for repositories and files, on the disk of the cache."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="scratch-") as folder:
        yield Path(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    _measuring(parser)
    parser.add_argument(
        "--only", action="append", choices=table.PARTS, help="measure only this part; repeatable"
    )
    commands = parser.add_subparsers(dest="command")
    _measuring(commands.add_parser("chunk-size", help="a table over chunk sizes from 1 to 64 MiB"))
    growth = commands.add_parser("scale", help="costs with 100, 1,000 and 10,000 checkpoints")
    _measuring(growth)
    growth.add_argument(
        "--checkpoints",
        type=int,
        action="append",
        help="a number of checkpoints in place of these; repeatable, in ascending order",
    )
    growths = commands.add_parser(
        "limits", help="costs with much history, many tags, arrays, objects"
    )
    _measuring(growths)
    growths.add_argument(
        "--size", type=int, action="append", help="a size in place of these; repeatable, ascending"
    )
    compare = commands.add_parser("compare", help="the ratios of two runs side by side")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    return parser


def _measuring(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rounds", type=int, default=ROUNDS, help=f"measured rounds, 5 or more ({ROUNDS})")
    add(
        "--patience",
        type=float,
        default=PATIENCE_SECONDS,
        help="seconds to spend at most on repeating calls disturbed by other processes "
        f"({PATIENCE_SECONDS:g})",
    )
    add("--json", type=Path, help="the file for the numbers (in bench/results/)")
    add(
        "--cache",
        type=Path,
        default=CACHE,
        help=f"the folder for trained states and scratch files ({CACHE})",
    )


if __name__ == "__main__":
    main()
