"""push, pull, fetch, clone and remote on the command line."""

from __future__ import annotations

import pytest

import ckptstore
from ckptstore.retention import MaxToKeep
from ckptstore_cli.main import cli
from tests.cli.test_widths import shown


@pytest.fixture
def there(tmp_path):
    """An empty repository beside the one of the command line."""
    return ckptstore.init(tmp_path / "there")


def test_a_run_is_pushed_and_pulled(ckpt, history, there):
    ckpt("remote", "add", "origin", there.url)
    said = ckpt("push")
    assert said.stderr.startswith(f"To {there.url}\n")
    rows = [line.split() for line in said.stdout.splitlines()]
    assert ["tag", "v1", history.resolve("v1").id.short, "new"] in rows
    assert said.stdout.splitlines()[-1].endswith("copied.")
    assert there.ref_names() == history.ref_names()
    assert ckpt.out("push") == "Everything is up to date.\n"
    there.commit({"epoch": 7}, step=700)
    document = ckpt.json("pull", "origin", "main")
    assert document["moves"][0]["after"] == there.resolve("main").id
    assert document["dry_run"] is False
    assert history.resolve("main").step == 700


def test_a_dry_run_shows_the_bytes_and_changes_nothing(ckpt, history, there):
    planned = ckpt.json("push", there.url, "--dry-run")
    assert planned["bytes"] > 0
    assert planned["dry_run"] is True
    assert "would be copied. Nothing was changed." in ckpt.out("push", there.url, "--dry-run")
    assert there.ref_names() == ({}, {})
    assert ckpt.json("push", there.url)["bytes"] == planned["bytes"]


def test_a_revision_goes_under_another_name(ckpt, history, there):
    ckpt("push", there.url, "main~1", "--as", "alice/older")
    assert there.ref_names()[0] == {"alice/older": history.resolve("main~1").id}
    assert "no branch 'main~1'" in ckpt.error("push", there.url, "main~1")
    assert "--as needs the one REV" in ckpt.error("push", there.url, "--as", "x", code=2)
    assert "name none" in ckpt.error("push", there.url, "main", "--mirror", code=2)


def test_a_conflict_names_the_ways_out(ckpt, history, there):
    ckpt("push", there.url)
    there.commit({"epoch": 8})
    history.commit({"epoch": 9})
    for command in ("push", "pull"):
        said = " ".join(ckpt.error(command, there.url, "main").split())
        assert "non-fast-forward" in said
        assert "--as NAME" in said
        assert "--force" in said
        assert "True" not in said
    ckpt("pull", there.url, "main", "--as", "theirs")
    ckpt("push", there.url, "main", "--force")
    assert there.resolve("main").id == history.resolve("main").id


def test_a_remote_is_fetched_beside_the_own_branches(ckpt, history, there):
    ckpt("push", there.url)
    there.commit({"epoch": 8}, step=800)
    ckpt("remote", "add", "origin", there.url)
    ckpt("fetch")
    assert history.resolve("origin/main").step == 800
    assert "There is no remote" in ckpt.error("fetch", there.url)


def test_remotes_are_listed_and_removed(ckpt, repo, there):
    assert "no remote yet" in ckpt("remote", "list").stderr
    ckpt("remote", "add", "origin", there.url)
    ckpt("remote", "add", "bucket", "s3://bucket/runs?region=eu-central-1")
    assert ckpt.json("remote", "list") == [
        {"name": "bucket", "url": "s3://bucket/runs?region=eu-central-1"},
        {"name": "origin", "url": there.url},
    ]
    assert "s3://bucket/runs" in ckpt.out("remote", "list")
    assert ckpt.json("remote", "remove", "bucket") == {"removed": "bucket"}
    assert list(repo.remotes) == ["origin"]
    assert "Did you mean origin?" in ckpt.error("push", "origni")
    said = ckpt.error("remote", "add", "evil", "s3://key:secret@bucket/runs")
    assert "credentials" in said
    assert "secret" not in said


def test_the_mirrors_of_trainings_are_listed(ckpt, history, there):
    history._set_mirror("main", there.url)
    assert f"The mirror of main is {there.url}: nothing yet" in ckpt("remote", "list").stderr
    ckpt("push", there.url, "main")
    head = history.resolve("main")
    said = ckpt("remote", "list").stderr
    assert f"{there.url}: up to {head.id.short}, at step {head.step}" in said


def test_a_repository_is_cloned(ckpt, history):
    said = ckpt("clone", ckpt.folder)
    copy = ckptstore.open(ckpt.folder / ckpt.folder.name)
    assert copy.ref_names() == history.ref_names()
    assert "Cloned 2 branches and 1 tag" in said.stdout
    document = ckpt.json("clone", history.url, "other", "-b", "main", "--depth", "1")
    assert list(document["branches"]) == ["main"]
    assert document["origin"] == history.url
    assert "already a repository" in ckpt.error("clone", history.url, "other")
    assert "is not a repository" in ckpt.error("clone", "nothing", "more")
    assert not (ckpt.folder / "more").exists()


def test_policies_go_along_when_asked_for(ckpt, history, there):
    history.set_retention(MaxToKeep(3))
    ckpt("push", there.url)
    assert there.retention() is None
    assert "1 policy" in ckpt.out("push", there.url, "--policies")
    assert ckpt.json("pull", there.url, "--policies")["policies"] == 0
    assert there.retention() == MaxToKeep(3)
    ckpt("clone", history.url, "with", "--policies")
    assert ckptstore.open(ckpt.folder / "with").retention() == MaxToKeep(3)


def test_the_repository_in_a_folder_is_found(ckpt, repo, tmp_path):
    project = tmp_path / "project"
    made = ckptstore.init(project / ".ckptstore")
    repo.commit({"epoch": 1})
    ckpt("push", project)
    assert made.ref_names() == repo.ref_names()
    ckpt("remote", "add", "origin", project)
    assert repo.remotes == {"origin": made.url}


def test_a_terminal_of_80_columns_shows_all(history, there, monkeypatch):
    history.branch("experiments/transformer-large/lr-3e-4-with-a-rather-long-name", "main")
    lines = shown(history.url, monkeypatch, ("push", there.url), columns=80).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert any("lr-3e-4" in line for line in lines)
    assert any("copied" in line for line in lines)


def test_every_command_is_there():
    assert {"push", "pull", "fetch", "clone", "remote"} <= set(cli.list_commands(None))
