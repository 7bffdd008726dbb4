"""Every command and option is explained, in its help and on the reference page."""

import importlib.util
from pathlib import Path

import click
import pytest

from ckptstore_cli.main import COMMANDS
from tests.helpers.commands import commands
from tests.helpers.root import ROOT

REFERENCE = ROOT / "docs" / "reference"
ALL = commands()


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("generate_cli", REFERENCE / "generate_cli.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_commands_say(generator):
    written = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    assert written == generator.page(), "Run: python docs/reference/generate_cli.py"


@pytest.mark.parametrize("name", ALL)
def test_every_command_and_option_has_help_and_is_on_the_page(generator, name):
    page = generator.page()
    heading = "####" if " " in name else "###"
    section = page.split(f"\n{heading} {name}\n")[1].split("\n##")[0]
    common = page.split("All commands have these options:")[1].split("\n### ")[0]
    command = ALL[name]
    assert command.help.strip().split("\n")[0].endswith(".")
    for param in command.params:
        assert param.help, param.name
        is_argument = isinstance(param, click.Argument)
        names = [param.make_metavar(click.Context(command))] if is_argument else param.opts
        for shown in names:
            assert f"`{shown.split(' ')[0]}" in section + common, shown


@pytest.mark.parametrize("name", ALL)
def test_every_command_has_json_and_repo(name):
    options = {opt for param in ALL[name].params for opt in param.opts}
    assert {"--json", "-r", "--repo"} <= options


def test_every_module_of_commands_is_a_command():
    folder = Path(importlib.util.find_spec("ckptstore_cli.commands").origin).parent
    stems = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    modules = {stem.removesuffix("_") for stem in stems}  # "import" is a word of Python
    assert modules == set(COMMANDS)


@pytest.mark.parametrize(
    "words", [[], ["bisect"], *([*name.split()] for name in ALL)], ids=" ".join
)
def test_the_help_fits_a_terminal_of_80_columns_and_no_sentence_is_cut(ckpt, words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = ckpt.out(*words, "--help").splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert [line for line in lines if line.endswith("...") and not line.startswith("Usage")] == []
