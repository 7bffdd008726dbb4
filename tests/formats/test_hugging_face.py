"""Folders of Hugging Face are taken whole, and come back with the same bytes or contents."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore import InvalidInputError, NotFoundError, formats
from tests.helpers.equality import difference

TOKENIZER = json.dumps({"vocab": list(range(30_000))}).encode()


class Arguments:
    """Stands for transformers.TrainingArguments, which is pickled whole."""

    def __init__(self) -> None:
        self.lr = 0.1


def weights(step: int = 0) -> dict[str, torch.Tensor]:
    numbers = torch.arange(24.0)
    return {
        "bert.layer.0.weight": numbers.reshape(4, 6) + step,
        "head.weight": torch.zeros(2, 4),
        "bert.layer.0.bias": torch.ones(4, dtype=torch.bfloat16),
    }


def trained(folder: Path, step: int = 500) -> Path:
    """A folder as Trainer leaves it."""
    folder.mkdir(parents=True)
    safetensors.torch.save_file(
        weights(step), folder / "model.safetensors", metadata={"format": "pt"}
    )
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(scheduler.state_dict(), folder / "scheduler.pt")
    random = {"numpy": np.random.default_rng(0).random(5), "cpu": torch.get_rng_state()}
    torch.save(random, folder / "rng_state.pth")
    torch.save(Arguments(), folder / "training_args.bin")
    (folder / "config.json").write_text('{\n  "hidden_size": 6\n}\n')
    (folder / "tokenizer.json").write_bytes(TOKENIZER)
    history = [
        {"step": 250, "eval_loss": 0.5, "eval_rouge": 0.1, "epoch": 1.0},
        {"step": step, "loss": 0.3, "epoch": 2.0},
        {"step": step, "eval_loss": 0.25, "epoch": 2.0},
    ]
    state = {"global_step": step, "epoch": 2.5, "log_history": history}
    (folder / "trainer_state.json").write_text(json.dumps(state, indent=2))
    (folder / "empty.txt").touch()
    return folder


def committed(folder: Path) -> ckptstore.Repository:
    repo = ckptstore.init("memory://")
    file = formats.read_file(folder)
    assert file.left_out == ()
    repo.commit(file.state, step=file.step, metrics=file.metrics, meta=file.meta)
    return repo


def again(repo: ckptstore.Repository, folder: Path, **chosen: Any) -> Path:
    formats.write_file(repo.checkout("main", lazy=True, **chosen), folder)
    return folder


def contents(folder: Path) -> dict[str, Any]:
    """The bytes of each file; the state of each that torch.save wrote and that is opened."""
    found: dict[str, Any] = {}
    for file in folder.rglob("*"):
        name = str(file.relative_to(folder))
        if name.endswith(("optimizer.pt", "scheduler.pt", "optimizer.bin", "model.bin", "t_0.pkl")):
            found[name] = torch.load(file)
        else:
            found[name] = file.read_bytes() if file.is_file() else None
    return found


def assert_equal(one: Path, other: Path) -> None:
    expected, found = contents(one), contents(other)
    assert sorted(found) == sorted(expected)
    assert {name for name in expected if difference(expected[name], found[name])} == set()


def test_a_checkpoint_of_a_trainer_comes_back(tmp_path: Path) -> None:
    folder = trained(tmp_path / "checkpoint-500")
    repo = committed(folder)
    checkpoint = repo.resolve("main")
    assert (checkpoint.step, checkpoint.metrics) == (500, {"loss": 0.3, "eval_loss": 0.25})
    assert checkpoint.names == ("model", "optimizer", "scheduler", "files")
    assert_equal(folder, again(repo, tmp_path / "out"))
    formats.write_file(repo.checkout("main"), tmp_path / "from-tensors")
    assert_equal(folder, tmp_path / "from-tensors")


def test_its_weights_are_those_of_a_model(tmp_path: Path) -> None:
    repo = committed(trained(tmp_path / "checkpoint-500"))
    model = torch.nn.ModuleDict({"bert": torch.nn.ModuleDict({"layer": torch.nn.ModuleList()})})
    model["bert"]["layer"].append(torch.nn.Linear(6, 4))
    model["bert"]["layer"][0].bias.data = torch.zeros(4, dtype=torch.bfloat16)
    model["head"] = torch.nn.Linear(4, 2, bias=False)
    assert not ckptstore.load_weights(model, repo)
    assert all(torch.equal(model.state_dict()[name], one) for name, one in weights(500).items())
    assert difference(repo.checkout("main", part="model"), weights(500)) is None
    with torch.no_grad():
        model["head"].weight += 1
    assert repo.follow().update(model).read_bytes > 0
    assert torch.equal(model["head"].weight, weights(500)["head.weight"])


def test_what_is_equal_is_stored_once_and_what_differs_is_named(tmp_path: Path) -> None:
    repo = committed(trained(tmp_path / "checkpoint-500"))
    file = formats.read_file(trained(tmp_path / "checkpoint-1000", 1000))
    made = repo.commit(file.state, step=file.step)
    assert made.new_bytes < len(TOKENIZER) / 4
    found = repo.diff("main~1", "main")
    changed = {change.path for change in found.arrays}
    assert "files/trainer_state.json" in changed
    assert "model/bert.layer.0.weight" in changed
    assert not changed & {"files/config.json", "files/tokenizer.json", "model/head.weight"}
    assert not [path for path in changed if path.endswith("header")]


def sharded(folder: Path, *, is_torch: bool = False) -> Path:
    folder.mkdir()
    names = list(weights())
    suffix = "bin" if is_torch else "safetensors"
    stem = "pytorch_model" if is_torch else "model"
    places = {}
    for number, own in enumerate((names[:2], names[2:]), start=1):
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        tensors = {name: weights()[name] for name in own}
        places |= dict.fromkeys(own, file)
        if is_torch:
            torch.save(tensors, folder / file)
        else:
            safetensors.torch.save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("is_torch", [False, True])
def test_shards_are_one_model_and_come_back(tmp_path: Path, *, is_torch: bool) -> None:
    folder = sharded(tmp_path / "model", is_torch=is_torch)
    repo = committed(folder)
    assert difference(repo.checkout("main", part="model"), weights()) is None
    out = again(repo, tmp_path / "out")
    assert sorted(contents(out)) == sorted(contents(folder))
    for file in out.glob("*.bin"):
        assert difference(torch.load(file), torch.load(folder / file.name)) is None
    for file in out.glob("*.*s*"):
        assert file.read_bytes() == (folder / file.name).read_bytes()


def test_shards_are_one_model_without_their_index_too(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    (folder / "model.safetensors.index.json").unlink()
    repo = committed(folder)
    assert repo.resolve("main").names == ("model", "files")
    assert_equal(folder, again(repo, tmp_path / "out"))
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(InvalidInputError, match="is one of 2"):
        formats.read_file(folder)


def test_weights_that_changed_are_written_anew(tmp_path: Path) -> None:
    repo = committed(sharded(tmp_path / "model"))
    state = repo.checkout("main", lazy=True)
    state["model"]["more.weight"] = torch.ones(3)
    formats.write_file(state, tmp_path / "out")
    found = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == {*weights(), "more.weight"}
    assert all(torch.equal(found[name], one) for name, one in weights().items())
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "model.safetensors"]
    formats.write_file(repo.checkout("main", lazy=True), tmp_path / "small", shard_bytes=100)
    index = json.loads((tmp_path / "small" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1


def test_what_a_checkout_leaves_out_is_not_written(tmp_path: Path) -> None:
    repo = committed(trained(tmp_path / "checkpoint-500"))
    out = again(repo, tmp_path / "out", exclude=["optimizer/**", "files/rng_state.pth"])
    names = os.listdir(out)
    assert "optimizer.pt" not in names
    assert "rng_state.pth" not in names
    assert {"model.safetensors", "trainer_state.json", "scheduler.pt"} <= set(names)
    out = again(repo, tmp_path / "no-moments", exclude="optimizer/state/**")
    assert "optimizer.pt" not in os.listdir(out), "a run would go on with moments of zero"


def test_folders_inside_belong_to_it_and_other_checkpoints_do_not(tmp_path: Path) -> None:
    folder = trained(tmp_path / "out")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    dense = {"linear.weight": torch.ones(2, 2)}
    (folder / "2_Dense").mkdir()
    safetensors.torch.save_file(dense, folder / "2_Dense" / "model.safetensors")
    (folder / "3_Normalize").mkdir()
    trained(folder / "checkpoint-250", 250)
    (folder / ".git").mkdir()
    file = formats.read_file(folder)
    assert file.left_out == (".git/", "checkpoint-250/")
    repo = ckptstore.init("memory://")
    repo.commit(file.state)
    assert difference(repo.checkout("main", part="2_Dense.model"), dense) is None
    for name in (".git", "checkpoint-250"):
        shutil.rmtree(folder / name)
    assert_equal(folder, again(repo, tmp_path / "again"))


def test_weights_in_two_formats_are_both_kept(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    safetensors.torch.save_file(weights(), folder / "model.safetensors")
    torch.save(weights(), folder / "pytorch_model.bin")
    (folder / "tf_model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    repo = committed(folder)
    assert repo.resolve("main").names == ("model", "pytorch_model", "files")
    assert_equal(folder, again(repo, tmp_path / "out"))
    usage = repo.commit({"weights": weights()}, branch="other")
    assert usage.new_bytes < 2_000, "the weights are there"


def test_a_folder_of_accelerate_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    torch.save(weights(), folder / "pytorch_model.bin")
    torch.save({"state": {0: {"step": torch.tensor(1.0)}}}, folder / "optimizer.bin")
    torch.save({"n": 3}, folder / "custom_checkpoint_0.pkl")
    torch.save({"random": np.ones(3)}, folder / "random_states_0.pkl")
    repo = committed(folder)
    assert repo.resolve("main").names == ("model", "custom_checkpoint_0", "optimizer", "files")
    assert repo.checkout("main", part="custom_checkpoint_0") == {"n": 3}
    out = again(repo, tmp_path / "out")
    assert (out / "random_states_0.pkl").read_bytes() == (
        folder / "random_states_0.pkl"
    ).read_bytes()
    assert_equal(folder, out)


@pytest.mark.hostile
def test_pickles_are_kept_and_never_opened(tmp_path: Path, monkeypatch: Any) -> None:
    folder = trained(tmp_path / "checkpoint-500")
    opened: list[str] = []
    from ckptstore.formats.torch import load

    real = load.load
    monkeypatch.setattr(load, "load", lambda file: opened.append(file.path.name) or real(file))
    state = formats.read_file(folder).state
    assert sorted(opened) == ["optimizer.pt", "scheduler.pt"]
    shutil.copy(folder / "training_args.bin", folder / "more.bin")
    assert set(formats.read_file(folder).state) == set(state), "it could run code"


@pytest.mark.hostile
def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    folder = trained(tmp_path / "checkpoint-500")
    whole = (folder / "optimizer.pt").read_bytes()
    exp_avg = torch.load(folder / "optimizer.pt")["state"][0]["exp_avg"].numpy().tobytes()
    (folder / "optimizer.pt").write_bytes(whole[:-30])
    with pytest.raises(InvalidInputError, match=r"optimizer\.pt is damaged"):
        formats.read_file(folder)
    (folder / "optimizer.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InvalidInputError, match=r"optimizer\.pt is a pointer of Git LFS"):
        formats.read_file(folder)
    place = whole.index(exp_avg)
    (folder / "optimizer.pt").write_bytes(
        whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    )
    with pytest.raises(InvalidInputError, match=r"optimizer\.pt"):
        committed(folder)


@pytest.mark.hostile
def test_links_lead_nowhere_else_but_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    hub = tmp_path / "hub" / "models--a--b"
    blobs, snapshot = hub / "blobs", hub / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    safetensors.torch.save_file(weights(), blobs / "4d7a")
    (blobs / "99").write_text("{}")
    (snapshot / "model.safetensors").symlink_to("../../blobs/4d7a")
    (snapshot / "config.json").symlink_to("../../blobs/99")
    repo = committed(snapshot)
    out = again(repo, tmp_path / "out")
    assert not any(file.is_symlink() for file in out.iterdir())
    assert (out / "model.safetensors").read_bytes() == (blobs / "4d7a").read_bytes()
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    (snapshot / "more.json").symlink_to(secret / "key")
    with pytest.raises(InvalidInputError, match="a link out of its folder"):
        formats.read_file(snapshot)
    (snapshot / "more.json").unlink()
    shutil.rmtree(blobs)
    blobs.symlink_to(secret)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../blobs/key")
    with pytest.raises(InvalidInputError, match="a link out of its folder"):
        formats.read_file(snapshot)


@pytest.mark.hostile
@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc/x", "..\\x", "a\0", "x" * 300, "a\n"])
def test_names_of_a_repository_lead_out_of_no_folder(tmp_path: Path, name: str) -> None:
    file = torch.zeros(3, dtype=torch.uint8)
    for tree in ({name: file}, {"a": {name: file}}, {name: {"a": file}}):
        with pytest.raises(InvalidInputError):
            formats.write_file({"files": tree}, tmp_path / "out")
        assert os.listdir(tmp_path) == []


@pytest.mark.hostile
@pytest.mark.parametrize(
    "entry",
    [
        torch.zeros(3),
        torch.zeros(2, 2, dtype=torch.uint8),
        b"bytes",
        None,
        3,
        {"part": "model", "header": 3},
        {"part": "model", "header": torch.zeros(3)},
        {"a": {"b": []}},
    ],
    ids=str,
)
def test_anything_else_in_place_of_a_file_is_refused(tmp_path: Path, entry: Any) -> None:
    with pytest.raises(InvalidInputError, match="contents of a file"):
        formats.write_file({"model": {}, "files": {"a": entry}}, tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.hostile
@given(data=st.data())
def test_any_header_gives_a_whole_file(data: Any, tmp_path_factory: Any) -> None:
    """A header of a repository is not trusted: another one is made where it does not fit."""
    folder = tmp_path_factory.mktemp("x")
    tensors = weights()
    header = bytearray(_header(tensors))
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(header) - 1))
        header[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(header), len(header) - 1, 9, 8, 3, 0]))
    entry = {"part": "model", "header": torch.tensor(list(header[:cut]), dtype=torch.uint8)}
    formats.write_file({"model": tensors, "files": {"model.safetensors": entry}}, folder / "out")
    found = safetensors.torch.load_file(folder / "out" / "model.safetensors")
    assert set(map(str, found)) == set(tensors)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    shutil.rmtree(folder)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "BF16"},
        {"shape": [4, 2]},
        {"shape": [8]},
        {"data_offsets": [0, 32]},
        {"data_offsets": [96, 130]},
        {"data_offsets": [128, 96]},
    ],
    ids=str,
)
def test_a_header_that_describes_other_tensors_is_not_used(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    tensors = weights()
    header = json.loads(_header(tensors)[8:])
    assert header["head.weight"]["data_offsets"] == [96, 128]
    header["head.weight"] |= change
    text = json.dumps(header).encode()
    data = torch.tensor(list(len(text).to_bytes(8, "little") + text), dtype=torch.uint8)
    entry = {"part": "model", "header": data}
    formats.write_file({"model": tensors, "files": {"model.safetensors": entry}}, tmp_path / "out")
    found = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert sorted(found) == sorted(tensors)
    assert all(torch.equal(found[name], one) for name, one in tensors.items())
    assert all(found[name].dtype == one.dtype for name, one in tensors.items())


def _header(tensors: dict[str, torch.Tensor]) -> bytes:
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    return data[: 8 + int.from_bytes(data[:8], "little")]


def test_a_header_of_another_writer_is_kept(tmp_path: Path) -> None:
    """Any order of names, and spaces, as in files of older versions."""
    one, two = np.arange(3, dtype="<f4"), np.arange(2, dtype="<f8")
    header = {
        "z": {"shape": [3], "dtype": "F32", "data_offsets": [0, 12]},
        "__metadata__": {"z": "1", "a": "2"},
        "a/b": {"dtype": "F64", "shape": [2], "data_offsets": [12, 28]},
    }
    text = json.dumps(header, indent=1).encode()
    folder = tmp_path / "model"
    folder.mkdir()
    data = len(text).to_bytes(8, "little") + text + one.tobytes() + two.tobytes()
    (folder / "model.safetensors").write_bytes(data)
    (folder / "config.json").write_text("{}")
    out = again(committed(folder), tmp_path / "out")
    assert (out / "model.safetensors").read_bytes() == data


@pytest.mark.parametrize("name", ["x.safetensors", "optimizer.pt"])
def test_a_part_may_be_missing_in_the_folder_itself(tmp_path: Path, name: str) -> None:
    folder = trained(tmp_path / "checkpoint-1")
    (folder / "model.safetensors").rename(folder / "x.safetensors")
    (folder / name).unlink()
    assert_equal(folder, again(committed(folder), tmp_path / "out"))


def test_missing_shards_are_named_unless_all_are(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model", is_torch=True)
    safetensors.torch.save_file(weights(), folder / "model.safetensors")
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(NotFoundError, match=r"pytorch_model-00002-of-00002\.bin"):
        formats.read_file(folder)
    (folder / "pytorch_model-00001-of-00002.bin").unlink()
    assert_equal(folder, again(committed(folder), tmp_path / "out"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"pytorch_model-00001-of-00002\.bin"):
        formats.read_file(folder)


def test_only_an_export_of_the_same_files_is_replaced(tmp_path: Path) -> None:
    repo = committed(trained(tmp_path / "checkpoint-500"))
    out = again(repo, tmp_path / "out")
    state = repo.checkout("main", lazy=True)
    formats.write_file(state, out, overwrite=True)
    (out / "notes.md").write_text("mine")
    for check in (formats.check_free, lambda path, **more: formats.write_file(path=path, **more)):
        with pytest.raises(InvalidInputError, match="holds more than an export"):
            check(out, overwrite=True, state=state)
    assert (out / "notes.md").exists()


def test_another_state_needs_a_suffix(tmp_path: Path) -> None:
    assert not formats.holds_folder({"files": {}})
    assert not formats.holds_folder({"files": {1: torch.ones(1)}})
    assert not formats.holds_folder([])
    with pytest.raises(InvalidInputError, match="no suffix of a known format"):
        formats.write_file({"model": weights()}, tmp_path / "out")


def test_too_many_files_or_folders_are_refused(tmp_path: Path) -> None:
    folder = trained(tmp_path / "checkpoint-500")
    deep = folder
    for _ in range(10):
        deep = deep / "a"
    deep.mkdir(parents=True)
    with pytest.raises(InvalidInputError, match="folders deep"):
        formats.read_file(folder)
    shutil.rmtree(folder / "a")
    for number in range(1000):
        (folder / str(number)).touch()
    with pytest.raises(InvalidInputError, match="more than 1000 files"):
        formats.read_file(folder)


def test_two_indices_of_the_same_shards_come_back(tmp_path: Path) -> None:
    """Each is a key of its own, and the tensors are stored once."""
    folder = tmp_path / "folder"
    folder.mkdir()
    safetensors.torch.save_file(weights(), folder / "a.safetensors")
    index = json.dumps({"weight_map": dict.fromkeys(weights(), "a.safetensors")})
    names = ("model", "other")
    for name in names:
        (folder / f"{name}.safetensors.index.json").write_text(index)
    repo = committed(folder)
    state = repo.checkout("main")
    assert all(difference(state[name], weights()) is None for name in names)
    formats.write_file(repo.checkout("main", lazy=True), tmp_path / "again")
    for file in folder.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
