"""Where what a .pt is refused for lies in its state, found without running any of its code."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptstore import InvalidInputError
from ckptstore.formats import read_file


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
