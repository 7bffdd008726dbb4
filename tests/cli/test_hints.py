"""Messages of the library name keyword arguments; the command line names its options."""

import ast
import re

import pytest

from ckptstore_cli.hints import with_options
from tests.helpers.root import ROOT

LIBRARY = ROOT / "ckptstore"
OPTION = re.compile(r"(?<![\w-])--[a-z]")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("x.pt exists. Pass another name, or overwrite it (overwrite=True).", "(--force)"),
        ("Leave them out (drop_values=True), choose arrays (include).", "(--include)"),
        ("It has 'a_state'. Pass part='a_state'.", "Pass --part a_state."),
        ("Commit again, or pass retry=True.", "pass --retry."),
        ("Check the path; to create one, use ckptstore.init.", "'ckptstore init'"),
        ("x is already a repository. Open it instead.", "Use it with -r"),
        ("Branch 'a' already exists, at 12. Take another, or delete it first.", "branch -d a"),
        ("Tag 'v1' already exists, at 12. Take another, or delete it first.", "tag -d v1"),
        ("Store plain values, or register_codec for its type.", "from Python with a codec"),
        (
            "or all: use plan_import with 'out/c-{step}'.",
            "or all: ckptstore import 'out/c-{step}'.",
        ),
        ("Nothing to add here.", "Nothing to add here."),
    ],
)
def test_keyword_arguments_are_shown_as_options(message, shown):
    assert shown in with_options(message)
    assert "=True" not in with_options(message)


def test_no_string_of_the_library_names_an_option():
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not OPTION.search(node.value), f"{path}:{node.lineno}"
