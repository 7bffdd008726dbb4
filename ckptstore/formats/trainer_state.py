"""The trainer_state.json of Hugging Face's Trainer: the step, the epoch and the metrics."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ckptstore.arrays import json_document
from ckptstore.arrays.file import OpenFile
from ckptstore.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

NAME = "trainer_state.json"
_COUNTS = frozenset({"step", "epoch"})


def read(path: Path) -> dict[str, Any]:
    """Return the step, the epoch and the metrics in a file; nothing of one that is not such.

    The metrics are those that were logged at the step of the checkpoint.
    """
    try:
        state = json_document.parse(json_document.read(OpenFile(path, follow=False)))
        step, epoch = state.get("global_step"), state.get("epoch")
        rows = [row for row in state.get("log_history", ()) if row.get("step") == step]
        metrics = {
            name: value
            for row in rows
            for name, value in row.items()
            if name not in _COUNTS and type(value) in (int, float)
        }
    except (InvalidInputError, ValueError, TypeError, AttributeError):
        return {}
    if type(step) is not int:
        return {}
    is_number = type(epoch) in (int, float) and math.isfinite(epoch)
    return {"step": step, "epoch": int(epoch) if is_number else None, "metrics": metrics}
