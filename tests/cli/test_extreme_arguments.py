"""Extreme arguments of commands: an exit code, no traceback, and a repository that works."""

from __future__ import annotations

import os
import tempfile
from contextlib import chdir, contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

import click
import numpy as np
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore import formats
from ckptstore.retention import MaxToKeep
from ckptstore_cli.main import cli
from tests.helpers.commands import commands

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

# One call of each command that works.
USUAL: dict[str, tuple[str, ...]] = {
    "init": ("another",),
    "commit": ("state.npz",),
    "import": ("state*.npz",),
    "log": ("main",),
    "best": ("loss",),
    "show": ("main",),
    "ls": ("main",),
    "checkout": ("main", "-o", "out.npz", "--force", "--drop-values"),
    "branch": ("new", "main"),
    "tag": ("new", "main"),
    "diff": ("main", "main~1"),
    "gc": ("--max-to-keep", "1", "--grace", "0"),
    "config": ("retention", "--max-to-keep", "3"),
    "annotate": ("main", "-m", "words"),
    "clone": ("store", "copy"),
    "remote add": ("there", "other"),
    "remote remove": ("there",),
    "remote list": (),
    "push": ("./other", "main"),
    "pull": ("./other", "main"),
    "fetch": ("there",),
    "follow": ("main", "--no-wait"),
    "bisect start": ("main", "main~1"),
    "bisect good": ("main~1",),
    "bisect bad": ("main",),
    "bisect skip": ("main",),
    "bisect run": ("true",),
    "bisect log": (),
    "bisect reset": (),
    "expire": ("main~1",),
    "ops": (),
    "undo": (),
    "verify": (),
    "usage": (),
}
VALUES = (
    "",
    " ",
    "0",
    "-1",
    "9" * 19,
    "9" * 5000,
    "nan",
    "inf",
    "-inf",
    "1e400",
    "x" * 70_000,
    "x" * 300,
    "\udcff",
    "\x1b[31m",
    "é",
    "(" * 5000,
    "a{99999999999}=b",
    ".*=\\g<99999999999999999999>",
    f"{'k' * 300}=1",
    "loss=nan",
    "loss=" + "9" * 5000,
    "main~" + "9" * 600,
    "best:",
    "best:" + "x" * 900,
    "val_loss:min:" + "9" * 30,
    "/",
    "..",
    "memory://",
    "s3://bucket",
    "None",
)


def calls() -> Iterator[tuple[str, ...]]:
    """Each command with each value for each of its arguments and options."""
    for name, usual in USUAL.items():
        position = 0
        for parameter in commands()[name].params:
            if isinstance(parameter, click.Argument):
                for value in VALUES:
                    yield name, *usual[:position], value, *usual[position + 1 :]
                position += 1
            elif isinstance(parameter, click.Option) and not parameter.is_flag:
                for value in VALUES:
                    yield name, *usual, f"{parameter.opts[-1]}={value}"


CALLS = tuple(calls())


@contextmanager
def repository() -> Iterator[None]:
    """A folder with a repository of two checkpoints, and a file."""
    with (
        tempfile.TemporaryDirectory(dir=MEMORY) as folder,
        chdir(folder),
        patch.dict(os.environ, {"XDG_STATE_HOME": folder}),
    ):
        repo = ckptstore.init("store", chunk_size=64 << 10)
        for step in range(2):
            state = {"m": {"a": np.arange(20.0) + step}, "n": step}
            repo.commit(state, step=step, metrics={"loss": float(step)})
        formats.write_file({"w": np.ones(3)}, "state.npz")
        repo.set_remote("there", ckptstore.init("other").url)
        repo.push("there")
        yield


def prepare(name: str) -> None:
    """Begin the bisect that a command of it needs."""
    if name.startswith("bisect") and name != "bisect start":
        assert run("bisect start", "main", "main~1") == 0


def run(name: str, *args: str) -> int:
    """Run a command in this process; return its exit code."""
    result = CliRunner().invoke(cli, ["-r", "store", *name.split(), *args], prog_name="ckptstore")
    if not isinstance(result.exception, SystemExit | None):
        raise result.exception
    return result.exit_code


def test_every_command_has_a_call_that_works() -> None:
    assert sorted(USUAL) == sorted(commands())
    for name, args in USUAL.items():
        with repository():
            prepare(name)
            assert run(name, *args) == 0, name


@given(st.sampled_from(CALLS))
def test_an_extreme_argument_is_taken_or_refused(call: tuple[str, ...]) -> None:
    with repository():
        prepare(call[0])
        code = run(*call)
        assert code in (0, 1, 2)
        fresh = ckptstore.open("store")
        assert fresh.log()
        assert fresh.retention() is None or code == 0
        fresh.commit({"z": 1})
        fresh.undo()
        fresh.gc(MaxToKeep(2), grace=0)
        assert fresh.verify().ok
