"""Write what the documentation generates: drawings, the list of modules, the list of decisions.

    python docs/generate

A test compares the files with what this writes. The reference of the command line has a script of
its own, docs/reference/generate_cli.py.
"""

from __future__ import annotations

from pathlib import Path

from architecture import decisions_page, layers_svg, modules_page
from drawings import drawings

DOCS = Path(__file__).parents[1]


def files() -> dict[Path, str]:
    """Every generated file and its text."""
    return {
        **{DOCS / "drawings" / name: svg for name, svg in drawings().items()},
        DOCS / "architecture" / "layers.svg": layers_svg(),
        DOCS / "architecture" / "modules.md": modules_page(),
        DOCS / "adr" / "index.md": decisions_page(),
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
