"""The states to commit: a training state at three moments, 44 MiB, and 5,000 small tensors.

The training state is that of a decoder and its AdamW optimizer, trained on the source text of
Python's standard library. It is kept in a cache folder, so only the first run trains.
"""

from __future__ import annotations

import copy
import re
import sysconfig
import zlib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from bench.gpt import CONTEXT, VOCABULARY, Decoder, adamw, train_step

State = dict[str, Any]

CACHE_VERSION = 1  # increased whenever the recipe below changes
MOMENTS = ("first", "second", "partly")
BATCH = 2
STEPS_FIRST, STEPS_SECOND, STEPS_PARTLY = 6, 4, 2
TOKENS = 400_000
MIB_TENSORS = 44
SMALL_TENSORS = 5_000
SMALL_BYTES_MIN, SMALL_BYTES_MAX = 1 << 10, 16 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The states of one training at three moments.

    Attributes:
        first: The first moment.
        second: The next one; every weight was trained in between.
        partly: After the second, trained with all weights frozen except the attention outputs of
            the last two blocks.
    """

    first: State
    second: State
    partly: State


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The difference of two states with the same arrays."""

    arrays: int
    arrays_changed: int
    bytes: int
    bytes_changed: int
    bytes_of_changed_arrays: int


def training(cache: Path) -> Training:
    """The training at its three moments, from the cache or trained now."""
    paths = [training_file(cache, moment) for moment in MOMENTS]
    if not all(path.exists() for path in paths):
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        for path, state in zip(paths, _train(), strict=True):
            temporary = path.with_suffix(".tmp")
            torch.save(state, temporary)
            temporary.rename(path)
    return Training(
        **{moment: torch.load(path) for moment, path in zip(MOMENTS, paths, strict=True)}
    )


def training_file(cache: Path, moment: str) -> Path:
    """The file of one moment's state, which exists once `training` has been called."""
    return cache / f"decoder-{CACHE_VERSION}" / f"{moment}.pt"


def live(state: State) -> State:
    """The destination for a checkout of `state`: a model and its optimizer's moments."""
    model = Decoder()
    optimizer = adamw(model)
    train_step(model, optimizer, torch.zeros((1, CONTEXT), dtype=torch.int64))
    return {**state, "model": model, "optimizer": copy.deepcopy(optimizer.state_dict())}


def mib_tensors(*, seed: int) -> State:
    """44 float32 tensors of 1 MiB, 46 MB: about as many files as bytes decide."""
    values = torch.Generator().manual_seed(seed)
    return {
        f"layers.{number}.weight": torch.randn((512, 512), generator=values)
        for number in range(MIB_TENSORS)
    }


def small_tensors(*, seed: int) -> State:
    """5,000 float32 tensors of 1 to 16 KiB. Shapes are the same for every seed, values differ."""
    sizes = torch.Generator().manual_seed(0)
    values = torch.Generator().manual_seed(seed)
    lengths = torch.randint(
        SMALL_BYTES_MIN // 4, SMALL_BYTES_MAX // 4 + 1, (SMALL_TENSORS,), generator=sizes
    )
    return {
        f"layers.{number // 10}.{number % 10}.weight": torch.randn(length, generator=values)
        for number, length in enumerate(lengths.tolist())
    }


def tensors(state: object, path: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a nested structure by its path, for safetensors and the raw peers."""
    if isinstance(state, torch.Tensor):
        return {path: state}
    by_path: dict[str, torch.Tensor] = {}
    if isinstance(state, dict):
        for key, value in state.items():
            by_path |= tensors(value, f"{path}.{key}" if path else str(key))
    return by_path


def array_bytes(state: object) -> int:
    """Bytes of all tensors."""
    return sum(tensor.nbytes for tensor in tensors(state).values())


def change(before: object, after: object) -> Change:
    """Compare two states with the same arrays byte by byte."""
    old, new = tensors(before), tensors(after)
    different = {name: int((_bytes(old[name]) != _bytes(new[name])).sum()) for name in new}
    changed = [name for name, count in different.items() if count]
    return Change(
        arrays=len(new),
        arrays_changed=len(changed),
        bytes=array_bytes(after),
        bytes_changed=sum(different.values()),
        bytes_of_changed_arrays=sum(new[name].nbytes for name in changed),
    )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def _train() -> tuple[State, State, State]:
    """Train for a few steps, and return copies of the state at the three moments."""
    torch.manual_seed(0)
    model = Decoder()
    optimizer = adamw(model)
    data = _tokens()
    step = 0

    def train(steps: int) -> State:
        nonlocal step
        for _ in range(steps):
            starts = torch.randint(len(data) - CONTEXT - 1, (BATCH,)).tolist()
            batch = torch.stack([data[start : start + CONTEXT + 1] for start in starts])
            train_step(model, optimizer, batch)
            step += 1
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        return {**copy.deepcopy(state), "step": step, "rng": torch.get_rng_state()}

    first, second = train(STEPS_FIRST), train(STEPS_SECOND)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(re.match(r"blocks\.[56]\.project\.", name)))
    return first, second, train(STEPS_PARTLY)


def _tokens() -> torch.Tensor:
    """The words of the standard library's source text, each hashed to a token of the vocabulary."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    words = (word for file in files for word in re.findall(rb"\w+|[^\w ]", file.read_bytes()))
    numbers = (zlib.crc32(word) % VOCABULARY for word in islice(words, TOKENS))
    return torch.tensor(list(numbers))
