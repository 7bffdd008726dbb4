"""The demo runs, says what it should, and keeps its hands off what is not its own."""

import runpy
from types import SimpleNamespace

import pytest

import ckptstore
from tests.helpers.root import ROOT

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "docs" / "examples" / "digits.py"


@pytest.fixture
def demo(monkeypatch, tmp_path):
    """The demo's own names, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_it_tells_its_story_to_the_end(tmp_path, forks):
    done = forks.run(SCRIPT, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "equal to the last digit" in done.stdout
    repo = ckptstore.open(tmp_path / "runs/digits/store")
    best = repo.resolve("best:val_acc")
    assert best.metrics["val_acc"] == max(c.metrics["val_acc"] for c in repo.log("main"))
    assert best.id in [c.id for c in repo.log("shifted")]
    assert len(repo.log("main")) == 12
    assert repo.verify().ok


def test_it_makes_its_store_anew_and_deletes_nothing_else(demo):
    for _ in range(2):
        ckptstore.init(demo.fresh_store())
        (demo.FOLDER / "mine.txt").write_text("kept")
    assert (demo.FOLDER / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize("name", ["store", "README.txt", "mine.txt"])
def test_it_leaves_a_folder_alone_that_it_did_not_make(demo, name):
    demo.FOLDER.mkdir(parents=True)
    (demo.FOLDER / name).write_text("not the demo's")
    with pytest.raises(SystemExit, match="not this demo's"):
        demo.fresh_store()
    assert [path.name for path in demo.FOLDER.iterdir()] == [name]
    assert (demo.FOLDER / name).read_text() == "not the demo's"


def test_it_fails_aloud_when_one_digit_differs(demo):
    checkpoint = SimpleNamespace(
        metrics={"val_acc": 0.1 + 0.2}, id=SimpleNamespace(short="x"), step=1
    )
    demo.compare(checkpoint, {"val_acc": "0.30000000000000004"})
    with pytest.raises(SystemExit, match="other numbers"):
        demo.compare(checkpoint, {"val_acc": "0.3"})
