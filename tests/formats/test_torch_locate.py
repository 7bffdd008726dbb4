"""Where what a .pt is refused for lies in its state, found without running any of its code."""

from __future__ import annotations

import argparse
import os
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptstore import InvalidInputError
from ckptstore.arrays.file import OpenFile
from ckptstore.formats import read_file
from ckptstore.formats.torch.locate import CLASSES_MAX, READS_MAX, located
from ckptstore.formats.torch.text import PickleStream
from ckptstore.formats.window import Window


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture(params=[True, False], ids=["zip", "old"])
def refused(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Returns what a state is refused with."""

    def why(state: Any) -> str:
        path = tmp_path / "x.pt"
        torch.save(state, path, _use_new_zipfile_serialization=request.param)
        with pytest.raises(InvalidInputError, match="could run code") as raised:
            read_file(path)
        return str(raised.value)

    return why


def test_the_place_is_named_with_the_remedy(refused: Any) -> None:
    said = refused({"w": torch.ones(2), "hyper": [1, {"args/0": argparse.Namespace(lr=0.1)}]})
    assert "(argparse.Namespace at 'hyper/1/args%2F0')" in said
    assert "put vars(…) of it in its place" in said
    assert "argparse.Namespace at the whole state" in refused(argparse.Namespace(w=torch.ones(2)))


def test_several_places_are_named_up_to_three(refused: Any) -> None:
    folder = Path("runs")
    said = refused({"a": folder, "b": [folder] * 4, "args": argparse.Namespace()})
    assert "PosixPath at 'a', 'b/0', 'b/1', …)" in said
    assert "put str(…) of it in its place" in said


def test_looking_for_it_runs_nothing(refused: Any, tmp_path: Path) -> None:
    planted = Planted(tmp_path / "made")
    said = refused({"args": argparse.Namespace(), "x": planted, "y": {"z": planted}})
    assert "at 'args'" in said
    assert "mkdir" in refused({"x": planted})
    assert os.listdir(tmp_path) == ["x.pt"]


def test_a_state_that_contains_itself_is_looked_through_once(refused: Any) -> None:
    state: dict[str, Any] = {"args": argparse.Namespace()}
    state["again"] = [state]
    assert "at 'args')" in refused(state)


def located_in(pickled: bytes, tmp_path: Path, name: str = "argparse.Namespace") -> str:
    (tmp_path / "p").write_bytes(pickled)
    stream = PickleStream(Window(OpenFile(tmp_path / "p")))
    return located(stream, 0, name)[0]


def test_a_pickle_cannot_change_classes_of_the_process(tmp_path: Path) -> None:
    before = dict(vars(Counter)), dict(vars(OrderedDict))
    change = b"N}X\x0b\0\0\0most_commonK\x05s\x86b0"  # BUILD with (None, {"most_common": 5})
    names = [b"ccollections\nCounter\n", b"ccollections\nOrderedDict\n", b"cargparse\nNamespace\n"]
    pickled = b"\x80\x02" + b"".join(name + change for name in names)
    assert located_in(pickled + b"cargparse\nNamespace\n)\x81.", tmp_path) == " at the whole state"
    assert (dict(vars(Counter)), dict(vars(OrderedDict))) == before


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02" + b"".join(b"cm\nn%d\n0" % number for number in range(CLASSES_MAX + 1)) + b"N.",
        b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little"),
        b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little"),
        b"\x80\x02" + b"N0" * READS_MAX + b"N.",
        b"\x80\x02cargparse\nNamespace\n",
    ],
    ids=["classes", "a long array", "a long frame", "operations", "cut short"],
)
def test_what_takes_too_much_is_not_looked_through(pickled: bytes, tmp_path: Path) -> None:
    assert located_in(pickled, tmp_path) == ""
