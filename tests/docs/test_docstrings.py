"""The examples in docstrings work as they are printed."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from tests.helpers.frameworks import marked
from tests.helpers.root import ROOT

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
SOURCES = [
    path
    for folder in (ROOT, ROOT / "cli")
    for path in sorted(folder.glob("ckptstore*/**/*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


def module_name(path: Path) -> str:
    root = ROOT / "cli" if path.is_relative_to(ROOT / "cli") else ROOT
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", [marked(module_name(path)) for path in SOURCES])
def test_the_examples_of_a_module_work_as_printed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an empty folder, knowing only what they import themselves."""
    monkeypatch.chdir(tmp_path)
    examples = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    failures: list[str] = []
    for example in examples:
        example.globs = {"__name__": "__main__"}
        doctest.DocTestRunner(optionflags=OPTIONS).run(example, out=failures.append)
    assert any(example.examples for example in examples)
    assert not failures, "".join(failures)
