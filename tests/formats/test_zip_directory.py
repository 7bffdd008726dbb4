"""The directory of a zip archive, compared with zipfile and tried on forged archives."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.formats import zip_directory
from ckptstore.formats.zip_directory import HEADER_BYTES, TooManyRecordsError, behind_header

NAMES = st.text("abé/0", min_size=1, max_size=12).filter(lambda name: not name.endswith("/"))
END = struct.Struct("<4s4H2LH")


def packed(
    members: dict[str, bytes], *, comment: bytes = b"", method: int = 0, large: bool = False
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            with archive.open(name, "w", force_zip64=large) as file:
                file.write(data)
        archive.comment = comment
    return buffer.getvalue()


def records(data: bytes) -> dict[bytes, zip_directory.Record]:
    return zip_directory.records(lambda start, size: data[start : start + size], len(data))


def content(data: bytes, record: zip_directory.Record) -> bytes:
    behind = behind_header(data[record.header : record.header + HEADER_BYTES])
    assert behind is not None
    return data[record.header + behind :][: record.size]


@given(
    members=st.dictionaries(NAMES, st.binary(max_size=40), max_size=8),
    comment=st.binary(max_size=60).filter(lambda comment: b"PK" not in comment),
    large=st.booleans(),
)
def test_it_tells_what_zipfile_reads(
    members: dict[str, bytes], comment: bytes, large: bool
) -> None:
    data = packed(members, comment=comment, large=large)
    found = records(data)
    assert {name.decode(): content(data, record) for name, record in found.items()} == members
    assert all(record.is_plain for record in found.values())


def widened(data: bytes, *, sizes: bool = True, place: bool = True) -> bytes:
    """An archive of one record "x", with 64-bit numbers wherever the format allows."""
    end = data.rindex(b"PK\5\6")
    *_, length, begin, _ = END.unpack_from(data, end)
    entry = bytearray(data[begin : begin + length])
    size, header = struct.unpack_from("<L", entry, 24)[0], struct.unpack_from("<L", entry, 42)[0]
    wide = []
    if sizes:
        entry[20:28] = b"\xff" * 8
        wide += [size, size]
    if place:
        entry[42:46] = b"\xff" * 4
        wide += [header]
    extra = struct.pack(f"<HHxxHH{len(wide)}Q", 0xCAFE, 2, 1, 8 * len(wide), *wide)
    entry[30:32] = struct.pack("<H", len(extra))
    entry[46 + 1 : 46 + 1] = extra
    long = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(entry), begin)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, begin + len(entry), 1)
    last = END.pack(b"PK\5\6", 0, 0, 1, 1, 2**32 - 1, 2**32 - 1, 0)
    return data[:begin] + bytes(entry) + long + locator + last


@pytest.mark.parametrize("sizes", [False, True])
@pytest.mark.parametrize("place", [False, True])
def test_numbers_of_64_bits_are_read(sizes: bool, place: bool) -> None:
    data = widened(packed({"x": b"0123456789"}), sizes=sizes, place=place)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.read("x") == b"0123456789"
    assert content(data, records(data)[b"x"]) == b"0123456789"


def test_a_record_that_is_not_as_it_is_stored_is_told() -> None:
    data = packed({"x": bytes(1000)}, method=zipfile.ZIP_DEFLATED)
    assert records(data)[b"x"].size == 1000
    assert not records(data)[b"x"].is_plain
    data = bytearray(packed({"x": bytes(1000)}))
    data[data.rindex(b"PK\1\2") + 8] |= 1  # encrypted
    assert not records(bytes(data))[b"x"].is_plain


def changed(data: bytes, at: int, new: bytes, *, of: bytes = b"PK\1\2") -> bytes:
    """With other bytes at a place behind the last of these."""
    start = data.rindex(of) + at
    return data[:start] + new + data[start + len(new) :]


ARCHIVE = packed({"a": b"01234567", "b": b"89"})
WRONG = {
    "nothing": (b"", "no directory"),
    "no end": (ARCHIVE[:-1], "is cut short"),
    "more behind it": (ARCHIVE + b"x", "not at its end"),
    "something before it": (b"x" + ARCHIVE, "lists something else"),
    "a directory behind the end": (changed(ARCHIVE, 16, b"\xff\0\0", of=b"PK\5\6"), "outside"),
    "too long a directory": (changed(ARCHIVE, 12, b"\xff\xff", of=b"PK\5\6"), "outside"),
    "a directory cut off": (changed(ARCHIVE, 12, b"\x30", of=b"PK\5\6"), "is cut off"),
    "a long name": (changed(ARCHIVE, 28, b"\xff"), "is cut off"),
    "a long comment": (changed(ARCHIVE, 32, b"\xff"), "is cut off"),
    "no entry": (changed(ARCHIVE, 0, b"PK\1\3"), "something else than records"),
    "two lengths": (changed(ARCHIVE, 24, b"\1"), "another length"),
    "more than there is": (changed(ARCHIVE, 20, b"\xf0\0\0\0\xf0\0\0\0"), "longer than it is"),
    "numbers that are nowhere": (changed(ARCHIVE, 42, b"\xff" * 4), "too large"),
    "one name twice": (changed(ARCHIVE, 46, b"a"), "two records of one name"),
    "a large end that is none": (
        changed(widened(packed({"x": b"0"})), 0, b"PK\6\5", of=b"PK\6\6"),
        "not where its end record states",
    ),
    "a large end that lies elsewhere": (
        changed(widened(packed({"x": b"0"})), 8, b"\xff" * 8, of=b"PK\6\7"),
        "outside",
    ),
    "fewer numbers than are needed": (
        changed(widened(packed({"x": b"0"})), 55, b"\x08", of=b"PK\1\2"),
        "too large",
    ),
}


@pytest.mark.parametrize(("data", "says"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        records(data)


def test_too_many_records_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_directory, "DIRECTORY_BYTES_MAX", 93)
    with pytest.raises(TooManyRecordsError, match="has 94 bytes"):
        records(ARCHIVE)


@given(data=st.data())
def test_an_archive_with_other_bytes_is_read_or_refused(data: st.DataObject) -> None:
    """Nothing else happens, and what is read lies within it or is found to have no header."""
    archive = bytearray(widened(packed({"x": b"01"})) if data.draw(st.booleans()) else ARCHIVE)
    for _ in range(data.draw(st.integers(1, 3))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = records(bytes(archive))
    except ValueError:
        return
    assert sum(record.size for record in found.values() if record.is_plain) <= len(archive)


def test_every_cut_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for length in range(len(ARCHIVE)):
            with pytest.raises(ValueError, match=r"it|record"):
                records(ARCHIVE[:length])
