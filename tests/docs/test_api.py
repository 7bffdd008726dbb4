"""What is public is said in one place, and the reference has every public name."""

import os
import re
from importlib import import_module

import pytest

from tests.helpers.frameworks import marked, needs_framework
from tests.helpers.root import ROOT

os.environ.setdefault("KERAS_BACKEND", "torch")
FOLDER = ROOT / "docs" / "reference" / "api"
INDEX = FOLDER / "index.md"
ROW = re.compile(r"^\| \[`(?P<module>[\w.]+)`\]\((?P<page>\w+\.md)\)", flags=re.MULTILINE)
ENTRY = re.compile(r"^::: (\S+)$", flags=re.MULTILINE)
ALL = re.compile(r"^ *([\w, ]+, )?__all__ = ", flags=re.MULTILINE)
PAGE_OF = {row["module"]: FOLDER / row["page"] for row in ROW.finditer(INDEX.read_text())}
MODULES = [marked(module) for module in PAGE_OF]
PAGES = [
    pytest.param(
        page,
        id=page.stem,
        marks=[pytest.mark.framework]
        if any(needs_framework(module) for module, home in PAGE_OF.items() if home == page)
        else [],
    )
    for page in sorted(FOLDER.glob("*.md"))
]


def entries(page):
    return ENTRY.findall(page.read_text(encoding="utf-8"))


def names(module):
    return [f"{module}.{name}" for name in import_module(module).__all__]


def has_all(path):
    """Whether a module assigns `__all__` itself, alone or with the other names of a lazy one."""
    return ALL.search(path.read_text(encoding="utf-8")) is not None


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_index_lists_the_modules_that_have_public_names():
    """An internal package re-exports with `import A as A`, without an `__all__`."""
    paths = [path for path in ROOT.glob("ckptstore/**/*.py") if has_all(path)]
    assert sorted(map(module_of, paths)) == sorted(PAGE_OF)


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_there(module):
    listed = names(module)
    assert listed == sorted(listed)
    assert len(listed) == len(set(listed))
    page = entries(PAGE_OF[module])
    if module == "ckptstore.training":  # names of the callbacks are on their own page
        page += [e.replace(".callbacks", "") for e in entries(FOLDER / "callbacks.md")]
    own = [entry for entry in page if entry.rpartition(".")[0] == module]
    assert sorted(own) == listed


@pytest.mark.parametrize("page", PAGES)
def test_a_page_lists_public_names_and_no_others(page):
    others = {FOLDER / "callbacks.md": "ckptstore.training"}  # a part of its names
    modules = [m for m, home in PAGE_OF.items() if page == home or others.get(page) == m]
    public = {name for module in modules for name in names(module)}
    assert [entry for entry in entries(page) if entry not in public] == []


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_can_be_imported_and_has_a_docstring(module):
    for name in import_module(module).__all__:
        assert getattr(import_module(module), name).__doc__, name
