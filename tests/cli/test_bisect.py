"""`ckptstore bisect`: the answers, the command that gives them, and what may happen meanwhile."""

import json
import os
import shlex
import sys

import pytest

from ckptstore.retention import KeepSteps, MaxToKeep

BAD_FROM = 17  # the step of the first bad one
SAVES = 30
NONE = "No bisect is under way. Begin one with: ckptstore bisect start BAD GOOD"


@pytest.fixture
def run_of(repo):
    """main: the steps 0 to 29, of which those from 17 on are bad."""
    for step in range(SAVES):
        repo.commit({"x": step}, step=step, metrics={"val_loss": step / 10})
    return repo


def step_of(line):
    return int(line.split("step ")[1].split()[0])


@pytest.fixture
def judge(tmp_path):
    """A command that writes down the steps it is run for, and calls those from 17 on bad.

    Further words: the exit codes of single steps, as STEP=CODE.
    """
    script = tmp_path / "judge.py"
    script.write_text(
        "import sys\n"
        f"step = int(sys.argv[1])\n"
        f"print(step, file=open({str(tmp_path / 'judged')!r}, 'a'))\n"
        "codes = dict(word.split('=') for word in sys.argv[2:])\n"
        f"sys.exit(int(codes.get(str(step), step >= {BAD_FROM})))\n"
    )
    return [sys.executable, str(script), "{step}"]


def judged(tmp_path):
    return list(map(int, (tmp_path / "judged").read_text().split()))


def test_answers_by_hand_lead_to_the_first_bad_one(ckpt, run_of):
    line = ckpt.out("bisect", "start", "main", "main~29")
    count = 0
    while step_of(line) != BAD_FROM or count < 5:
        line = ckpt.out("bisect", "bad" if step_of(line) >= BAD_FROM else "good")
        count += 1
    assert count == 5
    end = ckpt("bisect", "log")
    assert end.stdout.splitlines()[-1] == line.strip()
    good = run_of.resolve("main@step=16").id.short
    bad = run_of.resolve("main@step=17").id.short
    assert (
        f"This is the first bad checkpoint. The last good one is {good}, step 16.\n" in end.stderr
    )
    assert end.stderr.endswith(f"To compare them: ckptstore diff {good} {bad} --numeric\n")
    assert "There is no checkpoint to test next. Name one." in ckpt.error("bisect", "good")


def test_the_checkpoint_to_test_next_is_printed_with_how_much_is_left(ckpt, run_of):
    begun = ckpt("bisect", "start", "main", "main~29")
    middle = run_of.resolve("main@step=14")
    assert begun.stdout == f"{middle.id.short}  step 14  val_loss=1.4\n"
    assert begun.stderr == (
        "To test next (28 left, about 5 tests):\nThen: ckptstore bisect good, bad or skip.\n"
    )
    document = ckpt.json("bisect", "log")
    assert document["next"]["id"] == middle.id
    assert (document["left"], document["steps"], document["first_bad"]) == (28, 5, None)
    assert [item["answer"] for item in document["answers"]] == ["bad", "good"]


def test_a_command_finds_it(ckpt, run_of, judge, tmp_path):
    ckpt("bisect", "start", "main", "main~29")
    done = ckpt("bisect", "run", *judge)
    assert judged(tmp_path) == [14, 21, 17, 15, 16]
    assert step_of(done.stdout) == BAD_FROM
    assert "Testing " in done.stderr
    document = json.loads(ckpt.out("bisect", "run", "--json", *judge))
    assert document["first_bad"] == run_of.resolve("main@step=17").id
    assert len(judged(tmp_path)) == 5


def test_the_command_finds_the_checkpoint_and_the_repository_in_its_environment(ckpt, run_of):
    ckpt("bisect", "start", "main", "main~2", "-r", run_of.url)
    code = (
        "import os, subprocess, sys; "
        "shown = subprocess.run([sys.executable, '-m', 'ckptstore_cli', 'show', '--id', "
        "os.environ['CKPTSTORE_REV']], capture_output=True, text=True, cwd='/', check=True); "
        "open(sys.argv[1], 'w').write(shown.stdout + sys.argv[2])"
    )
    done = ckpt.process(
        "-r",
        run_of.url,
        "bisect",
        "run",
        sys.executable,
        "-c",
        code,
        "seen",
        "{id}",
    )
    assert done.returncode == 0
    tested = run_of.resolve("main~1").id
    assert (ckpt.folder / "seen").read_text() == f"{tested}\n{tested}"


def test_the_options_of_the_command_are_its_own_and_its_output_stays_out_of_json(ckpt, run_of):
    ckpt("bisect", "start", "main", "main~2")
    command = [sys.executable, "-c", "import sys; print('said', sys.argv[1:])", "--json", "-h"]
    done = ckpt.process("bisect", "run", "--json", *command)
    assert json.loads(done.stdout)["first_bad"] == run_of.resolve("main").id
    assert "said ['--json', '-h']" in done.stderr


@pytest.mark.parametrize(
    ("codes", "last_good", "first_bad"),
    [
        ("16=125", 15, None),
        ("14=125 19=125", 16, 17),
        ("17=1 21=127 19=126", 16, 17),
        ("21=124", 16, 17),
    ],
)
def test_exit_codes_are_answers(ckpt, run_of, judge, tmp_path, codes, last_good, first_bad):
    ckpt("bisect", "start", "main", "main~29")
    command = ["--json", *judge, *codes.split()]
    document = json.loads(ckpt.out("bisect", "run", *command, code=0 if first_bad else 1))
    assert document["good"] == run_of.resolve(f"main@step={last_good}").id
    assert document["suspects"][-1] == run_of.resolve("main@step=17").id
    assert document["first_bad"] == (document["suspects"][-1] if first_bad else None)


def test_those_that_could_not_be_tested_are_named_in_the_end(ckpt, run_of, judge):
    ckpt("bisect", "start", "main", "main~29")
    done = ckpt("bisect", "run", *judge, "15=125", "16=125", code=1)
    assert [step_of(line) for line in done.stdout.splitlines()] == [15, 16, 17]
    assert "is one of these 3: all but the last could not be tested." in done.stderr


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ("14=128", "ended with exit code 128 for"),
        ("14=255", "ended with exit code 255 for"),
        ("14=127 0=127", "ends with exit code 127 for the good checkpoint"),
        ("14=126 0=126", "ends with exit code 126 for the good checkpoint"),
    ],
)
def test_a_command_that_gives_no_answer_ends_the_search_and_it_can_go_on(
    ckpt, run_of, judge, tmp_path, codes, said
):
    ckpt("bisect", "start", "main", "main~29")
    assert said in ckpt.error("bisect", "run", *judge, *codes.split())
    assert len(ckpt.json("bisect", "log")["answers"]) == 2
    assert step_of(ckpt.out("bisect", "run", *judge)) == BAD_FROM


def test_a_command_that_cannot_be_run_or_is_killed_is_no_answer(ckpt, run_of):
    ckpt("bisect", "start", "main", "main~29")
    assert "cannot be run: " in ckpt.error("bisect", "run", "./no-such-program")
    killed = ["-c", "import os; os.kill(os.getpid(), 9)"]
    assert "ended with signal 9 for" in ckpt.error("bisect", "run", sys.executable, *killed)
    assert len(ckpt.json("bisect", "log")["answers"]) == 2


def test_expired_checkpoints_are_left_out(ckpt, run_of, judge, tmp_path):
    run_of.gc(KeepSteps({0, 10, 20}))
    ckpt("bisect", "start", "main", "main~29")
    ckpt("bisect", "run", *judge, code=1)
    document = ckpt.json("bisect", "log", code=1)
    assert judged(tmp_path) == [10, 20]
    assert len(document["suspects"]) == 10


def test_a_checkpoint_that_expires_while_it_is_tested_is_not_called_bad(ckpt, run_of, tmp_path):
    ckpt("bisect", "start", "main", "main~29")
    code = (
        "import ckptstore, os, sys\n"
        "from ckptstore.retention import MaxToKeep\n"
        "repo = ckptstore.open(os.environ['CKPTSTORE_REPO'])\n"
        "repo.gc(MaxToKeep(2))\n"
        "repo.checkout(os.environ['CKPTSTORE_REV'])\n"  # fails, and so does the command
    )
    done = ckpt("bisect", "run", sys.executable, "-c", code)
    expired = run_of.resolve("main@step=14").id.short
    assert f"{expired} has expired meanwhile, so it is left out.\n" in done.stderr
    assert f"{expired} is bad" not in done.stderr
    document = ckpt.json("bisect", "log")
    assert document["good"] == run_of.resolve("main@step=28").id


def test_a_branch_that_goes_on_meanwhile_changes_nothing(ckpt, run_of, judge):
    ckpt("bisect", "start", "main", "main~29")
    run_of.commit({"x": 99}, step=99)
    run_of.rename_branch("main", "done")
    run_of.commit({"x": 0}, step=0)
    assert step_of(ckpt.out("bisect", "run", *judge)) == BAD_FROM


def test_the_chain_goes_through_the_branch_that_another_was_started_from(ckpt, run_of, judge):
    run_of.branch("task", "main@step=20", include="x")
    for step in range(40, 45):
        run_of.commit({"x": step}, branch="task", step=step)
    ckpt("bisect", "start", "task", "main~29")
    assert step_of(ckpt.out("bisect", "run", *judge)) == BAD_FROM


def test_good_and_bad_may_be_named_later_and_corrected(ckpt, run_of, judge):
    waiting = ckpt("bisect", "start")
    assert waiting.stderr == (
        "Name a bad and a good checkpoint: ckptstore bisect bad REV and ckptstore bisect good REV\n"
    )
    assert "Name a bad and a good" in ckpt.error("bisect", "run", *judge)
    assert "There is no checkpoint to test next" in ckpt.error("bisect", "bad")
    assert "Name a bad checkpoint" in ckpt("bisect", "good", "main~29").stderr
    ckpt("bisect", "bad", "main")
    ckpt("bisect", "good", "main~9")  # a mistake
    ckpt("bisect", "bad", "main~9", "main~8")
    assert step_of(ckpt.out("bisect", "run", *judge)) == BAD_FROM


def test_several_can_be_left_out_at_once(ckpt, run_of, judge, tmp_path):
    ckpt("bisect", "start", "main", "main~29")
    ckpt("bisect", "skip", *(f"main@step={step}" for step in (13, 14, 15)))
    assert step_of(ckpt.out("bisect", "run", *judge)) == BAD_FROM
    assert not {13, 14, 15} & {*judged(tmp_path)}


@pytest.mark.parametrize(
    ("bad", "good", "said"),
    [
        ("main~9", "main", "It is newer. A bisect finds where good became bad"),
        ("main", "task", "Both were made from {}, step 20."),
        ("main", "other", "They have no checkpoint in common."),
        ("task~1", "main@step=20", "task~1 and main@step=20 are the same checkpoint, {}."),
    ],
)
def test_answers_that_make_no_search_are_refused_and_nothing_begins(ckpt, run_of, bad, good, said):
    run_of.branch("task", "main@step=20")
    run_of.commit({"x": 1}, branch="task", step=50)
    run_of.commit({"x": 1}, branch="other", step=50)
    met = run_of.resolve("main@step=20").id.short
    assert said.format(met) in ckpt.error("bisect", "start", bad, good)
    assert NONE in ckpt.error("bisect", "log")


def test_a_wrong_answer_is_refused_and_not_recorded(ckpt, run_of):
    ckpt("bisect", "start", "main~5", "main~29")
    assert "It is newer: name it first" in ckpt.error("bisect", "bad", "main")
    assert "It is newer. A bisect finds" in ckpt.error("bisect", "good", "main")
    ckpt("bisect", "bad", "main~10")
    assert "exchange the two words" in ckpt.error("bisect", "good", "main~7")
    assert len(ckpt.json("bisect", "log")["answers"]) == 3


def test_the_log_is_a_script_that_gives_the_same_answers_again(ckpt, run_of):
    ckpt("bisect", "start", "main", "main~29", "-r", run_of.url)
    ckpt("bisect", "good", "-r", run_of.url)
    ckpt("bisect", "skip", "-r", run_of.url)
    before = ckpt.json("bisect", "log")
    lines = ckpt.out("-r", run_of.url, "bisect", "log").splitlines()[:-1]
    ckpt("bisect", "reset")
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        assert program == "ckptstore"
        ckpt(*words)
    assert ckpt.json("bisect", "log") == before


def test_a_second_one_is_refused_until_the_first_has_ended(ckpt, run_of):
    ckpt("bisect", "start", "main", "main~29")
    said = ckpt.error("bisect", "start", "main", "main~3")
    assert "under way already" in said
    assert "ckptstore bisect reset" in said
    assert ckpt.out("bisect", "reset") == "The bisect has ended.\n"
    assert ckpt.json("bisect", "reset") == {"reset": False}
    assert ckpt.out("bisect", "reset") == "No bisect was under way.\n"
    ckpt("bisect", "start", "main", "main~3")


def test_each_repository_has_its_own(ckpt, run_of, tmp_path):
    ckpt("init", tmp_path / "other")
    ckpt("bisect", "start", "main", "main~29")
    assert "ckptstore -r " in ckpt.error("bisect", "log", "-r", tmp_path / "other")
    (tmp_path / "link").symlink_to(run_of.url)
    assert ckpt.json("bisect", "log", "-r", tmp_path / "link")["left"] == 28


def test_nothing_is_written_to_the_repository(ckpt, run_of, judge):
    def everything():
        return {
            (folder, name, os.stat(os.path.join(folder, name)).st_mtime_ns)
            for folder, folders, files in os.walk(run_of.url)
            for name in (*folders, *files)
        }

    before = everything()
    ckpt("bisect", "start", "main", "main~29")
    ckpt("bisect", "run", *judge)
    ckpt("bisect", "log")
    ckpt("bisect", "reset")
    assert everything() == before


def test_a_bisect_that_is_reset_while_a_command_runs_stays_so(ckpt, run_of):
    ckpt("bisect", "start", "main", "main~29")
    done = ckpt.process("bisect", "run", sys.executable, "-m", "ckptstore_cli", "bisect", "reset")
    assert done.returncode == 1
    assert NONE in done.stderr
    assert NONE in ckpt.error("bisect", "log")


def test_answers_that_others_give_while_a_command_runs_are_kept(ckpt, run_of):
    ckpt("bisect", "start", "main", "main~29")
    code = (
        "import os, subprocess, sys; subprocess.run([sys.executable, '-m', 'ckptstore_cli', "
        "'bisect', 'bad', os.environ['CKPTSTORE_REV']]); sys.exit(3 if sys.argv[1] > '1' else 0)"
    )
    ckpt.process("bisect", "run", sys.executable, "-c", code, "{step}")
    answers = [item["answer"] for item in ckpt.json("bisect", "log")["answers"]]
    assert answers.count("bad") > 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"format": 2}',
        b'{"format": 1, "answers": [["x", "bad"]]}',
        b'{"format": 1, "answers": [["' + b"0" * 64 + b'", "odd"]]}',
        b"[" * 100_000,
    ],
    ids=map(str, range(8)),
)
def test_a_damaged_file_of_answers_is_named_with_the_way_out(ckpt, run_of, tmp_path, content):
    ckpt("bisect", "start", "main", "main~29")
    (file,) = (tmp_path / "state").rglob("*.json")
    file.write_bytes(content)
    said = ckpt.error("bisect", "log")
    assert f"{file} is damaged. To begin anew: ckptstore bisect reset" in said
    ckpt("bisect", "reset")
    ckpt("bisect", "start", "main", "main~29")


def test_the_file_is_where_the_specification_has_it(ckpt, run_of, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", variable)
        ckpt("bisect", "start", "main", "main~29")
        (file,) = (tmp_path / "home").rglob("*.json")
        assert file.parent == tmp_path / "home/.local/state/ckptstore/bisect"
        ckpt("bisect", "reset")


def test_a_folder_that_cannot_be_made_is_named(ckpt, run_of, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert "cannot be written (Not a directory)" in ckpt.error("bisect", "start", "main", "main~9")
    monkeypatch.setenv("HOME", "~")
    monkeypatch.setenv("XDG_STATE_HOME", "")
    assert "You have no home folder." in ckpt.error("bisect", "start", "main", "main~9")


def test_without_a_word_its_help_is_shown(ckpt, run_of):
    result = ckpt("bisect", code=2)
    assert "Usage: ckptstore bisect [OPTIONS] COMMAND" in result.stderr
    assert "\n  start " in result.stderr
    assert "Did you mean 'start'?" in ckpt.error("bisect", "strat", code=2)


def test_a_checkpoint_that_is_gone_is_reported(ckpt, run_of):
    ckpt("bisect", "start", "main", "main~29")
    run_of.delete_branch("main")
    run_of.gc(MaxToKeep(1), grace=0)
    assert ckpt.json("bisect", "log", code=1)["left"] == 0
