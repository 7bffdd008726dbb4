"""Hostile repositories: a message and an exit code, no traceback, no terminal escapes."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

import ckptstore
from ckptstore_cli import output
from ckptstore_cli.main import COMMANDS as COMMAND_NAMES
from ckptstore_cli.main import cli
from tests.helpers.hostile.cases import VERBS, Case, World
from tests.helpers.hostile.corpus import CASES
from tests.helpers.hostile.forge import Forge

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.hostile

EVERY = 6  # of the hostile repositories, one in so many: the library is tried on all
COMMANDS = (
    ("log",),
    ("log", "--graph"),
    ("show", "main"),
    ("ls", "main"),
    ("branch",),
    ("bisect", "start", "main"),
    ("bisect", "log"),
    ("usage",),
    ("verify", "--json"),
    ("verify",),
)
REPOSITORIES = [case for case in CASES if case.calls.keys() == VERBS.keys()][::EVERY]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.story) for case in REPOSITORIES])
def test_a_hostile_repository_ends_in_a_message(
    case: Case, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scratch)
    monkeypatch.setenv("XDG_STATE_HOME", str(scratch / "state"))
    world = World(scratch)
    world.outside.mkdir()
    case.given(world)
    for command in COMMANDS:
        result = CliRunner().invoke(cli, ["-r", str(world.store), *command])
        assert result.exception is None or isinstance(result.exception, SystemExit), command
        assert result.exit_code in (0, 1), command
        assert "\x1b" not in result.output
        assert "Traceback" not in result.output


HOSTILE = (
    "[/]",
    "[bold]b",
    ":boom:",
    "\x1b]0;owned\x07",
    "\x1b[2J",
    "\x9b31m",
    "\u202edrawkcab",
    "\u2028",
    "\r\n",
    "x" * 300,
)
OTHER = "".join(HOSTILE[1:4])  # the folder of another repository
EVERY_COMMAND = {
    "init": ("init", "other"),
    "commit": ("commit", "w.npz", "-m", "".join(HOSTILE)),
    "import": ("import", "*{step}.npz", "--dry-run"),
    "log": ("log",),
    "best": ("best", "[bold]b:max"),
    "show": ("show", "main"),
    "ls": ("ls", "main"),
    "checkout": ("checkout", "main", "-o", "out.safetensors"),
    "diff": ("diff", "main~1", "main"),
    "bisect": ("bisect", "start", "main", "main~1"),
    "branch": ("branch",),
    "tag": ("tag",),
    "annotate": ("annotate", "main", "-m", "".join(HOSTILE)),
    "follow": ("follow", "--no-wait"),
    "expire": ("expire", "main~1"),
    "clone": ("clone", OTHER, "copy"),
    "remote": ("remote", "list"),
    "push": ("push", "origin"),
    "pull": ("pull", OTHER),
    "fetch": ("fetch", "origin"),
    "ops": ("ops",),
    "undo": ("undo",),
    "gc": ("gc", "--dry-run", "--max-to-keep", "1"),
    "config": ("config", "retention"),
    "verify": ("verify",),
    "usage": ("usage",),
}
STYLE = re.compile(r"\x1b\[[0-9;]*m|\r?\x1b\[K")


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with hostile text wherever it takes text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    repo = ckptstore.init(tmp_path / "store")
    ckptstore.init(tmp_path / OTHER)
    repo.set_remote("origin", tmp_path / OTHER)
    metrics = {name: 1.0 for name in HOSTILE if name.isprintable() and len(name) < 200}
    for step in range(2):
        state = {name: np.full(2, step) for name in HOSTILE} | {"".join(HOSTILE): step}
        repo.commit(
            state,
            step=step,
            metrics=metrics,
            message="".join(HOSTILE),
            meta={name: name for name in HOSTILE},
        )
    np.savez(tmp_path / "w.npz", w=np.zeros(2))
    for name in HOSTILE[1:9]:
        np.savez(tmp_path / f"{name}1.npz".replace("/", "_"), w=np.zeros(2))
    (tmp_path / f"{HOSTILE[3]}{HOSTILE[6]}2.npz").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
@pytest.mark.parametrize("name", COMMAND_NAMES)
def test_no_command_prints_text_of_others_raw_or_as_markup(
    full: Path, monkeypatch: pytest.MonkeyPatch, name: str, terminal: bool
) -> None:
    monkeypatch.setattr(output, "_is_terminal", lambda stream: terminal and stream is not None)
    commands = [EVERY_COMMAND[name], (name, "".join(HOSTILE))]
    for command in [*commands, ("log", "--graph"), ("diff", "main~1", "main", "--numeric")]:
        result = CliRunner().invoke(cli, ["-r", str(full / "store"), *command])
        assert result.exception is None or isinstance(result.exception, SystemExit), command
        text = STYLE.sub("", result.output) if terminal else result.output
        raw = {char for char in text if unicodedata.category(char) in {"Cc", "Cf", "Zl", "Zp"}}
        assert raw <= {"\n", "\t"}, (command, raw)
    shown = CliRunner().invoke(cli, ["-r", str(full / "store"), "show", "main"]).output
    assert "[bold]b" in shown
    assert ":boom:" in shown


def test_what_a_repository_says_cannot_steer_a_terminal(tmp_path: Path) -> None:
    """Escape sequences in a message, a key or meta are legal, and printed harmlessly."""
    escape = "\x1b]0;owned\x07\x1b[2J\u202e\r"
    forge = Forge(tmp_path / "store", tmp_path)
    forge.marker()
    structure = {"dict": [["w", {"tensor": "w"}], [escape, 1]]}
    id = forge.checkpoint(message=escape, structure=structure, meta={escape: escape})
    forge.operation(heads={"main": id}, done=escape)
    for command in (("log",), ("log", "--graph"), ("show", "main"), ("ls", "main"), ("undo",)):
        result = CliRunner().invoke(cli, ["-r", str(tmp_path / "store"), *command])
        assert result.exit_code == 0, result.output
        assert not {"\x1b", "\x07", "\u202e", "\r"} & set(result.output), command
