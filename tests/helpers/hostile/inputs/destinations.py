"""Destinations that a checkout cannot fill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy
import torch

from tests.helpers.hostile.cases import SENTINEL, Case, World, call

if TYPE_CHECKING:
    from collections.abc import Callable


def _destination(
    story: str, make: Callable[[], Any], *, plain: bool = False, refused: bool = True
) -> Case:
    """A checkout into what `make` makes; `plain`: of a checkpoint without arrays."""

    def given(world: World) -> Any:
        if plain:
            world.repo.commit({"lr": 0.1, "names": ["a", "b"], "nest": {"x": 1}})
        return make()

    return call(
        f"a checkout into {story}",
        lambda world: world.repo.checkout(into=world.given),
        given=given,
        refused=refused,
    )


class _Refusing:
    """Its load_state_dict raises something of its own."""

    def load_state_dict(self, state: Any) -> None:
        raise ZeroDivisionError("I do not want it")


def _inside_itself() -> Any:
    state: dict[str, Any] = {}
    state["w"] = state
    return state


def _plain_inside_itself() -> Any:
    state: dict[str, Any] = {"lr": 0.0, "names": [], "nest": {}}
    state["lr"] = state["nest"] = state
    state["names"].append(state["names"])
    return state


def _deep(levels: int) -> Any:
    state: Any = 0
    for _ in range(levels):
        state = [state]
    return {"lr": state, "names": state, "nest": {"x": state}}


def _read_only() -> Any:
    array = numpy.zeros(2, dtype=numpy.float32)
    array.flags.writeable = False
    return array


def _meta_module() -> Any:
    return torch.nn.Linear(1, 1, device="meta")


def _without_memory() -> Any:
    tensor = torch.full((2,), SENTINEL)
    tensor.untyped_storage().resize_(0)
    return tensor


CASES = (
    _destination("a number", lambda: 5),
    _destination("text", lambda: "state"),
    _destination("a set", lambda: {1}),
    _destination("a lambda", lambda: lambda: 1),
    _destination("a class", lambda: torch.nn.Linear),
    _destination("a list", list),
    _destination("an empty dict", dict),
    _destination("a dict that holds itself", _inside_itself),
    _destination("a tensor", lambda: torch.zeros(2)),
    _destination("a tensor of another shape", lambda: {"w": torch.zeros(3)}),
    _destination("a tensor of another dtype", lambda: {"w": torch.zeros(2, dtype=torch.float64)}),
    _destination("a read-only array", lambda: {"w": _read_only()}),
    _destination("an expanded tensor", lambda: {"w": torch.zeros(1).expand(2)}),
    _destination("a tensor whose memory was taken away", lambda: {"w": _without_memory()}),
    _destination("a meta tensor", lambda: {"w": torch.zeros(2, device="meta")}),
    _destination("a sparse tensor", lambda: {"w": torch.zeros(2).to_sparse()}),
    _destination(
        "a tensor that needs gradients, expanded",
        lambda: {"w": torch.zeros(1, requires_grad=True).expand(2)},
    ),
    _destination("an array of objects", lambda: {"w": numpy.array([None, None])}),
    _destination("a meta module", _meta_module),
    _destination("a module of other names", lambda: torch.nn.Linear(1, 1)),
    _destination("an optimizer", lambda: torch.optim.SGD([torch.zeros(1)], lr=0.1)),
    _destination("an object that refuses to load", _Refusing),
    _destination("a number, of plain values", lambda: 5, plain=True),
    _destination("a tuple, of plain values", lambda: (1, 2), plain=True),
    _destination(
        "a dict that holds itself, of plain values", _plain_inside_itself, plain=True, refused=False
    ),
    _destination(
        "100,000 lists in one another, of plain values",
        lambda: _deep(100_000),
        plain=True,
        refused=False,
    ),
    _destination("an object that refuses to load, of plain values", _Refusing, plain=True),
)
