"""What a terminal of 80, 120 and 200 columns shows, as files in snapshots/.

UPDATE_SNAPSHOTS=1 in the environment writes them anew.
"""

import math
import os
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

import ckptstore
from ckptstore_cli import output
from ckptstore_cli.main import cli

SNAPSHOTS = Path(__file__).with_name("snapshots")
NOW = datetime(2030, 5, 17, 12, tzinfo=UTC)
BRANCH = "experiments/transformer-large/lr-3e-4"
COMMANDS = {
    "log": ("log",),
    "log-main": ("log", "main", "-n", "4"),
    "log-sort": ("log", "--sort", "val_acc", "-n", "3"),
    "best": ("best", "val_loss", "-k", "3"),
    "branch": ("branch",),
    "ls": ("ls", "main"),
    "ls-values": ("ls", "main", "--values"),
    "show": ("show", "main"),
    "diff": ("diff", "main~2", BRANCH),
    "diff-numeric": ("diff", "main~2", BRANCH, "--numeric"),
    "gc": ("gc", "--dry-run", "--max-to-keep", "2", "--keep-best", "val_acc:max"),
    "usage": ("usage",),
}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Two branches of a transformer, with long names of arrays and branches, and five metrics."""
    path = tmp_path_factory.mktemp("widths") / "store"
    clock = iter(NOW.timestamp() - seconds for seconds in range(900_000, 0, -50_000))
    repo = ckptstore.init(path, clock=lambda: next(clock))
    random = np.random.default_rng(0)
    encoder = {
        f"encoder.layer.{layer}.attention.self.{part}.weight": random.random((96, 192), "f4")
        for layer in (0, 11)
        for part in ("query", "value")
    }

    def state(step):
        return {
            "model": {**encoder, "classifier.dense.out_proj.weight": random.random((192, 9), "f4")},
            "optimizer": {"param_groups": [{"lr": 1e-4 * step, "betas": (0.9, 0.999)}]},
            "epoch": step // 100,
        }

    for step in range(100, 600, 100):
        metrics = {
            "val_loss": 2 / (1 + step / 300),
            "val_acc": 1 - 1 / (1 + step / 100),
            "train/grad_norm": 12345.678 / step,
            "lr": 1e-4,
        }
        message = "warm-up with a schedule that takes a while to explain" if step == 300 else ""
        repo.commit(state(step), step=step, metrics=metrics, message=message)
    repo.tag("v1.0-rc1", "main@step=200")
    repo.branch(BRANCH, "main@step=400")
    for step, value in ((500, math.nan), (1_000_000, 0.25)):
        encoder["encoder.layer.11.attention.self.query.weight"] = random.random((96, 192), "f4")
        encoder["encoder.layer.0.attention.self.value.weight"][0, 0] = math.nan
        metrics = {"val_loss": value, "eval/rouge_l_validation": 0.4}
        repo.commit(state(step), branch=BRANCH, step=step, metrics=metrics)
    return repo.url


def shown(url, monkeypatch, args, *, columns):
    """What a terminal of this width shows; a pipe, without one."""
    monkeypatch.setattr(output, "_is_terminal", lambda _: columns is not None)
    monkeypatch.setattr(output, "now", lambda: NOW)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**8))
    env = {"NO_COLOR": "1", "COLUMNS": str(columns), "TZ": "UTC"}
    result = CliRunner().invoke(cli, ["-r", url, *args], env=env)
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.output.splitlines()]
    text = re.sub(r"(?m)^(repository +).*$", r"\1PATH", "\n".join([*lines, ""]))
    varies = r"metadata|\(manifests, operations\)|together"  # with the names of host and user
    return re.sub(rf"(?m)^({varies}) +[\d.]+ kB$", r"\1  # kB", text)


@pytest.mark.parametrize("columns", [80, 120, 200])
@pytest.mark.parametrize("name", COMMANDS)
def test_snapshot(url, monkeypatch, name, columns):
    text = shown(url, monkeypatch, COMMANDS[name], columns=columns)
    assert max(map(len, text.splitlines())) <= columns
    file = SNAPSHOTS / f"{name}-{columns}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("columns", [60, 79, 80, 81, 100, 150])
@pytest.mark.parametrize("name", COMMANDS)
def test_no_row_is_broken_inside_a_word(url, monkeypatch, name, columns):
    """What is not shortened, which an ellipsis tells, is there in whole or up to a slash."""
    whole = shown(url, monkeypatch, COMMANDS[name], columns=None)
    whole = re.sub(r"(?<=\w)[↑↓]", "", whole)
    text = shown(url, monkeypatch, COMMANDS[name], columns=columns)
    text = re.sub(
        r"(?s)\n(\* best of|Best first|Not shown|Expired checkpoints are|\d+ arrays,).*", "", text
    )
    words = {piece for word in whole.split() for piece in pieces(word)}
    assert {word for word in text.split() if not {*word} & {*"…▏▎▍▌▋▊▉█"}} <= words


def pieces(word):
    """What lines may hold of a word that is broken after slashes."""
    parts = re.findall(r"[^/]*/|[^/]+", word)
    return {"".join(parts[a:b]) for a in range(len(parts)) for b in range(a + 1, len(parts) + 1)}


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_each_operation_is_one_line(url, monkeypatch, columns):
    text = shown(url, monkeypatch, ("ops",), columns=columns)
    lines = text.splitlines()
    assert len(lines) == len(ckptstore.open(url).operations()) + 1
    assert max(map(len, lines)) <= columns
    assert "committed" in lines[1]
