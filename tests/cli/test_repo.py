import os
import sys
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

import ckptstore
from ckptstore_cli import repo as repo_module


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


def test_a_repository_that_is_the_working_folder_is_offered(ckpt, monkeypatch):
    ckpt("init", "store")
    monkeypatch.chdir(ckpt.folder / "store")
    assert f"{ckpt.folder}/store is a repository itself: name it with -r ." in ckpt.error("log")
    assert ckpt.json("-r", ".", "log") == []


def test_a_named_folder_that_is_no_repository_is_an_error(ckpt):
    assert f"{ckpt.folder}/nowhere is not a repository" in ckpt.error("-r", "nowhere", "log")
    assert "ftp://" in ckpt.error("-r", "ftp://host/x", "log")


def test_a_folder_stands_for_the_repository_in_it(ckpt, history):
    assert len(ckpt.json("-r", ckpt.folder, "log")) == 3
    (ckpt.folder / "empty/.ckptstore").mkdir(parents=True)
    assert "empty/.ckptstore is not a repository" in ckpt.error("-r", "empty", "log")
    ckpt("init", "other/.ckptstore")
    ckpt("-r", "other", "commit", make_file(ckpt))
    assert ckpt("diff", "main", "main", "--other", ckpt.folder).exit_code == 0


def test_the_repository_of_another_user_is_only_used_by_name(ckpt, history, monkeypatch):
    """One of theirs above would take the commits of all who work below it."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.delenv("SUDO_UID", raising=False)
    error = ckpt.error("log")
    for part in (history.url, "belongs to another user", f"-r {history.url}", "CKPTSTORE_REPO"):
        assert part in error
    assert len(ckpt.json("-r", history.url, "log")) == 3
    assert len(ckpt("log", CKPTSTORE_REPO=history.url).stdout.splitlines()) == 4


@pytest.mark.parametrize(
    ("user", "environment", "trusted"),
    [
        (7, {}, {7}),
        (0, {}, {0}),
        (0, {"SUDO_UID": "7"}, {0, 7}),
        (0, {"SUDO_UID": "x"}, {0}),
        (7, {"SUDO_UID": "8"}, {7}),
    ],
)
def test_root_may_use_what_belongs_to_the_user_who_called_it(user, environment, trusted):
    assert repo_module._trusted(user, environment) == trusted


def test_a_link_to_the_repository_of_another_user_is_not_followed(ckpt, monkeypatch):
    place = ckpt.folder / ".ckptstore"
    theirs = ckpt.folder / "theirs"
    ckptstore.init(theirs)
    place.symlink_to(theirs)
    assert ckpt.json("log") == []
    real = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path, **options: changed_owner(real(path, **options)))
    assert "belongs to another user" in ckpt.error("log")


def changed_owner(status):
    return os.stat_result((*status[:4], status.st_uid + 1, *status[5:]))


def test_the_search_ends_at_the_mount_point(ckpt, history, monkeypatch):
    """As git's does: what is mounted here is not part of the project around it."""
    below = ckpt.folder / "data/run"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert len(ckpt.json("log")) == 3
    real = Path.stat

    def stat(path, **options):
        status = real(path, **options)
        inside = path.is_relative_to(ckpt.folder / "data")
        return os.stat_result((*status[:2], -1, *status[3:])) if inside else status

    monkeypatch.setattr(Path, "stat", stat)
    assert "on the same disk" in ckpt.error("log")


def test_in_a_working_folder_that_is_gone_a_repository_has_to_be_named(
    ckpt, history, monkeypatch, tmp_path
):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "The working folder is gone" in ckpt.error("log")
    assert "Pass an absolute path" in ckpt.error("-r", "store", "log")
    assert "Pass an absolute path" in ckpt.error("-r", history.url, "checkout", "main")
    assert len(ckpt.json("-r", history.url, "log")) == 3
    ckpt("-r", history.url, "checkout", "main", "-o", tmp_path / "x.npz", "--drop-values")
    ckpt("-r", history.url, "commit", tmp_path / "x.npz")
    ckpt("init", tmp_path / "new")


def test_a_pt_is_written_where_the_working_folder_is_gone(ckpt, history, tmp_path):
    """torch ends the process that imports it there."""
    program = [sys.executable, "-m", "ckptstore_cli", "-r", history.url, "checkout", "main", "-o"]
    (ckpt.folder / "gone").mkdir()
    inside = f'cd gone && rmdir ../gone && exec "$@" {tmp_path}/x.pt'
    done = ckpt.python(["sh", "-c", inside, "sh", *program])
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert (tmp_path / "x.pt").exists()


def make_file(ckpt):
    path = ckpt.folder / "small.safetensors"
    save_file({"x": numpy.arange(3)}, path)
    return path


def test_a_project_may_stand_for_the_repository_inside_it(ckpt, history):
    id = history.resolve("main").id
    project = ckpt.folder
    assert ckpt.out("-r", project, "show", "main", "--id").strip() == id
    assert ckpt("show", "main", "--id", CKPTSTORE_REPO=str(project)).stdout.strip() == id
