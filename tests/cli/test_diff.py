"""`ckptstore diff`: tables, bars, files, other repositories, JSON."""

from __future__ import annotations

import math

import numpy
import pytest
import torch

import ckptstore
from ckptstore_cli import text


def numbers(seed, *shape):
    return numpy.random.default_rng(seed).standard_normal(shape, dtype="f4")


@pytest.fixture
def versions(ckpt, repo):
    """Two checkpoints: layers changed little, much, renamed and added, and another rate."""
    model = {f"layers.{n}.weight": numbers(n, 60, 50) for n in range(5)}
    repo.commit({"model": model, "optimizer": {"lr": 1e-3, "betas": (0.9, 0.99)}}, step=1)
    after = dict(model)
    after["layers.1.weight"] = model["layers.1.weight"] * numpy.float32(1.5)
    after["layers.2.weight"] = model["layers.2.weight"] + numpy.float32(0.01)
    after["layers.3.weight"] = model["layers.3.weight"].astype("f8")
    after["head.weight"] = after.pop("layers.4.weight")
    after["head.bias"] = numpy.ones(7)
    repo.commit({"model": after, "optimizer": {"lr": 1e-4, "betas": (0.9, 0.99)}}, step=2)
    return repo


def rows(shown):
    """The rows of a table by their first word."""
    return {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line}


def test_it_lists_what_differs_and_sums_up(ckpt, versions):
    shown = ckpt.out("diff", "main~1", "main")
    found = rows(shown)
    assert found["model/layers.1.weight"] == ["changed", "float32", "60", "x", "50", "12.0", "kB"]
    assert found["model/layers.3.weight"][:4] == ["retyped", "float32", "->", "float64"]
    assert found["model/layers.4.weight"][:3] == ["->", "model/head.weight", "moved"]
    assert found["model/head.bias"][0] == "added"
    assert found["optimizer/lr"] == ["0.001", "0.0001"]
    assert "model/layers.0.weight" not in found
    assert "Arrays: 2 changed, 1 retyped, 1 moved, 1 added, 1 unchanged." in shown
    assert "1 plain value differs." in shown
    assert "Shared: 33.3 % of 72.1 kB." in shown


def test_stat_sums_up_the_arrays_of_each_part(ckpt, versions):
    shown = ckpt.out("diff", "main~1", "main", "--stat")
    first, row, *rest = shown.splitlines()
    assert first.split() == ["part", "arrays", "not", "shared"]
    assert " ".join(row.split()) == "model 2 changed, 1 retyped, 1 moved, 1 added 48.1 kB"
    assert rest[0] == ""
    assert rest[1].startswith("Arrays: 2 changed,")
    assert rest[2] == "1 plain value differs."
    assert "without --numeric" in ckpt.error(
        "diff", "main~1", "main", "--stat", "--numeric", code=2
    )


def test_numeric_adds_how_far_each_array_moved_with_a_bar(ckpt, versions):
    found = rows(ckpt.out("diff", "main~1", "main", "--numeric"))
    assert found["model/layers.1.weight"][:2] == ["changed", "0.5"]
    assert found["model/layers.1.weight"][2] == 10 * "█"
    assert found["model/layers.1.weight"][4:7] == ["1.000000", "100", "%"]
    assert found["model/layers.2.weight"][2] in "▏▎"
    assert found["model/layers.3.weight"] == ["retyped"]


@pytest.mark.parametrize(
    ("sort", "first"),
    [
        ("path", "model/head.bias"),
        ("l2", "model/layers.1.weight"),
        ("max", "model/layers.1.weight"),
    ],
)
def test_it_sorts_the_largest_change_first_and_measures_for_it(ckpt, versions, sort, first):
    listed = ckpt.json("diff", "main~1", "main", "--sort", sort)["arrays"]
    assert listed[0]["path"] == first
    assert len(listed) == 5
    assert (listed[0]["numbers"] is None) == (sort == "path")
    kinds = [array["kind"] for array in listed]
    assert sort == "path" or kinds[:2] == ["changed", "changed"]


def test_json_says_all_of_it(ckpt, versions):
    found = ckpt.json("diff", "main~1", "main", "--numeric")
    assert found["unchanged"] == 1
    assert found["values"] == [
        {"path": "optimizer/lr", "kind": "changed", "before": 0.001, "after": 0.0001}
    ]
    by_path = {array["path"]: array for array in found["arrays"]}
    changed = by_path["model/layers.1.weight"]
    assert changed["before"] == {
        "path": "model/layers.1.weight",
        "dtype": "float32",
        "shape": [60, 50],
        "bytes": 12_000,
    }
    assert changed["numbers"]["relative_l2"] == pytest.approx(0.5)
    assert changed["numbers"]["changed_share"] == 1.0
    moved = by_path["model/head.weight"]
    assert (moved["kind"], moved["before"]["path"]) == ("moved", "model/layers.4.weight")
    assert moved["shared_bytes"] == 12_000
    assert by_path["model/head.bias"]["before"] is None
    assert found["shared_bytes"] == 24_000


def test_json_has_no_number_that_json_lacks(ckpt, repo):
    repo.commit({"x": numpy.zeros(3), "loss": math.nan, "n": 1, "c": 1 + 2j})
    repo.commit({"x": numpy.ones(3), "loss": -math.inf, "n": None, "c": b"x"})
    found = ckpt.json("diff", "main~1", "main", "--numeric")
    assert found["arrays"][0]["numbers"]["relative_l2"] == "inf"
    assert found["arrays"][0]["numbers"]["cosine"] == "nan"
    values = {value["path"]: (value["before"], value["after"]) for value in found["values"]}
    assert values == {"loss": ("nan", "-inf"), "n": (1, None), "c": ("(1+2j)", "b'x'")}


def test_the_same_checkpoint_differs_in_nothing(ckpt, versions):
    for args in ([], ["--numeric"]):
        assert ckpt.out("diff", "main", "main", *args) == "Nothing differs: 6 arrays, 72.1 kB.\n"
    assert ckpt.json("diff", "main", "main")["arrays"] == []


def test_include_and_exclude_choose(ckpt, versions):
    found = ckpt.json(
        "diff", "main~1", "main", "--include", "model/layers.*", "--exclude", "**/*3*"
    )
    assert [array["path"] for array in found["arrays"]] == [
        "model/layers.1.weight",
        "model/layers.2.weight",
        "model/layers.4.weight",
    ]
    assert found["values"] == []


def test_what_is_only_arranged_otherwise_is_said(ckpt, repo):
    repo.commit({"a": [1, 2], "b": 1})
    repo.commit({"b": 1, "a": (1, 2)})
    shown = ckpt.out("diff", "main~1", "main")
    assert "Arranged differently (kinds, keys, ties): the state itself, a." in shown


def test_a_checkpoint_of_another_repository_is_compared(ckpt, versions):
    other = ckptstore.init("other", chunk_size=1 << 20)
    other.commit(versions.checkout("main"))
    shown = ckpt.out("diff", "main", "main", "--other", "other")
    assert shown == "Nothing differs: 6 arrays, 72.1 kB.\n"
    assert "is not a repository" in ckpt.error("diff", "main", "main", "--other", "nowhere")


def test_arrays_in_other_chunks_are_undecided_until_measured(ckpt, repo):
    state = {"x": numbers(0, 300_000)}
    repo.commit(state)
    ckptstore.init("other", chunk_size=1 << 16).commit(state)
    shown = ckpt.out("diff", "main", "main", "--other", "other")
    assert "1 undecided" in shown
    assert "--numeric shows" in shown
    assert "Nothing differs" in ckpt.out("diff", "main", "main", "--other", "other", "--numeric")


@pytest.mark.parametrize("suffix", ["pt", "pth"])
def test_a_file_of_torch_is_compared_and_not_stored(ckpt, repo, suffix):
    state = {"model": {"w": torch.ones(3), "b": torch.zeros(2)}, "epoch": 1}
    repo.commit(state)
    before = ckpt.json("usage")
    state["model"]["w"] = torch.tensor([1.0, 1.0, 2.0])
    torch.save(state, f"new.{suffix}")
    found = ckpt.json("diff", "main", f"new.{suffix}", "--numeric")
    assert [array["path"] for array in found["arrays"]] == ["model/w"]
    assert found["arrays"][0]["numbers"]["max_abs"] == 1.0
    assert found["values"] == []
    assert ckpt.json("usage") == before


def test_a_safetensors_that_ckptstore_wrote_has_the_same_arrays(ckpt, repo):
    state = {"model": {"a/b%": torch.ones(3), "": torch.ones(2), "layers": [torch.zeros(2)]}}
    repo.commit(state)
    ckpt("checkout", "main", "-o", "same.safetensors")
    found = ckpt.json("diff", "main", "same.safetensors")
    assert (found["arrays"], found["values"], found["unchanged"]) == ([], [], 3)


def test_names_with_slashes_that_were_committed_as_names_stay_names(ckpt, repo):
    from safetensors.torch import save_file

    tensors = {"transformer/wte": torch.ones(3), "transformer/wpe": torch.zeros(3)}
    save_file(tensors, "gpt.safetensors")
    ckpt("commit", "gpt.safetensors")
    assert "Nothing differs" in ckpt.out("diff", "main", "gpt.safetensors")


def test_the_arrays_of_a_file_can_be_put_where_they_belong(ckpt, repo):
    from safetensors.torch import save_file

    tensors = {"layer.weight": torch.ones(3), "layer.bias": torch.zeros(3)}
    repo.commit({"run": {"model": tensors}})
    save_file({**tensors, "layer.bias": torch.ones(3)}, "tuned.safetensors")
    said = ckpt("diff", "main", "tuned.safetensors")
    assert "--under model" in said.stderr
    found = ckpt("diff", "main", "tuned.safetensors", "--under", "run/model")
    assert found.stderr == ""
    assert rows(found.stdout)["run/model/layer.bias"][0] == "changed"
    assert "1 changed, 1 unchanged" in found.stdout
    ckpt.error("diff", "main", "main", "--under", "model", code=2)


def test_what_names_no_checkpoint_is_an_error(ckpt, history):
    assert "nowhere" in ckpt.error("diff", "main", "nowhere")
    assert "nowhere.pt" in ckpt.error("diff", "main", "nowhere.pt")
    ckpt.error("diff", "main", code=2)
    (ckpt.folder / "broken.safetensors").write_bytes(b"not such a file")
    assert "is a text file" in ckpt.error("diff", "main", "broken.safetensors")


def test_an_expired_checkpoint_is_said_to_have_expired(ckpt, history):
    history.commit(history.checkout("main"))
    ckpt("gc", "--max-to-keep", 1)
    assert "its arrays were deleted on" in ckpt.error("diff", "main~1", "main")
    torch.save({"x": 1}, "file.pt")
    assert "its arrays were deleted on" in ckpt.error("diff", "main~1", "file.pt")
    ckpt("checkout", "main", "--include", "model", "-o", "file.safetensors")
    assert "its arrays were deleted on" in ckpt.error("diff", "main~1", "file.safetensors")


def test_bars_are_plain_marks_where_the_encoding_has_no_others(ckpt, versions):
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    shown = ckpt.process("diff", "main~1", "main", "--numeric", env=env).stdout
    assert "##########" in shown
    assert "\\u" not in shown


def test_hostile_names_and_values_cannot_steer_the_terminal(ckpt, repo):
    repo.commit({"x\x1b[2J": 1, "y": "\x1b]0;evil\x07", "z": numpy.ones(3)})
    repo.commit({"x\x1b[2J": 2, "y": "\u202e" * 500, "z\u202e": numpy.ones(3)})
    shown = ckpt.out("diff", "main~1", "main", "--numeric")
    assert not set(shown) & {"\x1b", "\x07", "\u202e"}
    assert "…" in shown


@pytest.mark.parametrize(
    ("value", "width", "bar"),
    [(0, 10, ""), (-1, 10, ""), (1, 3, "cccc"[:3]), (2, 3, "ccc"), (1e-9, 3, "a"), (0.5, 2, "c")],
)
def test_a_bar_is_empty_only_for_nothing_and_never_too_long(value, width, bar):
    assert text.draw_bar(value, marks="abc", width=width) == bar
    assert text.draw_bar(math.nan, marks="abc", width=width) == ""


def test_bars_grow_with_their_values():
    bars = [text.draw_bar(n / 1000, marks="123", width=5) for n in range(1, 1001)]
    assert len(set(bars)) == 15
    assert bars == sorted(bars, key=lambda bar: (len(bar), bar[-1]))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0 %"),
        (1, "100 %"),
        (0.125, "12.5 %"),
        (1e-9, "<0.1 %"),
        (0.9999, ">99.9 %"),
        (0.2, "20 %"),
    ],
)
def test_a_share_is_never_rounded_to_none_or_all(value, said):
    assert text.share(value) == said


@pytest.mark.parametrize("options", [[], ["--numeric"], ["--json"]])
def test_the_exit_code_tells_a_difference_when_asked(ckpt, history, options):
    history.commit(history.checkout("main"))
    ckpt("diff", "main~1", "main~2", *options)
    ckpt("diff", "main~1", "main~2", "--exit-code", *options, code=1)
    ckpt("diff", "main", "main~1", "--exit-code", *options)
    ckpt("diff", "main~1", "main~2", "--exit-code", "--include", "model/bias", *options)
