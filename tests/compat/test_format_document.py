"""The tables, algorithms and example of docs/reference/format.md match the code."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import example, given
from hypothesis import strategies as st

from ckptstore.documents import canonical, chunks, dtypes, names, page, structure
from ckptstore.documents import zarr_page as node_page
from ckptstore.state.flatten import flatten
from tests.compat import plain_reader, plain_writer
from tests.compat.make_example import make
from tests.helpers.root import ROOT

DOCUMENT = (ROOT / "docs/reference/format.md").read_text(encoding="utf-8")


def table(*header: str) -> list[list[str]]:
    """The rows of the table with this header."""
    lines = iter(DOCUMENT.splitlines())
    for line in lines:
        if line == f"| {' | '.join(header)} |":
            next(lines)
            rows = []
            for row in lines:
                if not row.startswith("|"):
                    return rows
                rows.append([cell.strip() for cell in row.strip("|").split(" | ")])
    raise AssertionError(f"There is no table {header}.")


def test_the_example_is_what_ckptstore_makes(tmp_path: Path) -> None:
    """To update the document: python -m tests.compat.make_example prints the example."""
    block = re.compile(
        r"^\*\*`([^`]+)`\*\*, (\d+) bytes\n\n```(json|text)\n(.*?)\n```$", re.MULTILINE | re.DOTALL
    )
    shown = {
        key: (int(size), bytes.fromhex(text) if kind == "text" else text.encode())
        for key, size, kind, text in block.findall(DOCUMENT)
    }
    assert shown == {key: (len(data), data) for key, data in make(tmp_path / "store").items()}


def test_the_limits_are_those_of_the_code() -> None:
    rows = table("limit", "value", "in the code")
    assert len(rows) == 46
    for _, value, constant in rows:
        module, name = constant.strip("`").split(".")
        home = {"verify": "ckptstore", "oplog": "ckptstore.store"}.get(
            module, "ckptstore.documents"
        )
        assert getattr(importlib.import_module(f"{home}.{module}"), name) == int(value), constant


def test_the_dtypes_are_those_of_the_code() -> None:
    sizes = {name.strip("`"): int(size) for name, size, _ in table("name", "bytes", "element")}
    assert sizes == dtypes.ITEM_BYTES == plain_reader.ITEM_BYTES


def test_the_algorithms_in_the_document_are_those_of_the_plain_writer() -> None:
    for function in (plain_writer.chunk_shape, plain_writer.page_ends, plain_writer.part_ends):
        assert inspect.getsource(function) in DOCUMENT


LENGTHS = st.integers(0, 6) | st.integers(0, 3_000_000)


@given(
    shape=st.lists(LENGTHS, max_size=5),
    item=st.sampled_from([1, 2, 4, 8, 16]),
    size=st.sampled_from([64 << 10, 100_001, 8 << 20, 256 << 20]),
)
def test_chunk_shapes_are_those_of_the_code(shape: list[int], item: int, size: int) -> None:
    ours = chunks.chunk_shape(tuple(shape), item_bytes=item, chunk_bytes=size)
    assert plain_writer.chunk_shape(shape, item, size) == list(ours)
    assert chunks.is_grid(tuple(shape), ours)
    assert chunks.is_contiguous(tuple(shape), ours)
    if chunks.chunk_count(tuple(shape), ours) <= 2000:
        grid = chunks.chunks(tuple(shape), ours, item_bytes=item)
        blocks = plain_reader.chunk_blocks(shape, list(ours))
        sizes = [plain_reader.chunk_bytes([block], item) for block in blocks]
        assert sizes == [chunk.size for chunk in grid]


@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    chunk=st.lists(st.integers(0, 4), max_size=4),
)
def test_the_plain_reader_takes_the_grids_that_the_code_takes(
    shape: list[int], chunk: list[int]
) -> None:
    try:
        plain_reader.chunk_blocks(shape, chunk)
        taken = True
    except plain_reader.BadRepositoryError:
        taken = False
    assert taken == chunks.is_grid(tuple(shape), tuple(chunk))


@given(
    path=st.text(st.characters(codec="utf-8")),
    arrays=st.integers(1, 600),
    count=st.integers(0, 70_000),
)
def test_pages_end_where_the_code_ends_them(path: str, arrays: int, count: int) -> None:
    assert plain_writer.page_ends(path, arrays, count) == page.ends_page(
        path, arrays=arrays, chunks=count
    )


@given(key=st.text(st.characters(codec="utf-8")), weight=st.integers(1, 70_000))
@example(key="c/14321", weight=4_096)
@example(key="c/14321", weight=4_095)
def test_parts_of_nodes_end_where_the_code_ends_them(key: str, weight: int) -> None:
    assert plain_writer.part_ends(key, weight) == node_page.ends_part(key, weight)


def test_the_tables_of_chunk_shapes_and_page_ends_are_right() -> None:
    for cells in table("shape", "element", "`chunk_size`", "chunk shape", "chunks"):
        shape, item, size, expected, count = map(json.loads, cells)
        ours = chunks.chunk_shape(tuple(shape), item_bytes=item, chunk_bytes=size)
        assert list(ours) == expected == plain_writer.chunk_shape(shape, item, size)
        assert chunks.chunk_count(tuple(shape), ours) == count
    for path, number, remainder in table("path", "number", "number mod 160"):
        found = int.from_bytes(blake3(path.strip("`").encode()).digest()[:4], "little")
        assert (found, found % page.PAGE_CUT_MODULUS) == (int(number), int(remainder))
        ends = page.ends_page(path.strip("`"), arrays=page.PAGE_ARRAYS_MIN, chunks=1)
        assert ends == (remainder == "0")


def test_the_examples_of_nodes_are_canonical_and_are_read() -> None:
    rows = table("node", "value", "example")
    for node, _, shown in rows:
        text = shown.strip("`")
        data = f'{{"structure":{text}}}'.encode()
        assert canonical.encode(json.loads(data)) == data
        assert structure.encode(structure.decode(data, name=node)) == data
        root = json.loads(text)
        plain_reader.build(root, lambda path, kind: plain_reader.Array(kind, "bool", (0,), b""), 0)
    tagged = {re.match(r'`\{"(\w+)"', node)[1] for node, _, _ in rows if node.startswith("`{")}  # type: ignore[index]
    assert tagged == structure._KNOWN


def test_the_examples_of_paths_are_made_so() -> None:
    for keys, expected in table("keys", "path"):
        state: Any = SimpleNamespace(kind="ndarray", identity=None)
        for key in reversed(json.loads(f"[{keys.replace('`', '')}]")):
            state = {key: state}

        def describe(value: object) -> Any:
            return value if isinstance(value, SimpleNamespace) else None

        flat = flatten(state, describe=describe, encode=lambda value: None)
        assert list(flat.arrays) == [expected.strip("`")]
    assert names.escape_first(names.escape_key("0")) == "%30"


@given(
    st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-1074, 1023).map(lambda e: 2.0**e)
)
@example(2.0**-24)  # of the two nearest texts of 16 digits only the upper one reads back
@example(5e-324)
@example(9007199254740993.0)
def test_floats_are_written_as_the_document_says(number: float) -> None:
    """The rule by hand: digits of the shortest text, placed by the exponent."""
    sign = "-" if math.copysign(1, number) < 0 else ""
    with localcontext(prec=800):
        digits, exponent = _shortest(abs(number))
    if -4 <= exponent < 16:
        whole = digits[: exponent + 1].ljust(exponent + 1, "0") if exponent >= 0 else "0"
        rest = digits[exponent + 1 :] if exponent >= 0 else "0" * (-exponent - 1) + digits
        text = f"{sign}{whole}.{rest or '0'}"
    else:
        fraction = f".{digits[1:]}" if digits[1:] else ""
        text = f"{sign}{digits[0]}{fraction}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
    assert canonical.encode([number]) == f"[{text}]".encode()


def _shortest(number: float) -> tuple[str, int]:
    """The fewest digits that parse to this double, the nearest, and the exponent."""
    if number == 0:
        return "0", 0
    exact = Decimal(number)
    for count in range(1, 18):
        unit = Decimal((0, (1,), exact.adjusted() - count + 1))
        found = {exact.quantize(unit, rounding=mode) for mode in (ROUND_FLOOR, ROUND_CEILING)}
        if good := [value for value in found if float(value) == number]:
            best = min(
                good, key=lambda value: (abs(value - exact), value.as_tuple().digits[-1] % 2)
            )
            digits = "".join(map(str, best.as_tuple().digits))
            return digits.rstrip("0"), best.adjusted()
    raise AssertionError(number)


def test_strings_and_keys_are_written_as_the_document_says() -> None:
    document = {"\U0001f600": 1, "\uffff": 2, "a": '"\\/\b\t\n\f\r\x00\x1f\x7e\x7f\u00e9\u2028'}
    text = r'{"a":"\"\\/\b\t\n\f\r\u0000\u001f~\u007f\u00e9\u2028","\uffff":2,"\ud83d\ude00":1}'
    assert canonical.encode(document) == text.encode()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{} x",
        b'{"a":1,"a":1}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":"\xc3\xa9"}',
        b'{"a":' + b"[" * 100_000,
        b'{"a":"' + b"," * 1_000_001 + b'"}',
    ],
    ids=lambda text: text[:12].decode("latin-1"),
)
def test_what_a_reader_must_refuse_both_readers_refuse(text: bytes) -> None:
    with pytest.raises(canonical.CorruptError):
        canonical.decode(text, name="this")
    with pytest.raises(plain_reader.BadRepositoryError):
        plain_reader.parse(text)
