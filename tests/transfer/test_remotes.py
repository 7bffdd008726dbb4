"""Remotes are settings with checked names and URLs."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckptstore
from ckptstore.errors import InvalidInputError, NotFoundError
from ckptstore.transfer.remotes import REMOTES_MAX, url_of


def test_remotes_are_kept_and_undone_one_by_one(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "run")
    repo.set_remote("origin", tmp_path / "a")
    repo.set_remote("backup", "memory://backup")
    assert ckptstore.open(repo.url).remotes == {
        "backup": "memory://backup",
        "origin": str(tmp_path / "a"),
    }
    repo.set_remote("origin", None)
    repo.undo(2)
    assert repo.remotes == {}
    repo.undo(3)
    assert repo.remotes == {"origin": str(tmp_path / "a")}


def test_a_relative_path_is_kept_as_an_absolute_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    repo = ckptstore.init("run")
    repo.set_remote("origin", "../elsewhere")
    assert repo.remotes == {"origin": str(tmp_path.parent / "elsewhere")}


@pytest.mark.hostile
@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/runs",
        "s3://bucket/runs?aws_secret_access_key=secret",
        "s3://bucket/runs?endpoint=http://user:secret@host",
        "ftp://host/runs",
        "s3:/bucket",
        "",
        "x" * 5000,
        7,
        b"s3://bucket",
    ],
)
def test_a_url_that_no_repository_can_have_is_refused_without_its_secret(url: object) -> None:
    repo = ckptstore.init("memory://")
    with pytest.raises(InvalidInputError) as caught:
        repo.set_remote("origin", url)  # type: ignore[arg-type]
    assert "secret" not in str(caught.value).replace("aws_secret_access_key", "")
    assert repo.remotes == {}


@pytest.mark.hostile
@pytest.mark.parametrize("name", ["", "a/b", "-x", "a..b", "x" * 101, "a b", "x.lock", 3, None])
def test_a_name_is_checked(name: object) -> None:
    with pytest.raises(InvalidInputError):
        ckptstore.init("memory://").set_remote(name, "memory://x")  # type: ignore[arg-type]


def test_there_are_not_too_many() -> None:
    repo = ckptstore.init("memory://")
    for number in range(REMOTES_MAX):
        repo.set_remote(f"r{number}", "memory://x")
    with pytest.raises(InvalidInputError, match="Remove one first"):
        repo.set_remote("more", "memory://x")
    repo.set_remote("r1", "memory://y")


def test_a_name_a_url_or_a_path_finds_the_place() -> None:
    settings = {"remotes": {"origin": "/a", "b": "/b", "broken": 3}}
    assert url_of(None, settings) == "/a"
    assert url_of("b", settings) == "/b"
    assert url_of("./b", settings) == "./b"
    assert url_of("s3://bucket/x", settings) == "s3://bucket/x"
    assert url_of(Path("b"), settings) == Path("b")
    assert url_of(None, {"remotes": {"b": "/b"}}) == "/b"
    with pytest.raises(NotFoundError, match=r"Did you mean origin\?"):
        url_of("origni", settings)
    with pytest.raises(InvalidInputError, match="No remote is named"):
        url_of(None, {"remotes": {"b": "/b", "c": "/c"}})
    with pytest.raises(InvalidInputError, match="The repository has none"):
        url_of(None, {})
    with pytest.raises(NotFoundError):
        ckptstore.init("memory://").set_remote("x", None)
