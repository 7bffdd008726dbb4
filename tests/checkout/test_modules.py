"""Modules that do something when they are loaded are loaded by their own method, as torch does."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import ckptstore
from ckptstore import CheckoutMismatchError
from ckptstore.arrays.modules import loads_itself
from ckptstore.state import codecs
from ckptstore.training import CheckpointManager
from tests.helpers.equality import difference


class Deriving(nn.Module):
    """Keeps a transposed copy of its weight, made whenever the module is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.derive()

    def derive(self) -> None:
        self.turned = self.inner.weight.detach().t().clone()


class PostHook(Deriving):
    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_post_hook(lambda module, _: module.derive())


class Override(Deriving):
    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        found = super().load_state_dict(*args, **options)
        self.derive()
        return found


class Private(Deriving):
    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        self.turned = state[prefix + "inner.weight"].t().clone()


class OnTheInstance(Deriving):
    def __init__(self) -> None:
        super().__init__()
        load = self.load_state_dict

        def loading(state: Any) -> None:
            load(state)
            self.derive()

        self.load_state_dict = loading  # type: ignore[assignment]


class NoKeywords(Deriving):
    def state_dict(self) -> Any:  # type: ignore[override]
        return super().state_dict()

    def load_state_dict(self, state: Any) -> None:  # type: ignore[override]
        super().load_state_dict(state)
        self.derive()


class Nested(Deriving):
    """Its state is no dict of names."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = int(self.inner.weight.detach().sum() * 1000)

    def state_dict(self, *args: Any, **options: Any) -> Any:
        return {"weights": super().state_dict(*args, **options), "seen": self.seen}

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        self.seen = state["seen"]
        found = super().load_state_dict(state["weights"], strict)
        self.derive()
        return found


class OldNames(Deriving):
    """Saves under a name that a hook translates when it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(self.rename)
        self.register_load_state_dict_pre_hook(self.translate)
        self.register_load_state_dict_post_hook(lambda module, _: module.derive())

    @staticmethod
    def rename(module: Any, state: Any, prefix: str, metadata: Any) -> None:
        state[prefix + "kernel"] = state.pop(prefix + "inner.weight")

    @staticmethod
    def translate(module: Any, state: Any, prefix: str, *rest: Any) -> None:
        state[prefix + "inner.weight"] = state.pop(prefix + "kernel")


class Extra(Deriving):
    def __init__(self) -> None:
        super().__init__()
        self.table = {"sum": float(self.inner.weight.detach().sum())}

    def get_extra_state(self) -> Any:
        return self.table

    def set_extra_state(self, state: Any) -> None:
        self.table = state


class Resizing(nn.Module):
    """Has buffers whose size it takes from what it loads, as observers of quantization do."""

    def __init__(self, size: int = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.observer = torch.ao.quantization.PerChannelMinMaxObserver()
        if size:
            self.observer(torch.randn(size, 4))


KINDS: list[Callable[[], nn.Module]] = [
    PostHook,
    Override,
    Private,
    OnTheInstance,
    NoKeywords,
    Nested,
    OldNames,
]


def restored(saved: nn.Module, fresh: Callable[[], nn.Module]) -> list[nn.Module]:
    """The module in every way that a checkpoint is read into one."""
    with CheckpointManager("memory://", model=saved) as manager:
        manager.save(1)
    repo, made = manager.repository, [fresh() for _ in range(4)]
    CheckpointManager(repo, model=made[0]).restore()
    ckptstore.load_weights(made[1], repo)
    repo.follow().update(made[2])
    repo.checkout(into={"model": made[3]}, include="model/**")
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_is_as_its_own_load_state_dict_would_leave_it(
    kind: Callable[[], nn.Module],
) -> None:
    saved = kind()
    assert loads_itself(saved)
    assert loads_itself(nn.Sequential(kind()))
    expected = kind()
    expected.load_state_dict(copy.deepcopy(saved.state_dict()))
    for model in restored(saved, kind):
        assert difference(expected.state_dict(), model.state_dict()) is None
        assert torch.equal(model.turned, expected.turned)
        assert torch.equal(model.turned, saved.turned)


def test_a_state_that_a_module_computes_is_restored() -> None:
    saved = Extra()
    for model in restored(saved, Extra):
        assert difference(saved.state_dict(), model.state_dict()) is None
        assert model.table == saved.table


def test_buffers_take_the_size_of_what_is_loaded() -> None:
    saved = Resizing(3)
    for model in restored(saved, Resizing):
        assert difference(saved.state_dict(), model.state_dict()) is None
        assert model.observer.min_val.shape == (3,)


def test_lazy_modules_take_their_shapes_from_the_checkpoint() -> None:
    saved = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    saved(torch.randn(4, 5))
    for model in restored(saved, lambda: nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())):
        assert difference(saved.state_dict(), model.state_dict()) is None
        model(torch.randn(4, 5))


def test_a_lazy_module_that_had_no_batch_cannot_be_saved_and_the_way_out_is_said() -> None:
    repo = ckptstore.init("memory://")
    with pytest.raises(ckptstore.UnsupportedValueError, match="pass a batch through its module"):
        repo.commit(nn.LazyLinear(2).state_dict())


def test_the_usual_layers_are_filled_in_place() -> None:
    """With all that torch has; a module of one of these needs no second copy of itself."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.GroupNorm(2, 4),
        nn.LSTM(4, 4),
        nn.TransformerEncoderLayer(4, 2),
        nn.Embedding(3, 4),
        nn.SyncBatchNorm(4),
    )
    assert not loads_itself(model)
    assert not loads_itself(torch.optim.swa_utils.AveragedModel(model))


def old_state(norm: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t for name, t in norm.state_dict().items() if "num_batches" not in name}


def test_weights_that_are_older_than_a_counter_of_batches_fit_as_they_do_in_torch() -> None:
    norm = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    norm(torch.randn(8, 3))
    repo = ckptstore.init("memory://")
    repo.commit({"model": old_state(norm)})
    fresh = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    assert not ckptstore.load_weights(fresh, repo)
    assert torch.equal(fresh[1].running_mean, norm[1].running_mean)
    assert int(fresh[1].num_batches_tracked) == 0


def test_a_counter_that_a_newer_state_lacks_is_missed() -> None:
    norm = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    state = norm.state_dict()  # with the version of each module
    del state["1.num_batches_tracked"]
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        norm.load_state_dict(state)
    repo = ckptstore.init("memory://")
    repo.commit({"model": state})
    with pytest.raises(CheckoutMismatchError, match=r"missing.*num_batches_tracked"):
        ckptstore.load_weights(norm, repo)


@pytest.mark.parametrize("what", ["missing", "unexpected", "shape", "dtype"])
def test_a_module_that_does_not_fit_is_as_it_was(what: str) -> None:
    saved, target = PostHook(), PostHook()
    state = saved.state_dict()
    if what == "missing":
        del state["inner.bias"]
    elif what == "unexpected":
        state["more"] = torch.ones(1)
    elif what == "shape":
        state["inner.bias"] = torch.ones(5)
    else:
        state["inner.bias"] = torch.ones(3, dtype=torch.float64)
    repo = ckptstore.init("memory://")
    repo.commit({"model": state})
    before, turned = copy.deepcopy(target.state_dict()), target.turned.clone()
    for call in (
        lambda: ckptstore.load_weights(target, repo),
        lambda: repo.follow().update(target),
        lambda: (
            repo.checkout(into={"model": target}, include="model/inner.*")
            if what in ("shape", "dtype")
            else ckptstore.load_weights(target, repo)
        ),
    ):
        with pytest.raises(CheckoutMismatchError, match="Nothing was changed") as caught:
            call()
        found = caught.value.incompatible
        assert bool(found.missing) == (what == "missing")
        assert bool(found.unexpected) == (what == "unexpected")
        assert difference(before, target.state_dict()) is None
        assert torch.equal(target.turned, turned)
    with pytest.warns(UserWarning, match=r"inner\.bias|more"):
        found = ckptstore.load_weights(target, repo, strict=False)
    assert torch.equal(target.inner.weight, saved.inner.weight)
    assert torch.equal(target.turned, saved.turned)
    if what in ("shape", "dtype"):
        assert torch.equal(target.inner.bias, before["inner.bias"])
        assert found.mismatched[0].startswith("model/inner.bias (checkpoint: float")


class Coded(torch.Tensor):
    """A tensor subclass whose values are not simply its memory."""


def test_a_tensor_subclass_with_a_codec_is_stored_and_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def made() -> nn.Module:
        module = nn.Linear(2, 2)
        module.weight = nn.Parameter(torch.randn(2, 2).as_subclass(Coded))
        return module

    saved = made()
    assert type(saved.weight) is Coded
    repo = ckptstore.init("memory://")
    with pytest.raises(ckptstore.UnsupportedValueError, match="register_codec"):
        repo.commit({"model": saved.state_dict()})
    monkeypatch.setattr(codecs, "_registered", {})
    ckptstore.register_codec(
        Coded,
        lambda value: value.detach().as_subclass(torch.Tensor),
        lambda form: form.as_subclass(Coded),
    )
    for model in restored(saved, made):
        assert type(model.weight) is Coded
        assert torch.equal(model.weight, saved.weight)


def test_inside_inference_mode_what_is_restored_can_be_trained() -> None:
    model = nn.Sequential(nn.Linear(2, 2), PostHook())
    plain = nn.Linear(2, 2)
    optimizer = torch.optim.Adam([*model[0].parameters(), *plain.parameters()])
    plain(model[0](torch.ones(1, 2))).sum().backward()
    optimizer.step()
    manager = CheckpointManager("memory://", model=model, plain=plain, optimizer=optimizer)
    with manager, torch.inference_mode():
        manager.save(1)
        manager.wait()
        manager.restore()
        fresh = manager.repository.checkout(part="plain")
    assert not fresh["weight"].is_inference()
    plain(model[0](torch.ones(1, 2))).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", [PostHook, Deriving])
def test_a_model_that_was_made_in_inference_mode_is_filled(kind: type[Deriving]) -> None:
    saved = kind()
    with torch.inference_mode():
        served = kind()
    repo = ckptstore.init("memory://")
    repo.commit({"model": saved.state_dict()})
    ckptstore.load_weights(served, repo)
    assert torch.equal(served.inner.weight, saved.inner.weight)
    saved.inner.weight.data += 1
    repo.commit({"model": saved.state_dict()})
    repo.follow().update(served)
    assert torch.equal(served.inner.weight, saved.inner.weight)


def test_nothing_is_warned_of_when_everything_fits() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restored(Extra(), Extra)
