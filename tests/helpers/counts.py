"""Reports at the end of a run how often what was tried, beside how often it should be.

A test states it by `record_property(NAME, count)`. What `make test` has no time for is tried by
`make test-deep`.
"""

from __future__ import annotations

from collections import Counter

import pytest

EXPECTED = {
    "kills": 1_500,
    "injected errors": 1_000,
    "power failures": 20_000,
    "power failures of an ext4": 500,
    "commits beside gc": 5_000,
    "bit flips": 20_000,
    "truncations": 5_000,
    "hostile cases": 80,
    "seeded bugs": 12,
    "fuzzed inputs": 0,  # as many as there is time for
}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Add up what the tests of all processes recorded."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        counts.update({name: n for name, n in report.user_properties if name in EXPECTED})
        counts["seeded bugs"] += "seeded" in report.keywords and report.passed
    counts = +counts
    if not counts:
        return
    terminalreporter.section("tried")
    for name, expected in EXPECTED.items():
        missing = f"  of {expected:,}" if counts[name] < expected else ""
        terminalreporter.write_line(f"{counts[name]:>9,} {name}{missing}")
