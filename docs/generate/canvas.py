"""A small SVG writer for the drawings of the documentation: boxes, dots, arrows and text.

The colours follow the system's light or dark mode. Nothing is fetched: fonts are the reader's own.
"""

from __future__ import annotations

from html import escape

STYLE = """\
text { font: 14px system-ui, sans-serif; fill: var(--ink); }
.code { font: 13px ui-monospace, monospace; }
.small { font-size: 12px; fill: var(--soft); }
.head { font-weight: 600; }
rect, circle { stroke-width: 1.5; fill: var(--paper); stroke: var(--line); }
path, .rule { stroke: var(--line); stroke-width: 1.5; fill: none; }
marker path { fill: var(--line); stroke: none; }
.blue { fill: var(--blue); stroke: var(--blue-line); }
.amber { fill: var(--amber); stroke: var(--amber-line); }
.green { fill: var(--green); stroke: var(--green-line); }
.gone { stroke-dasharray: 5 4; fill: none; }
svg { --ink: #1d2430; --soft: #5c6675; --line: #8a94a3; --paper: #f6f7f9; --blue: #dbe8fb;
  --blue-line: #4a7fc9; --amber: #fbeccb; --amber-line: #c08a1e; --green: #d9f0dd;
  --green-line: #3f9a55; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6e9ef; --soft: #a3adbb; --line: #77818f; --paper: #2b303a; --blue: #24405f;
    --blue-line: #6ea3e8; --amber: #4d3d17; --amber-line: #d9a63c; --green: #1f4a2b;
    --green-line: #5fbf78; }
}"""

HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" \
height="{height}" role="img">
<title>{title}</title>
<style>
{style}
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" \
orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>
"""


class Canvas:
    """A drawing. Coordinates are pixels, counted from the top left corner."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._head = HEAD.format(width=width, height=height, title=escape(title), style=STYLE)
        self._parts: list[str] = []

    def box(
        self, x: float, y: float, width: float, height: float, *lines: str, kind: str = ""
    ) -> None:
        """A rectangle with centred lines. Kinds: blue, amber, green, gone."""
        self._parts.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
        )
        top = y + height / 2 - 9 * (len(lines) - 1) + 5
        for number, line in enumerate(lines):
            self.text(x + width / 2, top + 18 * number, line, anchor="middle")

    def dot(self, x: float, y: float, radius: float, kind: str = "") -> None:
        """A circle."""
        self._parts.append(f'<circle class="{kind}" cx="{x}" cy="{y}" r="{radius}"/>')

    def text(self, x: float, y: float, text: str, *, kind: str = "", anchor: str = "start") -> None:
        """A line of text. A backquote at its start makes it code. Kinds: small, head."""
        is_code = text.startswith("`")
        classes = " ".join(filter(None, (kind, "code" if is_code else "")))
        self._parts.append(
            f'<text class="{classes}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">'
            f"{escape(text.removeprefix('`'), quote=False)}</text>"
        )

    def arrow(self, x1: float, y1: float, x2: float, y2: float, *, bend: float = 0) -> None:
        """An arrow; with a bend, a curve that leaves and arrives horizontally."""
        curve = f"C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}" if bend else f"L{x2} {y2}"
        self._parts.append(f'<path d="M{x1} {y1} {curve}" marker-end="url(#tip)"/>')

    def line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """A line without an arrowhead."""
        self._parts.append(f'<line class="rule" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>')

    def svg(self) -> str:
        """The whole file."""
        return self._head + "\n".join(self._parts) + "\n</svg>\n"
