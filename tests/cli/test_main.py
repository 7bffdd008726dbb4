import os
import signal
import sys

import pytest

import ckptstore

SIGNAL_WHEN_OPENED = """
import ckptstore, os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
ckptstore.open = lambda url, **_: os.kill(os.getpid(), signal.SIGINT)
from ckptstore_cli.main import main
main()
"""

SIGNAL_WHEN_WRITTEN = """
import os, signal, sys
from ckptstore.formats import publish
from ckptstore_cli.main import main
number = getattr(signal, sys.argv.pop(1))
signal.signal(number, signal.SIG_IGN if sys.argv.pop(1) == "ignored" else signal.SIG_DFL)
flush = publish._flush
def flush_after_signal(path):
    assert path.exists()
    os.kill(os.getpid(), number)
    flush(path)
publish._flush = flush_after_signal
main()
"""


def test_help_and_version(ckpt):
    assert ckpt.out("--version") == f"ckptstore {ckptstore.__version__}\n"
    assert ckpt.out("--help") == ckpt.out("-h")
    assert "Usage: ckptstore [OPTIONS] COMMAND" in ckpt.out("--help")


def test_no_command_is_wrong_usage_and_shows_the_help(ckpt):
    assert "checkout" in ckpt(code=2).output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["chekout", "main"], "Did you mean 'checkout'?"),
        (["log", "--grahp"], "'--graph'"),
        (["--json", "log"], "--json goes after the command."),
        (["log", "main", "tuned"], "unexpected extra argument"),
        (["frobnicate"], "No such command 'frobnicate'"),
    ],
)
def test_wrong_usage_exits_with_2_and_helps(ckpt, history, args, said):
    assert said in ckpt.error(*args, code=2)


def test_a_process_exits_with_the_same_codes(ckpt, history):
    done = ckpt.process("show", "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: 'nowhere' is not a branch, tag or checkpoint.")
    assert done.stderr.count("\n") == 1
    assert ckpt.process("show").returncode == 2
    assert ckpt.process("show", "main").returncode == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("out", ["x.safetensors", "x.zarr"])
def test_a_signal_ends_an_export_that_leaves_nothing(ckpt, history, name, out):
    command = [sys.executable, "-c", SIGNAL_WHEN_WRITTEN, name]
    args = ["checkout", "main", "-o", out, "--drop-values"]
    ended = ckpt.python([*command, "ends", *args])
    assert ended.returncode == -getattr(signal, name)
    assert "Traceback" not in ended.stderr
    assert not [
        path for path in ckpt.folder.iterdir() if path.name.startswith((".ckptstore-", "x."))
    ]
    kept = ckpt.python([*command, "ignored", *args])  # as under nohup
    assert (kept.returncode, (ckpt.folder / out).exists()) == (0, True)


def test_an_interrupt_exits_with_130_and_no_traceback(ckpt, history):
    done = ckpt.python([sys.executable, "-c", SIGNAL_WHEN_OPENED, "log"])
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.strip() == "error: interrupted."
    assert signal.SIGINT + 128 == 130


@pytest.mark.parametrize("args", ["log", "log --json", "log --graph", "show main", "usage"])
def test_a_reader_that_has_gone_is_met_in_silence(ckpt, history, args):
    reader, writer = os.pipe()
    os.close(reader)
    done = ckpt.process(*args.split(), stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_under_the_output_is_an_error(ckpt, history):
    with open("/dev/full", "w") as full:
        done = ckpt.process("log", stdout=full)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr


def test_no_stdout_at_all_is_fine(ckpt, history):
    done = ckpt.python(["bash", "-c", f"{sys.executable} -m ckptstore_cli log >&-"])
    assert (done.returncode, done.stderr) == (0, "")


def test_any_locale_prints_all_there_is(ckpt, history):
    history.commit({"x": 1}, message="größer ✓ 漢", metrics={"ünï": 1})
    for encoding in ("ascii", "latin-1", "utf-8"):
        locale = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
        done = ckpt.process("log", env=locale, encoding=encoding)
        assert done.returncode == 0, done.stderr
    done = ckpt.process("log", "--json", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "gr\\u00f6\\u00dfer" in done.stdout


@pytest.mark.parametrize("args", [["--bad"], ["log", "--bad"], ["nonsense"]])
def test_a_wrong_usage_is_an_error_in_the_same_form(ckpt, args):
    shown = ckpt.error(*args, code=2)
    assert shown.startswith("Usage: ckptstore")
    assert "\nerror: No such " in shown


def test_without_arguments_it_prints_the_help(ckpt):
    assert "error:" not in ckpt.process().stderr


def test_the_library_run_as_a_module_is_the_program(ckpt, history):
    done = ckpt.python([sys.executable, "-m", "ckptstore", "show", "main", "--id"])
    assert (done.returncode, done.stdout.strip()) == (0, history.resolve("main").id)
