"""Following a branch: what is given when, what an update reads, and that it is all or nothing."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ckptstore
from ckptstore import (
    CheckoutMismatchError,
    CorruptError,
    ExpiredError,
    InvalidInputError,
    NotFoundError,
)
from ckptstore.checkout import reader
from ckptstore.follow import refill
from ckptstore.follow.rwlock import RWLock
from ckptstore.retention import MaxToKeep
from ckptstore.store.catalog import Catalog
from ckptstore.store.objects import ObjectStore, key_of
from tests.helpers.equality import difference
from tests.helpers.waiting import until

CHUNK = 64 << 10


def net(width: int = 200) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, width), nn.BatchNorm1d(width), nn.Linear(width, 3, dtype=torch.bfloat16)
    )


def state_of(model: nn.Module) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": {"lr": 0.1, "moment": torch.ones(9000)}}


@pytest.fixture
def repo() -> ckptstore.Repository:
    return ckptstore.init("memory://", chunk_size=CHUNK)


def test_the_newest_is_given_first_and_then_each_new_one(repo: ckptstore.Repository) -> None:
    for step in range(3):
        repo.commit({"w": step}, step=step)
    follower = repo.follow()
    assert follower.poll().step == 2
    assert follower.poll() is None
    for step in range(3, 6):
        repo.commit({"w": step}, step=step)
    assert [follower.poll().step for _ in range(3)] == [3, 4, 5]
    assert follower.poll() is None


def test_a_branch_that_is_not_there_yet_is_waited_for_and_given_from_its_beginning(
    repo: ckptstore.Repository,
) -> None:
    follower = repo.follow("later")
    assert follower.poll() is None
    assert follower.wait(timeout=0.01) is None
    assert follower.update(net()) is None
    for step in range(3):
        repo.commit({"w": step}, step=step, branch="later")
    assert [follower.poll().step for _ in range(3)] == [0, 1, 2]
    repo.delete_branch("later")
    assert follower.poll() is None


def test_a_branch_that_was_moved_elsewhere_is_given_by_its_head(repo: ckptstore.Repository) -> None:
    for step in range(4):
        repo.commit({"w": step}, step=step)
    follower = repo.follow()
    assert follower.poll().step == 3
    repo.delete_branch("main")
    repo.branch("main", at=repo.log()[0].id) if repo.log() else None
    repo.commit({"w": 9}, step=9)
    repo.commit({"w": 10}, step=10)
    assert follower.poll().step == 10
    assert follower.poll() is None


def test_of_a_branch_made_from_another_only_what_is_its_own_is_given(
    repo: ckptstore.Repository,
) -> None:
    for step in range(5):
        repo.commit({"w": step}, step=step)
    late, seeded = repo.follow("late"), repo.follow("seeded")
    assert late.poll() is None
    assert seeded.poll() is None
    repo.branch("late", at="main~1")
    repo.branch("seeded", at="main~2")
    for step in (10, 11):
        repo.commit({"w": step}, step=step, branch="late")
    assert [late.poll().step for _ in range(2)] == [10, 11]
    assert late.poll() is None
    assert seeded.poll().step == 2
    assert seeded.poll() is None


def test_what_expired_meanwhile_is_passed_over(repo: ckptstore.Repository) -> None:
    repo.commit({"w": 0}, step=0)
    follower = repo.follow()
    assert follower.poll().step == 0
    for step in range(1, 6):
        repo.commit({"w": np.full(3, step)}, step=step)
    repo.gc(MaxToKeep(2), grace=0)
    assert [follower.poll().step for _ in range(2)] == [4, 5]
    assert follower.poll() is None


def test_iterating_ends_when_it_is_closed(repo: ckptstore.Repository) -> None:
    repo.commit({"w": 0}, step=0)
    seen = []
    with repo.follow(poll_seconds=0.005) as follower:
        thread = threading.Thread(target=lambda: seen.extend(c.step for c in follower))
        thread.start()
        for step in range(1, 4):
            repo.commit({"w": step}, step=step)
        until(lambda: len(seen) >= 4)
    thread.join(30)
    assert not thread.is_alive()
    assert seen == [0, 1, 2, 3]
    assert follower.wait() is None


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "1"])
def test_a_poll_without_a_pause_is_refused(repo: ckptstore.Repository, seconds: float) -> None:
    with pytest.raises(InvalidInputError, match="poll_seconds"):
        repo.follow(poll_seconds=seconds)


@pytest.mark.parametrize("seconds", [float("nan"), "1", [1]])
def test_a_timeout_that_is_no_number_is_refused(repo: ckptstore.Repository, seconds: Any) -> None:
    with pytest.raises(InvalidInputError, match="timeout"):
        repo.follow().wait(timeout=seconds)


@pytest.mark.parametrize("seconds", [10**400, float("inf")])
def test_a_timeout_may_be_of_any_length(repo: ckptstore.Repository, seconds: float) -> None:
    repo.commit({"w": 1}, step=3)
    checkpoint = repo.follow().wait(timeout=seconds)
    assert checkpoint is not None
    assert checkpoint.step == 3


def test_an_update_reads_what_differs_and_nothing_else(
    repo: ckptstore.Repository, reads: list[int]
) -> None:
    trained, served = net(), net()
    repo.commit(state_of(trained))
    follower = repo.follow()
    whole = sum(value.nbytes for value in trained.state_dict().values())
    first = follower.update(served)
    assert (first.read_bytes, first.whole_bytes) == (whole, whole)
    assert sum(reads) == whole
    reads.clear()
    same = follower.update(served)
    assert (same.read_bytes, same.changed, reads) == (0, (), [])
    with torch.no_grad():
        trained[0].weight[150, 7] += 1
        trained[2].bias[1] = 5
    repo.commit(state_of(trained))
    second = follower.update(served)
    assert second.changed == ("model/0.weight", "model/2.bias")
    rows = CHUNK // (200 * 4)
    assert second.read_bytes == sum(reads) == rows * 200 * 4 + 6
    assert second.checkpoint.id == repo.resolve("main").id
    assert difference(dict(trained.state_dict()), dict(served.state_dict())) is None


def test_memory_stays_where_it_is(repo: ckptstore.Repository) -> None:
    trained, served = net(), net()
    repo.commit(state_of(trained))
    follower = repo.follow()
    places = [value.data_ptr() for value in served.state_dict().values()]
    follower.update(served)
    with torch.no_grad():
        trained[0].weight.mul_(2)
    repo.commit(state_of(trained))
    follower.update(served)
    assert [value.data_ptr() for value in served.state_dict().values()] == places


def test_each_model_holds_its_own(repo: ckptstore.Repository) -> None:
    trained, one, other = net(), net(), net()
    repo.commit(state_of(trained))
    follower = repo.follow()
    follower.update(one)
    with torch.no_grad():
        trained[0].weight.mul_(2)
    repo.commit(state_of(trained))
    follower.update(other)
    follower.update(one)
    for served in (one, other):
        assert difference(dict(trained.state_dict()), dict(served.state_dict())) is None
    gone = weakref.ref(one)
    del one, served
    gc.collect()
    assert gone() is None


def test_who_changed_the_model_asks_for_all_of_it(repo: ckptstore.Repository) -> None:
    trained, served = net(), net()
    repo.commit(state_of(trained))
    follower = repo.follow()
    for ask in (lambda: follower.forget(served), lambda: None):
        follower.update(served)
        with torch.no_grad():
            served[0].weight.zero_()
        assert not follower.update(served).changed
        ask()
        update = follower.update(served, full=not served[0].weight.any() and ask() is None)
        assert update.read_bytes == update.whole_bytes
        assert difference(dict(trained.state_dict()), dict(served.state_dict())) is None


def test_a_nest_and_a_bare_state_are_followed_too(repo: ckptstore.Repository) -> None:
    state = {"a": [np.arange(40_000.0), 3], "b": {"c": torch.ones(5), "name": "one"}}
    repo.commit(state)
    target = {"a": [np.zeros(40_000), 0], "b": {"c": torch.zeros(5), "name": ""}}
    follower = repo.follow()
    follower.update(target)
    assert difference(state, target) is None
    state["a"][0][30_000] = -1
    state["b"]["name"] = "two"
    repo.commit(state)
    update = follower.update(target)
    assert update.changed == ("a/0",)
    assert update.read_bytes == CHUNK
    assert difference(state, target) is None
    served, weights = net(), net().state_dict()
    repo.commit(weights, branch="bare")
    repo.follow("bare").update(served)
    assert difference(dict(weights), dict(served.state_dict())) is None


def test_parts_are_named(repo: ckptstore.Repository) -> None:
    trained = net()
    repo.commit({"model": net().state_dict(), "ema": trained.state_dict()})
    served = net()
    repo.follow().update(served, part="ema")
    assert difference(dict(trained.state_dict()), dict(served.state_dict())) is None
    with pytest.raises(InvalidInputError, match="'model', 'ema'"):
        repo.follow().update(served, part="teacher")


def test_a_model_of_another_shape_is_left_as_it_was(repo: ckptstore.Repository) -> None:
    repo.commit(state_of(net()))
    served = nn.Sequential(nn.Linear(200, 200), nn.BatchNorm1d(100))
    before = {name: value.clone() for name, value in served.state_dict().items()}
    with pytest.raises(CheckoutMismatchError, match=r"1.weight.*Nothing was changed"):
        repo.follow().update(served)
    assert difference(before, dict(served.state_dict())) is None


def test_damage_leaves_the_model_as_it_was(repo: ckptstore.Repository) -> None:
    trained, served = net(), net()
    repo.commit(state_of(trained))
    follower = repo.follow()
    follower.update(served)
    before = {name: value.clone() for name, value in served.state_dict().items()}
    with torch.no_grad():
        for value in trained.parameters():
            value.add_(1)
    made = repo.commit(state_of(trained))
    page = next(repo._catalog.pages(made._manifest))
    entry = next(entry for entry in page.entries if entry.path == "model/0.weight")
    key = key_of(entry.digests[-1])
    whole = repo._storage.get(key, bytes_max=CHUNK)
    repo._storage.put(key, bytes(len(whole)))
    with pytest.raises(CorruptError):
        follower.update(served)
    assert difference(before, dict(served.state_dict())) is None
    repo._storage.put(key, whole)
    assert follower.update(served).changed
    assert difference(dict(trained.state_dict()), dict(served.state_dict())) is None


def test_a_checkpoint_that_expires_while_it_is_read_is_given_up_for_the_newest(
    repo: ckptstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, served = net(), net()
    repo.commit(state_of(trained))
    follower = repo.follow()
    real = refill.Change.read
    left = [3]

    def read(self: Any, objects: ObjectStore) -> memoryview:
        if left[0]:
            left[0] -= 1
            with torch.no_grad():
                trained[0].weight.add_(1)
            repo.commit(state_of(trained))
            repo.gc(MaxToKeep(1), grace=0)
        return real(self, objects)

    monkeypatch.setattr(refill.Change, "read", read)
    monkeypatch.setattr(reader, "READ_THREADS", 1)
    assert follower.update(served).checkpoint.id == repo.resolve("main").id
    assert difference(dict(trained.state_dict()), dict(served.state_dict())) is None


def test_readers_and_updates_wait_for_each_other_and_no_update_starves() -> None:
    lock = RWLock()
    order: list[str] = []
    inside, go = threading.Event(), threading.Event()

    def read() -> None:
        with lock.reading():
            inside.set()
            go.wait(30)
            order.append("first reader")

    def write() -> None:
        with lock.writing():
            order.append("writer")

    def read_later() -> None:
        with lock.reading():
            order.append("later reader")

    threads = [threading.Thread(target=target) for target in (read, write, read_later)]
    threads[0].start()
    inside.wait(30)
    threads[1].start()
    until(lambda: lock._is_written)
    threads[2].start()
    time.sleep(0.02)
    assert order == []
    go.set()
    for thread in threads:
        thread.join(30)
    assert order == ["first reader", "writer", "later reader"]


def test_weights_are_loaded_and_nothing_else(repo: ckptstore.Repository, reads: list[int]) -> None:
    trained, served = net(), net()
    repo.commit(state_of(trained), step=1)
    assert not ckptstore.load_weights(served, repo, "main@step=1")
    assert difference(dict(trained.state_dict()), dict(served.state_dict())) is None
    assert sum(reads) <= sum(value.nbytes for value in served.state_dict().values()) + 40_000
    with pytest.raises(CheckoutMismatchError, match="missing"):
        ckptstore.load_weights(nn.Sequential(*served, nn.Linear(2, 2)), repo)
    with pytest.warns(UserWarning, match="2 missing"):
        found = ckptstore.load_weights(nn.Sequential(*served, nn.Linear(2, 2)), repo, strict=False)
    assert found.missing == ("model/3.weight", "model/3.bias")
    with pytest.raises(NotFoundError):
        ckptstore.load_weights(served, repo, "nothing")


def test_weights_come_from_a_folder_and_from_a_bare_state(tmp_path: Any) -> None:
    trained, served = net(), net()
    ckptstore.init(tmp_path / "store").commit(trained.state_dict())
    ckptstore.load_weights(served, tmp_path / "store")
    assert difference(dict(trained.state_dict()), dict(served.state_dict())) is None


def test_a_part_can_be_checked_out_by_itself(repo: ckptstore.Repository) -> None:
    trained = net()
    made = repo.commit(state_of(trained))
    assert made.names == ("model", "optimizer")
    assert difference(trained.state_dict(), repo.checkout(part="model")) is None
    assert repo.checkout(part="optimizer", include="optimizer/lr") == {"lr": 0.1}
    with pytest.raises(
        InvalidInputError, match=r"no part 'scheduler'\. It has 'model', 'optimizer'"
    ):
        repo.checkout(part="scheduler")


def test_differences_are_told_by_whole_paths(repo: ckptstore.Repository) -> None:
    repo.commit(state_of(net()))
    other = nn.Sequential(
        nn.Linear(200, 200), nn.BatchNorm1d(200), nn.Linear(200, 3), nn.Linear(3, 3)
    )
    for call in (
        lambda: ckptstore.load_weights(other, repo),
        lambda: repo.follow().update(other),
        lambda: repo.checkout(part="model", into=other),
    ):
        with pytest.raises(CheckoutMismatchError) as caught:
            call()
        assert caught.value.incompatible.missing == ("model/3.weight", "model/3.bias")
        assert caught.value.incompatible.mismatched[0].startswith("model/2.weight (")
    with pytest.raises(CheckoutMismatchError, match="pass part='model'"):
        repo.checkout(into=other)


def test_another_part_of_a_checkpoint_is_read_though_the_model_held_one(
    repo: ckptstore.Repository,
) -> None:
    weights, average, served = net(), net(), net()
    repo.commit({"model": weights.state_dict(), "ema": average.state_dict()})
    follower = repo.follow()
    for part, expected in (("model", weights), ("ema", average), (None, weights)):
        follower.update(served, part=part)
        assert difference(dict(expected.state_dict()), dict(served.state_dict())) is None


def test_what_was_put_in_the_place_of_an_array_is_filled(repo: ckptstore.Repository) -> None:
    trained, served, nest = net(), net(), {"model": {"0.bias": torch.zeros(200)}}
    repo.commit(state_of(trained))
    follower = repo.follow()
    follower.update(served)
    follower.update(nest, include="model/0.bias")
    served[0] = nn.Linear(200, 200)
    served[2].load_state_dict(net()[2].state_dict(), assign=True)
    nest["model"]["0.bias"] = torch.zeros(200)
    assert set(follower.update(served).changed) == {
        "model/0.weight",
        "model/0.bias",
        "model/2.weight",
        "model/2.bias",
    }
    assert difference(dict(trained.state_dict()), dict(served.state_dict())) is None
    follower.update(nest, include="model/0.bias")
    assert torch.equal(nest["model"]["0.bias"], trained[0].bias)


def test_an_array_whose_location_is_unknown_is_filled_at_every_update(
    repo: ckptstore.Repository,
) -> None:
    """It may have other memory by then, while its first memory is still in use elsewhere."""

    class Marked(torch.Tensor):
        pass

    repo.commit({"w": torch.arange(20000.0)})
    follower, memory = repo.follow(), torch.zeros(20000)
    model = {"w": memory.as_subclass(Marked)}
    follower.update(model)
    model["w"].data = torch.zeros(20000)
    follower.update(model)
    assert torch.equal(model["w"].as_subclass(torch.Tensor), torch.arange(20000.0))
    assert torch.equal(memory, torch.arange(20000.0))


def test_only_what_is_chosen_is_changed(repo: ckptstore.Repository) -> None:
    trained, served = net(), net()
    head = {name: value.clone() for name, value in served[2].state_dict().items()}
    repo.commit(state_of(trained))
    follower = repo.follow()
    follower.update(served, include="model/0.*")
    assert torch.equal(served[0].weight, trained[0].weight)
    assert difference(head, dict(served[2].state_dict())) is None
    update = follower.update(served, exclude="model/1.*")
    assert update.changed == ("model/2.weight", "model/2.bias")
    with pytest.raises(InvalidInputError, match=r"Nothing in checkpoint .* matches"):
        follower.update(served, include="nothing/**")


def test_plain_values_that_a_module_has_no_place_for_are_left_out(
    repo: ckptstore.Repository,
) -> None:
    trained, served = net(), net()
    repo.commit({"model": {**trained.state_dict(), "version": 3, "note": {}}})
    repo.follow().update(served)
    assert difference(dict(trained.state_dict()), dict(served.state_dict())) is None
    repo.commit({"model": {**trained.state_dict(), "more": torch.ones(2)}})
    with pytest.raises(CheckoutMismatchError, match="more"):
        repo.follow().update(served)


def test_nothing_keeps_a_nest_alive(repo: ckptstore.Repository) -> None:
    repo.commit({"a": np.ones(5), "b": torch.ones(5)})
    follower = repo.follow()
    for _ in range(3):
        nest = {"a": np.zeros(5), "b": torch.zeros(5)}
        assert len(follower.update(nest).changed) == 2
        gone = [weakref.ref(value) for value in nest.values()]
        del nest
        gc.collect()
        assert all(found() is None for found in gone)
    assert len(follower._memory._filled) == 2


class Refusing:
    """Something with a state of its own, which it may not like."""

    def __init__(self) -> None:
        self.refuses, self.state = False, {"n": 0}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.refuses:
            raise KeyError("n")
        self.state = state


def test_arrays_are_put_back_when_an_object_refuses_what_is_its_own(
    repo: ckptstore.Repository,
) -> None:
    target = {"a": torch.zeros(20_000, 2)[:, 1], "b": np.zeros(5), "o": Refusing()}
    repo.commit({"a": torch.ones(20_000), "b": np.ones(5), "o": {"n": 1}})
    follower = repo.follow()
    follower.update(target)
    assert target["o"].state == {"n": 1}
    repo.commit({"a": torch.ones(20_000) * 2, "b": np.ones(5) * 2, "o": {"n": 2}})
    target["o"].refuses = True
    with pytest.raises(
        InvalidInputError, match=r"o \(its load_state.*KeyError.*may hold a part of it: \['o'\]"
    ):
        follower.update(target)
    assert torch.equal(target["a"], torch.ones(20_000))
    assert target["b"].tolist() == [1] * 5
    target["o"].refuses = False
    follower.update(target)
    assert (target["a"][0], target["b"][0], target["o"].state) == (2, 2, {"n": 2})


class Computing(nn.Linear):
    """A module with a state that it computes, and may not like."""

    refuses = False

    def get_extra_state(self) -> torch.Tensor:
        return torch.ones(3)

    def set_extra_state(self, state: torch.Tensor) -> None:
        if self.refuses:
            raise RuntimeError("no")


def test_arrays_are_put_back_when_a_module_refuses_what_it_computes(
    repo: ckptstore.Repository,
) -> None:
    trained, served = Computing(200, 200), Computing(200, 200)
    served.weight = nn.Parameter(torch.zeros(200, 200).T)
    weight, bias = served.weight.detach().clone(), served.bias.detach().clone()
    repo.commit(trained.state_dict())
    served.refuses = True
    follower = repo.follow()
    with pytest.raises(InvalidInputError, match=r"the state \(.*RuntimeError.*Nothing was"):
        follower.update(served)
    assert torch.equal(served.weight, weight)
    assert torch.equal(served.bias, bias)
    served.refuses = False
    follower.update(served)
    assert difference(dict(trained.state_dict()), dict(served.state_dict())) is None
    assert follower.update(served).read_bytes == 0


def test_of_memory_that_got_two_different_things_nobody_knows_which_it_holds(
    repo: ckptstore.Repository,
) -> None:
    state = {"a": torch.ones(20_000), "b": torch.ones(20_000)}
    repo.commit(state)
    memory = torch.zeros(20_000)
    target = {"a": memory.view(-1), "b": memory.view(-1)}
    follower = repo.follow()
    assert follower.update(target).changed == ("a",)
    assert follower.update(target).changed == ()
    state["b"][5] = 2
    repo.commit(state)
    for _ in range(2):  # as a checkout does it: the last one stays
        assert "b" in follower.update(target).changed
        assert torch.equal(memory, state["b"])
    state["b"][5] = 1
    repo.commit(state)
    follower.update(target)
    assert torch.equal(memory, state["a"])
    assert follower.update(target).changed == ()


def test_what_is_handed_over_may_be_tied_to_what_is_not_chosen(
    repo: ckptstore.Repository,
) -> None:
    shared = torch.ones(4)
    others = {str(number): np.zeros(1) for number in range(1000)}
    repo.commit({"a": {"": shared, **others}, "b": others, "z": {"o": {"w": shared}}})
    target = {"o": Refusing()}
    repo.follow().update(target, part="z")
    assert torch.equal(target["o"].state["w"], shared)


def test_after_copying_that_failed_twice_everything_is_read_again(
    repo: ckptstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, target = {"a": torch.ones(20_000)}, {"a": torch.zeros(20_000)}
    repo.commit(state)
    follower = repo.follow()
    follower.update(target)
    repo.commit({"a": torch.ones(20_000) * 2})

    def broken(array: torch.Tensor, *_: object) -> None:
        array[:] = -1
        raise RuntimeError("the device is lost")

    with monkeypatch.context() as patched:
        patched.setattr(refill.arrays, "copy_chunk", broken)
        with pytest.raises(RuntimeError):
            follower.update(target)
    repo.commit(state)
    follower.update(target)
    assert torch.equal(target["a"], state["a"])


def test_copying_that_is_cut_off_is_done_to_its_end(
    repo: ckptstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, served = net(), net()
    repo.commit(state_of(trained))
    real, calls = refill.arrays.copy_chunk, [0]

    def interrupted(*args: Any) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(refill.arrays, "copy_chunk", interrupted)
    follower = repo.follow()
    with pytest.raises(KeyboardInterrupt):
        follower.update(served)
    assert difference(dict(trained.state_dict()), dict(served.state_dict())) is None
    with follower.reading():
        pass


def test_optimizers_are_handed_their_state_when_it_changed(
    repo: ckptstore.Repository, reads: list[int]
) -> None:
    def training() -> dict[str, Any]:
        model = nn.Linear(300, 300)
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(1, 300)).sum().backward()
        optimizer.step()
        return {"model": model, "optimizer": optimizer}

    ours, theirs = training(), training()
    repo.commit({name: value.state_dict() for name, value in ours.items()})
    follower = repo.follow()
    follower.update(theirs)
    reads.clear()
    assert (follower.update(theirs).read_bytes, reads) == (0, [])
    ours["optimizer"].step()
    repo.commit({name: value.state_dict() for name, value in ours.items()})
    update = follower.update(theirs)
    assert update.read_bytes == sum(reads)
    for name, value in ours.items():
        assert difference(dict(value.state_dict()), dict(theirs[name].state_dict())) is None


def test_small_arrays_of_a_bundle_come_together(
    repo: ckptstore.Repository, reads: list[int]
) -> None:
    state = {str(number): np.full(8, number) for number in range(1000)}
    repo.commit(state)
    follower, target = repo.follow(), {name: np.zeros(8, int) for name in state}
    update = follower.update(target)
    assert len(reads) < 20
    assert update.read_bytes == sum(reads) == 64_000
    reads.clear()
    state["7"][0] = -1
    repo.commit(state)
    assert follower.update(target).read_bytes == 64
    assert reads == [64]
    assert difference(state, target) is None


def test_pages_of_what_is_not_wanted_are_not_read(
    repo: ckptstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {str(number): np.full(8, number) for number in range(2000)}
    repo.commit({"model": arrays, "optimizer": arrays})
    found: list[int] = []
    real = Catalog.page

    def page(self: Any, digest: Any) -> Any:
        found.append(1)
        return real(self, digest)

    monkeypatch.setattr(Catalog, "page", page)
    repo.follow().update({name: np.zeros(8, int) for name in arrays}, part="model")
    assert len(found) <= len(repo.resolve("main")._manifest.pages) / 2 + 1


def test_one_who_expires_all_the_time_is_told_so(
    repo: ckptstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, served = net(), net()
    repo.commit(state_of(trained))
    real = refill.Change.read

    def read(self: Any, objects: ObjectStore) -> Any:
        with torch.no_grad():
            trained[0].weight.add_(1)
        repo.commit(state_of(trained))
        repo.gc(MaxToKeep(1), grace=0)
        return real(self, objects)

    monkeypatch.setattr(refill.Change, "read", read)
    monkeypatch.setattr(reader, "READ_THREADS", 1)
    before = {name: value.clone() for name, value in served.state_dict().items()}
    with pytest.raises(ExpiredError, match="5 times in a row"):
        repo.follow().update(served)
    assert difference(before, dict(served.state_dict())) is None


def test_reading_can_be_nested_and_an_update_inside_it_is_refused(
    repo: ckptstore.Repository,
) -> None:
    trained, served = net(), net()
    repo.commit(state_of(trained))
    follower = repo.follow()
    inside, waits, ended = threading.Event(), threading.Event(), []

    def read() -> None:
        with follower.reading():
            inside.set()
            waits.wait(30)
            with follower.reading():  # a writer waits by now
                ended.append("read")

    def update() -> None:
        follower.update(served)
        ended.append("updated")

    threads = [threading.Thread(target=target, daemon=True) for target in (read, update)]
    threads[0].start()
    inside.wait(30)
    threads[1].start()
    until(lambda: follower._lock._is_written)
    waits.set()
    for thread in threads:
        thread.join(30)
    assert ended == ["read", "updated"]
    with follower.reading(), pytest.raises(InvalidInputError, match="wait for itself"):
        follower.update(served)
    follower.update(served)


def test_an_update_that_is_interrupted_while_it_waits_lets_readers_in_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock = RWLock()

    def interrupted(timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    def write() -> None:
        with pytest.raises(KeyboardInterrupt), lock.writing():
            pass

    with lock.reading():
        monkeypatch.setattr(lock._changed, "wait", interrupted)
        thread = threading.Thread(target=write)
        thread.start()
        thread.join(30)
    monkeypatch.undo()
    assert not lock._is_written


def test_whoever_ends_reading_may_be_another_thread() -> None:
    lock = RWLock()
    held = lock.reading()
    held.__enter__()
    thread = threading.Thread(target=held.__exit__, args=(None, None, None))
    thread.start()
    thread.join(30)
    assert not lock.is_reading()
    with lock.writing():
        pass


def test_a_part_of_plain_values_is_filled(repo: ckptstore.Repository) -> None:
    repo.commit({"model": net().state_dict(), "config": {"lr": 0.5, "n": 3}})
    target = {"lr": 0, "n": 0}
    assert not repo.checkout(part="config", into=target)
    assert target == {"lr": 0.5, "n": 3}


@pytest.mark.parametrize(
    ("start", "found"),
    [("latest", [4]), ("next", [4]), ("main~2", [2, 3, 4]), ("v1", [1, 2, 3, 4])],
)
def test_a_follower_starts_where_it_is_told_to(start: str, found: list[int]) -> None:
    repo = ckptstore.init("memory://")
    for step in range(4):
        repo.commit({"n": step}, step=step)
    repo.tag("v1", "main~3")
    follower = repo.follow(start=start)
    repo.commit({"n": 4}, step=4)
    steps = []
    while checkpoint := follower.poll():
        steps.append(checkpoint.step)
    assert steps == found


def test_a_follower_of_a_branch_to_come_starts_with_its_first() -> None:
    repo = ckptstore.init("memory://")
    follower = repo.follow("new", start="next")
    repo.commit({"n": 0}, step=0, branch="new")
    checkpoint = follower.poll()
    assert checkpoint is not None
    assert checkpoint.step == 0
    with pytest.raises(ckptstore.NotFoundError):
        repo.follow(start="v9")
