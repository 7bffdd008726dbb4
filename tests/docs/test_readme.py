"""The README opens with what a newcomer can do, and its examples work as they are printed."""

import pytest

from tests.docs.blocks import blocks, run
from tests.helpers.root import ROOT

pytestmark = pytest.mark.slow

README = ROOT / "README.md"
BLOCKS = blocks(README)
OPENING, LIBRARY, COMMAND_LINE = BLOCKS[:3]
LINES_MAX = 10


def commands(block):
    return [line.partition("#")[0].strip() for line in block.text.splitlines()]


def test_it_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) < 150


def test_it_opens_with_the_installation():
    assert [command.split()[0] for command in commands(OPENING)] == ["python3", "pip"]
    assert commands(OPENING)[1] == "pip install ."
    assert OPENING.line <= 10


def test_then_come_ten_lines_of_python_and_ten_of_the_command_line():
    assert [LIBRARY.language, COMMAND_LINE.language] == ["python", "bash"]
    for block in (LIBRARY, COMMAND_LINE):
        assert block.is_run
        assert len([line for line in block.text.splitlines() if line]) <= LINES_MAX


def test_it_ends_with_the_two_commands_of_a_developer():
    assert commands(BLOCKS[-1]) == ["make demo", "make test"]


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.is_run], ids=lambda block: block.place
)
def test_an_example_runs_on_its_own_as_printed(block, tmp_path, forks):
    run(block, tmp_path, forks)
