import json
import os
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ckptstore


@pytest.fixture
def tensors():
    return {"weight": torch.randn(300, 100), "half": torch.randn(7).bfloat16()}


@pytest.fixture
def file(ckpt, tensors):
    """A .pt with weights, plain values and int keys."""
    path = ckpt.folder / "ckpt_100.pt"
    torch.save({"model": tensors, "state": {0: 1.5}, "epoch": 3}, path)
    return path


def test_a_pt_comes_back_as_it_was(ckpt, repo, file, tensors):
    ckpt("commit", file)
    state = repo.checkout("main")
    assert state["state"] == {0: 1.5}
    assert state["epoch"] == 3
    for name, tensor in tensors.items():
        assert state["model"][name].dtype == tensor.dtype
        assert torch.equal(state["model"][name], tensor)


@pytest.mark.parametrize("suffix", ["pth", "ckpt", "bin"])
def test_a_file_of_torch_may_have_other_suffixes(ckpt, repo, file, suffix):
    ckpt("commit", file.rename(f"last.{suffix}"))
    assert repo.checkout("main")["epoch"] == 3
    ckpt("checkout", "main", "-o", f"out.{suffix}")
    assert torch.load(f"out.{suffix}", weights_only=True)["epoch"] == 3
    (ckpt.folder / f"none.{suffix}").write_bytes(b"GGUF")
    assert "is a GGUF file" in ckpt.error("commit", f"none.{suffix}")


def test_a_safetensors_comes_back_with_its_metadata_as_meta(ckpt, repo, tensors):
    save_file(tensors, ckpt.folder / "w.safetensors", metadata={"format": "pt"})
    made = ckpt.json(
        "commit", "w.safetensors", "--no-record-run", "--meta", "run=a=b", "--meta", "ünï=x y"
    )
    assert made["meta"] == {
        "file": "w.safetensors",
        "safetensors": {"format": "pt"},
        "run": "a=b",
        "ünï": "x y",
    }
    assert torch.equal(repo.checkout("main")["weight"], tensors["weight"])


def test_an_npz_and_an_npy_come_back_as_numpy_arrays(ckpt, repo):
    numbers = np.arange(12.0).reshape(3, 4)
    np.savez("all.npz", **{"model/w": numbers, "bias": np.ones(3, "f4")})
    ckpt("commit", "all.npz")
    state = repo.checkout("main")
    assert (state["model"]["w"] == numbers).all()
    assert state["bias"].dtype == np.float32
    np.save("one.npy", numbers.T)
    assert ckpt.json("commit", "one.npy", "-b", "one", "--no-record-run")["meta"] == {
        "file": "one.npy"
    }
    assert (repo.checkout("one") == numbers.T).all()


def test_a_folder_of_hugging_face_is_one_checkpoint(ckpt, repo, tensors):
    folder = ckpt.folder / "Tiny-1B"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    places = {}
    for number, (name, tensor) in enumerate(tensors.items(), start=1):
        places[name] = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensor}, folder / places[name], metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    made = ckpt.json("commit", "Tiny-1B/", "--no-record-run")
    assert (made["meta"], made["left_out"]) == ({"file": "Tiny-1B"}, [])
    state = repo.checkout("main", part="model")
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
    ckpt.out("checkout", "main", "-o", "again")
    for file in folder.iterdir():
        assert (ckpt.folder / "again" / file.name).read_bytes() == file.read_bytes()
    (folder / places["half"]).unlink()
    assert places["half"] in ckpt.error("commit", "Tiny-1B", "-b", "other")
    assert list(repo.branches()) == ["main"]


def test_the_step_and_metrics_of_a_trainer_are_those_of_the_checkpoint(ckpt, repo, tensors):
    folder = ckpt.folder / "checkpoint-500"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    logged = [{"step": 400, "loss": 9}, {"step": 500, "loss": 0.5}, {"step": 500, "eval_loss": 0.4}]
    trainer = {"global_step": 500, "log_history": logged}
    (folder / "trainer_state.json").write_text(json.dumps(trainer))
    (folder / "runs").mkdir()
    assert "not part of this checkpoint: runs/" in ckpt("commit", "checkpoint-500").stderr
    head = repo.resolve("main")
    assert (head.step, head.metrics) == (500, {"loss": 0.5, "eval_loss": 0.4})
    made = ckpt.json("commit", "checkpoint-500", "--step", "7", "--metric", "loss=1")
    assert (made["step"], made["metrics"]) == (7, {"loss": 1, "eval_loss": 0.4})
    wrote = ckpt.json("checkout", "main")
    assert wrote["file"] == f"ckpt-7-{repo.resolve('main').id.short}"
    assert (ckpt.folder / wrote["file"] / "trainer_state.json").exists()


def test_everything_said_of_it_is_kept(ckpt, repo, file):
    made = ckpt.json(
        *("commit", file, "-b", "exp/1", "--step", "100", "-m", "two\nlines"),
        *("--metric", "val_loss=0.125", "--metric", "epoch=3", "--metric", "k=v=1e-4"),
    )
    kept = repo.resolve("exp/1")
    assert made["id"] == kept.id
    assert made["branch"] == "exp/1"
    assert (kept.step, kept.message) == (100, "two\nlines")
    assert kept.metrics == {"val_loss": 0.125, "epoch": 3, "k=v": 1e-4}
    assert type(kept.metrics["epoch"]) is int


def test_it_says_what_was_stored(ckpt, repo, file):
    said = ckpt.out("commit", file)
    id = repo.resolve("main").id.short
    assert said.startswith(f"Committed {id} to main: 2 arrays, 120.0 kB, 12")
    assert said.endswith(" kB new.\n")
    assert ckpt.out("commit", file).endswith(f" to main: nothing changed since {id}.\n")
    assert repo.resolve("main~1").id.short == id


def test_it_records_the_run_unless_told_not_to(ckpt, repo, file):
    ckpt.process("commit", file, "--meta", "token=mine", "--meta", "program=by hand")
    meta = repo.resolve("main").meta
    assert meta["host"] == os.uname().nodename
    assert meta["program"] == "by hand"
    assert meta["argv"] == ["commit", str(file), "--meta", "token=***", "--meta", "program=by hand"]
    assert meta["token"] == "mine"
    assert ckpt.json("commit", file, "--no-record-run")["meta"] == {"file": file.name}


def test_metrics_without_a_finite_number_are_valid_json(ckpt, repo, file):
    made = ckpt.json(
        *("commit", file, "--metric", "a=nan", "--metric", "b=inf", "--metric", "c=-inf")
    )
    assert made["metrics"] == {"a": "nan", "b": "inf", "c": "-inf"}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--metric", "val_loss"], "'val_loss' is not NAME=NUMBER"),
        (["--metric", "=1"], "'=1' is not NAME=NUMBER"),
        (["--metric", "val_loss=low"], "'low' is not a number"),
        (["--metric", "a=1", "--metric", "a=2"], "--metric a is given twice"),
        (["--meta", "a=1", "--meta", "a=1"], "--meta a is given twice"),
        (["--meta", "run"], "'run' is not NAME=VALUE"),
        (["--step", "1.5"], "'1.5' is not a valid integer"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_read(ckpt, repo, file, args, said):
    assert said in ckpt.error("commit", file, *args, code=2)
    assert repo.log() == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["-b", "has space"], "'has space' cannot name a branch"),
        (["-b", "../up"], "'../up' cannot name a branch"),
        (["-b", "latest"], "'latest' cannot name a branch"),
        (["--metric", "a\nb=1"], "cannot name a metric"),
        (["--metric", f"a={2**63}"], "Metric 'a'"),
    ],
)
def test_names_and_numbers_that_cannot_be_are_errors(ckpt, repo, file, args, said):
    assert said in ckpt.error("commit", file, *args)
    assert repo.log() == []


def test_a_step_of_too_many_bits_is_wrong_usage(ckpt, repo, file):
    told = ckpt.error("commit", file, "--step", 2**63, code=2)
    assert "'--step': 9223372036854775808 has more than 63 bits" in told
    ckpt("commit", file, "--step", -(2**63) + 1)
    assert repo.resolve("main").step == -(2**63) + 1


def test_a_value_that_no_checkpoint_holds_is_named_with_its_file(ckpt, repo):
    torch.save({"seen": torch.eye(2).to_sparse()}, ckpt.folder / "sparse.pt")
    told = ckpt.error("commit", "sparse.pt")
    assert told.startswith("error: sparse.pt: ")
    assert "seen" in told
    assert repo.log() == []


@pytest.mark.parametrize("text", ["hello world\n", "text\n", "import torch\n", "0123\n", "{}\n"])
def test_a_text_file_is_no_checkpoint_and_told_in_words(ckpt, repo, text):
    (ckpt.folder / "text.pt").write_text(text)
    told = ckpt.error("commit", "text.pt")
    assert re.search(r"text\.pt .* \w+ \w+.*\.$", told)
    assert not re.search(r": .{0,9}$", told)


def test_files_that_cannot_be_read_are_errors(ckpt, repo):
    assert "does not exist" in ckpt.error("commit", "missing.pt", code=2)
    (ckpt.folder / "folder.pt").mkdir()
    assert "folder.pt is a folder without a checkpoint" in ckpt.error("commit", "folder.pt")
    for name in ("broken.pt", "broken.safetensors", "broken.npz", "broken.npy", "notes.txt"):
        (ckpt.folder / name).write_bytes(b"no checkpoint")
        assert name in ckpt.error("commit", name)
    assert repo.log() == []


def test_a_file_that_wants_to_run_code_is_refused(ckpt, repo):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"x": Evil()}, ckpt.folder / "evil.pt")
    assert "could run code" in ckpt.error("commit", "evil.pt")


@pytest.mark.parametrize(
    "name", ["with space.pt", "-dash.pt", "quote'\".pt", "ünï ✓.pt", "new\nline.pt", "UPPER.PT"]
)
def test_a_file_may_have_any_name(ckpt, repo, file, name):
    file.rename(ckpt.folder / name)
    made = ckpt.json("commit", f"./{name}")
    assert made["meta"]["file"] == name
    assert name.split("\n")[0].strip() in ckpt.out("show", "main")


def test_retry_is_passed_on(ckpt, repo, file):
    ckpt("commit", file, "--retry")
    ckpt("commit", file, "--retry")
    assert len(repo.log("main")) == 2


def test_a_process_of_its_own_commits_too(ckpt, repo, file):
    done = ckpt.process("commit", file, "--step", 7)
    assert (done.returncode, done.stderr) == (0, "")
    assert ckptstore.open(repo.url).resolve("main").step == 7
