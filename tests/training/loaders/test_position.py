"""A plain DataLoader goes on in the middle of an epoch, bit for bit, or says why it cannot."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

import ckptstore
from ckptstore.errors import CheckoutMismatchError, InvalidInputError
from ckptstore.training import BackupAndRestore, CallbackList, CheckpointManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ckptstore.repository import Repository


class Noisy(Dataset[torch.Tensor]):
    """Samples with noise of every generator, and of one that the dataset owns."""

    def __init__(self, samples: int, seed: int) -> None:
        self.samples = samples
        self.noise = np.random.default_rng(seed)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = torch.rand(1) + random.random() + np.random.rand() + self.noise.random()
        return index + 0.1 * noise


class Counting(Sampler[int]):
    """A sampler whose order is that of its own count of epochs, under some name."""

    def __init__(self, samples: int, name: str) -> None:
        self.samples, self.name = samples, name
        setattr(self, name, 0)

    def __iter__(self) -> Iterator[int]:
        count = getattr(self, self.name)
        setattr(self, self.name, count + 1)
        return iter(torch.randperm(self.samples, generator=seeded(count)).tolist())

    def __len__(self) -> int:
        return self.samples


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SAMPLERS: dict[str, Callable[[int, int, int], dict[str, Any]]] = {
    # The arguments are the number of samples, the batch size and a seed.
    "in order": lambda n, size, seed: {"batch_size": size},
    "shuffled": lambda n, size, seed: {"batch_size": size, "shuffle": True},
    "generator": lambda n, size, seed: {
        "batch_size": size,
        "shuffle": True,
        "generator": seeded(seed),
    },
    "replacement": lambda n, size, seed: {
        "batch_size": size,
        "sampler": RandomSampler(
            range(n), replacement=True, num_samples=40, generator=seeded(seed)
        ),
    },
    "repeated": lambda n, size, seed: {
        "batch_size": size,
        "sampler": RandomSampler(range(n), num_samples=2 * n + 1),
    },
    "weighted": lambda n, size, seed: {
        "batch_size": size,
        "sampler": WeightedRandomSampler([1.0] * n, n),
    },
    "subset": lambda n, size, seed: {
        "batch_size": size,
        "sampler": SubsetRandomSampler(range(0, n, 2), generator=seeded(seed)),
    },
    "distributed": lambda n, size, seed: {
        "batch_size": size,
        "sampler": DistributedSampler(range(n), num_replicas=2, rank=1),
    },
    "epochs": lambda n, size, seed: {"batch_size": size, "sampler": Counting(n, "epoch")},
    "passes": lambda n, size, seed: {"batch_size": size, "sampler": Counting(n, "passes")},
    "batch sampler": lambda n, size, seed: {
        "batch_sampler": BatchSampler(RandomSampler(range(n)), size, drop_last=False)
    },
    "batches": lambda n, size, seed: {"batch_sampler": [[0], [n - 1, 0], [n // 2]]},
    "no batches": lambda n, size, seed: {
        "batch_size": None,
        "sampler": RandomSampler(range(n), generator=seeded(seed)),
    },
}


@dataclass
class Trace:
    """The samples, random draws and weights of a run."""

    samples: list[Any] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


class Run:
    """A process of a training run: everything in it is made anew."""

    def __init__(
        self,
        name: str,
        *,
        samples: int,
        size: int,
        seed: int,
        compares: bool = False,
        **options: Any,
    ) -> None:
        self.compares = compares
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout(0.5))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.loader: Any = DataLoader(
            Noisy(samples, seed), **SAMPLERS[name](samples, size, seed), **options
        )

    def train_on(self, batch: torch.Tensor, trace: Trace) -> None:
        loss = self.model(batch.reshape(-1, 1)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        draws = (torch.rand(1).item(), random.random(), np.random.rand())
        trace.samples.append((batch.reshape(-1).tolist(), draws))
        trace.weights = self.model[0].weight.flatten().tolist()

    def manager(self, repository: Repository) -> CheckpointManager:
        return CheckpointManager(
            repository,
            model=self.model,
            optimizer=self.optimizer,
            loader=self.loader,
            async_save=False,
            compare_next_batch=self.compares,
        )

    def begin(self, epoch: int) -> None:
        if isinstance(self.loader.sampler, DistributedSampler):
            self.loader.sampler.set_epoch(epoch)


def with_manager(run: Run, repository: Repository, epochs: int, last: int | None) -> Trace:
    trace, batches = Trace(), len(run.loader)
    manager = run.manager(repository)
    step = manager.restore_or_initialize()
    for epoch in range(step // batches, epochs):
        run.begin(epoch)
        for batch in run.loader:
            run.train_on(batch, trace)
            step += 1
            manager.save(step)
            if step == last:
                return trace
    return trace


def with_epochs(run: Run, repository: Repository, epochs: int, last: int | None) -> Trace:
    trace = Trace()
    manager = run.manager(repository)
    step = manager.restore_or_initialize()
    for epoch in range(manager.epoch or 0, epochs):
        run.begin(epoch)
        for batch in run.loader:
            run.train_on(batch, trace)
            step += 1
            manager.save(step, epoch=epoch)
            if step == last:
                return trace
    return trace


def with_callbacks(run: Run, repository: Repository, epochs: int, last: int | None) -> Trace:
    trace = Trace()
    callbacks = CallbackList(
        [BackupAndRestore(repository, save_freq=1)],
        model=run.model,
        optimizer=run.optimizer,
        epochs=epochs,
    )
    callbacks.on_train_begin()
    for epoch in callbacks.epochs():
        callbacks.on_epoch_begin(epoch)
        run.begin(epoch)
        for number, batch in callbacks.batches(run.loader):
            run.train_on(batch, trace)
            callbacks.on_train_batch_end(number)
            if callbacks.training.step == last:
                return trace
        callbacks.on_epoch_end(epoch)
    return trace


def with_tracked_loader(run: Run, repository: Repository, epochs: int, last: int | None) -> Trace:
    trace = Trace()
    callbacks = CallbackList(
        [BackupAndRestore(repository, save_freq=1)],
        model=run.model,
        optimizer=run.optimizer,
        loader=run.loader,
        epochs=epochs,
        steps=len(run.loader),
    )
    callbacks.on_train_begin()
    for epoch in callbacks.epochs():
        callbacks.on_epoch_begin(epoch)
        run.begin(epoch)
        for number, batch in callbacks.batches(run.loader):
            run.train_on(batch, trace)
            callbacks.on_train_batch_end(number)
            if callbacks.training.step == last and number + 1 < len(run.loader):
                return trace
        callbacks.on_epoch_end(epoch)
        if callbacks.training.step == last:
            return trace
    return trace


LOOPS = {
    loop.__name__: loop for loop in (with_manager, with_epochs, with_callbacks, with_tracked_loader)
}


def check(loop: Any, name: str, *, epochs: int, lasts: list[int], **options: Any) -> None:
    """Interrupt a run after some of its batches, and compare it with one that was not."""
    whole = loop(Run(name, seed=1, **options), ckptstore.init("memory://"), epochs, None)
    repository, parts = ckptstore.init("memory://"), list[Trace]()
    for number, last in enumerate([*lasts, None]):
        process = Run(name, seed=1 if number == 0 else 50 + number, **options)
        parts.append(loop(process, repository, epochs, last))
        process.loader._iterator = None  # its workers end, as with the process
    assert [item for part in parts for item in part.samples] == whole.samples
    assert next(part.weights for part in reversed(parts) if part.weights) == whole.weights


@pytest.mark.property
@given(
    name=st.sampled_from(sorted(SAMPLERS)),
    loop=st.sampled_from(sorted(LOOPS)),
    samples=st.integers(1, 9),
    size=st.integers(1, 4),
    drops=st.booleans(),
    compares=st.booleans(),
    epochs=st.integers(1, 3),
    lasts=st.lists(st.integers(1, 20), max_size=3, unique=True).map(sorted),
)
def test_a_run_interrupted_anywhere_ends_with_the_same_bits(
    name: str,
    loop: str,
    samples: int,
    size: int,
    drops: bool,
    compares: bool,
    epochs: int,
    lasts: list[int],
) -> None:
    options: dict[str, Any] = {"compares": compares}
    if drops and "batch" not in name and size <= (samples + 1) // 2:
        options["drop_last"] = True
    check(LOOPS[loop], name, samples=samples, size=size, epochs=epochs, lasts=lasts, **options)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("loop", LOOPS)
def test_each_sampler_goes_on_within_and_between_epochs(name: str, loop: str) -> None:
    check(LOOPS[loop], name, samples=5, size=2, epochs=3, lasts=[1, 3, 4, 6])


def with_two_saves(run: Run, repository: Repository, epochs: int, last: int | None) -> Trace:
    """A second save comes while the next batch waits, and the training has drawn since."""
    trace, batches = Trace(), len(run.loader)
    manager = CheckpointManager(
        repository,
        model=run.model,
        optimizer=run.optimizer,
        loader=run.loader,
        async_save=False,
        compare_next_batch=True,
    )
    step = manager.restore_or_initialize() // 2
    for _ in range(step // batches, epochs):
        for batch in run.loader:
            run.train_on(batch, trace)
            step += 1
            manager.save(2 * step - 1)
            trace.samples.append((torch.rand(1).item(), run.loader.dataset.noise.random()))
            manager.save(2 * step)
            if step == last:
                return trace
    return trace


@pytest.mark.parametrize("last", range(1, 7))
def test_a_batch_that_waits_is_loaded_from_the_random_states_that_it_was(last: int) -> None:
    check(with_two_saves, "shuffled", samples=5, size=2, epochs=2, lasts=[last])


def test_a_backup_of_each_batch_loses_and_repeats_no_sample() -> None:
    """As it was seen: after batch 3 of 6, 3 of 12 samples were never seen and 3 twice."""
    repository, seen = ckptstore.init("memory://"), list[float]()
    for number, last in enumerate([3, 6]):
        torch.manual_seed(number)
        callbacks = CallbackList(
            [BackupAndRestore(repository, save_freq=1)], model=torch.nn.Linear(1, 1), epochs=1
        )
        loader = DataLoader(torch.arange(12.0), batch_size=2, shuffle=True)  # type: ignore[arg-type]
        callbacks.on_train_begin()
        callbacks.on_epoch_begin(0)
        for batch, items in callbacks.batches(loader):
            seen += items.tolist()
            callbacks.on_train_batch_end(batch)
            if callbacks.training.step == last:
                break
    assert sorted(seen) == list(range(12))


def interrupted(loader: DataLoader[Any], *, batches: int = 1) -> Repository:
    """A repository with a run that was interrupted after some batches of an epoch."""
    repository = ckptstore.init("memory://")
    manager = CheckpointManager(
        repository, model=torch.nn.Linear(1, 1), loader=loader, async_save=False
    )
    iterator = iter(loader)
    for _ in range(batches):
        next(iterator)
    manager.save(batches)
    return repository


def resumed(repository: Repository, loader: DataLoader[Any], **options: Any) -> torch.nn.Module:
    model = torch.nn.Linear(1, 1)
    manager = CheckpointManager(repository, model=model, loader=loader, async_save=False)
    manager.restore(**options)
    return model


def numbers(count: int = 6, **options: Any) -> DataLoader[Any]:
    data: Any = torch.arange(float(count))
    return DataLoader(data, **{"batch_size": 2, **options})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 7}, "samples was 6 and is 7, batches was 3 and is 4"),
        ({"batch_size": 3}, "batches was 3 and is 2, batch_size was 2 and is 3"),
        ({"shuffle": True}, "sampler was 'SequentialSampler' and is 'RandomSampler'"),
        ({"batch_size": 2, "drop_last": True}, "drop_last was False and is True"),
    ],
)
def test_an_epoch_does_not_go_on_with_another_loader(options: dict[str, Any], said: str) -> None:
    repository = interrupted(numbers())
    loader = numbers(**options)
    with pytest.raises(CheckoutMismatchError, match=said) as raised:
        resumed(repository, loader)
    assert "Nothing was changed" in str(raised.value)
    assert "exclude='loader'" in str(raised.value)
    with pytest.warns(UserWarning, match="after batch 1"):
        resumed(repository, loader, strict=False)
    assert len([*loader]) == len(loader)  # the epoch begins anew
    resumed(repository, loader, exclude="loader")
    assert len([*loader]) == len(loader)


def test_between_epochs_a_loader_may_change() -> None:
    loader = numbers()
    manager = CheckpointManager("memory://", loader=loader, async_save=False)
    assert len([*loader]) == 3
    manager.save(3)
    other = numbers(8, batch_size=4, shuffle=True)
    resumed_manager = CheckpointManager(manager.repository, loader=other, async_save=False)
    resumed_manager.restore()
    assert len([*other]) == 2


def test_a_sampler_that_gives_other_samples_is_an_error_each_time() -> None:
    repository = interrupted(numbers(sampler=[5, 4, 3, 2, 1, 0]))
    loader = numbers(sampler=[0, 1, 2, 3, 4, 5])
    resumed(repository, loader)
    before = torch.get_rng_state()
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="The sampler now gives other samples"):
            next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_sampler_does_not_count_is_a_setting_of_the_program() -> None:
    class Offset(Counting):
        def __init__(self, offset: int) -> None:
            super().__init__(6, "passes")
            self.offset = offset

        def __iter__(self) -> Iterator[int]:
            return ((index + self.offset) % 6 for index in super().__iter__())

    loader = numbers(sampler=Offset(0))
    manager = CheckpointManager("memory://", loader=loader, async_save=False)
    assert len([*loader]) == 3
    manager.save(3)
    sampler = Offset(2)
    other = numbers(sampler=sampler)
    CheckpointManager(manager.repository, loader=other, async_save=False).restore()
    assert (sampler.passes, sampler.offset) == (1, 2)  # type: ignore[attr-defined]


def test_a_sampler_that_draws_as_it_goes_is_found_out() -> None:
    class Drawing(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return (int(torch.randint(1000, ())) % 6 for _ in range(6))

        def __len__(self) -> int:
            return 6

    loader = numbers(sampler=Drawing())
    repository = ckptstore.init("memory://")
    manager = CheckpointManager(repository, loader=loader, async_save=False)
    for step, _ in enumerate(loader):
        torch.rand(1)
        manager.save(step)
        if step == 1:
            break
    loader = numbers(sampler=Drawing())
    CheckpointManager(repository, loader=loader, async_save=False).restore()
    with pytest.raises(InvalidInputError, match="give it a generator of its own"):
        iter(loader)


def test_a_checkpoint_of_another_kind_of_loader_is_refused() -> None:
    class Stateful:
        def state_dict(self) -> dict[str, int]:
            return {"position": 1}

        def load_state_dict(self, state: dict[str, int]) -> None: ...

    manager = CheckpointManager("memory://", loader=Stateful(), async_save=False)
    manager.save(1)
    other = CheckpointManager(manager.repository, loader=numbers(), async_save=False)
    with pytest.raises(CheckoutMismatchError, match="no position of a plain DataLoader"):
        other.restore()


def test_no_sample_of_a_batch_that_is_done_is_loaded() -> None:
    class Loaded(Dataset[int]):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: int) -> int:
            self.seen.append(index)
            return index

    repository = interrupted(DataLoader(Loaded(), batch_size=10), batches=7)
    dataset = Loaded()
    loader = DataLoader(dataset, batch_size=10)
    resumed(repository, loader)
    assert dataset.seen == []
    next(iter(loader))
    assert dataset.seen == list(range(70, 80))


def test_a_tracked_loader_is_the_loader_that_it_was() -> None:
    class Named(DataLoader[Any]):
        """A class of the program."""

        def __iter__(self) -> Any:
            return (batch * 10 for batch in super().__iter__())

    data: Any = torch.arange(6.0)
    loader = Named(data, batch_size=2)
    CheckpointManager("memory://", loader=loader)
    assert isinstance(loader, Named)
    assert (type(loader).__name__, type(loader).__doc__) == ("Named", "A class of the program.")
    assert [batch.tolist() for batch in loader] == [[0, 10], [20, 30], [40, 50]]
    assert len(iter(numbers())) == len(loader) == 3
    for other in (copy.copy(loader), copy.deepcopy(loader)):
        assert type(other) is Named
        assert [batch.tolist() for batch in other] == [[0, 10], [20, 30], [40, 50]]
    plain = numbers()
    CheckpointManager("memory://", loader=plain)
    unpickled = pickle.loads(pickle.dumps(plain))
    assert type(unpickled) is DataLoader
    assert len([*unpickled]) == 3


def test_a_subclass_that_fetches_ahead_is_resumed_where_the_loop_was() -> None:
    class Ahead(DataLoader[Any]):
        def __iter__(self) -> Any:
            iterator = super().__iter__()
            batch = next(iterator)
            for following in iterator:
                yield batch
                batch = following
            yield batch

    def made(seed: int) -> Ahead:
        data: Any = torch.arange(8.0)
        return Ahead(data, batch_size=2, shuffle=True, generator=seeded(seed))

    whole = [batch.tolist() for batch in made(3)]
    repository = interrupted(made(3), batches=2)
    loader = made(4)
    resumed(repository, loader)
    assert [batch.tolist() for batch in loader] == whole[2:]


def test_an_iterator_that_the_program_left_does_not_count() -> None:
    loader = numbers()
    manager = CheckpointManager("memory://", loader=loader, async_save=False)
    left = iter(loader)
    next(left)
    following = iter(loader)
    next(following)
    next(left)
    manager.save(1)
    other = numbers()
    CheckpointManager(manager.repository, loader=other, async_save=False).restore()
    assert [batch.tolist() for batch in other] == [[2, 3], [4, 5]]


def test_an_epoch_that_callbacks_have_ended_early_is_over() -> None:
    callbacks = CallbackList([BackupAndRestore("memory://early")], model=torch.nn.Linear(1, 1))
    loader = numbers()
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    for batch, _ in callbacks.batches(loader):
        callbacks.on_train_batch_end(batch)
        break
    callbacks.on_epoch_end(0)

    model = torch.nn.Linear(1, 1)
    callbacks = CallbackList([BackupAndRestore("memory://early")], model=model)
    callbacks.on_train_begin()
    assert next(callbacks.epochs()) == 1
    callbacks.on_epoch_begin(1)
    assert [number for number, _ in callbacks.batches(numbers())] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"persistent_workers": True}, {"compares": True}])
@pytest.mark.parametrize("loop", ["with_manager", "with_callbacks"])
@pytest.mark.parametrize("name", ["generator", "weighted"])
def test_workers_that_draw_nothing_change_nothing(
    name: str, loop: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Noisy, "__getitem__", lambda self, index: torch.tensor([float(index)]))
    options = {"num_workers": 2, **options}
    check(LOOPS[loop], name, samples=7, size=2, epochs=2, lasts=[1, 3, 4, 6], **options)


def test_persistent_workers_end_with_their_loader() -> None:
    """Not by the collector, which would wait for them in vain."""
    loader = numbers(num_workers=1, persistent_workers=True)
    manager = CheckpointManager("memory://", loader=loader, async_save=False)
    for number, _ in enumerate(loader):
        manager.save(number + 1)
    iterator = weakref.ref(vars(loader)["_iterator"])
    assert iterator() is not None
    gc.disable()
    try:
        del loader, manager
        assert iterator() is None
    finally:
        gc.enable()


def test_a_loop_keeps_its_loader() -> None:
    manager = CheckpointManager("memory://", loader=numbers(shuffle=True), async_save=False)
    batches = iter(manager.tracked["loader"])
    next(batches)
    del manager
    gc.collect()
    assert len([*batches]) == 2


class Drawing(Dataset[torch.Tensor]):
    """A dataset that draws from a generator of the process, or of its own."""

    def __init__(self, draw: Callable[[], Any] | None) -> None:
        self.draw = draw
        self.noise = draw() if draw is random.Random else None

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.noise is not None:
            self.noise.random()
        elif self.draw is not None:
            self.draw()
        return torch.tensor(index)


def draw_of_torch() -> torch.Tensor:
    return torch.rand(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw",
    [draw_of_torch, random.random, np.random.rand, random.Random],
    ids=["torch", "python", "numpy", "own"],
)
def test_workers_that_draw_are_warned_of_once(draw: Callable[[], Any]) -> None:
    loader = DataLoader(Drawing(draw), batch_size=2, num_workers=1)
    repository = interrupted(loader, batches=2)
    loader = DataLoader(Drawing(draw), batch_size=2, num_workers=1)
    resumed(repository, loader)
    with pytest.warns(UserWarning, match="workers of the loader draw") as warned:
        assert [batch.tolist() for batch in loader] == [[4, 5], [6, 7]]
    assert len(warned) == 1
    assert len([*loader]) == 4  # without a warning
    without = DataLoader(Drawing(draw), batch_size=2)
    resumed(repository, without)
    assert len([*without]) == 2


@pytest.mark.slow
def test_workers_that_come_in_any_order_are_warned_of() -> None:
    loader = DataLoader(Drawing(None), batch_size=2, num_workers=1, in_order=False)
    repository = interrupted(loader, batches=2)
    loader = DataLoader(Drawing(None), batch_size=2, num_workers=1, in_order=False)
    resumed(repository, loader)
    with pytest.warns(UserWarning, match="in_order=True"):
        assert len([*loader]) == 2


@pytest.mark.slow
def test_a_run_may_go_on_with_another_number_of_workers() -> None:
    def made(workers: int, seed: int) -> DataLoader[Any]:
        return numbers(
            11, sampler=RandomSampler(range(11), generator=seeded(seed)), num_workers=workers
        )

    whole = made(0, 1)
    expected = [[batch.tolist() for batch in whole] for _ in range(2)]
    for before, after in ((0, 2), (2, 0), (1, 2)):
        repository = interrupted(made(before, 1), batches=2)
        loader = made(after, 2)
        resumed(repository, loader)
        found = [[batch.tolist() for batch in loader] for _ in range(2)]
        assert [expected[0][2:], expected[1]] == found


class Stream(IterableDataset[int]):
    """An iterable dataset."""

    def __init__(self, samples: int = 8, *, draws: bool = False) -> None:
        self.samples, self.draws = samples, draws

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.samples).tolist()
        return (1000 * int(torch.randint(1000, ())) + i if self.draws else i for i in order)


def stream(**options: Any) -> DataLoader[Any]:
    return DataLoader(Stream(**options), batch_size=2)


def test_an_iterable_dataset_is_passed_over() -> None:
    torch.manual_seed(1)
    loader = stream()
    manager = CheckpointManager("memory://", loader=loader, async_save=False)
    seen = []
    for _ in range(2):
        for batch in loader:
            torch.rand(1)
            manager.save(len(seen))
            seen.append(batch.tolist())
    for step in range(8):
        torch.manual_seed(step)
        loader = stream()
        manager = CheckpointManager(manager.repository, loader=loader, async_save=False)
        manager.restore(f"main@step={step}", reset=True)
        found = []
        for _ in range(2 - (step + 1) // 4):
            for batch in loader:
                torch.rand(1)
                found.append(batch.tolist())
        assert found == seen[step + 1 :]


def test_an_iterable_dataset_that_draws_as_it_goes_is_warned_of() -> None:
    loader = stream(draws=True)
    manager = CheckpointManager("memory://", loader=loader, async_save=False)
    iterator = iter(loader)
    for _ in range(2):
        next(iterator)
        torch.rand(1)
    manager.save(2)
    resumed_loader = stream(draws=True)
    CheckpointManager(manager.repository, loader=resumed_loader, async_save=False).restore()
    with pytest.warns(UserWarning, match="StatefulDataLoader") as warned:
        assert len([*resumed_loader]) == 2
    assert len(warned) == 1
    shorter = stream(samples=2)
    CheckpointManager(manager.repository, loader=shorter, async_save=False).restore()
    with pytest.raises(InvalidInputError, match="after batch 2, and the dataset now ends after 1"):
        iter(shorter)


def compared(repository: Repository, loader: DataLoader[Any], **options: Any) -> None:
    manager = CheckpointManager(
        repository, loader=loader, async_save=False, compare_next_batch=True
    )
    manager.restore(**options)


def noted(loader: DataLoader[Any], batches: int) -> Repository:
    repository = ckptstore.init("memory://")
    manager = CheckpointManager(
        repository, loader=loader, async_save=False, compare_next_batch=True
    )
    iterator = iter(loader)
    for _ in range(batches):
        next(iterator)
    manager.save(batches)
    manager.save(batches + 1)
    return repository


def pairs(second: Any, count: int = 6) -> DataLoader[Any]:
    data = [{"x": torch.tensor(float(i)), "y": second(i)} for i in range(count)]
    return DataLoader(data, batch_size=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda i: torch.tensor(i + 1), r"What differs: values of y\."),
        (lambda i: torch.tensor(float(i)), r"y was int64 \[2\] and is float32 \[2\]"),
        (lambda i: torch.full((3,), i), r"y was int64 \[2\] and is int64 \[2, 3\]"),
        (lambda i: f"{i}", "y is missing"),
    ],
    ids=["values", "dtype", "shape", "kind"],
)
def test_another_next_batch_is_named(other: Any, said: str) -> None:
    repository = noted(pairs(torch.tensor), 1)
    same = pairs(torch.tensor)
    compared(repository, same)
    assert len([*same]) == 2
    loader = pairs(other)
    compared(repository, loader)
    for _ in range(2):
        with pytest.raises(InvalidInputError, match=said):
            next(iter(loader))
    loader = pairs(other)
    compared(repository, loader, strict=False)
    with pytest.warns(UserWarning, match=said) as warned:
        assert len([*loader]) == 2
    assert len(warned) == 1


def test_nothing_is_compared_at_the_end_of_an_epoch() -> None:
    repository = noted(pairs(torch.tensor), 3)
    loader = pairs(torch.tensor)
    compared(repository, loader)
    assert len([*loader]) == 3  # the next epoch


def test_the_next_batch_is_compared_for_loaders_that_can_load_ahead() -> None:
    class Loader:
        dataset = ()

        def __iter__(self) -> Iterator[int]:
            return iter(())

        def state_dict(self) -> dict[str, int]:
            return {"position": 1}

        def load_state_dict(self, state: dict[str, int]) -> None: ...

    manager = CheckpointManager(
        "memory://", loader=Loader(), async_save=False, compare_next_batch=True
    )
    with pytest.raises(InvalidInputError, match="loader is a Loader"):
        manager.save(1)


def test_callbacks_compare_the_next_batch_of_their_loader() -> None:
    def go(repository: Repository, loader: DataLoader[Any], last: int | None) -> int:
        model = torch.nn.Linear(1, 1)
        manager = CheckpointManager(
            repository, model=model, async_save=False, compare_next_batch=True
        )
        callbacks = CallbackList([BackupAndRestore(manager, save_freq=1)], model=model)
        callbacks.on_train_begin()
        callbacks.on_epoch_begin(0)
        for batch, _ in callbacks.batches(loader):
            callbacks.on_train_batch_end(batch)
            if callbacks.training.step == last:
                break
        return callbacks.training.step

    repository = ckptstore.init("memory://")
    go(repository, pairs(torch.tensor), 1)
    with pytest.raises(InvalidInputError, match="values of y"):
        go(repository, pairs(lambda i: torch.tensor(-i)), None)
    assert go(repository, pairs(torch.tensor), None) == 3


def passed_over(first: Any, second: Any) -> list[Any]:
    """The batches that a run takes after one that was interrupted after two."""
    repository, seen = ckptstore.init("memory://"), []
    for data, last in ((first, 2), (second, None)):
        model = torch.nn.Linear(1, 1)
        callbacks = CallbackList([BackupAndRestore(repository, save_freq=1)], model=model)
        callbacks.on_train_begin()
        callbacks.on_epoch_begin(0)
        seen = []
        for number, batch in callbacks.batches(data):
            seen.append(batch)
            callbacks.on_train_batch_end(number)
            if number + 1 == last:
                break
    return seen


def test_batches_of_another_order_are_warned_of() -> None:
    order = torch.arange(6).split(2)
    assert [part.tolist() for part in passed_over(order, order)] == [[4, 5]]
    with pytest.warns(UserWarning, match="such as batch 2"):
        passed_over(order, torch.arange(5, -1, -1).split(2))
    with pytest.warns(UserWarning, match="such as batch 2"):
        assert passed_over("abcd", "a") == []


def test_a_checkpoint_without_the_position_of_the_loader_is_warned_of() -> None:
    def go(loader: DataLoader[Any]) -> int:
        callbacks = CallbackList()
        callbacks.on_train_begin()
        callbacks.load_state_dict({"epoch": 0, "batch": 2, "step": 2, "stops": False, "states": {}})
        callbacks.on_epoch_begin(0)
        return len([*callbacks.batches(loader)])

    assert go(numbers()) == 1
    with pytest.warns(UserWarning, match="no position of the loader"):
        assert go(numbers(shuffle=True)) == 1
