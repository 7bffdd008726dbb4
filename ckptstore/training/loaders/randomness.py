"""Randomness of a data loader: the generators and counters that decide the order of samples.

They are found on the loader, its samplers and its dataset. A generator that only a closure or a
global name holds is not found; a program tracks such a one by name. See docs/adr/0055.
"""

from __future__ import annotations

import functools
import types
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import Sampler

from ckptstore.training.random_state import Generator

if TYPE_CHECKING:
    from collections.abc import Iterator

GENERATORS, COUNTERS = "generators", "counters"
EPOCH = "epoch"  # which DistributedSampler mixes into its seed
ROOTS = ("generator", "batch_sampler", "sampler", "dataset", "collate_fn", "worker_init_fn")
DEPTH_MAX = 5  # of attributes and items, from the loader
ITEMS_MAX = 64  # of a list or dict that is searched: longer ones hold samples
OBJECTS_MAX = 1_000
_LEAVES = (
    *(types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type, Tensor),
    *(str, bytes, int, float, complex, type(None)),
)


class LoaderRandomness:
    """The generators and counters of a loader, as a stateful object.

    Attributes:
        generators: The generators by the path from the loader, such as "sampler.generator".
        counters: The samplers, and objects with a `set_epoch`, by path. All integers in their
            attributes may count something.
    """

    def __init__(self, loader: Any) -> None:
        self.generators: dict[str, Generator] = {}
        self.counters: dict[str, Any] = {}
        for path, item in _parts(loader):
            if isinstance(item, Generator.kinds):
                self.generators[path] = Generator(item)
            elif isinstance(item, Sampler) or hasattr(type(item), "set_epoch"):
                self.counters[path] = item

    def state_dict(self) -> dict[str, Any]:
        """Copies of the states."""
        return {
            GENERATORS: {path: item.state_dict() for path, item in self.generators.items()},
            COUNTERS: {path: _integers(item) for path, item in self.counters.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set what the loader has. It warns of generators that are only in the state."""
        if lost := sorted(state[GENERATORS].keys() - self.generators.keys()):
            warnings.warn(
                f"The loader of the checkpoint had generators that this one does not have: {lost}. "
                "What they drew will not continue.",
                stacklevel=2,
            )
        for path, item in self.generators.items():
            if path in state[GENERATORS]:
                item.load_state_dict(state[GENERATORS][path])
        for path, item in self.counters.items():
            for name, value in state[COUNTERS].get(path, {}).items():
                if name in _integers(item):
                    setattr(item, name, value)


def that_count(state: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    """A state with only those integers that have another value in one of the others, or "epoch".

    The rest are settings of the program, which a restore does not replace.
    """
    kept = {
        path: {
            name: value
            for name, value in integers.items()
            if name == EPOCH
            or any(other[COUNTERS].get(path, {}).get(name, value) != value for other in others)
        }
        for path, integers in state[COUNTERS].items()
    }
    return state | {COUNTERS: {path: integers for path, integers in kept.items() if integers}}


def _parts(loader: Any) -> Iterator[tuple[str, Any]]:
    """Yield the objects that a loader consists of, each once, with their paths."""
    left = deque((name, getattr(loader, name, None), 1) for name in ROOTS)
    seen: set[int] = set()
    while left and len(seen) < OBJECTS_MAX:
        path, item, depth = left.popleft()
        if id(item) in seen or isinstance(item, _LEAVES):
            continue
        seen.add(id(item))
        yield path, item
        if depth < DEPTH_MAX and not isinstance(item, Generator.kinds):
            left.extend((f"{path}.{name}", part, depth + 1) for name, part in _inside(item))


def _inside(item: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes or items of an object."""
    if isinstance(item, dict):
        pairs = item.items() if len(item) <= ITEMS_MAX else ()
        yield from ((str(key), value) for key, value in pairs)
    elif isinstance(item, (list, tuple)):
        yield from (
            (str(i), value) for i, value in enumerate(item if len(item) <= ITEMS_MAX else ())
        )
    elif isinstance(item, types.MethodType):
        yield "self", item.__self__
    elif isinstance(item, functools.partial):
        yield from (("func", item.func), ("args", item.args), ("keywords", item.keywords))
    else:
        yield from getattr(item, "__dict__", {}).items()


def _integers(item: Any) -> dict[str, int]:
    """The integers in the attributes of an object."""
    attributes = getattr(item, "__dict__", {})
    return {name: value for name, value in attributes.items() if type(value) is int}
