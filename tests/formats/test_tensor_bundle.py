"""TensorFlow's checkpoints, built here byte by byte; those that TensorFlow writes are in
tests/integrations/test_tensorflow_files.py."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

import ckptstore
from ckptstore.errors import CkptStoreError, InvalidInputError, NotFoundError
from ckptstore.formats import read_file, tensor_bundle

FLOAT, STRING, INT64 = 1, 7, 9


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def entry(
    shape: tuple[int, ...], data: bytes, *, dtype: int = FLOAT, offset: int = 0, **others: Any
) -> bytes:
    dims = b"".join(message(2, number(1, length)) for length in shape)
    return (
        number(1, dtype)
        + message(2, dims)
        + number(3, others.get("shard", 0))
        + number(4, offset)
        + number(5, others.get("size", len(data)))
        + varint(6 << 3 | 5)
        + others.get("crc", masked(data))
        + others.get("more", b"")
    )


def block(items: dict[bytes, bytes]) -> bytes:
    body = b"".join(
        varint(0) + varint(len(key)) + varint(len(value)) + key + value
        for key, value in items.items()
    )
    body += struct.pack("<II", 0, 1) + b"\0"
    return body + masked(body)


def index(items: dict[bytes, bytes], *, shards: int = 1, header: bytes | None = None) -> bytes:
    head = number(1, shards) if header is None else header
    first = block({b"": head, **items})
    place = varint(0) + varint(len(first) - 5)
    second = block({b"z": place})
    footer = varint(0) + varint(0) + varint(len(first)) + varint(len(second) - 5)
    return first + second + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


DATA = np.arange(6, dtype="<f4").tobytes()
WHOLE = {b"model/w": entry((2, 3), DATA)}


def write(folder: Path, items: dict[bytes, bytes], data: bytes = DATA, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "ckpt.data-00000-of-00001").write_bytes(data)
    (folder / "ckpt.index").write_bytes(index(items, **options))
    return folder / "ckpt.index"


def committed(path: Path) -> Any:
    repo = ckptstore.init("memory://")
    repo.commit(read_file(path).state)
    return repo.checkout("main")


@pytest.mark.parametrize("name", ["ckpt.index", "ckpt.data-00000-of-00001", "ckpt", "."])
def test_any_of_its_names_is_the_checkpoint(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "run", WHOLE).parent / name
    assert committed(path)["model"]["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_texts_are_bytes_nested_as_their_shape(tmp_path: Path) -> None:
    texts = [b"a", b"", b"ccc", b"d"]
    lengths = b"".join(varint(len(text)) for text in texts)
    data = lengths + b"crc!" + b"".join(texts)
    items = {
        b"flat": entry((4,), data, dtype=STRING),
        b"square": entry((2, 2), data, dtype=STRING),
        b"one": entry((), b"\3crc!abc", dtype=STRING, offset=len(data)),
    }
    state = committed(write(tmp_path / "run", items, data + b"\3crc!abc"))
    assert state == {"flat": texts, "square": [texts[:2], texts[2:]], "one": b"abc"}


def test_the_newest_of_a_folder_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    write(tmp_path, WHOLE)
    for suffix in ("index", "data-00000-of-00001"):
        (tmp_path / f"ckpt.{suffix}").rename(tmp_path / f"ckpt-2.{suffix}")
    write(tmp_path, WHOLE)
    with pytest.raises(InvalidInputError, match=r"has 2 checkpoints of TensorFlow.*ckpt\.index"):
        read_file(tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/moved/from/ckpt-2"\n')
    file = read_file(tmp_path)
    assert file.meta["tensorflow"] == "ckpt-2"
    assert file.left_out == ("ckpt.data-00000-of-00001", "ckpt.index")


def test_a_run_of_them_is_imported_by_its_indices(tmp_path: Path) -> None:
    for step in (10, 9):
        folder = write(tmp_path / "run", WHOLE).parent
        for suffix in ("index", "data-00000-of-00001"):
            (folder / f"ckpt.{suffix}").rename(folder / f"ckpt-{step}.{suffix}")
    (folder / "checkpoint").write_text('model_checkpoint_path: "ckpt-10"\n')
    repo = ckptstore.init("memory://")
    plan = ckptstore.plan_import(repo, folder, pattern="ckpt-{step}.index")
    assert [made.step for made in plan.execute()] == [9, 10]
    assert plan.others == ("run/checkpoint",)


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "run", WHOLE)
    path.with_name("ckpt.data-00000-of-00001").unlink()
    with pytest.raises(NotFoundError, match=r"ckpt\.data-00000-of-00001 is missing"):
        read_file(path)


def test_other_files_of_such_names_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "notes.index").write_text("words")
    (tmp_path / "checkpoint").write_text("words")
    for name in ("notes.index", "checkpoint"):
        with pytest.raises(InvalidInputError, match="a text file"):
            read_file(tmp_path / name)
    with pytest.raises(InvalidInputError, match="without a checkpoint"):
        read_file(tmp_path)
    with pytest.raises(NotFoundError):
        read_file(tmp_path / "none")


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("items", "said"),
    [
        ({b"w": entry((2, 3), DATA, crc=b"\0\0\0\0")}, "checksum.*is wrong"),
        ({b"w": entry((2, 3), DATA, offset=8)}, "beyond the end"),
        ({b"w": entry((2, 3), DATA, offset=2**63)}, "beyond the end"),
        ({b"w": entry((2, 3), DATA, size=2**62)}, "beyond the end"),
        ({b"w": entry((2, 4), DATA)}, "has 24 bytes and the shape"),
        ({b"w": entry((2**40, 2**40), DATA)}, "shape"),
        ({b"w": entry((2**64 - 1, 3), DATA)}, "shape"),
        ({b"w": entry((1,) * 80 + (6,), DATA)}, "dimensions"),
        ({b"w": entry((2, 3), DATA, dtype=99)}, "dtype 99"),
        ({b"w": entry((2, 3), DATA, shard=1)}, "file 1 of 1"),
        ({b"w": entry((2, 3), DATA, more=message(7, b""))}, "is in slices"),
        ({b"w": entry((2**40,), DATA, dtype=STRING)}, "more texts than"),
        ({b"w": entry((3,), DATA, dtype=STRING)}, "other lengths|64 bits|damaged"),
        ({b"\xff": entry((2, 3), DATA)}, "damaged"),
        ({b"w": b"\xff" * 12}, "damaged"),
        ({b"w": b"\x0b"}, "damaged"),
        ({b"w": message(2, b"\x0a\xff")}, "damaged"),
    ],
    ids=[str(number) for number in range(17)],
)
def test_an_index_that_claims_what_is_not_there_is_refused(
    tmp_path: Path, items: dict[bytes, bytes], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said):
        read_file(write(tmp_path / "run", items))


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("header", "said"),
    [(b"", "has no header"), (number(1, 1) + number(2, 1), "big-endian"), (b"\xff", "damaged")],
    ids=["none", "endian", "cut"],
)
def test_a_header_that_is_not_read_is_refused(tmp_path: Path, header: bytes, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        read_file(write(tmp_path / "run", WHOLE, header=header))


@pytest.mark.hostile
def test_every_changed_byte_and_every_cut_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "run", WHOLE)
    data = path.with_name("ckpt.data-00000-of-00001")
    whole = {path: path.read_bytes(), data: data.read_bytes()}
    refused = 0
    for file, content in whole.items():
        changed = [
            content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :]
            for at in range(len(content))
        ]
        for broken in [*changed, *(content[:size] for size in range(0, len(content), 3))]:
            file.write_bytes(broken)
            try:
                assert committed(path)["model"]["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
            except CkptStoreError:
                refused += 1
        file.write_bytes(content)
    assert refused > 150


@pytest.mark.hostile
def test_a_data_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "run", WHOLE)
    data = path.with_name("ckpt.data-00000-of-00001")
    data.rename(tmp_path / "secret")
    data.symlink_to(tmp_path / "secret")
    with pytest.raises(CkptStoreError):
        read_file(path)


@pytest.mark.hostile
def test_the_newest_is_looked_for_in_the_folder_alone(tmp_path: Path) -> None:
    write(tmp_path / "secret", WHOLE)
    write(tmp_path / "run", WHOLE)
    (tmp_path / "run" / "checkpoint").write_text(
        f'model_checkpoint_path: "{tmp_path}/secret/ckpt"\n'
    )
    file = read_file(tmp_path / "run")
    assert file.meta == {"file": "run", "tensorflow": "ckpt"}
    assert file.left_out == ()


@pytest.mark.hostile
def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "run", {f"{n}".encode(): entry((2, 3), DATA) for n in range(5)})
    monkeypatch.setattr(tensor_bundle, "ENTRIES_MAX", 4)
    with pytest.raises(InvalidInputError, match=r"more than 4 tensors|beyond the end"):
        read_file(path)
    monkeypatch.setattr(tensor_bundle, "INDEX_BYTES_MAX", 100)
    with pytest.raises(InvalidInputError, match="more than 100 bytes"):
        read_file(path)
