"""What is imported when: a command that touches no array data must not wait for torch or numpy."""

import json
import os
import subprocess
import sys

import pytest

from ckptstore_cli.main import COMMANDS
from tests.helpers.root import ROOT

pytestmark = pytest.mark.slow

HEAVY = {"torch", "numpy", "zarr", "obstore", "safetensors", "rich"}

RUN = """
import json, sys
sys.argv[0] = "ckptstore"
try:
    from ckptstore_cli.main import main
    main()
except SystemExit as stop:
    print(json.dumps([stop.code, sorted(sys.modules)]), file=sys.stderr)
"""


def imported(code, *args):
    """The exit code and the modules of a process that runs this code."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")])}
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True)
    exit_code, modules = json.loads(done.stderr.splitlines()[-1])
    return exit_code, {name.partition(".")[0] for name in modules}, set(modules)


def test_importing_the_library_imports_nothing_heavy():
    code = (
        "import ckptstore, json, sys; print(json.dumps([0, sorted(sys.modules)]), file=sys.stderr)"
    )
    _, packages, modules = imported(code)
    assert not packages & HEAVY
    ours = {name for name in modules if name.startswith("ckptstore.")}
    assert ours == {"ckptstore.lazy_module"}


def test_opening_a_repository_imports_nothing_heavy(history):
    code = (
        "import ckptstore, json, sys; ckptstore.open(sys.argv[1]).log(); "
        "print(json.dumps([0, sorted(sys.modules)]), file=sys.stderr)"
    )
    assert not imported(code, history.url)[1] & HEAVY


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["init", "new"],
        ["log"],
        ["log", "--graph"],
        ["log", "--json"],
        ["show", "main"],
        ["ls", "main"],
        ["diff", "main", "v1"],
        ["branch"],
        ["branch", "new"],
        ["branch", "-d", "tuned"],
        ["tag"],
        ["tag", "new"],
        ["tag", "-d", "v1"],
        ["annotate", "main", "-M", "val_acc=0.9"],
        ["follow", "--no-wait"],
        ["bisect", "start", "main", "main~1"],
        ["ops"],
        ["undo"],
        ["usage"],
        ["verify"],
        ["commit", "--help"],
        ["checkout", "--help"],
    ],
    ids=" ".join,
)
def test_a_command_that_touches_no_arrays_imports_nothing_heavy(ckpt, history, args):
    exit_code, packages, _ = imported(RUN, *args)
    assert exit_code == 0
    assert not packages & HEAVY


def test_only_the_command_that_is_used_is_imported(ckpt, history):
    _, _, modules = imported(RUN, "log")
    used = {name for name in COMMANDS if f"ckptstore_cli.commands.{name}" in modules}
    assert used == {"log"}


@pytest.mark.parametrize("args", [["log"], ["branch"], ["branch", "new"]], ids=" ".join)
def test_a_command_that_only_names_checkpoints_starts_without_what_others_need(ckpt, history, args):
    _, _, modules = imported(RUN, *args)
    others = {"commit.derive", "commit.writer", "diff.compare", "gc", "state.tree", "verify"}
    others = {f"ckptstore.{name}" for name in others}
    assert not modules & others


def test_the_test_would_notice(ckpt, history):
    assert {"numpy", "torch"} <= imported(RUN, "checkout", "main")[1]


def test_completion_imports_nothing_heavy(ckpt, history):
    code = (
        "import os\n"
        "os.environ |= {'_CKPTSTORE_COMPLETE': 'bash_complete', "
        "'COMP_LINE': 'ckptstore show main@best:v'}"
    )
    _, packages, _ = imported(code + RUN)
    assert not packages & HEAVY
