"""Hostile repositories: a message and an exit code, no traceback, no terminal escapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

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
    world = World(scratch)
    world.outside.mkdir()
    case.given(world)
    for command in COMMANDS:
        result = CliRunner().invoke(cli, ["-r", str(world.store), *command])
        assert result.exception is None or isinstance(result.exception, SystemExit), command
        assert result.exit_code in (0, 1), command
        assert "\x1b" not in result.output
        assert "Traceback" not in result.output


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
