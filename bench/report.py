"""What a run says: a table for people, JSON for later, and the comparison of two runs."""

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
    shown = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([shown[0], rule, *shown[1:]])


def machine(folder: Path) -> dict[str, Any]:
    """What one has to know of the machine and the versions to read the figures."""
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
    """The kind of file system a folder lies on, or "unknown"."""
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
    """A table of two runs by their ratios to peers, which the machine's speed hardly touches."""
    old, new = (_ratios(path) for path in (before, after))
    rows = [
        (*key, f"{old[key]:.2f}", f"{new[key]:.2f}", f"{new[key] / old[key] - 1:+.0%}")
        for key in new
        if key in old
    ]
    return table(("what", "against", "ratio before", "ratio after", "change"), rows)


def missed(figures: Sequence[Figure]) -> list[str]:
    """What fell short of a must."""
    return [figure.what for figure in figures if figure.verdict == "short"]


def _ratios(path: Path) -> dict[tuple[str, str], float]:
    figures = json.loads(path.read_text())["figures"]
    return {(item["what"], item["against"]): item["ratio"] for item in figures if "ratio" in item}


def _revision() -> str:
    """The revision that is checked out, or "unknown"."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=8"]
    here = Path(__file__).parent
    try:
        found = subprocess.run(command, cwd=here, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
