""".safetensors: written byte for byte as the library does; faults are reported."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

import ckptstore
from ckptstore.commit.flatten import flatten
from ckptstore.errors import CkptStoreError, InvalidInputError
from ckptstore.formats import named, read_file, write_file
from ckptstore.formats.safetensors import DTYPES
from ckptstore.testing.strategies import arrays, tensors
from tests.helpers.equality import difference
from tests.helpers.flat_files import bits_of, committed

if TYPE_CHECKING:
    from pathlib import Path

NAMES = st.text(max_size=6) | st.sampled_from(["a", "b.c", "a/b", "é", '"', "\\", "%2F", "\x7f"])


def is_known(tensor: torch.Tensor) -> bool:
    """True for dtypes that the format has a name for; 4-bit pairs need a dimension."""
    if tensor.dtype is torch.float4_e2m1fn_x2 and not tensor.dim():
        return False
    return str(tensor.dtype).removeprefix("torch.") in DTYPES


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """A copy as the library wants it: contiguous, and of memory of its own."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    size = tensor.element_size()
    flat = tensor.view(torch.uint8) if size == 1 else tensor
    return flat.clone(memory_format=torch.contiguous_format).view(tensor.dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("safetensors")


@given(st.dictionaries(NAMES, tensors().filter(is_known), max_size=6))
def test_what_is_written_is_what_the_library_writes(
    folder: Path, state: dict[str, torch.Tensor]
) -> None:
    path = folder / "ours.safetensors"
    write_file(state, path, overwrite=True)
    paths = list(flatten(state).arrays)
    theirs = {name: plain(t) for name, t in zip(paths, state.values(), strict=True)}
    assert path.read_bytes() == save(theirs)


def without_pairs(tensor: torch.Tensor) -> bool:
    return is_known(tensor) and tensor.dtype is not torch.float4_e2m1fn_x2


@given(st.dictionaries(st.text("ab.c_0", min_size=1), tensors().filter(without_pairs), max_size=6))
def test_what_the_library_wrote_comes_back_bit_for_bit(
    folder: Path, state: dict[str, torch.Tensor]
) -> None:
    state = {name: plain(tensor) for name, tensor in sorted(state.items())}
    path = folder / "theirs.safetensors"
    save_file(state, path)
    assert difference(state, dict(sorted(committed(path).items()))) is None


@given(st.dictionaries(NAMES, st.dictionaries(NAMES, arrays(), max_size=3) | arrays(), max_size=5))
def test_a_state_of_dicts_has_the_same_paths_when_it_is_named(state: dict[str, Any]) -> None:
    flat = flatten(state).arrays
    again = flatten(named({path: source.array for path, source in flat.items()}))
    assert list(again.arrays) == list(flat)


@pytest.mark.parametrize(
    "names",
    [("a", "a/b"), ("a/b", "a"), ("a//b", "c"), ("/a",), ("a/",), ("%zz",), ("%FF",), ("/" * 600,)],
    ids=repr,
)
def test_names_that_are_no_paths_stay_keys(tmp_path: Path, names: tuple[str, ...]) -> None:
    save_file({name: torch.ones(1) for name in names}, tmp_path / "x.safetensors")
    assert sorted(committed(tmp_path / "x.safetensors")) == sorted(names)


def packed(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def entry(name: str, dtype: str, shape: str, begin: int, end: int) -> bytes:
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}'.encode()


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"{" + entry("w", "U8", "[2]", 0, 2) + b"," + entry("w", "U8", "[4]", 0, 4), "two.*'w'"),
        (b"{" + entry("w", "F4", "[2,3,1]", 0, 3) + b"," + entry("x", "U8", "[1]", 3, 4), "F4"),
        (b"{" + entry("w", "F6_E2M3", "[4]", 0, 3) + b"," + entry("x", "U8", "[1]", 3, 4), "F6"),
        (b"{" + entry("w", "U8", f"[{'1,' * 64}4]", 0, 4), "65 dimensions"),
        (b"{" + entry("w", "U8", "[2]", 0, 2) + b"," + entry("v", "U8", "[2]", 1, 3), "offset"),
        (b"{" + entry("w", "U8", "[2]", 0, 2), "."),
    ],
    ids=["twice", "half a byte", "6 bits", "65 dimensions", "overlap", "a rest"],
)
def test_what_is_wrong_is_told(tmp_path: Path, header: bytes, said: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(packed(header + b"}", bytes(4)))
    with pytest.raises(InvalidInputError, match=rf"x\.safetensors.*{said}"):
        read_file(tmp_path / "x.safetensors")


@given(st.data())
def test_a_file_that_is_cut_is_refused(folder: Path, data: st.DataObject) -> None:
    whole = save({"a": torch.ones(3, 4), "b": torch.ones(2).bfloat16()}, metadata={"k": "v"})
    path = folder / "cut.safetensors"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(InvalidInputError, match=r"cut\.safetensors"):
        read_file(path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of Git LFS"),
        (b"PK\3\4" + bytes(2000), "not a safetensors file: it has 2004 bytes"),
    ],
    ids=["a pointer", "an archive"],
)
def test_what_is_no_such_file_is_not_said_to_have_a_long_header(
    tmp_path: Path, data: bytes, said: str
) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(InvalidInputError, match=said):
        read_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580, 0x8B1F])
def test_a_length_of_the_header_that_looks_like_another_kind(tmp_path: Path, length: int) -> None:
    """As the first bytes of a pickle, and of gzip."""
    data = save({"w": torch.ones(2)})
    header = data[8 : 8 + int.from_bytes(data[:8], "little")].ljust(length)
    (tmp_path / "x.safetensors").write_bytes(length.to_bytes(8, "little") + header + data[-8:])
    repo = ckptstore.init(tmp_path / "store")
    repo.commit(read_file(tmp_path / "x.safetensors").state)
    assert torch.equal(repo.checkout()["w"], torch.ones(2))


def test_parts_of_tensors_are_refused(tmp_path: Path) -> None:
    """As each process of torch.distributed.checkpoint writes; whole tensors begin at 0."""
    for number, offsets in enumerate(([0, 0], [3, 0]), start=1):
        told = json.dumps({"w": {"saved_offsets": offsets}})
        name = f"shard-{number:05d}-model-00001-of-00001.safetensors"
        save_file({"w": torch.ones(3, 2)}, tmp_path / name, metadata={"DCP_SHARDING_INFO": told})
    assert list(committed(tmp_path / "shard-00001-model-00001-of-00001.safetensors")) == ["w"]
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(InvalidInputError, match="parts of tensors"):
            read_file(path)


@pytest.mark.parametrize("told", ["", "[]", '{"w":3}', '{"w":{}}', "{" * 1000])
def test_places_that_are_none_are_refused(tmp_path: Path, told: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.ones(3)}, path, metadata={"DCP_SHARDING_INFO": told})
    with pytest.raises(InvalidInputError, match="not a safetensors file"):
        read_file(path)


def test_two_floats_of_4_bits_count_as_one_element_here_and_as_two_there(tmp_path: Path) -> None:
    pairs = torch.arange(6, dtype=torch.uint8).reshape(2, 3).view(torch.float4_e2m1fn_x2)
    write_file({"w": pairs}, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="np") as file:
        assert file.get_slice("w").get_shape() == [2, 6]
    assert difference(committed(tmp_path / "x.safetensors"), {"w": pairs}) is None
    with pytest.raises(InvalidInputError, match=r"so s, .*\.pt file"):
        write_file({"s": pairs[0, 0]}, tmp_path / "y.safetensors")


# Folders of shards.


@given(
    st.dictionaries(NAMES, tensors().filter(is_known), max_size=8),
    st.integers(1, 300_000),
)
def test_shards_hold_every_array_once_and_are_small(
    tmp_path_factory: pytest.TempPathFactory, state: dict[str, torch.Tensor], size: int
) -> None:
    path = tmp_path_factory.mktemp("shards") / "out"
    write_file(state, path, shard_bytes=size)
    flat = flatten(state).arrays
    held: dict[str, str] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="np") as shard:
            names = shard.keys()
            assert shard.metadata() == {"format": "pt"}
        assert sum(flat[name].nbytes for name in names) <= size or len(names) == 1
        held |= dict.fromkeys(names, file.name)
    assert held.keys() == flat.keys()
    index = path / "model.safetensors.index.json"
    assert index.exists() == (len(set(held.values())) > 1)
    if index.exists():
        said = json.loads(index.read_text())
        assert said["weight_map"] == held
        assert said["metadata"]["total_size"] == sum(source.nbytes for source in flat.values())
    assert bits_of(committed(path)) == bits_of(state)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of two files: a and b in the first, c in the second."""
    path = tmp_path / "model"
    write_file({name: torch.ones(8) for name in "abc"}, path, shard_bytes=64)
    return path


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def change(folder: Path, **places: str | None) -> None:
    """Change where the index says that tensors lie."""
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= places
    index["weight_map"] = {name: place for name, place in index["weight_map"].items() if place}
    (folder / INDEX).write_text(json.dumps(index))


OUTSIDE = [
    "../x.safetensors",
    "/x.safetensors",
    "a/x.safetensors",
    "..",
    ".",
    "",
    "a\\x.safetensors",
]


@pytest.mark.parametrize("place", [*OUTSIDE, "x.bin", "x.safetensors\0.safetensors"], ids=repr)
def test_an_index_may_only_name_files_beside_it(shards: Path, place: str) -> None:
    save_file({"c": torch.zeros(8)}, shards.parent / "x.safetensors")
    (shards / INDEX).write_text(json.dumps({"weight_map": {"a": FIRST, "b": FIRST, "c": place}}))
    with pytest.raises(InvalidInputError, match="'c' is in"):
        read_file(shards)


@pytest.mark.parametrize("name", [SECOND, INDEX])
def test_a_link_out_of_the_folder_is_refused_and_one_within_is_followed(
    shards: Path, name: str
) -> None:
    (shards / name).rename(shards / "kept")
    (shards / name).symlink_to("kept")
    assert sorted(committed(shards)["model"]) == ["a", "b", "c"]
    (shards / "kept").rename(shards.parent / "kept")
    for target in ("../kept", str(shards.parent / "kept"), "nowhere", name):
        (shards / name).unlink()
        (shards / name).symlink_to(target)
        with pytest.raises(InvalidInputError, match="is a link out of its folder"):
            read_file(shards)


def test_the_folder_itself_may_be_a_link(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(shards)
    assert sorted(committed(tmp_path / "link")) == ["a", "b", "c"]
    assert read_file(tmp_path / "link").meta["file"] == "link"


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ({"c": FIRST}, "'c'.*is in 'model-00001"),
        ({"d": FIRST}, "'d' is in 'model-00001"),
        ({"b": None}, "'b'.*nowhere"),
        ({"c": "none.safetensors"}, "lacks 'none.safetensors'"),
        ({"c": 3}, "'c' is in 3"),
    ],
    ids=["elsewhere", "missing", "not named", "no file", "no name"],
)
def test_every_tensor_must_lie_where_the_index_says(
    shards: Path, places: dict[str, Any], said: str
) -> None:
    change(shards, **places)
    with pytest.raises(CkptStoreError, match=said):
        read_file(shards)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"weight_map": [1]}',
        f'{{"weight_map": [[1, "{FIRST}"], ["z", "{FIRST}"], ["a", "{FIRST}"], ["b", "{FIRST}"]]}}',
        '{"weight_map": ' + "9" * 5000 + "}",
        "[" * 100_000,
        '{"weight_map":{"a":"b","a":"b"}}',
    ],
    ids=lambda text: text[:40],
)
def test_an_index_must_be_one(shards: Path, text: str) -> None:
    (shards / INDEX).write_text(text)
    with pytest.raises(InvalidInputError, match="index"):
        read_file(shards)


def test_an_error_about_a_place_can_be_printed(shards: Path) -> None:
    """JSON can hold half of a surrogate pair, which no terminal takes."""
    change(shards, c="\ud800.safetensors")
    with pytest.raises(CkptStoreError, match="safetensors") as caught:
        read_file(shards)
    assert str(caught.value).encode()


def test_files_without_an_index_are_taken_together(shards: Path) -> None:
    (shards / INDEX).unlink()
    assert sorted(committed(shards)) == ["a", "b", "c"]
    save_file({"d": torch.ones(1), "a": torch.ones(1)}, shards / "more.safetensors")
    with pytest.raises(
        InvalidInputError, match=r"more\.safetensors has 'a', and so has 'model-00001"
    ):
        read_file(shards)
    (shards / "more.safetensors").unlink()
    (shards / SECOND).unlink()
    with pytest.raises(InvalidInputError, match="is one of 2"):
        read_file(shards)


def test_two_indices_are_two_models(shards: Path) -> None:
    index = shards / "other.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(InvalidInputError, match="is not an index"):
        read_file(shards)
    save_file({"d": torch.ones(1)}, shards / "other.safetensors")
    index.write_text('{"weight_map": {"d": "other.safetensors"}}')
    assert sorted(committed(shards)) == ["files", "model", "other"]


# Folders of older shards.


TORCH_INDEX = "pytorch_model.bin.index.json"


@pytest.fixture
def torch_shards(tmp_path: Path) -> Path:
    """Two files as Hugging Face split models before .safetensors: a and b, then c."""
    path = tmp_path / "older"
    path.mkdir()
    tied = torch.arange(6.0)
    for number, held in enumerate(({"a": tied, "b": tied}, {"c.d": torch.ones(2).half()}), start=1):
        torch.save(held, path / f"pytorch_model-0000{number}-of-00002.bin")
    places = dict.fromkeys("ab", "pytorch_model-00001-of-00002.bin")
    places["c.d"] = "pytorch_model-00002-of-00002.bin"
    index = {"metadata": {"total_size": 28}, "weight_map": places}
    (path / TORCH_INDEX).write_text(json.dumps(index))
    return path


def test_shards_of_torch_are_read_by_their_index(torch_shards: Path) -> None:
    expected = {"a": torch.arange(6.0), "b": torch.arange(6.0), "c.d": torch.ones(2).half()}
    assert bits_of(committed(torch_shards)) == bits_of(expected)
    assert flatten(read_file(torch_shards).state).tied == {"b": "a"}


def test_the_model_is_that_in_safetensors_where_both_are_there(torch_shards: Path) -> None:
    save_file({"w": torch.ones(1)}, torch_shards / "model.safetensors")
    state = committed(torch_shards)
    assert list(state) == ["model", "pytorch_model", "files"]
    assert list(state["model"]) == ["w"]


def test_shards_of_torch_are_held_to_their_index(torch_shards: Path) -> None:
    second = torch_shards / "pytorch_model-00002-of-00002.bin"
    for held, said in (
        ({"c.d": torch.ones(2), "e": torch.ones(1)}, "'e'.*nowhere"),
        ({"c": {"d": torch.ones(2)}}, "more than tensors by name"),
        ([torch.ones(2)], "more than tensors by name"),
        ({"c.d": 1.5}, "more than tensors by name"),
        ({}, "'c.d' is in"),
    ):
        torch.save(held, second)
        with pytest.raises(InvalidInputError, match=said):
            read_file(torch_shards)
    second.unlink()
    for target in ("../x.bin", "nowhere"):
        torch.save({"c.d": torch.ones(2)}, torch_shards.parent / "x.bin")
        second.symlink_to(target)
        with pytest.raises(InvalidInputError, match="is a link out of its folder"):
            read_file(torch_shards)
        second.unlink()


@pytest.mark.parametrize("place", ["../x.bin", "/x.bin", "a\\x.bin", "x.pt", "x.safetensors"])
def test_an_index_of_torch_may_only_name_files_of_torch_beside_it(
    torch_shards: Path, place: str
) -> None:
    index = torch_shards / TORCH_INDEX
    index.write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(InvalidInputError, match=r"'a' is in .* not the name of a \.bin"):
        read_file(torch_shards)
