import os

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import load_file

from ckptstore import formats
from ckptstore.retention import MaxToKeep
from ckptstore_cli.options import Size


@pytest.fixture
def trained(repo):
    """Weights, optimizer state and plain values, at step 100."""
    torch.manual_seed(0)
    model = torch.nn.Linear(40, 30)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 40)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 2}
    repo.commit(state, step=100)
    return state


def test_a_pt_loads_as_what_was_committed(ckpt, trained):
    ckpt("checkout", "main", "-o", "out.pt")
    loaded = torch.load("out.pt", weights_only=True)
    assert loaded["epoch"] == 2
    assert loaded["optimizer"]["param_groups"] == trained["optimizer"]["param_groups"]
    assert torch.equal(loaded["model"]["weight"], trained["model"]["weight"])


def test_without_a_name_the_file_is_named_for_step_and_id(ckpt, repo, trained):
    id = repo.resolve("main").id.short
    size = len(ckpt.out("checkout", "main")) and os.path.getsize(f"ckpt-100-{id}.pt")
    assert size > 0
    repo.commit({"epoch": 1})
    ckpt("checkout", "main")
    assert os.path.exists(f"ckpt-{repo.resolve('main').id.short}.pt")


def test_it_says_what_was_written(ckpt, repo, trained):
    c = repo.resolve("main")
    assert ckpt.out("checkout", "main", "-o", "a.pt").startswith(
        f"Wrote a.pt: checkpoint {c.id.short}, "
    )
    assert ckpt.json("checkout", "main", "-o", "b.pt") == {
        "id": c.id,
        "step": 100,
        "file": "b.pt",
        "bytes": os.path.getsize("b.pt"),
    }


def test_a_weights_h5_in_another_layout_than_that_of_keras_is_called_so(ckpt, repo):
    weights = np.ones((2, 3), np.float32)
    repo.commit({"model": {"000.dense.kernel": weights}, "epoch": 1}, branch="fit")
    for options in (("--part", "model"), ("--drop-values",)):
        name = f"{options[0]}.weights.h5"
        said = ckpt("checkout", "fit", *options, "-o", f"./{name}").stderr
        assert "ckptstore.load_weights(model, repo, rev), and model.save_weights" in said
    assert "load_weights" not in ckpt("checkout", "fit", "--drop-values", "-o", "a.h5").stderr
    repo.commit({"layers": {"dense": {"vars": {"0": weights}}}}, branch="file")
    assert "load_weights" not in ckpt("checkout", "file", "-o", "b.weights.h5").stderr


def test_a_safetensors_takes_arrays_only(ckpt, trained):
    error = ckpt.error("checkout", "main", "-o", "out.safetensors")
    assert "--drop-values" in error
    assert not os.path.exists("out.safetensors")
    ckpt("checkout", "main", "-o", "out.safetensors", "--drop-values")
    assert torch.equal(load_file("out.safetensors")["model/weight"], trained["model"]["weight"])
    ckpt("checkout", "main", "-o", "model.safetensors", "--include", "model")
    assert sorted(load_file("model.safetensors")) == ["model/bias", "model/weight"]


def test_an_npz_takes_arrays_that_numpy_knows(ckpt, repo, trained):
    ckpt("checkout", "main", "-o", "model.npz", "--include", "model")
    with np.load("model.npz") as found:
        assert sorted(found) == ["model/bias", "model/weight"]
        assert (found["model/weight"] == trained["model"]["weight"].numpy()).all()
    repo.commit({"half": torch.ones(3).bfloat16(), "w": torch.ones(3)})
    error = ckpt.error("checkout", "main", "-o", "half.npz")
    assert "half (bfloat16)" in error
    assert ".safetensors" in error
    assert not os.path.exists("half.npz")


def test_arrays_and_keys_are_written_under_other_names(ckpt, repo, trained):
    ckpt(
        *("checkout", "main", "-o", "out.pt", "--rename", r"model/(.*)=net/module.\1"),
        *("--rename", "optimizer=optim_state_dict"),
    )
    loaded = torch.load("out.pt", weights_only=True)
    assert list(loaded) == ["net", "optim_state_dict", "epoch"]
    assert list(loaded["net"]) == ["module.weight", "module.bias"]
    assert torch.equal(loaded["net"]["module.bias"], trained["model"]["bias"])
    groups = loaded["optim_state_dict"]["param_groups"]
    assert groups == trained["optimizer"]["param_groups"]
    rename = ("--rename", "model=net", "--part", "net")
    ckpt("checkout", "main", "-o", "net.safetensors", *rename)
    assert sorted(load_file("net.safetensors")) == ["bias", "weight"]
    ckpt("checkout", "main", "-o", "net.zarr", "--include", "model", "--rename", "model=net")
    assert list(formats.read_file("net.zarr").state) == ["net"]


def test_a_hierarchy_of_zarr_is_exported_under_other_names(ckpt, repo):
    with repo.session() as session:
        zarr.open_group(session.store).create_array("a/x", data=np.arange(4.0))
        session.commit()
    ckpt("checkout", "main", "-o", "out.zarr", "--rename", "a=b")
    assert zarr.open_group("out.zarr", mode="r")["b/x"][:].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        (("--rename", "nothing=x"), "'nothing' matches no array that is chosen, and no key.", 1),
        (("--rename", "model/.*=x"), "Two arrays would have the path 'x'", 1),
        (("--rename", "model"), "'model' is not OLD=NEW.", 2),
        (("--rename", "model=a", "--rename", "model=b"), "--rename model is given twice.", 2),
        (("--rename", "model=a", "--tensor", "model/bias"), "--rename are for many.", 2),
        (("--rename", "model=net", "--part", "model"), "no part 'model'. It has 'net',", 1),
        (("--rename", "model=m_state", "--part", "m"), "Pass --part m_state.", 1),
    ],
)
def test_a_rename_that_cannot_be_writes_nothing(ckpt, trained, options, said, code):
    assert said in ckpt.error("checkout", "main", "-o", "out.pt", *options, code=code)
    assert not os.path.exists("out.pt")


def test_one_array_is_written_to_an_npy(ckpt, trained):
    said = ckpt.out("checkout", "main", "--tensor", "model/weight", "-o", "w.npy")
    assert said.startswith("Wrote w.npy: model/weight of checkpoint ")
    assert (np.load("w.npy") == trained["model"]["weight"].numpy()).all()
    assert "Is it 'model/weight'" in ckpt.error("checkout", "main", "--tensor", "model.weight")
    ckpt("checkout", "main", "--tensor", "model/weight", "-o", "w.safetensors")
    assert list(load_file("w.safetensors")) == ["model/weight"]
    assert "holds one array" in ckpt.error(
        "checkout", "main", "-o", "many.npy", "--include", "model"
    )
    assert "--include" in ckpt.error(
        "checkout", "main", "--tensor", "model/weight", "--include", "model", code=2
    )


def test_large_files_are_cut_into_shards(ckpt, repo, trained):
    args = ("checkout", "main", "--include", "model", "-o", "out", "--shard-size")
    made = ckpt.json(*args, "0.12kB")
    assert sorted(os.listdir("out")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert made["bytes"] == sum(os.path.getsize(f"out/{name}") for name in os.listdir("out"))
    ckpt("commit", "out", "-b", "again")
    assert torch.equal(repo.checkout("again")["model"]["weight"], trained["model"]["weight"])
    assert "--force" in ckpt.error(*args, "5GB")
    ckpt(*args, "5GB", "--force")
    assert os.listdir("out") == ["model.safetensors"]
    with open("out/config.json", "w") as file:
        file.write("{}")
    assert "out holds more than" in ckpt.error(*args, "5GB", "--force")
    assert sorted(os.listdir("out")) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "size", ["5", "5G", "GB", "-5GB", "1e9B", "5 gb", "5iB", "0.1B", "0GB", ""]
)
def test_a_size_has_a_number_and_a_unit(ckpt, trained, size):
    assert "--shard-size" in ckpt.error("checkout", "main", "--shard-size", size, code=2)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1B", 1), ("5GB", 5 * 10**9), ("1.5 kB", 1500), ("2GiB", 2 << 30), ("0.5KiB", 512)],
)
def test_a_size_is_what_its_unit_says(text, size):
    assert Size().convert(text, None, None) == size


def test_include_and_exclude_choose(ckpt, trained):
    ckpt("checkout", "main", "-o", "out.pt", "--include", "model", "--exclude", "**/bias")
    loaded = torch.load("out.pt", weights_only=True)
    assert list(loaded) == ["model"]
    assert list(loaded["model"]) == ["weight"]
    assert "include 'nothing'" in ckpt.error(
        "checkout", "main", "-o", "none.pt", "--include", "nothing"
    )


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_nothing_is_written_over_without_force(ckpt, trained, suffix):
    args = ("checkout", "main", "-o", f"out.{suffix}", "--include", "model")
    with open(f"out.{suffix}", "w") as file:
        file.write("precious")
    assert "--force" in ckpt.error(*args)
    with open(f"out.{suffix}") as file:
        assert file.read() == "precious"
    ckpt(*args, "--force")
    assert formats.read_file(f"out.{suffix}").state


def test_a_link_is_not_written_through(ckpt, trained):
    os.symlink("elsewhere.pt", "out.pt")
    ckpt.error("checkout", "main", "-o", "out.pt")
    assert not os.path.exists("elsewhere.pt")


def test_places_that_cannot_be_written_are_errors(ckpt, trained):
    assert "missing/folder" in ckpt.error("checkout", "main", "-o", "missing/folder/out.pt")
    assert "'.' has no suffix" in ckpt.error("checkout", "main", "-o", ".")
    assert ".pt is not written in shards" in ckpt.error(
        "checkout", "main", "-o", "out.pt", "--shard-size", "1GB"
    )
    assert ".safetensors" in ckpt.error("checkout", "main", "-o", "out.txt")
    assert os.listdir() == [".ckptstore"]


def test_a_revision_must_be_given_and_be_there(ckpt, trained):
    assert "Missing argument 'REV'" in ckpt.error("checkout", code=2)
    assert "'nowhere'" in ckpt.error("checkout", "nowhere")
    assert os.listdir() == [".ckptstore"]


@pytest.mark.parametrize("name", ["with space.pt", "-dash.pt", "ünï ✓.pt", "new\nline.pt"])
def test_the_file_may_have_any_name(ckpt, trained, name):
    ckpt("checkout", "main", f"--output={name}")
    assert torch.load(name, weights_only=True)["epoch"] == 2


def test_a_file_goes_in_and_comes_out_the_same(ckpt, trained):
    ckpt("checkout", "main", "-o", "first.pt")
    ckpt("commit", "first.pt", "-b", "again")
    ckpt("checkout", "again", "-o", "second.pt")
    first, second = (torch.load(name, weights_only=True) for name in ("first.pt", "second.pt"))
    assert str(first) == str(second)


def test_damage_is_told_and_nothing_is_written(ckpt, repo, trained):
    objects = [
        path for path in (ckpt.folder / ".ckptstore" / "objects").rglob("*") if path.is_file()
    ]
    for path in objects:
        path.chmod(0o600)
        path.write_bytes(b"\0" * path.stat().st_size)
    assert ckpt.error("checkout", "main", "-o", "out.pt").startswith("error: ")
    assert os.listdir() == [".ckptstore"]


def test_numpy_arrays_that_a_plain_torch_load_refuses_are_named(ckpt, repo):
    state = {"model": {"w": torch.ones(2)}, "rng": [{"keys": np.arange(3)}]}
    repo.commit(state)
    said = ckpt("checkout", "main", "-o", "all.pt").stderr
    assert "1 numpy array in it, such as rng/0/keys" in said
    assert torch.load("all.pt", weights_only=False)["rng"][0]["keys"].tolist() == [0, 1, 2]
    assert "numpy" not in ckpt("checkout", "main", "--part", "model", "-o", "model.pt").stderr
    assert torch.load("model.pt")["w"].tolist() == [1, 1]
    assert "numpy" not in ckpt("checkout", "main", "--drop-values", "-o", "all.npz").stderr


def test_the_best_is_said_with_its_direction(ckpt, history):
    assert ", best by val_loss (min), " in ckpt.out("checkout", "best:val_loss", "-o", "a.pt")
    assert "is the best by val_loss (max)." in ckpt("show", "best:val_loss:max").stderr
    assert "is the best by val_loss (max) of main." in ckpt("show", "main@best:val_loss:max").stderr


@pytest.mark.parametrize("rev", ["main@best:val_acc", "main@best:val_acc:max"])
def test_a_best_that_expired_is_named_as_typed_with_the_best_that_is_stored(ckpt, repo, rev):
    for step, accuracy in enumerate([0.9, 0.5, 0.7, 0.6]):
        repo.commit({"x": step}, step=step, metrics={"val_acc": accuracy})
    stored = repo.resolve("main@step=2").id
    repo.gc(MaxToKeep(2), grace=0)
    said = ckpt.error("checkout", rev)
    assert said.startswith(f"error: '{rev}' cannot be used. Checkpoint ")
    metric = rev.partition(":")[2]
    assert said.endswith(
        f"The best one that is stored is {stored.short}. List more with: ckptstore best {metric} "
        "main\n"
    )


def test_an_array_is_no_part(ckpt, history):
    said = ckpt.error("checkout", "main", "--part", "model/bias", code=2)
    assert "model/bias is an array: --tensor model/bias writes it." in said
    assert "has no part 'model/nope'" in ckpt.error("checkout", "main", "--part", "model/nope")
