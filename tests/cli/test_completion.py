"""Shell completion, through the protocol by which a shell asks for it."""

import shlex
import sys

import pytest


@pytest.fixture
def complete(ckpt):
    def complete(*words, shell="bash"):
        """What a shell is offered for the last word."""
        env = {
            "_CKPTSTORE_COMPLETE": f"{shell}_complete",
            "COMP_LINE": " ".join(["ckptstore", *words]),
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
        "bisect", "branch", "tag", "follow", "clone", "remote", "push", "pull", "fetch", "ops",
        "undo", "expire", "gc", "config", "verify", "usage",
    )]  # fmt: skip


def test_options_are_completed(complete):
    assert complete("log", "--gr") == ["plain,--graph"]
    assert "plain,--drop-values" in complete("checkout", "--")


@pytest.mark.parametrize(
    "command", ["show", "ls", "log", "checkout", "branch new", "tag new", "bisect start main"]
)
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


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["show", "bes"], ["best:"]),  # "be" may begin an id, too
        (["show", "la"], ["latest"]),
        (["show", "best:"], ["best:accuracy", "best:val_loss"]),
        (["log", "tuned@best:v"], ["tuned@best:val_loss"]),
        (["ls", "main@"], ["main@best:", "main@step="]),
        (["diff", "main", "main@step="], ["main@step=200", "main@step=100"]),
        (["verify", "main", "main@step=1"], ["main@step=100"]),
        (["show", "nope@best:"], []),
        (["best", ""], ["accuracy", "val_loss"]),
        (["best", "val_loss", "t"], ["tuned"]),
        (["log", "--sort", "v"], ["val_loss"]),
        (["log", "--where", "a"], ["accuracy"]),
        (["gc", "--keep-best", "v"], ["val_loss"]),
        (["commit", "x.pt", "--metric", "v"], ["val_loss="]),
        (["ls", "main", "--include", "m"], ["model/"]),
        (["ls", "main", "--include", "model/"], ["model/bias", "model/weight"]),
        (["checkout", "v1", "--tensor", "model/w"], ["model/weight"]),
        (["diff", "v1", "main", "--exclude", "model/b"], ["model/bias"]),
        (["ls", "nope", "--include", ""], []),
    ],
)
def test_revisions_metrics_and_paths_are_completed(complete, history, words, offered):
    assert complete(*words) == [f"plain,{value}" for value in offered]


def test_ids_are_completed_from_two_digits(complete, history):
    id = history.resolve("main").id
    assert complete("show", id[:4]) == [f"plain,{id.short}"]
    assert complete("show", id[:12]) == [f"plain,{id}"]
    assert f"plain,{id.short}" not in complete("show", id[:1])


def test_names_that_need_quotes_are_not_offered(complete, history):
    history.commit({"x": 1}, metrics={"recall@10": 1, "a:b": 1, "a b": 1, "val/acc": 1})
    assert complete("best", "")[-1] == "plain,val_loss"
    assert "plain,val/acc" in complete("best", "")
    assert not [line for line in complete("best", "") if "10" in line or "a:b" in line]


@pytest.mark.parametrize(
    ("words", "replies"),
    [
        (["show", "best", ":"], ["accuracy", "val_loss"]),
        (["show", "best", ":", "val"], ["val_loss"]),
        (["show", "tuned", "@", "best", ":", "v"], ["val_loss"]),
        (["show", "main", "@"], ["best:", "step="]),
        (["show", "main", "@", "step", "=", "2"], ["200"]),
        (["show", "t"], ["tuned"]),
        (["show", ""], ["main", "tuned", "v1"]),
        (["ls", "main", "--include", "model/w"], ["model/weight"]),
    ],
)
def test_bash_replaces_what_follows_the_last_of_its_breaks(ckpt, history, words, replies):
    """Bash splits "best:val" into three words, and takes a reply for the last of them."""
    line = " ".join(words)
    for mark in (":", "@", "="):
        line = line.replace(f" {mark} ", mark).replace(f" {mark}", mark)
    program = f"{sys.executable} -m ckptstore_cli"
    script = f"""
        compopt() {{ :; }}
        complete() {{ :; }}
        ckptstore() {{ {program} "$@"; }}
        env() {{ local line="${{1#COMP_LINE=}}"; COMP_LINE="$line" \\
            _CKPTSTORE_COMPLETE=bash_complete {program}; }}
        eval "$(_CKPTSTORE_COMPLETE=bash_source {program})"
        COMP_LINE={shlex.quote("ckptstore " + line)} COMP_POINT=${{#COMP_LINE}}
        COMP_POINT=${{#COMP_LINE}}
        COMP_WORDS=(ckptstore {" ".join(map(shlex.quote, words))}) COMP_CWORD={len(words)}
        _ckptstore_cli_completion ckptstore 2>/dev/null || _ckptstore_completion ckptstore
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = ckpt.python(["bash", "-c", script])
    assert done.stdout.split() == replies, done.stderr
