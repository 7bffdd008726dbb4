"""A command line in a folder of its own, and a repository with two branches to try it on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
from click.testing import CliRunner, Result

import ckptstore
from ckptstore_cli.main import cli
from tests.helpers.root import ROOT

HOUR_SECONDS = 3600


@dataclass(frozen=True)
class CommandLine:
    """Runs `ckptstore` in a folder: in this process, or in one of its own."""

    folder: Path

    def __call__(self, *args: object, code: int = 0, **env: str) -> Result:
        result = CliRunner().invoke(cli, list(map(str, args)), env=env, prog_name="ckptstore")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    def out(self, *args: object, code: int = 0) -> str:
        return self(*args, code=code).stdout

    def json(self, *args: object, code: int = 0) -> Any:
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        return json.loads(self.out(*args, "--json", code=code), parse_constant=refuse)

    def error(self, *args: object, code: int = 1) -> str:
        result = self(*args, code=code)
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        return result.stderr

    def process(self, *args: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ckptstore_cli", *map(str, args)]
        return self.python(command, **options)

    def python(
        self, command: list[str], *, env: dict[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(ROOT), str(ROOT / "cli")])
        whole = {**os.environ, "PYTHONPATH": path, **(env or {})}
        options = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "encoding": "utf-8",
        } | options
        return subprocess.run(
            command, cwd=self.folder, env=whole, timeout=120, check=False, **options
        )


@pytest.fixture
def ckpt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line in an empty folder with no settings in the environment."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("CKPTSTORE_REPO", "NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return CommandLine(folder)


@pytest.fixture
def repo(ckpt: CommandLine) -> ckptstore.Repository:
    """An empty repository at .ckptstore of that folder; what is committed is an hour old."""
    return ckptstore.init(ckpt.folder / ".ckptstore", clock=lambda: time.time() - HOUR_SECONDS)


def make_state(seed: int) -> dict[str, Any]:
    numbers = numpy.random.default_rng(seed)
    return {
        "model": {
            "weight": numbers.standard_normal((200, 100), dtype="f4"),
            "bias": numpy.zeros(3),
        },
        "epoch": seed,
    }


@pytest.fixture
def history(repo: ckptstore.Repository) -> ckptstore.Repository:
    """main: steps 100 and 200; tuned: step 250 on top of 100; the tag v1 at step 100."""
    repo.commit(make_state(1), step=100, metrics={"val_loss": 0.5, "accuracy": 0.75})
    repo.branch("tuned")
    repo.tag("v1")
    repo.commit(make_state(2), step=200, metrics={"val_loss": 0.25}, message="lower\nrate")
    repo.commit(make_state(3), branch="tuned", step=250, metrics={"val_loss": float("nan")})
    return repo
