"""--part: what is under a key becomes the root, so that other programs load what is written."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file


@pytest.fixture
def model(ckpt, repo):
    model = torch.nn.Linear(3, 2)
    state = {"model": model.state_dict(), "model.2": {"w": np.ones(2)}, "a/b": {"x": np.zeros(1)}}
    repo.commit({**state, "lr": 0.1}, step=1)
    return model


def test_a_safetensors_of_a_part_loads_in_the_model(ckpt, model):
    ckpt("checkout", "main", "--part", "model", "-o", "model.safetensors")
    other = torch.nn.Linear(3, 2)
    safetensors.torch.load_model(other, "model.safetensors")
    assert torch.equal(other.weight, model.weight)


def test_a_pt_of_a_part_is_the_state_of_the_model(ckpt, model):
    assert "model of checkpoint" in ckpt.out(
        "checkout", "main", "--part", "model", "-o", "model.pt"
    )
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(torch.load("model.pt"))
    assert torch.equal(other.weight, model.weight)


@pytest.mark.parametrize("options", [["--shard-size", "10B", "-o", "out"], ["-o", "out.zarr"]])
def test_a_folder_of_a_part_is_read_back_without_the_key(ckpt, repo, model, options):
    ckpt("checkout", "main", "--part", "model", *options)
    ckpt("commit", options[-1], "-b", "other")
    assert set(repo.checkout("other")) == {"weight", "bias"}


def test_a_part_may_be_filtered(ckpt, model):
    ckpt("checkout", "main", "--part", "model", "--exclude", "model/bias", "-o", "w.safetensors")
    assert list(load_file("w.safetensors")) == ["weight"]


def test_the_key_of_a_part_may_contain_a_slash(ckpt, model):
    ckpt("checkout", "main", "--part", "a/b", "-o", "x.npz")
    assert list(np.load("x.npz")) == ["x"]
    assert ckpt.json("ls", "main", "--part", "a/b")[0]["path"] == "x"


def test_ls_lists_the_paths_of_an_export(ckpt, model):
    assert [array["path"] for array in ckpt.json("ls", "main", "--part", "model")] == [
        "bias",
        "weight",
    ]
    assert ckpt.json("ls", "main", "--values", "--part", "lr") == {"lr": 0.1}


def test_diff_compares_a_part_and_a_file_at_its_place(ckpt, repo, model):
    safetensors.torch.save_model(model, "model.safetensors")
    assert "Arrays: 2 unchanged." in ckpt.out(
        "diff", "main", "model.safetensors", "--part", "model"
    )
    repo.commit({"model": torch.nn.Linear(3, 2).state_dict(), "model.2": {"w": np.zeros(2)}})
    changed = ckpt.json("diff", "main~1", "main", "--part", "model")["arrays"]
    assert [array["path"] for array in changed] == ["model/bias", "model/weight"]


@pytest.mark.parametrize("command", ["checkout", "ls", "diff main~0"])
def test_a_part_that_is_not_there_is_named_with_those_that_are(ckpt, model, command):
    said = ckpt.error(*command.split(), "main", "--part", "modle")
    assert "no part 'modle'" in said
    assert "model" in said.replace("'modle'", "")


def test_a_part_excludes_other_choices(ckpt, model):
    assert "--tensor names one" in ckpt.error(
        "checkout", "main", "--part", "a", "--tensor", "b", code=2
    )
    assert "not by both" in ckpt.error(
        "diff", "main", "main", "--part", "a", "--include", "b", code=2
    )


def test_names_that_all_begin_with_the_key_are_pointed_out(ckpt, history):
    """Another tool looks for them without it, as a model's load_state_dict does."""
    said = ckpt("checkout", "main", "--include", "model", "-o", "model.safetensors").stderr
    assert said == (
        "Every name in it begins with model/. If another tool reads it, leave that out with "
        "--part model\n"
    )
    for args in (
        ("--part", "model", "-o", "part.safetensors"),
        ("--include", "model", "-o", "model.pt"),
        ("--include", "model", "--part", "model", "-o", "both.npz"),
    ):
        assert "Every name" not in ckpt("checkout", "main", *args).stderr
