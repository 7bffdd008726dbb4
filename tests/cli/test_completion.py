"""Shell completion, through the protocol by which a shell asks for it."""

import pytest


@pytest.fixture
def complete(ckpt):
    def complete(*words, shell="bash"):
        """What a shell is offered for the last word."""
        env = {
            "_CKPTSTORE_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": " ".join(["ckptstore", *words]),
            "COMP_CWORD": str(len(words)),
        }
        result = ckpt(**env)
        assert result.stderr == ""
        return [line for line in result.stdout.splitlines() if line]

    return complete


def test_commands_are_completed(complete):
    assert complete("ch") == ["plain,checkout"]
    assert complete("") == [f"plain,{name}" for name in (
        "init", "commit", "import", "annotate", "log", "best", "show", "ls", "checkout", "diff",
        "branch", "tag", "follow", "ops", "undo", "expire", "gc", "config", "verify", "usage",
    )]  # fmt: skip


def test_options_are_completed(complete):
    assert complete("log", "--gr") == ["plain,--graph"]
    assert "plain,--drop-values" in complete("checkout", "--")


@pytest.mark.parametrize("command", ["show", "ls", "log", "checkout", "branch new", "tag new"])
def test_revisions_are_completed_from_branches_and_tags(complete, history, command):
    assert complete(*command.split(), "") == ["plain,main", "plain,tuned", "plain,v1"]
    assert complete(*command.split(), "t") == ["plain,tuned"]
    assert complete(*command.split(), "x") == []


def test_only_branches_or_only_tags_where_only_those_fit(complete, history):
    assert complete("branch", "-d", "") == ["plain,main", "plain,tuned"]
    assert complete("tag", "-d", "") == ["plain,v1"]
    assert complete("commit", "f.pt", "-b", "") == ["plain,main", "plain,tuned"]


def test_the_repository_on_the_line_is_asked(complete, history, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert complete("show", "") == []
    assert complete("-r", history.url, "show", "t") == ["plain,tuned"]
    assert complete("show", "-r", history.url, "t") == ["plain,tuned"]
    monkeypatch.setenv("CKPTSTORE_REPO", history.url)
    assert complete("show", "t") == ["plain,tuned"]


def test_files_and_folders_are_left_to_the_shell(complete, history):
    assert complete("commit", "ru") == ["file,ru"]
    assert complete("checkout", "main", "-o", "ru") == ["file,ru"]
    assert complete("-r", "ru") == ["dir,ru"]


def test_other_shells_are_told_what_each_ref_is(complete, history):
    assert complete("show", "t", shell="zsh") == ["plain", "tuned", "branch"]
    assert complete("show", "v", shell="zsh") == ["plain", "v1", "tag"]


def test_a_damaged_repository_is_met_in_silence(complete, ckpt, history):
    for path in (ckpt.folder / ".ckptstore" / "ops").iterdir():
        path.chmod(0o600)
        path.write_bytes(b"\0")
    assert complete("show", "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_line_to_turn_it_on_prints_a_script(ckpt, shell):
    script = ckpt(_CKPTSTORE_COMPLETE=f"{shell}_source").stdout
    assert f"_CKPTSTORE_COMPLETE={shell}_complete" in script
