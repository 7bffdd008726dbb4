import numpy
import pytest
from safetensors.numpy import save_file


def ids(ckpt, *args, **env):
    return ckpt("log", *args, "--json", **env).stdout


def test_the_nearest_folder_upward_is_used(ckpt, history, monkeypatch):
    below = ckpt.folder / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert len(ckpt.json("log")) == 3
    ckpt("init", "../.ckptstore")
    assert ckpt.json("log") == []


def test_a_file_of_that_name_is_passed_over(ckpt, history, monkeypatch):
    below = ckpt.folder / "below"
    below.mkdir()
    (below / ".ckptstore").touch()
    monkeypatch.chdir(below)
    assert len(ckpt.json("log")) == 3


def test_the_option_wins_over_the_environment_and_that_over_the_folder(ckpt, history):
    ckpt("init", "named")
    ckpt("init", "environment")
    ckpt("-r", "environment", "commit", make_file(ckpt), "-m", "in the environment's")
    assert len(ckpt.json("log")) == 3
    assert "in the environment's" in ids(ckpt, CKPTSTORE_REPO="environment")
    assert ids(ckpt, "-r", "named", CKPTSTORE_REPO="environment") == "[]\n"


def test_an_empty_variable_names_nothing(ckpt, history):
    assert len(ckpt("log", CKPTSTORE_REPO="").stdout.splitlines()) == 4


@pytest.mark.parametrize("place", ["before", "after"])
def test_the_option_stands_before_or_after_the_command(ckpt, history, monkeypatch, tmp_path, place):
    monkeypatch.chdir(tmp_path)
    option = ["-r", history.url]
    args = [*option, "usage"] if place == "before" else ["usage", *option]
    assert ckpt.json(*args)["checkpoints"] == 3


def test_no_repository_is_an_error_with_ways_out(ckpt):
    error = ckpt.error("log")
    for part in (str(ckpt.folder), ".ckptstore", "ckptstore init", "-r REPO", "CKPTSTORE_REPO"):
        assert part in error


def test_a_named_folder_that_is_no_repository_is_an_error(ckpt):
    assert f"{ckpt.folder}/nowhere is not a repository" in ckpt.error("-r", "nowhere", "log")
    assert "ftp://" in ckpt.error("-r", "ftp://host/x", "log")


def make_file(ckpt):
    path = ckpt.folder / "small.safetensors"
    save_file({"x": numpy.arange(3)}, path)
    return path
