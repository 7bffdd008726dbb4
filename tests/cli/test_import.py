"""`ckptstore import`: the plan, what is imported, and what is not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from ckptstore.training import CheckpointManager


@pytest.fixture
def old(ckpt, repo):
    folder = ckpt.folder / "old"
    folder.mkdir()
    for step in (100, 20):
        torch.save({"w": torch.ones(3) * step, "val_loss": 1 / step}, folder / f"ckpt_{step}.pt")
    return folder


def test_a_dry_run_shows_the_plan_and_imports_nothing(ckpt, repo, old):
    (old / "last.ckpt").write_text("")
    result = ckpt("import", "old/ckpt_{step}.pt", "--dry-run")
    assert [line.split()[:3] for line in result.stdout.splitlines()[1:]] == [
        ["old/ckpt_20.pt", "20", "val_loss=0.05"],
        ["old/ckpt_100.pt", "100", "val_loss=0.01"],
    ]
    assert "Not matched by the template: old/last.ckpt." in result.stderr
    assert "2 checkpoints of 2 would be imported to main. Nothing was changed." in result.stderr
    assert repo.branches() == {}


def test_it_is_safe_to_run_again(ckpt, repo, old):
    assert "Imported 2 checkpoints to runs/a" in ckpt.out(
        "import", "old/ckpt_{step}.pt", "-b", "runs/a"
    )
    again = ckpt.json("import", "old/ckpt_{step}.pt", "-b", "runs/a")
    assert again["made"] == []
    assert all(item["checkpoint"] for item in again["imports"])
    assert [checkpoint.step for checkpoint in repo.log("runs/a")] == [100, 20]


def test_what_cannot_be_imported_is_named_and_the_exit_code_is_1(ckpt, repo, old):
    (old / "ckpt_7.pt").write_text("")
    result = ckpt("import", "old/ckpt_{step}.pt", code=1)
    assert "Not imported: old/ckpt_7.pt is empty" in result.stderr
    assert len(repo.log()) == 2


def test_a_folder_gets_a_template_proposed(ckpt, repo, old):
    assert "'old/ckpt_{step}.pt' (2 names)" in ckpt.error("import", "old")


def test_metrics_and_names_are_given(ckpt, repo, old):
    (ckpt.folder / "m.csv").write_text("step,val_acc\n20,.5\n100,.75\n")
    ckpt("import", "old/ckpt_{step}.pt", "--metrics", "m.csv", "--rename", "w=net/w")
    assert repo.resolve("best:val_acc").metrics == {"val_loss": 0.01, "val_acc": 0.75}
    assert repo.checkout("main")["net"]["w"].tolist() == [100.0] * 3


def test_a_template_that_the_shell_expanded_is_named(ckpt, repo, old):
    assert "Quote the template" in ckpt.error("import", "old/a.pt", "old/b.pt", code=2)


def test_a_file_that_no_checkpoint_holds_leaves_the_others(ckpt, repo, old):
    torch.save({"w": torch.eye(3).to_sparse()}, old / "ckpt_50.pt")
    result = ckpt("import", "old/ckpt_{step}.pt", code=1)
    assert "Not imported: old/ckpt_50.pt." in result.stderr
    assert [checkpoint.step for checkpoint in repo.log()] == [100, 20]


def test_an_import_is_one_operation_to_undo(ckpt, repo, old):
    assert ckpt.process("import", "old/ckpt_{step}.pt").returncode == 0
    torch.save({"w": torch.ones(3)}, old / "ckpt_300.pt")
    torch.save({"w": torch.ones(3)}, old / "ckpt_400.pt")
    CheckpointManager(repo, branch="run", rng=False, async_save=False).save(1)
    added = ckpt.json("import", "old/ckpt_{step}.pt")["made"]
    assert [checkpoint["step"] for checkpoint in added] == [300, 400]
    CheckpointManager(repo, branch="run", rng=False, async_save=False).save(2)
    undone = ckpt("undo")
    assert "imported 2 files to main" in undone.stderr
    assert "Undone: imported 2 files to main" in undone.stdout
    assert [checkpoint.step for checkpoint in repo.log("main")] == [100, 20]
    assert repo.resolve("run").step == 2
    ckpt(*undone.stdout.splitlines()[-1].split("ckptstore ")[1].split())  # the printed redo
    assert [checkpoint.step for checkpoint in repo.log("main")] == [400, 300, 100, 20]


def test_any_number_of_an_import_takes_all_of_it_back(ckpt, repo, old):
    ckpt("import", "old/ckpt_{step}.pt")
    numbers = [operation.number for operation in repo.operations()]
    assert len(numbers) == 2
    ckpt("undo", numbers[-1])
    assert repo.branches() == {}
    assert "There is nothing to undo" in ckpt.error("undo")
    ckpt("undo", numbers[0] + 1)
    assert [checkpoint.step for checkpoint in repo.log("main")] == [100, 20]


def test_a_folder_and_a_pattern(ckpt, repo, old):
    (ckpt.folder / "metrics.csv").write_text("step,val_acc\n20,.5\n100,.75\n")
    given = ("import", "old", "--pattern", "ckpt_{step}.pt", "--metrics", "metrics.csv")
    assert "Imported 2 checkpoints to main" in ckpt.out(*given)
    assert [dict(made.metrics) for made in repo.log()] == [
        {"val_loss": 0.01, "val_acc": 0.75},
        {"val_loss": 0.05, "val_acc": 0.5},
    ]
    assert "Imported 0 checkpoints to main, 0 B new, 2 there before." in ckpt.out(*given)


def test_metrics_of_a_trainer_and_of_tensorboard(ckpt, repo, old):
    history = {"log_history": [{"step": 20, "eval_loss": 0.5}, {"step": 100, "eval_loss": 0.25}]}
    (ckpt.folder / "trainer_state.json").write_text(json.dumps(history))
    ckpt("import", "old/ckpt_{step}.pt", "--metrics", "trainer_state.json", "-b", "trainer")
    assert repo.resolve("trainer@best:eval_loss").step == 100
    with SummaryWriter(str(ckpt.folder / "logs")) as writer:
        writer.add_scalar("acc", 0.5, 20)
        writer.add_scalar("acc", 0.25, 100)
    ckpt("import", "old", "--pattern", "ckpt_{step}.pt", "--metrics", "logs", "-b", "board")
    assert repo.resolve("board@best:acc").step == 20


@pytest.mark.crash
def test_an_import_that_is_killed_goes_on_when_it_is_run_again(ckpt, repo, old):
    for step in range(101, 140):
        torch.save({"w": torch.ones(3) * step}, old / f"ckpt_{step}.pt")
    command = [sys.executable, "-m", "ckptstore", "-r", repo.url, "import", "old"]
    command += ["--pattern", "ckpt_{step}.pt"]
    with subprocess.Popen(command, cwd=ckpt.folder, stdout=subprocess.PIPE, text=True) as killed:
        for _ in range(5):
            killed.stdout.readline()
        killed.kill()
    before = len(repo.log())
    assert 4 <= before < 41
    again = ckpt.json("import", "old", "--pattern", "ckpt_{step}.pt")
    assert len(again["made"]) == 41 - before
    assert [made.step for made in repo.log()] == [*range(139, 99, -1), 20]
    assert repo.verify().ok
