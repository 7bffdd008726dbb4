"""What the pages say is so: their code runs, and their links lead somewhere."""

import re

import pytest

from tests.docs.blocks import FRAMEWORKS, MARK, PAGES, RUNNABLE, blocks, parse, run
from tests.helpers.root import ROOT

README = ROOT / "README.md"  # has a test of its own
INERT = {"diff", "hex", "json", "text", "toml", "yaml"}
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(set(PAGES) - {README, *FRAMEWORKS}), ids=name)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, forks):
    """All in one new folder, each block a process of its own."""
    for block in blocks(page):
        if block.is_run:
            run(block, tmp_path, forks)


@pytest.mark.framework
@pytest.mark.parametrize("page", FRAMEWORKS, ids=name)
def test_the_code_of_a_page_on_a_framework_runs_from_top_to_bottom(page, tmp_path):
    """As users run it: frameworks warn of what they do themselves."""
    for block in blocks(page):
        if block.is_run:
            run(block, tmp_path, forks=None)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_block_escapes_by_its_language(page):
    languages = {block.place: block.language for block in blocks(page)}
    known = RUNNABLE | INERT
    assert {place: lang for place, lang in languages.items() if lang not in known} == {}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_each_mark_that_code_is_not_run_stands_on_code(page):
    marks = [line for line in page.read_text(encoding="utf-8").splitlines() if MARK.search(line)]
    marked = [b for b in blocks(page) if b.language in RUNNABLE and not b.is_run]
    assert len(marks) == len(marked)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_within_the_project_lead_somewhere(page):
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_navigation_has_every_page():
    """The decisions are listed by their index."""
    docs = ROOT / "docs"
    navigation = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    decisions = {f"adr/{page.name}" for page in docs.glob("adr/0*.md")}
    pages = {str(page.relative_to(docs)) for page in docs.rglob("*.md")} - decisions
    assert sorted(set(navigation) - decisions - {"adr/0*.md"}) == sorted(pages)


def test_blocks_are_found_with_what_is_above_and_without_indentation():
    text = """\
- <!-- not run: it waits -->
  ```bash
  sleep 9

    echo "```"
  ```
````console title="x"
$ echo 1
```
1
````
<!-- not run: -->
```python
```
"""
    first, second, third = parse(README, text)
    assert (first.line, first.language, first.is_run) == (2, "bash", False)
    assert first.text == 'sleep 9\n\n  echo "```"\n'
    assert (second.line, second.language, second.is_run) == (7, "console", True)
    assert second.text == "$ echo 1\n```\n1\n"
    assert third.is_run, "a mark without a reason is none"


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "import warnings\nwarnings.warn('x')"),
        ("bash", "false\ntrue"),
        ("bash", "false | true"),
        ("console", "$ false\n$ true"),
    ],
)
def test_a_block_that_fails_is_noticed(language, code, tmp_path, forks):
    (block,) = parse(README, f"```{language}\n{code}\n```\n")
    with pytest.raises(AssertionError, match=r"README.md:1 failed"):
        run(block, tmp_path, forks)
