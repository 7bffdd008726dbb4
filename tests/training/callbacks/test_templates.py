"""Templates: a file name that is taken at the start becomes a legal tag, whatever the numbers."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ckptstore import InvalidInputError
from ckptstore.documents.names import check_ref_name
from ckptstore.training.callbacks.templates import FOLDER, Template, split_path, tag_name
from ckptstore_cli import repo

KNOWN = ("epoch", "batch", "step")

literals = st.text(alphabet="aZ9._+-/ =@:~%é\n{}", max_size=12) | st.sampled_from(
    ["..", ".lock", "latest", "best", "HEAD", "x" * 250, "weights-", ".hdf5", ".weights.h5"]
)
specs = st.sampled_from(
    ["", ":", ":d", ":02d", ":.2f", ":+.3e", ":,", ":%", ":>5", ":x", ":c", "!r", "!s:.3", ":#.0f"]
) | st.text(alphabet=":.,+- #0123fdegs%<>^=", max_size=3).map(lambda spec: f":{spec}")
names = st.sampled_from([*KNOWN, "loss", "val_loss", "val/acc", "0", ""])
fields = st.builds(lambda name, spec: f"{{{name}{spec}}}", names, specs)
templates = st.lists(literals | fields, min_size=1, max_size=6).map("".join)
counts = st.integers(0, 10**6)
metrics = st.floats() | st.sampled_from([1e300, -1e-300, -0.0, 1e22])


class Metrics(dict[str, object]):
    """A number for every name."""

    def __init__(self, value: float, **known: int) -> None:
        super().__init__(known)
        self.value = value

    def __missing__(self, name: str) -> object:
        return self.value


@given(templates, counts, counts, metrics)
def test_a_template_is_refused_at_the_start_or_fits_all_numbers(text, epoch, batch, metric):
    try:
        template = Template(text, what="filepath", known=KNOWN)
        tag_name(template.sample())
    except InvalidInputError:
        assume(False)
    numbers = Metrics(metric, epoch=epoch, batch=batch, step=epoch * batch % 10**6)
    name = tag_name(template.fill(numbers))
    assert check_ref_name(name, kind="tag") == name
    assert tag_name(name) == name


@given(st.text(max_size=300).filter(lambda text: text.strip("/")))
def test_any_text_becomes_a_legal_tag_and_a_legal_one_stays(text):
    name = tag_name(text)
    assert check_ref_name(name, kind="tag") == name
    try:
        check_ref_name(text, kind="tag")
    except InvalidInputError:
        return
    assert name == text


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("weights-01-0.31.hdf5", "weights-01-0.31.hdf5"),
        ("epoch=01-val loss=-0.50.h5", "epoch_01-val_loss_-0.50.h5"),
        ("-0.50.keras", "_-0.50.keras"),
        ("run-1//model.keras", "run-1/model.keras"),
        ("1..h5", "1.h5"),
        ("latest", "latest_"),
        ("a.lock", "a.lock_"),
        ("x" * 300, "x" * 200),
        ("1.", "1"),
    ],
    ids=lambda value: value[:20],
)
def test_the_tag_of_a_file_name(text, tag):
    assert tag_name(text) == tag


@pytest.mark.parametrize("text", ["", "/", "//"])
def test_a_name_without_characters_is_refused(text):
    with pytest.raises(InvalidInputError):
        tag_name(text)


@pytest.mark.parametrize(
    ("path", "repository", "name"),
    [
        ("weights-{epoch}-{val_loss}.hdf5", FOLDER, "weights-{epoch}-{val_loss}.hdf5"),
        ("ckpt/w.{epoch:02d}.keras", f"ckpt/{FOLDER}", "w.{epoch:02d}.keras"),
        ("/tmp/ckpt/best.weights.H5", f"/tmp/ckpt/{FOLDER}", "best.weights.H5"),
        ("/{epoch}", f"/{FOLDER}", "{epoch}"),
        ("runs/{epoch}/a/model.keras", f"runs/{FOLDER}", "{epoch}/a/model.keras"),
        ("training_1/cp.ckpt", f"training_1/{FOLDER}", "cp.ckpt"),
        ("memory://runs/w-{epoch}", f"memory://runs/{FOLDER}", "w-{epoch}"),
        ("s3://b/c/{epoch}.h5?region=x", f"s3://b/c/{FOLDER}?region=x", "{epoch}.h5"),
        ("s3://b/runs?endpoint=http://host/a.h5", "s3://b/runs?endpoint=http://host/a.h5", ""),
        ("why?/{epoch}", f"why?/{FOLDER}", "{epoch}"),
        ("ckpt/", "ckpt/", ""),
        ("runs/store", "runs/store", ""),
        ("memory://runs", "memory://runs", ""),
        ("runs/v1.5", "runs/v1.5", ""),
        ("", "", ""),
    ],
)
def test_the_repository_and_the_file_name_of_a_path(path, repository, name):
    assert split_path(path) == (repository, name)


@given(st.text(alphabet="ab.{}/:-", max_size=20), st.sampled_from(["", "{epoch}", ".h5", ".keras"]))
def test_a_file_name_is_never_a_folder(start, ending):
    path = start + ending
    repository, name = split_path(path)
    if not name:
        assert repository == path
        assert not re.search(r"[{}]|\.h5$|\.keras$", path)
    else:
        assert f"{repository}/".removesuffix(f"{FOLDER}/") + name == path
        assert not re.search("[{}]", repository)


def test_the_command_line_finds_that_repository():
    assert repo.FOLDER == FOLDER
