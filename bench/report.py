"""The output of a run: a table, a JSON document, and the comparison of two runs."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.figures import Cells, Figure

PACKAGES = ("torch", "blake3", "safetensors", "numpy")


def table(headings: Cells, rows: Iterable[Cells]) -> str:
    """A Markdown table with aligned columns."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    text = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([text[0], rule, *text[1:]])


def machine(folder: Path) -> dict[str, Any]:
    """The facts about the machine and the versions that the figures depend on."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "revision": _revision(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "file_system": file_system(folder),
        **{name: version(name) for name in PACKAGES},
    }


def file_system(folder: Path) -> str:
    """The type of the file system of a folder, or "unknown"."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    around = {mount[1]: mount[2] for mount in mounts if folder.resolve().is_relative_to(mount[1])}
    return around[max(around, key=len)] if around else "unknown"


def save(path: Path, facts: dict[str, Any], figures: Iterable[Figure]) -> None:
    """Write a run as JSON."""
    document = {**facts, "figures": [figure.to_json() for figure in figures]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def compared(before: Path, after: Path) -> str:
    """A table of two runs by their ratios to peers, which hardly depend on the machine's speed."""
    old, new = (_ratios(path) for path in (before, after))
    rows = [
        (*key, f"{old[key]:.2f}", f"{new[key]:.2f}", f"{new[key] / old[key] - 1:+.0%}")
        for key in new
        if key in old
    ]
    return table(("what", "against", "ratio before", "ratio after", "change"), rows)


def missed(figures: Sequence[Figure]) -> list[str]:
    """The figures that miss a requirement."""
    return [figure.what for figure in figures if figure.verdict == "short"]


def _ratios(path: Path) -> dict[tuple[str, str], float]:
    figures = json.loads(path.read_text())["figures"]
    return {(item["what"], item["against"]): item["ratio"] for item in figures if "ratio" in item}


def _revision() -> str:
    """The Git revision that is checked out, or "unknown"."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=8"]
    here = Path(__file__).parent
    try:
        finished = subprocess.run(command, cwd=here, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return finished.stdout.strip()
