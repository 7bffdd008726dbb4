"""Values that cannot be stored are refused by path and type, never stored otherwise."""

from __future__ import annotations

import functools
import os
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import ckptstore
from ckptstore import UnsupportedValueError

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning",
    "ignore::PendingDeprecationWarning",
    "ignore:Please use DTensor:FutureWarning",
)


class Subclass(torch.Tensor):
    """A tensor that may mean anything by its elements."""


def distributed() -> Any:
    """A DTensor of one process."""
    distributed = pytest.importorskip("torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    if not distributed.is_initialized():
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    return distribute_tensor(torch.ones(4), init_device_mesh("cpu", (1,)), [Shard(0)])


def sharded() -> Any:
    """The older kind of shard, of one process."""
    distributed()  # makes the group
    from torch.distributed._shard.sharded_tensor import ones
    from torch.distributed._shard.sharding_spec import ChunkShardingSpec

    return ones(ChunkShardingSpec(dim=0, placements=["rank:0/cpu"]), 4)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "sparse coo": (lambda: torch.eye(3).to_sparse(), "sparse_coo.*to_dense"),
    "sparse csr": (lambda: torch.eye(3).to_sparse_csr(), "sparse_csr.*to_dense"),
    "mkldnn": (lambda: torch.ones(3, 3).to_mkldnn(), "layout"),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "quantized.*int_repr",
    ),
    "meta": (lambda: torch.empty(3, device="meta"), "meta device"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "nested"),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged),
        "NestedTensor|nested",
    ),
    "distributed": (distributed, r"storage_writer=StoreWriter\(repo.*full_tensor\(\).*full_state"),
    "sharded": (sharded, r"ShardedTensor.*dcp.save\(state, .*full_state_dict=True"),
    "subclass": (lambda: torch.ones(3).as_subclass(Subclass), "Subclass"),
    "uninitialized": (lambda: torch.nn.UninitializedParameter(), "Uninitialized"),
    "odd dtype": (lambda: torch.empty(3, dtype=torch.bits8), "torch.bits8"),
    "object array": (lambda: np.array([object()]), "object"),
    "text array": (lambda: np.array(["a"]), "<U1"),
    "structured array": (lambda: np.zeros(2, dtype=[("a", "f4")]), "'a'"),
    "dates": (lambda: np.array(["2026-01-01"], dtype="M8[D]"), "datetime64"),
    "long double": (lambda: np.zeros(2, dtype=np.longdouble), "longdouble|float128"),
    "other byte order": (lambda: np.zeros(2, dtype=">f4"), "byte order.*newbyteorder"),
    "masked array": (lambda: np.ma.masked_array([1, 2], [True, False]), "MaskedArray"),
    "matrix": (lambda: np.matrix([[1]]), "matrix"),
    "numpy date": (lambda: np.datetime64("2026-01-01"), "datetime64"),
    "numpy text": (lambda: np.str_("a"), "<U1"),
    "defaultdict": (lambda: defaultdict(lambda: 0), r"defaultdict.*dict\(value\)"),
    "counter of objects": (lambda: Counter([object()]), "the key .*object"),
    "generator": (torch.Generator, "Generator"),
    "function": (lambda: distributed, "function"),
    "partial": (lambda: functools.partial(print), "partial"),
    "environment": (lambda: os.environ, "_Environ"),
    "ellipsis": (lambda: ..., "ellipsis"),
    "huge integer": (lambda: 1 << 70_000, "integer of 70001 bits"),
    "key of no text": (lambda: {object(): 3}, "keys are texts"),
    "key in a tuple": (lambda: {(1, (torch.ones(1),)): 3}, "keys are texts"),
    "huge integer key": (lambda: {1 << 70_000: 3}, "integer of 70001 bits"),
    "long key": (lambda: {"k" * 1_000_000: torch.ones(1)}, "more than 4096 characters"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_refused_with_its_path_and_its_kind(kind: str) -> None:
    make, said = REFUSED[kind]
    repo = ckptstore.init("memory://")
    with pytest.raises(UnsupportedValueError, match=said) as error:
        repo.commit({"model": {"layer.0": [make()]}, "other": torch.ones(3)})
    assert "model/layer.0/0" in str(error.value)
    assert len(str(error.value)) < 1000
    assert repo.branches() == {}


@pytest.mark.parametrize("make", [distributed, sharded], ids=["DTensor", "ShardedTensor"])
def test_a_shard_is_not_filled_by_a_checkout(make: Callable[[], Any]) -> None:
    repo = ckptstore.init("memory://")
    repo.commit({"w": torch.zeros(4)})
    line = r"is a D?S?\w+Tensor; load it by dcp.load\(state, storage_reader=StoreReader\(repository"
    shard = make()
    with pytest.raises(ckptstore.CheckoutMismatchError, match=line):
        repo.checkout(into={"w": shard})
    local = shard.to_local() if hasattr(shard, "to_local") else shard.local_tensor()
    assert torch.equal(local, torch.ones(4))


def test_a_model_in_shards_is_filled_by_a_checkout_and_refused_by_a_commit() -> None:
    distributed()
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    repo = ckptstore.init("memory://")
    model = torch.nn.Linear(2, 2)
    repo.commit({"model": {name: torch.zeros_like(v) for name, v in model.state_dict().items()}})
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    repo.checkout(into={"model": model})
    assert not model.weight.full_tensor().any()
    with pytest.raises(UnsupportedValueError, match=r"model/weight.*StateDictOptions"):
        repo.commit({"model": model})


def test_a_state_that_holds_itself_is_refused() -> None:
    state: list[Any] = [1]
    state.append({"again": state})
    with pytest.raises(UnsupportedValueError, match="levels deep"):
        ckptstore.init("memory://").commit(state)


def test_a_registered_type_goes_in_and_comes_out() -> None:
    """With the arrays in it; without its codec the checkout says which type is missing."""
    from ckptstore.state import codecs

    class Scale:
        def __init__(self, factors: torch.Tensor) -> None:
            self.factors = factors

    ckptstore.register_codec(Scale, lambda scale: {"factors": scale.factors}, lambda d: Scale(**d))
    repo = ckptstore.init("memory://")
    try:
        checkpoint = repo.commit({"scale": Scale(torch.arange(3.0))})
        assert torch.equal(repo.checkout()["scale"].factors, torch.arange(3.0))
        assert [array.path for array in checkpoint.arrays] == ["scale/factors"]
    finally:
        del codecs._registered[codecs.type_name(Scale)]
    with pytest.raises(ckptstore.InvalidInputError, match=r"Scale.*register_codec"):
        repo.checkout()


def test_a_type_that_has_its_own_form_cannot_be_registered() -> None:
    for type in (dict, int, torch.Size):
        with pytest.raises(ckptstore.InvalidInputError, match="form already"):
            ckptstore.register_codec(type, list, list)
