"""Filling existing objects: what matches, every mismatch named, nothing changed by one."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ckptstore
from ckptstore import CheckoutMismatchError, Incompatible
from tests.helpers.equality import difference


def committed(state: Any) -> ckptstore.Repository:
    repo = ckptstore.init("memory://", chunk_size=64 << 10)
    repo.commit(state)
    return repo


def misfit(state: Any, target: Any) -> Incompatible:
    """What does not fit; with strict nothing may have changed."""
    before = copy.deepcopy(target)
    with pytest.raises(CheckoutMismatchError) as error:
        committed(state).checkout(into=target)
    assert difference(before, target) is None
    found = error.value.incompatible
    for name in (*found.missing, *found.unexpected, *found.mismatched):
        assert name in str(error.value)
    return found


@pytest.mark.parametrize(
    ("state", "target"),
    [
        ({"step": 3, "lr": 0.5}, {"lr": 0.1, "step": 0}),
        ([1, "b", None], [0, 0, 0]),
        ({"a": {"b": [1, 2]}}, {"a": {"b": []}}),
        (OrderedDict(a=1), {"a": 0}),
        ({}, {}),
    ],
    ids=repr,
)
def test_a_state_of_plain_values_alone_is_filled_in(state: Any, target: Any) -> None:
    assert not committed(state).checkout(into=target)
    assert dict(target) == dict(state) if isinstance(state, dict) else target == state


def test_plain_values_at_the_top_are_matched_by_name_as_arrays_are() -> None:
    found = misfit({"step": 3, "epoch": 1}, {"step": 0, "lr": 0.1})
    assert (found.missing, found.unexpected) == (("lr",), ("epoch",))


@pytest.mark.parametrize(("state", "target"), [(3, 5), ((3,), (5,)), ("a", "b")], ids=repr)
def test_a_destination_that_cannot_change_is_refused(state: Any, target: Any) -> None:
    with pytest.raises(CheckoutMismatchError, match="plain value"):
        committed(state).checkout(into=target)


def test_plain_values_are_exchanged_whole_inside_dicts_and_lists() -> None:
    state = {"w": torch.ones(2), "history": [1.0, {"a": (1, 2)}], "config": {"lr": 0.1}, "n": None}
    target: Any = {"w": torch.zeros(2), "history": [], "config": {"old": 1}, "n": 5}
    weights = target["w"]
    assert not committed(state).checkout(into=target)
    assert difference(state, target) is None
    assert target["w"] is weights


def test_a_plain_value_inside_a_tuple_cannot_be_exchanged() -> None:
    found = misfit({"t": (torch.ones(1), 5)}, {"t": (torch.zeros(1), 0)})
    assert found.mismatched == ("t/1 (a plain value inside a tuple, which cannot be exchanged)",)


def test_arrays_inside_tuples_and_lists_are_filled_in_place() -> None:
    state = {"t": (torch.ones(3), [np.arange(4), torch.ones(2)])}
    target: Any = {"t": (torch.zeros(3), [np.zeros(4, np.int64), torch.zeros(2)])}
    kept = target["t"]
    assert not committed(state).checkout(into=target)
    assert target["t"] is kept
    assert difference(state, target) is None


def test_every_kind_of_misfit_is_named_by_its_path() -> None:
    ones = torch.ones(2)
    state = {
        "same": ones,
        "dtype": ones,
        "shape": ones,
        "kind": ones,
        "plain": 5,
        "list": [ones, ones, {"deep": ones}],
        "short": [ones],
        "dict": {"inner": {"gone": ones, "kept": ones}},
        "what": {"a": ones},
        0: ones,
        "0": ones,
    }
    target = {
        "same": torch.zeros(2),
        "dtype": torch.zeros(2, dtype=torch.float64),
        "shape": torch.zeros(3),
        "kind": 5,
        "plain": torch.zeros(1),
        "list": [torch.zeros(2)],
        "short": [torch.zeros(2), torch.zeros(2)],
        "dict": {"inner": {"kept": torch.zeros(2), "new": torch.zeros(2)}},
        "what": [torch.zeros(2)],
        0: torch.zeros(2),
    }
    found = misfit(state, target)
    assert found.missing == ("short/1", "dict/inner/new")
    assert found.unexpected == ("list/1", "list/2/deep", "dict/inner/gone", "%30")
    assert found.mismatched == (
        "dtype (checkpoint: float32 [2], destination: float64 [2])",
        "shape (checkpoint: float32 [2], destination: float32 [3])",
        "kind (checkpoint: array, destination: int)",
        "plain (checkpoint: plain value, destination: array)",
        "what (checkpoint: dict, destination: list)",
    )
    # Without strict, what fits is filled and the rest is as it was.
    repo = committed(state)
    with pytest.warns(UserWarning, match="restored in part: 5 mismatched"):
        partly = repo.checkout(into=target, strict=False)
    assert partly == found
    assert partly.restored == ("same", "list/0", "short/0", "dict/inner/kept", "0")
    assert torch.equal(target["same"], ones)
    assert torch.equal(target["list"][0], ones)
    assert torch.equal(target["dict"]["inner"]["kept"], ones)
    assert torch.equal(target[0], ones)
    assert not target["dtype"].any()
    assert not target["shape"].any()
    assert target["kind"] == 5


def readonly() -> Any:
    array = np.zeros(4, np.float32)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (readonly, "read-only"),
        (lambda: np.broadcast_to(np.float32(0), (4,)), "read-only"),
        (lambda: torch.zeros(1).expand(4), "expanded view"),
        (lambda: torch.zeros(4, device="meta"), "meta device"),
        (lambda: torch.zeros(4).to_sparse(), "sparse"),
        (lambda: np.zeros(4, ">f4"), "destination: >f4"),
    ],
    ids=["read-only", "broadcast", "expanded", "meta", "sparse", "other byte order"],
)
def test_an_array_that_cannot_be_filled_is_a_misfit(make: Any, said: str) -> None:
    with pytest.raises(CheckoutMismatchError, match=said):
        committed({"a": torch.ones(4)}).checkout(into={"a": make()})


def test_a_tensor_fills_an_ndarray_and_the_other_way_round() -> None:
    repo = committed({"a": torch.arange(5), "b": np.arange(3.0)})
    target: Any = {"a": np.zeros(5, np.int64), "b": torch.zeros(3, dtype=torch.float64)}
    assert not repo.checkout(into=target)
    assert target["a"].tolist() == [0, 1, 2, 3, 4]
    assert target["b"].tolist() == [0, 1, 2]


def test_a_destination_that_is_tied_takes_only_arrays_that_are_the_same() -> None:
    """Of two different arrays for one memory either would be wrong, and a mix of both worse."""
    large = torch.arange(100_000.0)
    shared = torch.zeros(100_000)
    target = {"a": shared, "b": shared}
    assert not committed({"a": large, "b": large.clone()}).checkout(into=target)
    assert torch.equal(shared, large)
    found = misfit({"a": large, "b": -large}, target)
    assert found.mismatched == (
        "b (tied to a in the destination, but not equal to it in the checkpoint)",
    )
    with pytest.warns(UserWarning, match="b \\(tied to a"):
        committed({"a": -large, "b": large}).checkout(into=target, strict=False)
    assert torch.equal(shared, -large)


class Tied(nn.Module):
    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def test_weights_that_were_not_tied_do_not_fill_a_model_that_ties_them() -> None:
    tied, loose = Tied(tied=True), Tied(tied=False)
    with pytest.raises(
        CheckoutMismatchError, match=r"head\.weight \(tied to embed\.weight in the destination"
    ):
        committed(loose.state_dict()).checkout(into=tied)
    assert not committed(tied.state_dict()).checkout(into=loose)
    assert torch.equal(loose.head.weight, tied.embed.weight)
    assert loose.head.weight is not loose.embed.weight


@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
def test_one_name_of_a_tied_tensor_is_enough(name: str) -> None:
    """As in files of Hugging Face, which have each tensor once."""
    saved, filled = Tied(tied=True), Tied(tied=True)
    state = {name: saved.state_dict()[name]}
    assert not committed(state).checkout(into=filled)
    assert torch.equal(filled.head.weight, saved.embed.weight)
    assert committed({"model": state}).follow().update(Tied(tied=True)).read_bytes > 0
    loose = Tied(tied=False)
    with pytest.raises(CheckoutMismatchError, match="1 missing from the checkpoint"):
        committed(state).checkout(into=loose)


def test_two_modules_that_compute_their_state_are_never_taken_for_tied() -> None:
    """Computed values are freed before the next is read, and their memory is reused."""

    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.zeros(1000))
            self.register_state_dict_post_hook(self.compute)

        @staticmethod
        def compute(module: Any, state: Any, prefix: str, metadata: object) -> None:
            state[f"{prefix}value"] = state[f"{prefix}value"] + 0

    saved = {str(n): {"value": torch.full((1000,), float(n))} for n in range(50)}
    target = {str(n): Computed() for n in range(50)}
    assert not committed(saved).checkout(into=target)
    assert [int(target[str(n)].value[0]) for n in range(50)] == list(range(50))


def test_a_module_gets_nothing_from_what_is_no_dict() -> None:
    with pytest.raises(CheckoutMismatchError, match="checkpoint: list, destination: module"):
        committed({"m": [torch.ones(1)]}).checkout(into={"m": nn.Linear(1, 1)})


def test_buffers_are_filled_and_those_that_do_not_persist_are_left() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kept", torch.zeros(3))
            self.register_buffer("cache", torch.zeros(3), persistent=False)
            self.norm = nn.BatchNorm1d(3)

    source, target = Buffered(), Buffered()
    source.kept.fill_(1)
    source.cache.fill_(1)
    source.norm(torch.randn(8, 3))
    target.eval()
    assert not committed(source.state_dict()).checkout(into=target)
    assert target.kept.tolist() == [1, 1, 1]
    assert target.cache.tolist() == [0, 0, 0]
    assert torch.equal(target.norm.running_mean, source.norm.running_mean)
    assert int(target.norm.num_batches_tracked) == 1


def test_a_lazy_module_takes_its_shapes_from_the_checkpoint() -> None:
    """As its load_state_dict would; a lazy parameter outside a module has nobody to do so."""
    source, target = nn.Linear(5, 3), nn.LazyLinear(3)
    repo = committed(source.state_dict())
    assert not repo.checkout(into=target)
    assert difference(source.state_dict(), target.state_dict()) is None
    with pytest.raises(
        CheckoutMismatchError, match=r"weight \(checkpoint: array, destination: Uninitialized"
    ):
        repo.checkout(into={"weight": nn.UninitializedParameter(), "bias": torch.zeros(3)})


class Refusing:
    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: object) -> None:
        raise ValueError("at 3")


def test_an_object_that_refuses_its_state_is_an_error_of_ours_with_its_own_words() -> None:
    with pytest.raises(
        CheckoutMismatchError, match=r"o .its load_state_dict refused.*at 3"
    ) as error:
        committed({"o": {"a": 1}}).checkout(into={"o": Refusing()})
    assert isinstance(error.value.__cause__, ValueError)


def test_with_include_only_that_part_of_the_destination_is_asked_for() -> None:
    state = {"model": {"a": torch.ones(1), "b": torch.ones(1)}, "step": 3}
    target = {"model": {"a": torch.zeros(1), "b": torch.zeros(1)}, "step": 0}
    repo = committed(state)
    assert not repo.checkout(into=target, include="model/a")
    assert (int(target["model"]["a"]), int(target["model"]["b"]), target["step"]) == (1, 0, 0)
    assert not repo.checkout(into=target, exclude="step")
    assert (int(target["model"]["b"]), target["step"]) == (1, 0)
    with pytest.raises(CheckoutMismatchError, match="model/a"):
        repo.checkout(into={"model": {"b": torch.zeros(1)}}, include="model")


def test_into_and_device_exclude_each_other() -> None:
    with pytest.raises(ckptstore.InvalidInputError, match="into or device"):
        committed({}).checkout(into={}, device="cpu")
