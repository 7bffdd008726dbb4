""".h5 and .keras: what Keras wrote is committed and comes back so that Keras loads it."""

from __future__ import annotations

import json
import os
import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import h5py
import keras
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ckptstore
from ckptstore.documents.dtypes import ML_DTYPES, NUMPY_DTYPES
from ckptstore.errors import InvalidInputError
from ckptstore.formats import hdf5, read_file, write_file
from ckptstore.testing.strategies import arrays
from tests.helpers.flat_files import bits_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",  # Keras'
)


def through_a_repository(path: Path, out: Path) -> ckptstore.Checkpoint:
    """Commit a file, and write the checkpoint to another one."""
    file = read_file(path)
    repo = ckptstore.init("memory://")
    made = repo.commit(file.state, meta=file.meta)
    write_file(repo.checkout("main", lazy=True), out)
    return made


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    """A model with a layer in bfloat16, one without weights, and an optimizer with slots."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, dtype="bfloat16"),
            keras.layers.Dropout(0.1),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
    )
    model.compile("adam", "mse")
    model.fit(np.ones((8, 4), "float32"), np.ones((8, 1), "float32"), verbose=0)
    return model


def values(model: keras.Model) -> list[Any]:
    variables = [*model.weights, *model.optimizer.variables]
    return [torch.clone(variable.value.detach()) for variable in variables]


def same(first: keras.Model, second: keras.Model) -> bool:
    pairs = zip(values(first), values(second), strict=True)
    return all(one.dtype == two.dtype and torch.equal(one, two) for one, two in pairs)


def test_a_weights_h5_comes_back_as_keras_loads_it(trained: keras.Model, tmp_path: Path) -> None:
    trained.save_weights(tmp_path / "m.weights.h5")
    made = through_a_repository(tmp_path / "m.weights.h5", tmp_path / "back.weights.h5")
    other = keras.models.clone_model(trained)
    other.compile("adam", "mse")
    other.optimizer.build(other.trainable_variables)
    assert not same(trained, other)
    other.load_weights(tmp_path / "back.weights.h5")
    assert same(trained, other)
    kernel = made.array("layers/dense/vars/0")
    assert (kernel.dtype, kernel.shape) == ("bfloat16", (4, 3))
    assert made.meta["file"] == "m.weights.h5"


def test_a_keras_file_comes_back_loadable_with_its_config_verbatim(
    trained: keras.Model, tmp_path: Path
) -> None:
    trained.save(tmp_path / "m.keras")
    through_a_repository(tmp_path / "m.keras", tmp_path / "back.keras")
    assert same(trained, keras.models.load_model(tmp_path / "back.keras"))
    with (
        zipfile.ZipFile(tmp_path / "m.keras") as one,
        zipfile.ZipFile(tmp_path / "back.keras") as two,
    ):
        assert sorted(one.namelist()) == sorted(two.namelist())
        for name in ("config.json", "metadata.json"):
            assert one.read(name) == two.read(name)


def test_the_weights_of_both_are_stored_once(trained: keras.Model, tmp_path: Path) -> None:
    large = keras.Sequential([keras.Input((300,)), keras.layers.Dense(200)])
    large.save_weights(tmp_path / "m.weights.h5")
    large.save(tmp_path / "m.keras")
    repo = ckptstore.init("memory://")
    first = repo.commit(read_file(tmp_path / "m.weights.h5").state)
    second = repo.commit(read_file(tmp_path / "m.keras").state)
    assert first.array_bytes > 240_000
    assert second.new_bytes < 10_000


def test_assets_and_compressed_members_are_kept(tmp_path: Path, trained: keras.Model) -> None:
    trained.save(tmp_path / "m.keras")
    with (
        zipfile.ZipFile(tmp_path / "m.keras") as stored,
        zipfile.ZipFile(tmp_path / "z.keras", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
        packed.writestr("assets/layers/words/vocabulary.txt", "the\nof\n" * 1000)
        packed.writestr("assets/empty.txt", "")
    made = through_a_repository(tmp_path / "z.keras", tmp_path / "back.keras")
    assert made.array("assets/layers/words/vocabulary.txt").shape == (7000,)
    assert same(trained, keras.models.load_model(tmp_path / "back.keras"))
    with zipfile.ZipFile(tmp_path / "back.keras") as back:
        assert back.read("assets/layers/words/vocabulary.txt") == b"the\nof\n" * 1000
        assert back.read("assets/empty.txt") == b""


def test_a_layer_with_code_is_kept_as_text_and_never_run(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x * 3)])
    model.save(tmp_path / "m.keras")
    through_a_repository(tmp_path / "m.keras", tmp_path / "back.keras")
    with pytest.raises(ValueError, match=r"safe_mode|lambda"):
        keras.models.load_model(tmp_path / "back.keras")
    loaded = keras.models.load_model(tmp_path / "back.keras", safe_mode=False)
    assert float(loaded(np.ones((1, 2), "float32"))[0, 0]) == 3


def test_the_older_h5_of_a_whole_model_comes_back(trained: keras.Model, tmp_path: Path) -> None:
    """It has the config and the names in attributes, as texts and arrays of bytes."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="first")])
    path = tmp_path / "old.h5"
    from keras.src.legacy.saving import legacy_h5_format

    legacy_h5_format.save_model_to_hdf5(model, str(path))
    through_a_repository(path, tmp_path / "back.h5")
    again = keras.models.load_model(tmp_path / "back.h5")
    for one, two in zip(model.weights, again.weights, strict=True):
        assert torch.equal(one.value, two.value)
    with h5py.File(path) as first, h5py.File(tmp_path / "back.h5") as second:
        assert first.attrs["model_config"] == second.attrs["model_config"]
        assert list(first["model_weights"].attrs["layer_names"]) == list(
            second["model_weights"].attrs["layer_names"]
        )


KEYS = st.text(max_size=4) | st.sampled_from(["a", "a/b", "kernel:0", "%", "..", ".", "é", "0", ""])
KNOWN = NUMPY_DTYPES | ML_DTYPES


def is_held(array: Any) -> bool:
    return str(array.dtype).rpartition(".")[2] in KNOWN


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return tmp_path_factory.mktemp("h5")


LEAVES = arrays().filter(is_held)


@settings(suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(
    st.dictionaries(
        KEYS, LEAVES | st.dictionaries(KEYS, LEAVES, min_size=1, max_size=3), max_size=4
    )
)
def test_every_bit_is_kept(folder: Path, state: dict[str, Any]) -> None:
    write_file(state, folder / "x.h5", overwrite=True)
    assert bits_of(read_file(folder / "x.h5").state) == bits_of(state)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "gzip", "shuffle": True},
        {"chunks": (7, 3), "compression": "lzf"},
        {"maxshape": (None, 50)},
        {"fletcher32": True},
        {"dtype": ">f8"},
        {"dtype": ">f4", "compression": "gzip"},
    ],
    ids=str,
)
def test_arrays_that_h5py_wrote_are_read_bit_for_bit(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    data = np.random.default_rng(1).random((60, 50)).astype(options.get("dtype", "f8"))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("a/b", data=data, **options)
        file.create_dataset("empty", data=np.zeros((0, 3)))
        file.create_dataset("never written", shape=(3,), dtype="i4", fillvalue=7)
        file.create_dataset("truths", data=np.array([True, False]))
        file.create_dataset("scalar", data=np.complex64(1 + 2j))
    made = ckptstore.init("memory://").commit(read_file(tmp_path / "x.h5").state)
    assert np.array_equal(made.array("a/b")[:], data)
    assert made.array("empty").shape == (0, 3)
    assert made.array("never written")[:].tolist() == [7, 7, 7]
    assert made.array("truths")[:].tolist() == [True, False]
    assert made.array("scalar")[()] == 1 + 2j


def test_a_file_with_a_user_block_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w", userblock_size=512) as file:
        file["w"] = np.arange(5.0)
    data = bytearray((tmp_path / "x.h5").read_bytes())
    (tmp_path / "x.h5").write_bytes(data)
    state = read_file(tmp_path / "x.h5").state
    assert ckptstore.init("memory://").commit(state).array("w")[:].tolist() == [0, 1, 2, 3, 4]


def test_attributes_come_back(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["g/w"] = np.ones(2)
        file.attrs["text"] = "é"
        file["g"].attrs["numbers"] = np.array([1.5, 2.5])
        file["g"].attrs["count"] = 3
        file["g"].attrs["texts"] = np.array(["a", "b"], dtype=h5py.string_dtype())
        file["g/w"].attrs["bytes"] = np.array([b"ab", b"c"])
        file["g/w"].attrs["none"] = h5py.Empty("f4")
        file["g/w"].attrs["one"] = np.bytes_(b"x")
    made = through_a_repository(tmp_path / "x.h5", tmp_path / "y.h5")
    assert made.array("g/w")[:].tolist() == [1, 1]
    with h5py.File(tmp_path / "y.h5") as back:
        assert back.attrs["text"] == "é"
        assert back["g"].attrs["numbers"].tolist() == [1.5, 2.5]
        assert back["g"].attrs["count"] == 3
        assert list(back["g"].attrs["texts"]) == ["a", "b"]
        assert back["g/w"].attrs["bytes"].tolist() == [b"ab", b"c"]
        assert back["g/w"].attrs["none"] == h5py.Empty("f4")
        assert back["g/w"].attrs["one"] == b"x"


def test_a_part_of_any_checkpoint_is_an_h5(tmp_path: Path) -> None:
    repo = ckptstore.init("memory://")
    repo.commit({"model": torch.nn.Linear(2, 3).state_dict(), "step": 7, "list": [np.ones(2)]})
    with pytest.raises(InvalidInputError, match=r"holds arrays only.*step"):
        write_file(repo.checkout("main"), tmp_path / "x.h5")
    write_file(repo.checkout("main"), tmp_path / "x.h5", drop_values=True)
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["model/weight"].shape == (3, 2)
        assert file["list/0"][:].tolist() == [1, 1]
    with pytest.raises(InvalidInputError, match=r"no config\.json"):
        write_file(repo.checkout("main"), tmp_path / "x.keras", drop_values=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.h5"]


@pytest.mark.parametrize(
    "state",
    [np.ones(2), {"a": {"@attributes": np.ones(1)}, "@attributes": {"": {"x": np.ones(2)}}}],
    ids=["array", "attributes"],
)
def test_a_state_that_no_file_holds_is_refused(tmp_path: Path, state: Any) -> None:
    with pytest.raises(InvalidInputError):
        write_file(state, tmp_path / "x.h5")
    assert list(tmp_path.iterdir()) == []


def cyclic(file: Any) -> None:
    file["a/b"] = file.create_group("a")


def external_data(file: Any) -> None:
    Path("secret").write_bytes(b"s" * 64)
    file.create_dataset("w", shape=(8,), dtype="f8", external=[("secret", 0, 64)])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype="f8")
    layout[:] = h5py.VirtualSource("other.h5", "w", shape=(4,))
    file.create_virtual_dataset("w", layout)


def deep(file: Any) -> None:
    for _ in range(120):
        file = file.create_group("g")


def set_link(link: Any) -> Any:
    def write(file: Any) -> None:
        file["target"] = np.ones(2)
        file["link"] = link

    return write


def attribute(value: Any, **options: Any) -> Any:
    def write(file: Any) -> None:
        file.attrs.create("a", value, **options)

    return write


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("write", "said"),
    [
        (set_link(h5py.ExternalLink("other.h5", "/w")), "is a link to another place or file"),
        (set_link(h5py.SoftLink("/target")), "is a link to another place or file"),
        (cyclic, "several names, or is inside itself"),
        (external_data, "has its data in other files"),
        (virtual, "has its data in other files"),
        (deep, "is deeper than"),
        (lambda file: file.create_dataset("w", data=["text"]), "no checkpoint can hold"),
        (
            lambda file: file.create_dataset("w", data=np.zeros(2, [("a", "f4"), ("b", "i4")])),
            "no checkpoint can hold",
        ),
        (lambda file: file.create_dataset("w", data=h5py.Empty("f4")), "without a shape"),
        (lambda file: file.create_dataset("w", data=np.zeros(2, "V3")), "no checkpoint can hold"),
        (
            lambda file: file.create_dataset("w", shape=(1 << 40,), dtype="f8", chunks=(1 << 10,)),
            "would take 8,796,093,022,208 bytes",
        ),
        (
            lambda file: file.create_dataset(
                "w", shape=(4,), maxshape=(None,), dtype="f8", chunks=(1 << 28,), compression="gzip"
            ),
            "chunks that are larger",
        ),
        (lambda file: file.create_group("@attributes").attrs.update(a=1), "has a meaning"),
        (lambda file: file.attrs.update(r=file.create_group("g").ref), "is not read"),
        (lambda file: file.__setitem__("t", np.dtype("f4")), "neither a group nor an array"),
        (attribute(np.zeros(2, [("a", "f4")])), "is not read"),
    ],
    ids=[str(number) for number in range(16)],
)
def test_what_could_reach_other_files_or_claims_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with h5py.File("other.h5", "w") as other:
        other["w"] = np.ones(4)
    with h5py.File("x.h5", "w") as file:
        write(file)
    with pytest.raises(InvalidInputError, match=said):
        read_file("x.h5")


@pytest.mark.hostile
def test_a_damaged_heap_of_texts_does_not_hang(tmp_path: Path) -> None:
    """Without the guard, the HDF5 library looks for its end for ever."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["name"] = "text"
    data = bytearray((tmp_path / "x.h5").read_bytes())
    heap = data.index(b"GCOL")
    free = heap + 16 + 16 + 8
    assert struct.unpack_from("<H", data, free) == (0,)
    data[free + 8 : free + 16] = bytes(8)
    (tmp_path / "x.h5").write_bytes(data)
    with pytest.raises(InvalidInputError, match="heap of texts is damaged"):
        read_file(tmp_path / "x.h5")


@pytest.mark.hostile
@pytest.mark.parametrize("seed", range(4))
def test_damage_anywhere_is_an_error_or_harmless(tmp_path: Path, seed: int) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a/b"] = np.arange(50.0)
        file.create_dataset("c", data=np.arange(60).reshape(6, 10), compression="gzip")
        file["a"].attrs["name"] = "layer"
    data = (tmp_path / "x.h5").read_bytes()
    random = np.random.default_rng(seed)
    for _ in range(40):
        damaged = bytearray(data)
        damaged[random.integers(len(data))] ^= 1 << random.integers(8)
        (tmp_path / "x.h5").write_bytes(damaged)
        with suppress(InvalidInputError):
            ckptstore.init("memory://").commit(read_file(tmp_path / "x.h5").state)


@pytest.mark.hostile
@pytest.mark.parametrize("size", [8, 100, 1000, 2000])
def test_a_cut_file_is_refused(tmp_path: Path, size: int) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a/b"] = np.arange(500.0)
    data = (tmp_path / "x.h5").read_bytes()
    (tmp_path / "x.h5").write_bytes(data[:size])
    with pytest.raises(InvalidInputError, match="not an HDF5 file, or damaged"):
        read_file(tmp_path / "x.h5")


@pytest.mark.hostile
def test_too_many_objects_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "OBJECTS_MAX", 20)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for number in range(21):
            file.create_group(str(number))
    with pytest.raises(InvalidInputError, match="more than 20 objects"):
        read_file(tmp_path / "x.h5")


def archive(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as target:
        for name, data in members.items():
            target.writestr(name, data)


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"config.json": b"{}"}, "no config.json or no weights"),
        ({"model.weights.h5": b"\x89HDF\r\n\x1a\n"}, "not an HDF5 file"),
        ({"config.json": b"{}", "model.weights.h5": b""}, "not an HDF5 file"),
        ({"config.json": b"\xff", "model.weights.h5": b""}, "not a .keras file"),
    ],
    ids=["no weights", "no config", "empty", "encoding"],
)
def test_an_archive_without_a_model_is_refused(
    tmp_path: Path, members: dict[str, bytes], said: str
) -> None:
    archive(tmp_path / "x.keras", members)
    with pytest.raises(InvalidInputError, match=said):
        read_file(tmp_path / "x.keras")


@pytest.mark.hostile
def test_names_that_lead_elsewhere_are_only_names(tmp_path: Path, trained: keras.Model) -> None:
    trained.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras", "a") as target:
        target.writestr("assets/../../../evil", b"x")
        target.writestr("/etc/evil", b"x")
    (tmp_path / "out").mkdir()
    through_a_repository(tmp_path / "m.keras", tmp_path / "out" / "back.keras")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["back.keras"]


def test_a_config_is_text_whatever_it_says(tmp_path: Path, trained: keras.Model) -> None:
    trained.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as source:
        members = {name: source.read(name) for name in source.namelist()}
    text = json.dumps({"module": "os", "class_name": "system", "config": {"command": "touch ran"}})
    archive(tmp_path / "x.keras", {**members, "config.json": text.encode()})
    state = read_file(tmp_path / "x.keras").state
    assert state["config.json"] == text


def test_without_h5py_the_error_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["w"] = np.ones(2)
    monkeypatch.delitem(sys.modules, "ckptstore.formats.hdf5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InvalidInputError, match=r"needs a package that cannot be imported.*h5py"):
        read_file(tmp_path / "x.h5")
