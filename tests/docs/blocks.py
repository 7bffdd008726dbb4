"""The blocks of code in Markdown pages, and running them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.helpers.root import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.forks import Forks

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FRAMEWORKS = sorted(ROOT.glob("docs/how-to/frameworks/*.md"))  # need packages of their own
RUNNABLE = frozenset({"bash", "console", "python"})
MARK = re.compile(r"^\W*<!-- not run: \S.* -->$")
_TITLE = re.compile(r'title="([\w.]+)"')
_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block: where it begins, its language, title and text, and the line above it."""

    page: Path
    line: int
    language: str
    title: str
    text: str
    above: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self) -> bool:
        return self.language in RUNNABLE and not MARK.match(self.above)


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    return parse(page, page.read_text(encoding="utf-8"))


def parse(page: Path, text: str) -> list[Block]:
    """All fenced blocks of a text, as if it were this page's."""
    found = []
    lines = iter(enumerate(text.splitlines(), start=1))
    above = ""
    for number, line in lines:
        if opening := _FENCE.match(line):
            found.append(
                Block(
                    page=page,
                    line=number,
                    language=opening["info"].strip().partition(" ")[0],
                    title=title[1] if (title := _TITLE.search(opening["info"])) else "",
                    text="".join(f"{inside}\n" for inside in _inside(lines, opening)),
                    above=above,
                )
            )
        above = line.strip()
    return found


def run(block: Block, folder: Path, forks: Forks | None) -> None:
    """Run a block in this folder: all of it, or of a console's the lines after "$ ".

    Python is run from a file that keeps its name: the block's title, or example.py. Without forks
    it is a new process, in which warnings are no errors.
    """
    done: subprocess.CompletedProcess[str]
    if block.language == "python":
        script = folder / (block.title or "example.py")
        script.write_text(block.text, encoding="utf-8")
        if forks is None:
            done = _process([sys.executable, str(script)], folder)
        else:
            done = forks.run(script, cwd=folder, env=_environment(folder))
    else:
        prompts = re.findall(r"^\$ (.*)$", block.text, flags=re.MULTILINE)
        text = "\n".join(prompts) if block.language == "console" else block.text
        done = _process(["bash", "-euo", "pipefail", "-c", text], folder)
    assert done.returncode == 0, f"{block.place} failed:\n{done.stdout}{done.stderr}"


def _process(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=_environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def _inside(lines: Iterator[tuple[int, str]], opening: re.Match[str]) -> Iterator[str]:
    """The lines down to the fence that closes a block, less the indentation of the block."""
    closing = re.compile(rf"^ *{opening['fence']}{opening['fence'][0]}*\s*$")
    for _, line in lines:
        if closing.match(line):
            return
        yield line.removeprefix(opening["indent"])


def _environment(folder: Path) -> dict[str, str]:
    """This process's, with the programs of this virtual environment, and no repository named.

    What commands remember of a user is in the folder.
    """
    programs = str(Path(sys.executable).parent)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CKPTSTORE")}
    path = programs + os.pathsep + os.environ["PATH"]
    return {**kept, "PATH": path, "XDG_STATE_HOME": str(folder / "state")}
