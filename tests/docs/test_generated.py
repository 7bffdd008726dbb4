"""What the documentation generates is up to date, and the drawings can be read."""

import re
import runpy
import sys
from xml.etree import ElementTree

import pytest

from tests.helpers.root import ROOT

GENERATE = ROOT / "docs" / "generate"


@pytest.fixture(scope="module")
def generated():
    """Every generated file and its text."""
    sys.path.insert(0, str(GENERATE))
    try:
        return runpy.run_path(str(GENERATE / "__main__.py"))["files"]()
    finally:
        sys.path.remove(str(GENERATE))


def test_every_generated_file_is_what_the_script_writes(generated):
    stale = [path.name for path, text in generated.items() if path.read_text() != text]
    assert stale == [], "run `python docs/generate`"


def test_every_drawing_is_well_formed_fetches_nothing_and_is_shown(generated):
    pages = "".join(page.read_text() for page in ROOT.glob("docs/**/*.md"))
    drawings = [path for path in generated if path.suffix == ".svg"]
    assert {*ROOT.glob("docs/**/*.svg")} == {*drawings}
    for path in drawings:
        root = ElementTree.parse(path).getroot()
        assert root.find("{http://www.w3.org/2000/svg}title").text
        assert "href" not in path.read_text()
        assert f"/{path.name})" in pages or f"]({path.name})" in pages, path.name


def test_every_module_and_every_layer_is_listed(generated):
    text = (ROOT / "docs/architecture/modules.md").read_text()
    modules = [path for path in ROOT.glob("ckptstore/*/**/*.py") if path.name != "__init__.py"]
    assert len(modules) > 60
    for path in modules:
        dotted = ".".join(path.relative_to(ROOT / "ckptstore").with_suffix("").parts)
        assert f"| `{dotted}` |" in text
    assert not [line for line in text.splitlines() if line.endswith("|  |")], "no docstring"


def test_the_places_where_to_look_exist():
    text = (ROOT / "docs/architecture/index.md").read_text()
    table = text.partition("## Where to look")[2].partition("## ")[0]
    places = re.findall(r"`([\w/]+)`", table)
    library = ROOT / "ckptstore"
    folders = [library / place for place in places if place.endswith("/")]
    modules = [library / f"{place}.py" for place in places if not place.endswith("/")]
    assert len(places) > 12
    assert [path for path in folders if not path.is_dir()] == []
    assert [path for path in modules if not path.is_file()] == []
