"""ckpt-chaos, a judge of others, kills a training on two ranks at the changes of its files.

`make test-deep` installs it. Alone: `pip install ckpt-chaos`, and `pytest -m deep -k ckpt_chaos`.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.helpers.root import ROOT

pytest.importorskip("ckpt_chaos", reason="ckpt-chaos is not installed.")

COMMAND = ("-m", "tests.helpers.chaos_training", "{out}")


@pytest.mark.deep
@pytest.mark.crash
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_at_any_change_of_a_file_costs_nothing(tmp_path, rank):
    """Each resumes from the newest operation that is there, and ends with the same result."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ckpt_chaos", "run", "--ranks", "2"),
            *("--crash-rank", str(rank), "--work", str(tmp_path / "work")),
            *("--checkpoint-glob", "{out}/store/ops/*", "--ckpt-ignore-size"),
            *("--step-regex", r"resumed from step (\d+)", "--result-file", "{out}/result"),
            *("--fail-on", "HARD_FAIL,SILENT_DIVERGENCE,LOST_WORK"),
            *("--", sys.executable, *COMMAND),
        ],
        cwd=ROOT,
        env={**os.environ, "CKPT_CHAOS_CRASH_RANK": str(rank)},  # 0.1.8 forgets to set it
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS" in done.stdout
    assert "DID NOT CRASH" not in done.stdout
