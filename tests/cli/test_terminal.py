"""What a terminal gets: tables fitted to it, styles, and progress; and what a pipe gets instead."""

import os
import pty
import re
import sys

import numpy as np
import pytest

from ckptstore import Progress
from ckptstore.retention import MaxToKeep
from ckptstore_cli import output

pytestmark = pytest.mark.slow


@pytest.fixture
def terminal(ckpt):
    def terminal(*args, columns=80, code=0, answer="", **env):
        """Run in a process of its own on a terminal; what it showed."""
        outer, inner = pty.openpty()
        os.write(outer, answer.encode())
        env = {"TERM": "xterm-256color", "COLUMNS": str(columns), **env}
        done = ckpt.process(*args, stdin=inner, stdout=inner, stderr=inner, env=env)
        os.close(inner)
        shown = b""
        while True:
            try:
                data = os.read(outer, 65536)
            except OSError:
                break
            if not data:
                break
            shown += data
        os.close(outer)
        assert done.returncode == code, shown
        return shown.decode().replace("\r\n", "\n")

    return terminal


def test_a_terminal_gets_colours_and_a_pipe_none(terminal, ckpt, history):
    assert "\x1b[33m" in terminal("log")
    assert "\x1b" not in ckpt.process("log").stdout


@pytest.mark.parametrize("args", [["log"], ["log", "--graph"], ["branch"], ["ls", "main"]])
def test_no_color_is_respected(terminal, history, args):
    assert "\x1b" not in terminal(*args, NO_COLOR="1")
    assert "\x1b" not in terminal(*args, TERM="dumb")


def test_long_texts_give_way_before_ids_and_numbers(terminal, ckpt, history):
    history.commit({"x": 1}, step=123456, metrics={"val_loss": 0.5}, message="long " * 40)
    id = history.resolve("main").id.short
    shown = terminal("log", NO_COLOR="1").splitlines()
    assert all(len(line) <= 80 for line in shown)
    assert id in shown[1]
    assert "123456" in shown[1]
    assert " 0.5 " in shown[1]
    assert shown[1].endswith("…")
    assert "long " * 39 in ckpt.process("log").stdout


def test_long_fields_are_wrapped_between_words(terminal, history):
    history.commit({"x": 1})
    history.commit({"x": np.zeros(9)}, branch="mistake")
    history.delete_branch("mistake")
    shown = terminal("usage", NO_COLOR="1").splitlines()
    assert [line for line in shown if len(line) > 80 and history.url not in line] == []
    (place,) = (number for number, line in enumerate(shown) if line.startswith("leftovers"))
    assert shown[place + 1].startswith(" " * 13)
    assert not shown[place + 1].startswith(" " * 14)


def test_a_very_narrow_terminal_still_gets_whole_ids(terminal, history):
    shown = terminal("log", columns=20, NO_COLOR="1")
    assert history.resolve("main").id.short in shown


def test_the_graph_is_cut_at_the_edge(terminal, history):
    history.commit({"x": 1}, message="long " * 40)
    shown = terminal("log", "--graph", NO_COLOR="1").splitlines()
    assert all(len(line) <= 80 for line in shown)
    assert len(shown) == 5


def test_markup_of_the_table_library_is_plain_text(terminal, history):
    history.commit({"x": 1}, message="[red]x[/red] :smile: 12")
    for args in (["log"], ["log", "--graph"], ["show", "main"]):
        assert "[red]x[/red] :smile: 12" in terminal(*args, columns=200)


def test_a_sum_stands_under_a_list_on_a_terminal_only(terminal, ckpt, history):
    assert terminal("ls", "main").endswith("2 arrays, 80.0 kB\n")
    assert "2 arrays" not in ckpt.process("ls", "main").stdout


def test_long_paths_lose_their_middle_and_no_row_breaks(terminal, ckpt, repo):
    path = "/".join(["a" * 30, "b" * 30, "7", "c" * 20])
    repo.commit({"a" * 30: {"b" * 30: {"7": {"c" * 20: np.ones(1)}}}})
    row = terminal("ls", "main", NO_COLOR="1", columns=80).splitlines()[1]
    assert row.startswith(f"{'a' * 30}/…7/{'c' * 20} ")
    assert path in ckpt.process("ls", "main").stdout


def test_what_takes_less_than_a_second_shows_no_progress(terminal, ckpt, history):
    assert "\x1b[K" not in terminal("verify")


@pytest.mark.parametrize(
    ("args", "kind"),
    [
        (["commit", "x.npz"], "Stored"),
        (["checkout", "main", "-o", "y.npz"], "Read"),
        (["diff", "main~1", "main", "--numeric"], "Read"),
        (["verify"], "Verified"),
        (["gc", "--max-to-keep", "1", "--grace", "0", "--yes"], "Deleted"),
    ],
)
def test_what_takes_longer_shows_progress_on_a_terminal_and_clears_it(
    ckpt, history, monkeypatch, args, kind
):
    np.savez("x.npz", w=np.ones(100_000))
    history.commit({"model": np.arange(50_000.0)})
    history.commit({"model": np.ones(50_000)})
    with monkeypatch.context() as patch:  # undone before fixtures end
        patch.setattr(output, "_is_terminal", lambda stream: stream is sys.stderr)
        patch.setattr(output, "_PROGRESS_AFTER_SECONDS", 0)
        patch.setattr(output, "_progress_line", output._ProgressLine())
        patch.setattr(output.time, "monotonic", iter(range(10**6)).__next__)
        result = ckpt(*args)
    assert f"\r\x1b[K{kind} " in result.stderr
    assert re.search(r"\x1b\[K[^\x1b]*\r\x1b\[K\Z", result.stderr)  # gone in the end


def test_progress_comes_after_a_second_and_not_too_often(monkeypatch, capsys):
    seconds = 100.0
    line = output._ProgressLine()
    with monkeypatch.context() as patch:
        patch.setattr(output.time, "monotonic", lambda: seconds)
        for step in range(1, 301):
            seconds += 0.01
            line.show(Progress(kind="read", done=step * 1000, total=300_000))
            if step < 100:
                assert capsys.readouterr().err == ""
    assert 18 <= capsys.readouterr().err.count("\r") <= 21
    line.clear()
    line.clear()
    assert capsys.readouterr().err == "\r\x1b[K"


def test_progress_begins_anew_after_the_end_of_an_operation(monkeypatch, capsys):
    """The next one may have the same kind, and be further at its first report."""
    seconds = 100.0
    line = output._ProgressLine()
    monkeypatch.setattr(output, "_progress_line", line)
    with monkeypatch.context() as patch:
        patch.setattr(output.time, "monotonic", lambda: seconds)
        line.show(Progress(kind="read", done=100, total=1000))
        output.flush()
        seconds += 60
        line.show(Progress(kind="read", done=900, total=1000))
    assert capsys.readouterr().err == ""


def test_each_operation_of_a_command_has_a_second_of_its_own(monkeypatch, capsys):
    """Also if it has the kind of the one before, and is further at its first report."""
    seconds = 100.0
    line = output._ProgressLine()
    with monkeypatch.context() as patch:
        patch.setattr(output.time, "monotonic", lambda: seconds)
        line.show(Progress(kind="stored", done=100, total=100, operation=1))
        seconds += 60
        line.show(Progress(kind="stored", done=300, total=1000, operation=2))
        assert capsys.readouterr().err == ""
        seconds += 2
        line.show(Progress(kind="stored", done=400, total=1000, operation=2))
    assert "200 B/s, 3 s left" in capsys.readouterr().err


def test_progress_stays_out_of_piped_json(ckpt, history):
    command = f"{sys.executable} -m ckptstore_cli verify --json | {sys.executable} -m json.tool"
    assert ckpt.python(["bash", "-c", command]).returncode == 0


def test_a_numeric_diff_fits_by_leaving_out_columns_and_never_breaks_a_name(terminal, repo):
    for seed in (1, 2):
        values = np.random.default_rng(seed).standard_normal(2000)
        repo.commit({"model": {"0.weight": values, "3.bias": values[:9]}})

    def diff(columns):
        shown = terminal("diff", "main~1", "main", "--numeric", NO_COLOR="1", columns=columns)
        assert all(len(line) <= columns for line in shown.splitlines())
        assert "model/0.weight" in shown
        assert "NaN" not in shown
        return shown

    assert "norms" not in diff(70)
    assert "norms" in diff(80)
    assert "█" not in diff(80)
    assert "█" in diff(120)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_new_nans_stay_in_a_numeric_diff_however_narrow_the_terminal(terminal, repo, columns):
    """The other numbers leave them out, so nothing else would show that an array is spoilt."""
    state = {"encoder": {"layer": {"0": {"attention": {"self": {"query": np.ones(99)}}}}}}
    repo.commit(state)
    state["encoder"]["layer"]["0"]["attention"]["self"]["query"][3] = np.nan
    repo.commit(state)
    args = ("diff", "main~1", "main", "--numeric")
    head, row, *_ = terminal(*args, NO_COLOR="1", columns=columns).splitlines()
    assert head.rstrip().endswith("new NaN/inf")
    assert row.rstrip().endswith("1/0")


@pytest.mark.parametrize("command", ["log", "branch"])
def test_metrics_are_whole_beside_an_empty_column(terminal, ckpt, repo, command):
    repo.commit({"x": 1}, step=1300, metrics={"val_acc": 0.580908, "val_loss": 0.0401616})
    head, row, *_ = terminal(command, NO_COLOR="1").splitlines()
    assert "val_acc  val_loss" in head
    assert " 0.5809   0.04016 " in row
    assert "message" not in head
    assert "message" in ckpt.process(command).stdout


@pytest.mark.parametrize("command", ["branch", "tag", "log"])
def test_names_of_refs_are_never_cut(terminal, repo, command):
    names = [f"experiments/transformer-large/lr-{rate}e-4" for rate in (1, 3)]
    repo.commit(
        {"x": 1}, step=1300, metrics={"val_acc": 0.58, "val_loss": 0.04}, message="long " * 40
    )
    for name in names:
        (repo.tag if command == "tag" else repo.branch)(name)
    shown = terminal(command, NO_COLOR="1")
    head, *rows = shown.splitlines()
    assert all(len(line) <= 80 for line in (head, *rows))
    if command == "log":  # in one column, broken after slashes
        refs = slice(head.index("refs"), head.index("step"))
        shown = "".join(row[refs].strip() for row in rows)
    assert all(name in shown for name in names)


def test_a_plan_of_gc_has_a_line_for_each_checkpoint(terminal, repo):
    for step in range(6):
        repo.commit({"x": step}, step=step, metrics={"val_acc": -step / 7, "val_loss": 1 / 7})
    shown = terminal("gc", "--max-to-keep", "2", "--keep-best", "val_acc:max", "--dry-run")
    assert shown.count("nothing keeps it") == 3
    table = shown[: shown.index("Next to go")].splitlines()
    assert len(table) <= 9, shown  # the policy, the heading, 6 checkpoints, and a second reason


def test_errors_and_notes_are_wrapped_between_words(terminal, ckpt, repo):
    path = f"{'folder/' * 20}file.pt"
    shown = terminal("checkout", "nothing-of-this-name", "-o", path, code=1)
    lines = shown.splitlines()
    assert len(lines) > 1
    assert all(len(line) <= 80 for line in lines)
    assert " ".join(lines) == ckpt.process("checkout", "nothing-of-this-name").stderr.strip()
    repo.commit({"x": 1})
    shown = terminal("checkout", "main", "-o", path, code=1)
    assert any(path.rpartition("/")[0] in line for line in shown.splitlines())


def test_a_command_to_copy_stays_on_one_line(terminal, ckpt):
    shown = terminal("init", "long" * 30)
    assert f"    export CKPTSTORE_REPO={ckpt.folder / ('long' * 30)}\n" in shown


def test_gc_shows_what_it_will_delete_and_asks(terminal, ckpt, repo):
    for step in range(3):
        repo.commit({"w": np.full(20_000, step)}, step=step)
    refused = terminal("gc", "--max-to-keep", "1", answer="n\n", code=1)
    assert "cannot come back" in refused
    assert "Delete this? [y/N]" in refused
    assert "Nothing was deleted." in refused
    assert [c.expired for c in repo.log()] == [False] * 3
    assert "2 checkpoints expired" in terminal("gc", "--max-to-keep", "1", answer="y\n")
    assert [c.expired for c in repo.log()] == [False, True, True]
    assert "Delete this?" not in terminal("gc", "--max-to-keep", "1")  # there is nothing
    repo.commit({"w": np.full(20_000, 9)})
    assert "Delete this?" not in terminal("gc", "--max-to-keep", "1", "--yes")
    assert [c.expired for c in repo.log()] == [False, True, True, True]


def test_expire_asks_after_its_plan(terminal, repo):
    for step in range(4):
        repo.commit({"w": np.full(20_000, step)}, step=step)
    question = "Delete the arrays for good? [y/N]"
    refused = terminal("expire", "main~1", answer="n\n", code=1)
    assert refused.index("1 checkpoint would expire") < refused.index(question)
    assert "Nothing was deleted." in refused
    assert not any(c.expired for c in repo.log())
    assert "1 checkpoint expired" in terminal("expire", "main~1", answer="y\n")
    assert question not in terminal("expire", "main~2", "--yes")
    assert [c.expired for c in repo.log()] == [False, True, True, False]


def test_the_word_expired_stays_however_narrow_the_terminal(terminal, repo):
    metrics = {f"val_loss_of_{name}": 0.123456 for name in "abcdef"}
    for step in range(3):
        repo.commit({"x": step}, step=step, metrics=metrics, message="words " * 9)
    repo.gc(MaxToKeep(1), grace=0)
    for columns in (40, 60, 80):
        shown = terminal("log", "--all", columns=columns, NO_COLOR="1")
        assert shown.count("expired") == 2
        where = terminal("log", "--where", "step < 3", columns=80, NO_COLOR="1")
        assert "--all lists them too." in where
    assert "--all" not in terminal("log", "--where", "step = 2", NO_COLOR="1")
