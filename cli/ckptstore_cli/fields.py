"""The facts of one checkpoint as names and values, for `show` and `log --long`."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from ckptstore_cli import output, text
from ckptstore_cli.verbs import for_this_repo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptstore import Annotation, Checkpoint
    from ckptstore_cli.documents import Refs

    Fields = dict[str, str | list[str]]

VALUES_SHOWN = 12
RANDOM = "rng/"  # random states, of a CheckpointManager: they come last
VALUE_LENGTH_MAX = 100


def of_checkpoint(
    checkpoint: Checkpoint,
    refs: Refs,
    values: Mapping[str, object] | None = None,
    *,
    seed: Checkpoint | None = None,
) -> Fields:
    """The facts that a checkpoint has.

    Args:
        checkpoint: The checkpoint.
        refs: Its branches and tags.
        values: Its plain values, where they were read.
        seed: The checkpoint that its branch was started from, where it was looked for.
    """
    created = checkpoint.created.astimezone()
    fields: Fields = {
        "id": checkpoint.id,
        "refs": str(refs),
        "branch": checkpoint.branch or "",
        "step": "" if checkpoint.step is None else str(checkpoint.step),
        "created": f"{created:%Y-%m-%d %H:%M:%S %z} ({text.age(created, output.now())})",
        "message": checkpoint.message.strip().splitlines(),
        "metrics": [f"{name} = {value}" for name, value in checkpoint.metrics.items()],
        "notes": [_note(note) for note in checkpoint.notes],
        "parents": list(checkpoint.parents),
        "seed": "" if seed is None else f"{seed.id} ({_place(seed)})",
        "arrays": f"{checkpoint.array_count:,}, {text.size(checkpoint.array_bytes)}",
        "values": _values(checkpoint, values or {}),
        "new": f"{text.size(checkpoint.new_bytes)} stored by this commit",
        "expired": checkpoint.expiry or "yes" if checkpoint.expired else "",
        "meta": [f"{name} = {_meta(name, value)}" for name, value in checkpoint.meta.items()],
    }
    return {name: value for name, value in fields.items() if value}


def one_line(checkpoint: Checkpoint) -> str:
    """A checkpoint on one line: "4f3a12c4  step 100  val_loss=0.31  lower rate"."""
    parts = (
        checkpoint.id.short,
        "" if checkpoint.step is None else f"step {checkpoint.step}",
        text.metrics(checkpoint.metrics),
        text.first_line(checkpoint.message),
    )
    return "  ".join(part for part in parts if part)


def plain(value: object) -> str:
    """A plain value in Python's notation, cut where it is long."""
    shown = text.number(value) if isinstance(value, float) else repr(value)
    return shown if len(shown) <= VALUE_LENGTH_MAX else f"{shown[:VALUE_LENGTH_MAX]}…"


def _place(checkpoint: Checkpoint) -> str:
    """The branch and the step of a checkpoint: "main, step 100"."""
    step = "without a step" if checkpoint.step is None else f"step {checkpoint.step}"
    return f"{checkpoint.branch}, {step}" if checkpoint.branch else step


def _note(note: Annotation) -> str:
    """A note as one line: what, when, and by whom."""
    by = "@".join(part for part in (note.user, note.host) if part)
    parts = (text.metrics(note.metrics), text.first_line(note.message))
    what = ", ".join(part for part in parts if part)
    return f"{what} ({text.age(note.time, output.now())}, {note.program} {by})"


def _values(checkpoint: Checkpoint, values: Mapping[str, object]) -> list[str]:
    """The outermost plain values, and how many there are beside them."""
    outermost = sorted(values, key=lambda path: (path.startswith(RANDOM), path.count("/")))
    outermost = outermost[:VALUES_SHOWN]
    lines = [f"{path} = {plain(values[path])}" for path in outermost]
    if len(values) > VALUES_SHOWN:
        more = len(values) - VALUES_SHOWN
        more_of = f"{more:,} more: ckptstore ls --values {checkpoint.id.short}"
        lines.append(for_this_repo(more_of))
    return lines


def _meta(name: str, value: Any) -> str:
    """A value of meta as JSON; a text as it is, and arguments as a shell takes them."""
    if isinstance(value, str):
        return value
    if name == "argv" and isinstance(value, list) and all(isinstance(word, str) for word in value):
        return shlex.join(value)
    return json.dumps(value, ensure_ascii=False)
