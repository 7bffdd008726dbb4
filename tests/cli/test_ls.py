import numpy
import pytest


def test_it_lists_path_dtype_shape_and_size(ckpt, history):
    assert [line.split() for line in ckpt.out("ls", "main").splitlines()] == [
        ["path", "dtype", "shape", "size"],
        ["model/bias", "float64", "3", "24", "B"],
        ["model/weight", "float32", "200", "x", "100", "80.0", "kB"],
    ]


def test_json_has_the_chunks_too(ckpt, history):
    bias, weight = ckpt.json("ls", "main")
    assert (bias["path"], bias["bytes"], bias["shape"]) == ("model/bias", 24, [3])
    assert weight["dtype"] == "float32"
    assert weight["chunks"] == 1
    assert weight["chunk_shape"] == [200, 100]


@pytest.mark.parametrize(
    ("args", "paths"),
    [
        (["--include", "model/w*"], ["model/weight"]),
        (["--include", "model"], ["model/bias", "model/weight"]),
        (["--exclude", "**/bias"], ["model/weight"]),
        (["--include", "*/bias", "--include", "*/weight", "--exclude", "*/w*"], ["model/bias"]),
        (["--include", "*"], ["model/bias", "model/weight"]),
    ],
)
def test_include_and_exclude_choose(ckpt, history, args, paths):
    assert [array["path"] for array in ckpt.json("ls", "main", *args)] == paths


def test_nothing_chosen_is_said_on_stderr(ckpt, history):
    result = ckpt("ls", "main", "--include", "optimizer")
    assert result.stdout == ""
    assert result.stderr == "No array is left by --include optimizer.\n"
    assert ckpt.json("ls", "main", "--include", "optimizer") == []


def test_a_checkpoint_without_arrays_says_so(ckpt, repo):
    repo.commit({"epoch": 1})
    assert ckpt("ls", "main").stderr == "The checkpoint has no arrays.\n"


def test_scalars_empty_arrays_and_odd_names_are_listed(ckpt, repo):
    repo.commit({"a/b": numpy.ones((), "f4"), "x\ny": numpy.empty((0, 3)), "": {7: numpy.ones(1)}})
    listed = ckpt.out("ls", "main")
    assert "scalar" in listed
    assert "0 x 3" in listed
    assert "0 B" in listed
    assert len(listed.splitlines()) == 4
