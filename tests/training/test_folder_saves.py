"""Folders that other programs write are saved by a manager."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import ckptstore
from ckptstore import ConflictError, InvalidInputError
from ckptstore.training.folder_saves import FolderSaves, write_folder
from tests.formats.test_hugging_face import assert_equal, trained


def test_a_folder_may_be_removed_while_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Trainer does, which keeps only the newest."""
    folder = trained(tmp_path / "checkpoint-500")
    shutil.copytree(folder, tmp_path / "copy")
    with FolderSaves("memory://", rng=False) as saves:
        started, start = [], saves._background.start
        monkeypatch.setattr(saves._background, "start", started.append)
        saves.save_folder(folder)
        shutil.rmtree(folder)
        monkeypatch.undo()
        start(started[0])
    made = saves.latest
    assert made is not None
    assert (made.step, made.metrics["eval_loss"], made.meta["epoch"]) == (500, 0.25, 2)
    write_folder(made, saves.repository, tmp_path / "again")
    assert_equal(tmp_path / "copy", tmp_path / "again")


def test_a_run_resumes_from_the_newest_or_moves_the_branch(tmp_path: Path) -> None:
    repo = ckptstore.init("memory://")
    folder = trained(tmp_path / "checkpoint-500")
    with FolderSaves(repo, rng=False, async_save=False) as saves:
        for step in (1, 2):
            saves.save_folder(folder, step=step, metrics={"more": step})
    old, new = repo.resolve("main~1"), repo.resolve("main")
    assert (old.step, old.metrics["more"], old.metrics["eval_loss"]) == (1, 1, 0.25)
    with FolderSaves(repo, rng=False) as saves:
        with pytest.raises(ConflictError, match=r"is at .* \(step 2\).*reset=True"):
            saves.resume(old, resets=False)
        saves.resume(new, resets=False)
        saves.save_folder(folder, step=3)
    assert [one.step for one in repo.log()] == [3, 2, 1]
    with FolderSaves(repo, rng=False) as saves:
        saves.resume(old, resets=True)
        saves.save_folder(folder, step=4)
    assert [one.step for one in repo.log()] == [4, 1]


def test_only_a_checkpoint_of_a_folder_is_written_as_one(tmp_path: Path) -> None:
    repo = ckptstore.init("memory://")
    made = repo.commit({"files": 3})
    with pytest.raises(InvalidInputError, match="not a folder of Hugging Face"):
        write_folder(made, repo, tmp_path / "out")
