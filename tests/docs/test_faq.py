"""Every error has its section in the FAQ, with what it means and what to do."""

import re

import pytest

from ckptstore import errors
from tests.helpers.root import ROOT

ERRORS = [
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.CkptStoreError)
]
TEXT = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_has_a_section_that_says_what_it_means_and_what_to_do(name):
    section = re.search(rf"^### {name}\n(.*?)(?=^##)", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert section, f"docs/faq.md has no section {name}"
    if name != "CkptStoreError":
        assert "**What it means.**" in section[1]
        assert "**What to do.**" in section[1]


def test_the_sections_are_those_of_errors_that_exist():
    part = TEXT.partition("## Errors")[2].partition("## Questions")[0]
    assert sorted(re.findall(r"^### (\w+)", part, flags=re.MULTILINE)) == sorted(ERRORS)
