"""A folder of checkpoint files becomes a history, once, however often it is imported."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.numpy
import torch

import ckptstore
from ckptstore import ImportPlan, InvalidInputError, NotFoundError, plan_import

if TYPE_CHECKING:
    from pathlib import Path

TIME = 1_700_000_000


@pytest.fixture
def repo() -> ckptstore.Repository:
    return ckptstore.init("memory://")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder in which the order of names and times is not that of the steps."""
    folder = tmp_path / "old"
    folder.mkdir()
    for number, step in enumerate((100, 20, 3)):
        state = {"model": {"w": torch.full((4,), float(step))}, "val_loss": 1 / step, "best_acc": 1}
        torch.save({**state, "epoch": step // 10}, folder / f"ckpt_{step}.pt")
        os.utime(folder / f"ckpt_{step}.pt", (TIME + number, TIME + number))
    return folder


def planned(repo: ckptstore.Repository, folder: Path, name: str, **options: Any) -> ImportPlan:
    return plan_import(repo, f"{folder}/{name}", **options)


def test_the_order_is_that_of_the_steps_and_the_times_are_those_of_the_files(
    repo: ckptstore.Repository, old: Path
) -> None:
    made = planned(repo, old, "ckpt_{step}.pt").execute()
    assert [checkpoint.step for checkpoint in made] == [3, 20, 100]
    assert made[2].created == datetime.fromtimestamp(TIME, UTC)
    assert made[2].parents == (made[1].id,)
    assert made[2].metrics == {"val_loss": 0.01}
    assert made[2].meta["epoch"] == 10
    assert repo.checkout("main@step=20")["model"]["w"].tolist() == [20.0] * 4


def test_steps_are_found_inside_where_names_have_none(
    repo: ckptstore.Repository, tmp_path: Path
) -> None:
    for name, step in (("a.pt", 7), ("b.pt", 2)):
        torch.save(
            {"w": torch.ones(1), "global_step": step, "metrics": {"acc": 0.5}}, tmp_path / name
        )
    plan = planned(repo, tmp_path, "*.pt")
    assert [(item.step, dict(item.metrics)) for item in plan.due] == [
        (2, {"acc": 0.5}),
        (7, {"acc": 0.5}),
    ]


def test_metrics_of_a_name_of_the_inside_and_of_a_file_the_last_wins(
    repo: ckptstore.Repository, tmp_path: Path
) -> None:
    for epoch, loss in ((0, 0.5), (1, 0.25)):
        state = {"state_dict": {"w": torch.ones(1)}, "epoch": epoch, "global_step": 10 * epoch + 10}
        torch.save(state, tmp_path / f"epoch={epoch}-val_loss={loss}-depth={epoch}.ckpt")
    (tmp_path / "m.csv").write_text("epoch,val_loss,val_acc\n0,0.501,0.9\n")
    plan = planned(
        repo,
        tmp_path,
        "epoch={epoch}-val_loss={val_loss}-depth={depth}.ckpt",
        metrics=tmp_path / "m.csv",
    )
    assert [(item.step, item.epoch, dict(item.metrics)) for item in plan.imports] == [
        (10, 0, {"val_loss": 0.501, "depth": 0, "val_acc": 0.9}),
        (20, 1, {"val_loss": 0.25, "depth": 1}),
    ]
    assert plan.notes == (
        f"{tmp_path / 'm.csv'} has no row for {tmp_path.name}/epoch=1-val_loss=0.25-depth=1.ckpt.",
    )
    assert plan.others == ()


def test_the_folders_of_a_trainer(repo: ckptstore.Repository, tmp_path: Path) -> None:
    for step in (1000, 500):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        arrays = {"w": np.full(3, step, np.float32)}
        (folder / "model.safetensors").write_bytes(safetensors.numpy.save(arrays))
        history = [{"step": 500, "eval_loss": 0.4}, {"step": 1000, "eval_loss": 0.2, "epoch": 2.0}]
        trainer = {"global_step": step, "epoch": step / 500, "log_history": history}
        (folder / "trainer_state.json").write_text(json.dumps(trainer))
    plan = planned(repo, tmp_path, "checkpoint-{step}")
    assert [item.left_out for item in plan.due] == [()] * 2
    made = plan.execute()
    assert [checkpoint.metrics for checkpoint in made] == [{"eval_loss": 0.4}, {"eval_loss": 0.2}]
    assert repo.resolve("best:eval_loss").step == 1000


def test_an_interrupted_import_goes_on_and_a_whole_one_does_nothing(
    repo: ckptstore.Repository, old: Path
) -> None:
    class KilledError(Exception):
        pass

    def stop(item: object, checkpoint: object) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        planned(repo, old, "ckpt_{step}.pt").execute(done=stop)
    assert [c.step for c in repo.log()] == [3]
    again = planned(repo, old, "ckpt_{step}.pt")
    assert [item.step for item in again.due] == [20, 100]
    again.execute()
    assert planned(repo, old, "ckpt_{step}.pt").execute() == ()
    assert len(repo.log()) == 3


def test_what_is_there_is_not_read_again(
    repo: ckptstore.Repository, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(repo, old, "ckpt_{step}.pt").execute()
    torch.save({"w": torch.ones(1)}, old / "ckpt_200.pt")
    read: list[str] = []
    read_file = ckptstore.formats.read_file
    monkeypatch.setattr(
        ckptstore.formats, "read_file", lambda path: (read.append(path.name), read_file(path))[1]
    )
    plan = planned(repo, old, "ckpt_{step}.pt")
    assert read == ["ckpt_200.pt"]
    assert [item.step for item in plan.imports if item.checkpoint] == [3, 20, 100]


def test_a_file_that_changed_since_and_one_that_cannot_be_read_are_named(
    repo: ckptstore.Repository, old: Path
) -> None:
    planned(repo, old, "ckpt_{step}.pt").execute()
    torch.save({"w": torch.zeros(9)}, old / "ckpt_20.pt")
    (old / "ckpt_5.pt").write_bytes(b"")
    plan = planned(repo, old, "ckpt_{step}.pt")
    assert plan.due == ()
    problems = [item.problem for item in plan.refused]
    assert "is empty" in problems[0]
    assert "changed since it was imported as" in problems[1]
    assert plan.execute() == ()


def test_a_file_of_the_same_name_in_another_folder_is_another_one(
    repo: ckptstore.Repository, old: Path
) -> None:
    planned(repo, old, "ckpt_{step}.pt").execute()
    new = old.rename(old.parent / "new")
    assert len(planned(repo, new, "ckpt_{step}.pt").due) == 3
    assert len(planned(repo, new, "ckpt_{step}.pt", branch="other").due) == 3


def test_arrays_are_renamed(repo: ckptstore.Repository, old: Path) -> None:
    planned(repo, old, "ckpt_{step}.pt", rename={"model/(.*)": r"net/body.\1"}).execute()
    assert repo.checkout("main")["net"]["body.w"].tolist() == [100.0] * 4


def test_several_folders_are_matched(repo: ckptstore.Repository, old: Path) -> None:
    plan = plan_import(repo, f"{old.parent}/*/ckpt_{{step}}.pt")
    assert [item.name for item in plan.due][:1] == [f"{old.parent.name}/old/ckpt_3.pt"]


def test_a_template_is_proposed_by_the_names(repo: ckptstore.Repository, old: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"ckpt_\{step\}\.pt' \(3 names\)"):
        plan_import(repo, old)
    with pytest.raises(NotFoundError, match=r"Nothing matches .*ckpt_\{step\}\.pt' \(3 names\)"):
        planned(repo, old, "model_{step}.pt")
    with pytest.raises(NotFoundError, match="does not exist"):
        plan_import(repo, old / "none")
    with pytest.raises(InvalidInputError, match="is one file: commit it"):
        plan_import(repo, old / "ckpt_3.pt")


def test_a_file_that_no_checkpoint_holds_leaves_the_others(
    repo: ckptstore.Repository, old: Path
) -> None:
    torch.save({"w": torch.eye(3).to_sparse()}, old / "ckpt_50.pt")
    torch.save({"w": torch.ones(1), "step": 10**30}, old / "ckpt_x.pt")
    torch.save({"w": torch.ones(1), "acc": 10**400}, old / "ckpt_60.pt")
    failed: list[Any] = []
    plan = planned(repo, old, "ckpt_*.pt")
    made = plan.execute(failed=lambda item, error: failed.append(item.name))
    assert len(made) + len(failed) + len(plan.refused) == 6
    assert len(made) == 3
    with pytest.raises(ckptstore.CkptStoreError):
        planned(repo, old, "ckpt_50.pt".replace("50", "5?")).execute()


@pytest.mark.parametrize("seconds", [-5.0, 0.0, 1e12])
def test_a_file_of_any_time_is_imported(
    repo: ckptstore.Repository, old: Path, seconds: float
) -> None:
    os.utime(old / "ckpt_3.pt", (seconds, seconds))
    assert len(planned(repo, old, "ckpt_{step}.pt").execute()) == 3
    assert planned(repo, old, "ckpt_{step}.pt").due == ()


@pytest.fixture
def epochs(tmp_path: Path) -> Path:
    folder = tmp_path / "epochs"
    folder.mkdir()
    for epoch in (1, 2):
        torch.save({"w": torch.full((2,), float(epoch))}, folder / f"e{epoch}.pt")
    return folder


def test_rows_of_steps_are_not_taken_for_epochs_and_that_is_said(
    repo: ckptstore.Repository, epochs: Path
) -> None:
    file = epochs.parent / "m.csv"
    file.write_text("step,val_loss\n1,.5\n2,.25\n30,.1\n")
    plan = planned(repo, epochs, "e{epoch}.pt", metrics=file)
    assert [dict(item.metrics) for item in plan.due] == [{}, {}]
    assert plan.notes == (
        f"{file} has no row for epochs/e1.pt, epochs/e2.pt.",
        f"The rows of {file} have steps, but only the epoch of these files is known. If the "
        "numbers are epochs, call the column epoch.",
        f"No file belongs to these rows of {file}: step 1, step 2, step 30.",
    )
    file.write_text("epoch,val_loss\n1,.5\n2,.25\n")
    plan = planned(repo, epochs, "e{epoch}.pt", metrics=file)
    assert [dict(item.metrics) for item in plan.due] == [{"val_loss": 0.5}, {"val_loss": 0.25}]
    assert plan.notes == ()


def test_rows_and_columns_that_are_not_used_are_named(
    repo: ckptstore.Repository, epochs: Path
) -> None:
    file = epochs.parent / "m.csv"
    file.write_text("epoch,step,time,note,loss\n1,10,5,x,.5\n1,20,6,x,.4\n3,30,7,x,.3\n,,8,x,.2\n")
    assert planned(repo, epochs, "e{epoch}.pt", metrics=file).notes == (
        f"Columns of {file} that hold no numbers are ignored: note.",
        f"Columns of {file} that hold times are ignored: time.",
        f"{file} has no row for epochs/e2.pt.",
        f"No file belongs to these rows of {file}: step 30.",
        f"Not used, without a step, an epoch or a file: 1 row of {file}.",
    )


def test_new_metrics_of_what_was_imported_before_are_not_dropped_in_silence(
    repo: ckptstore.Repository, epochs: Path
) -> None:
    file = epochs.parent / "m.csv"
    file.write_text("epoch,loss\n1,nan\n2,.5\n")
    planned(repo, epochs, "e{epoch}.pt", metrics=file).execute()
    assert planned(repo, epochs, "e{epoch}.pt", metrics=file).notes == ()
    file.write_text("epoch,loss,acc\n1,nan,.1\n2,.5,\n")
    assert planned(repo, epochs, "e{epoch}.pt", metrics=file).notes == (
        f"These were imported before, and get no new metrics from {file}: epochs/e1.pt. To add "
        "metrics to a checkpoint, annotate it.",
    )


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("e{epoch}.pt", ()),
        ("e{val_loss}.pt", ()),
        ("e{epch}.pt", ("{epch} was read as a metric of that name. Did you mean {epoch}?",)),
        ("e{batch}.pt", ("{batch} is neither a step, an epoch nor a metric, and is left out.",)),
    ],
)
def test_a_field_that_may_be_mistyped_is_named(
    repo: ckptstore.Repository, epochs: Path, name: str, notes: tuple[str, ...]
) -> None:
    assert planned(repo, epochs, name).notes == notes


def test_a_folder_and_a_pattern_are_what_one_template_is(
    repo: ckptstore.Repository, tmp_path: Path
) -> None:
    folder = tmp_path / "of {step} *"  # means itself
    (folder / "sub").mkdir(parents=True)
    for step in (10, 9):
        np.savez(folder / "sub" / f"ckpt_{step}.npz", w=np.full(2, step))
    plan = ckptstore.plan_import(repo, folder, pattern="sub/ckpt_{step}.npz")
    assert [item.name for item in plan.imports] == ["sub/ckpt_9.npz", "sub/ckpt_10.npz"]
    assert [made.step for made in plan.execute()] == [9, 10]
    assert ckptstore.plan_import(repo, folder / "sub", pattern="ckpt_{step}.npz").due == ()


@pytest.mark.parametrize(
    ("folder", "pattern", "error"),
    [
        ("none", "ckpt_{step}.npz", NotFoundError),
        (".", "none_{step}.npz", NotFoundError),
        (".", "ckpt_{step", InvalidInputError),
        (".", 3, InvalidInputError),
        (".", "", InvalidInputError),
    ],
)
def test_a_pattern_that_fits_nothing_is_refused(
    repo: ckptstore.Repository,
    tmp_path: Path,
    folder: str,
    pattern: str,
    error: type[Exception],
) -> None:
    np.savez(tmp_path / "ckpt_1.npz", w=np.ones(2))
    with pytest.raises(error):
        ckptstore.plan_import(repo, tmp_path / folder, pattern=pattern)


def test_the_steps_of_the_rows_are_those_of_files_that_have_only_epochs(
    repo: ckptstore.Repository, epochs: Path
) -> None:
    file = epochs / "m.csv"
    file.write_text("epoch,step,loss,val\n1,90,.6,\n1,100,.5,.4\n2,200,.25,.2\n")
    plan = planned(repo, epochs, "e{epoch}.pt", metrics=file)
    assert plan.notes == plan.others == ()
    assert [(made.step, made.meta["epoch"], dict(made.metrics)) for made in plan.execute()] == [
        (100, 1, {"loss": 0.5, "val": 0.4}),
        (200, 2, {"loss": 0.25, "val": 0.2}),
    ]
    again = planned(repo, epochs, "e{epoch}.pt", metrics=file)
    assert again.due == again.notes == ()
    file.write_text("file,step,loss\ne1.pt,8,.5\ne2.pt,7,.25\n")
    plan = planned(repo, epochs, "e*.pt", metrics=file, branch="by-file")
    assert [(item.name, item.step) for item in plan.due] == [
        ("epochs/e2.pt", 7),
        ("epochs/e1.pt", 8),
    ]


def test_the_epochs_of_the_rows_are_those_of_files_that_have_none(
    repo: ckptstore.Repository, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        torch.save({"w": torch.ones(1)}, tmp_path / f"{name}.pt")
    rows = "file,epoch,val_loss\na.pt,4,0.5\nb.pt,3,0.75\n"
    (tmp_path / "log.csv").write_text(rows)
    made = planned(repo, tmp_path, "*.pt", metrics=tmp_path / "log.csv").execute()
    assert [(one.meta["epoch"], one.metrics) for one in made] == [
        (3, {"val_loss": 0.75}),
        (4, {"val_loss": 0.5}),
    ]
    assert planned(repo, tmp_path, "*.pt", metrics=tmp_path / "log.csv").due == ()
    (tmp_path / "log.csv").write_text("step,epoch,val_loss\n7,4,0.5\n")
    torch.save({"w": torch.ones(1)}, tmp_path / "ckpt_7.pt")
    options = {"branch": "steps", "metrics": tmp_path / "log.csv"}
    (made_at_7,) = planned(repo, tmp_path, "ckpt_{step}.pt", **options).execute()
    assert (made_at_7.step, made_at_7.meta["epoch"]) == (7, 4)


def test_a_step_of_a_name_wins_over_that_of_the_row(
    repo: ckptstore.Repository, epochs: Path
) -> None:
    file = epochs.parent / "m.csv"
    file.write_text("file,step,loss\ne1.pt,8,.5\ne2.pt,7,.25\n")
    plan = planned(repo, epochs, "e{step}.pt", metrics=file)
    assert [item.step for item in plan.due] == [1, 2]


def test_a_file_without_a_row_takes_its_place_by_the_epoch(
    repo: ckptstore.Repository, epochs: Path
) -> None:
    torch.save({"w": torch.ones(2)}, epochs / "e3.pt")
    file = epochs.parent / "m.csv"
    file.write_text("epoch,step,loss\n1,100,.5\n3,300,.25\n")
    plan = planned(repo, epochs, "e{epoch}.pt", metrics=file)
    assert [(item.epoch, item.step) for item in plan.due] == [(1, 100), (2, None), (3, 300)]
    assert plan.notes == (f"{file} has no row for epochs/e2.pt.",)


@pytest.mark.parametrize("kind", ["step", "epoch"])
def test_a_file_that_turns_up_later_is_named(
    repo: ckptstore.Repository, epochs: Path, kind: str
) -> None:
    late = (epochs / "e1.pt").rename(epochs / "late.pt")
    planned(repo, epochs, f"e{{{kind}}}.pt").execute()
    assert planned(repo, epochs, f"e{{{kind}}}.pt").notes == ()
    late.rename(epochs / "e1.pt")
    torch.save({"w": torch.ones(2)}, epochs / "e3.pt")
    plan = planned(repo, epochs, f"e{{{kind}}}.pt")
    assert plan.notes == (
        f"{kind} 1 comes after {kind} 2 on branch main, as that was there before. For a history in "
        "order, import all files to another branch.",
    )
    torch.save({"w": torch.ones(2)}, epochs / "e0.pt")
    assert f"{kind} 0, {kind} 1 come after" in planned(repo, epochs, f"e{{{kind}}}.pt").notes[0]
    assert planned(repo, epochs, f"e{{{kind}}}.pt", branch="other").notes == ()
