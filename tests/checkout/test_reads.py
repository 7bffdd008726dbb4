"""A checkout reads the pages and objects that list what it wants, and no others."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from ckptstore.repository import Repository
from tests.helpers.counting_storage import CountingStorage, repository
from tests.helpers.equality import difference

if TYPE_CHECKING:
    from collections.abc import Callable

LAYERS = 400  # of each part: several pages


def state() -> dict[str, Any]:
    numbers = np.random.default_rng(0)
    layers = {f"layer{n:03d}": numbers.random(9) for n in range(LAYERS)}
    return {
        "model": {**layers, "head": torch.randn(60_000)},
        "optimizer": {name: -value for name, value in layers.items()},
        "step": 3,
    }


class World:
    """A repository with one checkpoint, and the reads of a fresh handle on it."""

    def __init__(self) -> None:
        self.storage, self.state = CountingStorage(), state()
        repo = self.opened()
        self.manifest = repo.commit(self.state)._manifest
        self.pages = list(zip(self.manifest.pages, repo._catalog.pages(self.manifest), strict=True))
        assert len(self.pages) >= 5
        # Of a page at the edge of a part, small arrays may be read one by one.
        self.bundles = {str(page.bundle.digest) for _, page in self.pages if page.bundle}
        self.storage.forget()

    def opened(self) -> Repository:
        return repository(self.storage)

    def objects_read(self) -> Counter[str]:
        """How often each object was read, by digest."""
        found = {
            key.removeprefix("objects/").replace("/", ""): count
            for key, count in self.storage.reads.items()
            if key.startswith("objects/")
        }
        return Counter(found)

    def needed(self, wanted: Callable[[str], bool], *, arrays: bool = True) -> set[str]:
        """The objects of the structure, the pages that list what is wanted, and its arrays."""
        needed = {str(self.manifest.structure)}
        for ref, page in self.pages:
            entries = [entry for entry in page.entries if wanted(entry.path)]
            if entries:
                needed.add(str(ref.digest))
            if arrays:
                small = any(entry.offset is not None for entry in entries)
                needed |= {str(page.bundle.digest)} if small and page.bundle else set()
                large = (entry for entry in entries if entry.offset is None)
                needed |= {str(digest) for entry in large for digest in entry.digests}
        return needed


@pytest.fixture
def world() -> World:
    return World()


def under(*prefixes: str) -> Callable[[str], bool]:
    return lambda path: path.startswith(prefixes)


CHOICES = [
    ({"part": "optimizer"}, under("optimizer/")),
    ({"part": "model"}, under("model/")),
    ({"include": "model/layer007"}, under("model/layer007")),
    ({"include": ["model/head", "optimizer/layer399"]}, under("model/head", "optimizer/layer399")),
    ({"exclude": "model/**"}, under("optimizer/")),
    ({"include": "step"}, under("step")),
    ({}, under("")),
]


@pytest.mark.parametrize(("options", "wanted"), CHOICES, ids=lambda value: str(value)[:40])
def test_a_checkout_reads_each_object_that_it_needs_once_and_no_other(
    world: World, options: dict[str, Any], wanted: Callable[[str], bool]
) -> None:
    world.opened().checkout(**options)
    reads = world.objects_read()
    assert set(reads) == world.needed(wanted)
    assert {reads[digest] for digest in reads.keys() - world.bundles} <= {1}


@pytest.mark.parametrize(("options", "wanted"), CHOICES, ids=lambda value: str(value)[:40])
def test_a_lazy_checkout_reads_only_pages_and_then_what_is_indexed(
    world: World, options: dict[str, Any], wanted: Callable[[str], bool]
) -> None:
    lazy = world.opened().checkout(**options, lazy=True)
    assert set(world.objects_read()) == world.needed(wanted, arrays=False)
    if "part" in options:
        world.storage.forget()
        path, name = options["part"], "layer123"
        assert np.array_equal(lazy[name][...], world.state[path][name])
        assert sum(world.objects_read().values()) == 1


def test_filling_a_part_reads_what_a_checkout_of_it_reads(world: World) -> None:
    target = {name: np.zeros_like(value) for name, value in world.state["optimizer"].items()}
    assert not world.opened().checkout(part="optimizer", into=target)
    assert difference(target, world.state["optimizer"]) is None
    reads = world.objects_read()
    assert set(reads) == world.needed(under("optimizer/"))
    assert {reads[digest] for digest in reads.keys() - world.bundles} == {1}


def test_one_array_is_opened_from_its_page(world: World) -> None:
    array = world.opened().resolve("main").array("optimizer/layer042")
    assert set(world.objects_read()) == world.needed(under("optimizer/layer042"), arrays=False)
    assert array.shape == (9,)


def test_a_tied_array_of_a_part_is_read_from_the_page_of_its_first_name() -> None:
    world = World()
    shared = torch.randn(20_000)
    world.state["optimizer"]["moment"] = world.state["model"]["head"] = shared
    world.opened().commit(world.state)
    found = world.opened().checkout(part="optimizer", include="optimizer/moment")
    assert torch.equal(found["moment"], shared)
    (tied,) = world.opened().checkout(part="optimizer", include="optimizer/m*").values()
    assert torch.equal(tied, shared)
    assert torch.equal(world.opened().checkout(part="optimizer")["moment"], shared)
