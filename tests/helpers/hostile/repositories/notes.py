"""Repositories with notes that lie."""

from __future__ import annotations

from typing import Any

from tests.helpers.hostile.cases import Case, repository
from tests.helpers.hostile.forge import MISSING, Forge, digest_of, dumps

READ = ("resolve", "log", "verify")
_AUTHOR = {"role": "call", "user": "", "host": "", "program": "", "pid": 1}


def _write(forge: Forge, checkpoint: str, data: bytes, *, name: str | None = None) -> None:
    folder = forge.root / "notes"
    folder.mkdir(exist_ok=True)
    whole = name or f"{checkpoint}-{1:012}-{digest_of(data)}.json"
    (folder / whole).write_bytes(data)


def _document(id: str, /, **fields: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "checkpoint": id,
        "metrics": {"loss": 0.5},
        "message": "",
        "time": 0,
        "by": _AUTHOR,
        **fields,
    }


def _fields(story: str, **fields: Any) -> Case:
    def given(forge: Forge) -> None:
        id = forge.honest()
        _write(forge, id, dumps(_document(id, **fields)))

    return repository(f"a note {story}", given, refused=READ)


def _bytes(story: str, data: bytes) -> Case:
    def given(forge: Forge) -> None:
        _write(forge, forge.honest(), data)

    return repository(f"a note {story}", given, refused=READ)


def _of_other_bytes(forge: Forge) -> None:
    id = forge.honest()
    _write(forge, id, dumps(_document(id)), name=f"{id}-{1:012}-{MISSING}.json")


def _of_nothing(forge: Forge) -> None:
    forge.honest()
    _write(forge, MISSING, dumps(_document(MISSING)))


def _odd_names(forge: Forge) -> None:
    id = forge.honest()
    for name in ("x", f"{id}.json", f"{id}-1-{id}.json", f"{id}-{1:012}-{id}.JSON", "\x1b[2J"):
        _write(forge, id, b"{}", name=name)


def _link(forge: Forge) -> None:
    id = forge.honest()
    data = dumps(_document(id))
    target = forge.outside / "note"
    target.write_bytes(data)
    (forge.root / "notes").mkdir()
    (forge.root / "notes" / f"{id}-{1:012}-{digest_of(data)}.json").symlink_to(target)


CASES = (
    _bytes("that is empty", b""),
    _bytes("that is no JSON", b"\x80\x04K\x01."),
    _bytes("of 2 MB", b" " * (2 << 20)),
    _bytes("that is nested a million deep", b"[" * 1_000_000),
    _fields("of a later version", format=99),
    _fields("on another checkpoint", checkpoint=MISSING),
    _fields("on a path", checkpoint="../../etc/passwd"),
    _fields("whose metrics are a list", metrics=[]),
    _fields("whose metric is text", metrics={"loss": "0.5"}),
    _fields("whose metric has an escape sequence", metrics={"\x1b[2J": 0.5}),
    _fields("whose metric has thousands of digits", metrics={"loss": 10**4000}),
    _fields("whose message is a number", message=5),
    _fields("from after the year 9999", time=10**18),
    _fields("by nobody", by=None),
    _fields("that withdraws a path", withdraws="../x"),
    repository("a note with the name of other bytes", _of_other_bytes, refused=READ),
    repository("a note on a checkpoint that is not there", _of_nothing, refused=()),
    repository("files in notes that are no notes", _odd_names, refused=()),
    repository("a note that is a link to a file outside", _link, refused=READ),
)
