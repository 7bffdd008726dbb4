"""Reports at the end of a run how many kills, injected errors and power failures were tried."""

from __future__ import annotations

from collections import Counter

import pytest

COUNTED = ("kills", "injected errors", "power failures")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Add up what the tests of all processes recorded."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        counts.update({name: n for name, n in report.user_properties if name in COUNTED})
    if counts:
        done = ", ".join(f"{counts[name]} {name}" for name in COUNTED if counts[name])
        terminalreporter.write_line(f"crash tests: {done}")
