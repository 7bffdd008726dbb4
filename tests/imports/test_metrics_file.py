"""Metrics from CSV and JSON lines belong to a file, a step or an epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ckptstore.errors import InvalidInputError
from ckptstore.imports.metrics_file import read_rows

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "text",
    [
        "step,loss,acc\n1,.5,\n1,,.75\n2,.25,.8\n",
        "\ufeffstep;loss;acc\n1;.5;.75\n2;.25;.8\n",
        '{"step": 1, "loss": 0.5}\n\n{"step": 1.0, "acc": ".75"}\n{"step": 2, "loss": 0.25}',
        '[{"step": 1, "loss": 0.5, "acc": 0.75}, {"step": 2, "loss": 0.25}]',
        '{"log_history": [{"step": 1, "loss": 0.5, "acc": 0.75}, {"iter": 2, "loss": 0.25}]}',
    ],
)
def test_rows_of_one_step_are_joined(tmp_path: Path, text: str) -> None:
    (tmp_path / "m").write_text(text)
    rows = read_rows(tmp_path / "m")
    assert rows.of("any.pt", 1, None) == {"loss": 0.5, "acc": 0.75}
    assert rows.of("any.pt", 2, None)["loss"] == 0.25
    assert rows.of("any.pt", 3, None) == {}


def test_a_row_of_the_file_itself_comes_first_and_of_the_epoch_last(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("file,epoch,step,loss,note\nold/a.pt,0,9,1,x\n,0,9,2,\n,1,19,3,\n")
    rows = read_rows(tmp_path / "m")
    assert rows.of("a.pt", 19, None) == {"loss": 1}
    assert rows.of("b.pt", 19, 0) == {"loss": 3}
    assert rows.of("b.pt", 10, 0) == {"loss": 2}
    assert rows.ignored == {"note"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("loss,acc\n1,2\n", "called step, epoch or file"),
        ("", "called step, epoch or file"),
        ("{broken", "neither CSV"),
        ("[1, 2]", "neither CSV"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "m").write_text(text)
    with pytest.raises(InvalidInputError, match=said):
        read_rows(tmp_path / "m")
