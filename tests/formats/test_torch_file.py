"""torch's files: streamed, with the same result as torch, and readable by torch."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import warnings
import weakref
import zipfile
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore.arrays.lazy import LazyArray
from ckptstore.arrays.source import REPEATED_BYTES_MAX
from ckptstore.arrays.strided import SPAN_BYTES_MAX, FileArray
from ckptstore.commit.flatten import flatten
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import CkptStoreError, InvalidInputError, UnsupportedValueError
from ckptstore.formats import read_file, write_file, zip_directory
from ckptstore.formats.torch import unpickle as torch_unpickle
from ckptstore.formats.torch.save import ALIGNMENT
from ckptstore.testing.strategies import states, tensors
from tests.helpers.equality import difference
from tests.helpers.flat_files import bits_of, committed
from tests.helpers.root import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
]
FORMS = {"zip": True, "old": False}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A new name of a file each time it is asked."""
    folder = tmp_path_factory.mktemp("torch")
    return (folder / f"{number}.pt" for number in itertools.count())


def save(state: Any, path: Path, form: str = "zip") -> Path:
    torch.save(state, path, _use_new_zipfile_serialization=FORMS[form])
    return path


def whole(path: Path, **options: Any) -> Any:
    """What torch itself reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, weights_only=True, map_location="cpu", **options)


def assert_the_same_as_torch_reads(path: Path) -> None:
    """The same structure, ties and bits, and the same objects once it is committed."""
    expected, found = whole(path), read_file(path).state
    assert flatten(found).root == flatten(expected).root
    assert flatten(found).tied == flatten(expected).tied
    assert bits_of(found) == bits_of(expected)
    repo = ckptstore.init("memory://", chunk_size=64 << 10)
    before = repo.commit(expected)
    objects = repo.usage().objects
    assert difference(repo.checkout(before.id), repo.checkout(repo.commit(found).id)) is None
    assert repo.usage().objects == objects


# In


@pytest.mark.parametrize("form", FORMS)
@given(tensors=st.lists(tensors(), max_size=4), data=st.data())
def test_tensors_are_what_torch_reads(
    names: Iterator[Path], form: str, tensors: list[torch.Tensor], data: st.DataObject
) -> None:
    """Whatever their dtype, shape and view, also tied."""
    again = data.draw(st.lists(st.sampled_from(tensors), max_size=2)) if tensors else []
    state = {"a": tensors, "b": (OrderedDict(x=again), 1)}
    path = next(names)
    try:
        save(state, path, form)
        whole(path)
    except (RuntimeError, AttributeError, ValueError):
        return  # what torch can neither write nor read
    assert_the_same_as_torch_reads(path)


@given(state=states())
def test_what_is_written_comes_back(names: Iterator[Path], state: Any) -> None:
    """Every value that a checkpoint can hold, numpy arrays among them."""
    path = next(names)
    write_file(state, path)
    repo = ckptstore.init("memory://", chunk_size=64 << 10)
    expected = repo.checkout(repo.commit(state).id)
    assert difference(expected, repo.checkout(repo.commit(read_file(path).state).id)) is None


@pytest.mark.parametrize("form", FORMS)
def test_the_state_of_a_training_is_what_torch_reads(tmp_path: Path, form: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 40), torch.nn.BatchNorm1d(40))
    model.tied = model[0].weight  # type: ignore[assignment]
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 1, 2])
    state = {
        "model": model.state_dict(),
        "parameters": list(model.parameters()),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    path = save(state, tmp_path / "x.pt", form)
    assert_the_same_as_torch_reads(path)
    found = read_file(path).state
    assert found["model"]._metadata == model.state_dict()._metadata
    assert len(flatten(found).tied) == 5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("turned", [False, True], ids=["as it lies", "transposed"])
def test_any_part_of_an_array_can_be_read(tmp_path: Path, form: str, turned: bool) -> None:
    tensor = torch.arange(60 * 70, dtype=torch.int64).reshape(60, 70)
    tensor = tensor.T if turned else tensor
    array = read_file(save({"w": tensor}, tmp_path / "x.pt", form)).state["w"]
    data = bits_of({"w": tensor})["w"][2]
    chosen = random.Random(0)
    for _ in range(200):
        start, end = sorted(chosen.choices(range(len(data) + 1), k=2))
        buffer = bytearray(end - start)
        array.read_into(memoryview(buffer), start)
        assert buffer == data[start:end]


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda base: base.permute(2, 0, 1), id="permuted"),
        pytest.param(lambda base: base[:, ::3, 1::2], id="every third and second"),
        pytest.param(lambda base: base[:, 5, 7], id="a column"),
        pytest.param(lambda base: base[3].T, id="one of them, transposed"),
        pytest.param(lambda base: base[:, :1].expand(-1, 40, -1)[::2], id="expanded"),
        pytest.param(lambda base: base.as_strided((50, 50), (1, 1), 11), id="overlapping itself"),
    ],
)
def test_a_view_larger_than_what_is_read_at_once_keeps_every_bit(
    tmp_path: Path, view: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    base = torch.randint(2**15, (9, 601, 701), dtype=torch.int16)
    assert base.nbytes > SPAN_BYTES_MAX
    path = save([view(base)], tmp_path / "x.pt")
    (array,) = read_file(path).state
    assert isinstance(array, FileArray)
    assert bits_of([array]) == bits_of([view(base)])


def test_arrays_of_another_byte_order_are_turned(tmp_path: Path) -> None:
    state = {
        name: torch.arange(48, dtype=torch.uint8).view(getattr(torch, name))
        for name in ("int16", "float32", "bfloat16", "complex64", "float64", "uint8")
    }
    path = save({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "x.pt")
    rewrite(path, lambda name, data: b"big" if name.endswith("byteorder") else data)
    assert_the_same_as_torch_reads(path)
    assert bits_of(read_file(path).state)["float32"][2] != bits_of(state)["float32"][2]


def test_tensors_with_attributes_and_those_from_other_devices_are_read(tmp_path: Path) -> None:
    tensor = torch.ones(3)
    tensor.note = "x"  # type: ignore[attr-defined]
    path = save({"w": tensor}, tmp_path / "x.pt")
    rewrite(
        path,
        lambda name, data: (
            data.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:1") if "pkl" in name else data
        ),
    )
    assert b"cuda:1" in path.read_bytes()
    assert committed(path)["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        pytest.param(lambda: torch.eye(3).to_sparse(), "sparse_coo", id="sparse"),
        pytest.param(lambda: torch.eye(3).to_sparse_csr(), "sparse_csr", id="compressed"),
        pytest.param(
            lambda: torch.quantize_per_tensor(torch.rand(4), 0.1, 0, torch.quint8),
            "int_repr",
            id="quantized",
        ),
        pytest.param(
            lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "nested",
            id="nested",
        ),
        pytest.param(lambda: torch.zeros(3, device="meta"), "meta device", id="meta"),
        pytest.param(lambda: torch.ones(3).untyped_storage(), "Storage", id="a storage"),
        pytest.param(lambda: torch.zeros(1).expand(2**30), "repeats its elements", id="expanded"),
        pytest.param(lambda: torch.zeros([1] * 65), "65 dimensions", id="dimensions"),
        pytest.param(lambda: np.array([{}], dtype=object), "numpy array of objects", id="objects"),
        pytest.param(lambda: np.array(["a"]), "numpy dtype", id="text"),
    ],
)
def test_what_no_checkpoint_can_hold_is_refused(
    tmp_path: Path, tensor: Callable[[], Any], message: str
) -> None:
    path = save({"w": tensor()}, tmp_path / "x.pt")
    repo = ckptstore.init("memory://")
    with pytest.raises(InvalidInputError, match=message) as error:
        repo.commit(read_file(path).state)
    assert isinstance(error.value, UnsupportedValueError) or str(path) in str(error.value)
    assert repo.log() == []


def test_what_repeats_its_elements_up_to_the_limit_is_stored_in_full(tmp_path: Path) -> None:
    tensor = torch.zeros(1).expand(REPEATED_BYTES_MAX // 4)
    (array,) = read_file(save([tensor], tmp_path / "x.pt")).state
    assert array.nbytes == REPEATED_BYTES_MAX


def test_a_file_that_changes_before_it_is_committed_is_refused(tmp_path: Path) -> None:
    path = save({"w": torch.ones(1000)}, tmp_path / "x.pt")
    state = read_file(path).state
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(InvalidInputError, match="was changed"):
        ckptstore.init("memory://").commit(state)


def test_views_of_the_same_elements_are_tied_only_when_they_read_the_same(tmp_path: Path) -> None:
    base = torch.randn(4, 4, dtype=torch.complex64)
    state = {
        "a": base,
        "b": base,
        "conj": base.conj(),
        "t": base.T,
        "row": base[0],
        "h": base.T.conj(),
    }
    path = save(state, tmp_path / "x.pt")
    assert_the_same_as_torch_reads(path)
    assert flatten(read_file(path).state).tied == {"b": "a"}


def test_states_of_two_files_are_not_tied(tmp_path: Path) -> None:
    state = [
        read_file(save({"w": torch.full((3,), n)}, tmp_path / f"{n}.pt")).state for n in (1, 2)
    ]
    assert flatten(state).tied == {}


def test_a_link_is_followed_and_nothing_stays_open(tmp_path: Path) -> None:
    save({"w": torch.ones(3)}, tmp_path / "x.pt")
    (tmp_path / "y.pt").symlink_to("x.pt")
    state = read_file(tmp_path / "y.pt").state
    assert bits_of(state)["w"][1] == (3,)
    file = weakref.ref(state["w"].file)
    del state
    assert file() is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".CKPT"])
def test_a_file_of_torch_has_one_of_many_suffixes(tmp_path: Path, suffix: str, form: str) -> None:
    """Here as Lightning writes one."""
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    state = {
        "epoch": 1,
        "global_step": 5,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": model.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 2}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": {"best_score": torch.tensor(0.5)}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 1e-3, "layers": (3, 4)},
    }
    assert_the_same_as_torch_reads(save(state, tmp_path / f"x{suffix}", form))
    write_file(state, tmp_path / f"y{suffix}")
    assert difference(whole(tmp_path / f"y{suffix}"), state) is None


# What a file may not be


def rewrite(path: Path, change: Callable[[str, bytes], bytes | None], **options: Any) -> None:
    """Give the records of an archive other contents; None leaves one out."""
    with zipfile.ZipFile(path) as old:
        records = {name: change(name, old.read(name)) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", **options) as new:
        for name, data in records.items():
            if data is not None:
                new.writestr(name, data)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path, form: str) -> None:
    data = save({"w": torch.ones(30), "v": [torch.ones(2)]}, tmp_path / "x.pt", form).read_bytes()
    path = tmp_path / "cut.pt"
    for length in sorted({*range(0, len(data), 7), *range(len(data) - 60, len(data))}):
        path.write_bytes(data[:length])
        with pytest.raises(InvalidInputError, match="cut"):
            read_file(path)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_with_other_bytes_is_read_or_refused(tmp_path: Path, form: str) -> None:
    """A flipped byte may be a number of an array; whatever it is, nothing else happens."""
    state = {"w": torch.ones(9).expand(3, 9), "v": [torch.ones(2)], "n": np.ones(3), 5: "x"}
    data = bytearray(save(state, tmp_path / "x.pt", form).read_bytes())
    path = tmp_path / "flipped.pt"
    chosen = random.Random(form)
    places = [place for place in range(len(data)) if data[place]]
    for place in chosen.sample(places, min(400, len(places))):
        former, data[place] = data[place], chosen.randrange(256)
        path.write_bytes(data)
        data[place] = former
        with suppress(CkptStoreError):
            bits_of(read_file(path).state)


def pickled(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the pickle of an archive."""
    rewrite(path, lambda name, data: change(data) if name.endswith("data.pkl") else data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param((b"K\x06tq", b"K\x07tq"), "should have 28 bytes, and has 24", id="claims"),
        pytest.param((b"K\x06tq", b"J\0\0\0\x7ftq"), "larger than the file", id="huge"),
        pytest.param((b"K\x06tq", b"J\xff\xff\xff\xfftq"), "larger than the file", id="negative"),
        pytest.param((b"K\x06tq", b"Ntq"), "larger than the file", id="not a number"),
        pytest.param((b"K\x02K\x03\x86", b"K\x02K\x04\x86"), "beyond the end", id="shape"),
        pytest.param((b"K\x02K\x03\x86", b"J\xff\xff\xff\xffK\x03\x86"), "wrote", id="minus"),
        pytest.param(
            (b"K\x02K\x03\x86", b"\x8a\x08\0\0\0\0\0\0\0\x40K\x08\x86"), "wrote", id="overflow"
        ),
        pytest.param((b"K\x03K\x01\x86", b"K\x04K\x01\x86"), "beyond the end", id="strides"),
        pytest.param((b"QK\0K\x02", b"QK\x01K\x02"), "beyond the end", id="offset"),
        pytest.param((b"QK\0K\x02", b"QJ\xff\xff\xff\xffK\x02"), "wrote", id="before it"),
        pytest.param((b"X\x01\0\0\0000", b"X\x01\0\0\0009"), "no record 'data/9'", id="key"),
        pytest.param((b"FloatStorage", b"LongStorage "), "run code", id="no such kind"),
        pytest.param((b"FloatStorage", b"DoubleStorage"), "larger|should have", id="another kind"),
    ],
)
def test_what_a_pickle_claims_of_a_storage_is_checked(
    tmp_path: Path, change: tuple[bytes, bytes], message: str
) -> None:
    path = save({"w": torch.zeros(2, 3)}, tmp_path / "x.pt")

    def changed(data: bytes) -> bytes:
        assert data.count(change[0]) == 1, data
        return data.replace(*change)

    pickled(path, changed)
    with pytest.raises(InvalidInputError, match=message):
        bits_of(read_file(path).state)


def test_a_storage_that_is_missing_is_named(tmp_path: Path) -> None:
    path = save({"w": torch.zeros(2)}, tmp_path / "x.pt")
    rewrite(path, lambda name, data: None if name.endswith("data/0") else data)
    with pytest.raises(InvalidInputError, match="no record 'data/0'"):
        read_file(path)
    old = save({"w": torch.zeros(2)}, tmp_path / "old.pt", "old")
    data = old.read_bytes()
    key = data[data.rindex(b"]q\0X") :]
    old.write_bytes(data[: -len(key)] + pickle.dumps([], protocol=2))
    with pytest.raises(InvalidInputError, match="is missing"):
        read_file(old)


@pytest.mark.parametrize("length", [3, -1, 2**40, 2**62])
def test_a_storage_of_the_old_format_has_the_length_that_its_tensor_says(
    tmp_path: Path, length: int
) -> None:
    path = save({"w": torch.zeros(2)}, tmp_path / "x.pt", "old")
    path.write_bytes(path.read_bytes()[:-16] + struct.pack("<q", length) + bytes(8))
    with pytest.raises(InvalidInputError, match="should have 8 bytes"):
        read_file(path)


@pytest.mark.parametrize(
    ("place", "data"),
    [(28, b"\0\x40"), (26, b"\0\x40"), (0, b"PK\1\2")],
    ids=["extra", "name", "magic"],
)
def test_a_record_lies_within_the_archive_and_has_a_header(
    tmp_path: Path, place: int, data: bytes
) -> None:
    path = save({"w": torch.zeros(50_000)}, tmp_path / "x.pt")
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("x/data/0").header_offset + place
    content = bytearray(path.read_bytes())
    content[start : start + len(data)] = data
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match="record 'data/0' is beyond its end, or has no"):
        read_file(path)


@pytest.mark.parametrize("more", [2**62, 2**64 - 9999])
def test_a_record_does_not_lie_before_the_archive(tmp_path: Path, more: int) -> None:
    """Its directory says that it lies further back than it does, and so does every record."""
    path = save({"w": torch.zeros(2)}, tmp_path / "x.pt")
    rewrite(path, lambda _, data: data)  # without records for sizes beyond 4 GB
    data = path.read_bytes()
    end = struct.Struct("<4s4H2LH")
    *fields, size, place, _ = end.unpack(data[-end.size :])
    sizes = (44, 45, 45, 0, 0, *fields[3:], size, place + more)
    long = struct.pack("<4sQ2H2L4Q", b"PK\6\6", *sizes)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(data) - end.size, 1)
    last = end.pack(*fields, 2**32 - 1, 2**32 - 1, 0)
    path.write_bytes(data[: -end.size] + long + locator + last)
    with pytest.raises(InvalidInputError, match="its directory is outside of it"):
        read_file(path)


def test_an_archive_that_is_compressed_or_says_a_name_twice_is_refused(tmp_path: Path) -> None:
    path = save({"w": torch.zeros(2)}, tmp_path / "x.pt")
    rewrite(path, lambda name, data: data, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InvalidInputError, match="compressed"):
        read_file(path)
    save({"w": torch.zeros(2)}, path)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("x/data/0", bytes(8))
    with pytest.raises(InvalidInputError, match="two records"):
        read_file(path)


@pytest.mark.parametrize("code", ["]", "}", "(", "\x8f", ")\x85", "N"], ids=ascii)
def test_a_pickle_of_more_values_than_a_checkpoint_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """With bounds that are reached sooner."""
    monkeypatch.setattr(torch_unpickle, "READS_MAX", 10_000)
    monkeypatch.setattr(torch_unpickle, "CONTAINERS_MAX", 1_500)
    path = save({}, tmp_path / "x.pt")
    pickled(path, lambda _: b"\x80\x02" + code.encode("latin-1") * 10_001 + b".")
    with pytest.raises(InvalidInputError, match="more values"):
        read_file(path)


def test_an_archive_of_more_records_than_are_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zip_directory, "DIRECTORY_BYTES_MAX", 100)
    path = save({"w": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(InvalidInputError, match=r"too many records: .* Save its state in several"):
        read_file(path)


def test_an_archive_of_code_is_refused(tmp_path: Path) -> None:
    """torch compresses the code in it."""
    path = tmp_path / "x.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with pytest.raises(InvalidInputError, match="TorchScript"):
        read_file(path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", [4, 5])
def test_a_protocol_that_torch_does_not_read_is_told(
    tmp_path: Path, form: str, protocol: int
) -> None:
    path = tmp_path / "x.pt"
    torch.save(
        {"w": torch.ones(2), "n": np.ones(2)},
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=FORMS[form],
    )
    with pytest.raises(InvalidInputError, match=f"protocol {protocol}.*save it with protocol 2"):
        read_file(path)


def test_what_torch_says_of_more_than_plain_values_is_told(tmp_path: Path) -> None:
    """Where no name is to blame; here a number is given a state."""
    path = save({"w": torch.zeros(2)}, tmp_path / "x.pt")
    pickled(path, lambda _: b"\x80\x02K\x01}b.")
    with pytest.raises(InvalidInputError, match=r"plain values \(Can only build .*could run code"):
        read_file(path)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin"])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x80\x02K\x01.", id="another pickle"),
        pytest.param(b"\x80\x02ccollections\nOrderedDict\n)\x81", id="cut short"),
    ],
)
def test_what_torch_never_wrote_is_not_said_to_run_code(
    tmp_path: Path, data: bytes, suffix: str
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match=r"not a file that torch\.save wrote"):
        read_file(path)


class Planted:
    """Pickles as a call that would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_wants_to_run_code_is_refused(tmp_path: Path, form: str) -> None:
    """Also one that holds numpy arrays, for which more is allowed."""
    for first in (torch.ones(2), np.ones(2)):
        path = save([first, Planted(tmp_path / "ran")], tmp_path / "x.pt", form)
        with pytest.raises(InvalidInputError, match=r"\(posix.mkdir at .1.\).*could run code"):
            read_file(path)
        assert not (tmp_path / "ran").exists()
    assert not any("ckptstore" in str(found) for found in torch.serialization.get_safe_globals())


def test_a_numpy_array_is_no_larger_than_its_bytes(tmp_path: Path) -> None:
    path = save(np.zeros(3), tmp_path / "x.pt")
    pickled(path, lambda data: data.replace(b"K\x03\x85", b"K\x04\x85"))
    with pytest.raises(InvalidInputError, match="do not fit its shape"):
        read_file(path)


# Out


class Recorded(LazyArray):
    """Another array, that notes how much of it is read at once."""

    def __init__(self, array: torch.Tensor) -> None:
        self.kind, self.dtype, self.shape = "tensor", "float32", tuple(array.shape)
        self.data = bits_of([array])["0"][2]
        self.largest = 0

    def read_into(self, buffer: memoryview, start: int) -> None:
        self.largest = max(self.largest, len(buffer))
        buffer[:] = self.data[start : start + len(buffer)]


def test_torch_reads_what_was_written(tmp_path: Path) -> None:
    """By each of its ways, with every checksum right, and aligned so that a map of it is."""
    tied = torch.randn(33, 7)
    state = {
        "model": OrderedDict(w=tied, v=tied, t=tied.T, empty=torch.zeros(0, 3), b=torch.ones(3)),
        "dtypes": {
            name: torch.arange(48, dtype=torch.uint8).view(getattr(torch, name))
            for name in ITEM_BYTES
            if name != "bool"
        },
        "bool": torch.tensor([True, False]),
        "values": [1, 0.5, "x", None, (b"", torch.float16), 2**70],
    }
    path = tmp_path / "x.pt"
    write_file({**state, "lazy": Recorded(tied)}, path)
    expected = {**state, "lazy": tied}
    found = torch.load(path, weights_only=False)
    assert difference(expected, found) is None
    assert found["model"]["w"] is found["model"]["v"]
    assert all(
        tensor.data_ptr() % ALIGNMENT == 0
        for tensor in torch.load(path, weights_only=False, mmap=True)["dtypes"].values()
    )
    assert torch.load(path, weights_only=False, map_location="meta")["lazy"].shape == tied.shape
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    del expected["values"]
    write_file(expected, path, overwrite=True)
    torch.save(expected, tmp_path / "theirs.pt")
    for options in ({}, {"mmap": True}):
        assert difference(whole(tmp_path / "theirs.pt"), whole(path, **options)) is None


def test_an_array_is_written_a_piece_at_a_time(tmp_path: Path) -> None:
    array = Recorded(torch.randn(3 << 20))
    write_file({"w": array}, tmp_path / "x.pt")
    assert array.largest <= 4 << 20
    assert whole(tmp_path / "x.pt")["w"].numpy().tobytes() == array.data


def test_a_checkpoint_is_written_without_its_arrays_in_memory_and_comes_back(
    tmp_path: Path,
) -> None:
    base = torch.randn(40, 50)
    state = {"a": base, "b": base, "n": np.arange(5), "t": base.T.contiguous()[3:]}
    repo = ckptstore.init(tmp_path / "store", chunk_size=64 << 10)
    repo.commit(state)
    write_file(repo.checkout("main", lazy=True), tmp_path / "x.pt")
    again = committed(tmp_path / "x.pt")
    assert difference(state, again) is None
    assert again["a"] is again["b"]


def test_a_value_without_a_form_is_refused(tmp_path: Path) -> None:
    class Local:
        pass

    ckptstore.register_codec(Local, lambda value: 1, lambda value: Local())
    with pytest.raises(InvalidInputError, match=r"no \.pt form"):
        write_file({"x": Local()}, tmp_path / "x.pt")
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark is Linux's")
@pytest.mark.parametrize(
    ("size_mib", "extra_mib"), [(256, 128), pytest.param(2048, 256, marks=pytest.mark.deep)]
)
@pytest.mark.parametrize("name", ["zip", "old", "transposed", "dcp"])
def test_extra_memory_is_bounded(tmp_path: Path, name: str, size_mib: int, extra_mib: int) -> None:
    """Files of twice the bound, of two arrays or many: whoever holds a whole file is found out."""
    peaks = extra_memory(name, tmp_path, size_mib)
    assert {what: mib for what, mib in peaks.items() if mib >= extra_mib} == {}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark is Linux's")
@pytest.mark.parametrize("name", ["numpy", "small numpy"])
def test_numpy_arrays_are_read_whole_and_once(tmp_path: Path, name: str) -> None:
    """They are a part of the pickle, and written with as much memory as torch.save needs."""
    peaks = extra_memory(name, tmp_path, 128)
    assert peaks["commit"] < 128 + 128
    assert peaks["checkout"] < 8 * 128


def extra_memory(name: str, folder: Path, size_mib: int) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.helpers.torch_file_memory", name, str(folder)]
    done = subprocess.run(
        [*command, str(size_mib)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    peaks: dict[str, int] = json.loads(done.stdout)
    assert peaks.keys() == {"commit", "checkout"}
    return peaks
