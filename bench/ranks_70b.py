"""A save of 70 billion parameters on 512 ranks, with no byte of an array: plans and documents.

The arrays are those of Llama 3 70B, an average of its weights, and the moments of AdamW, float32:
1.13 TB. FSDP2 cuts each along its first dimension. The plans are those that torch would gather, and
the digests are random. What the coordinator does with them is done by `StoreWriter` itself; then
one rank opens the result as it does before a load, and looks at it as it
does before the next save. Times are of the processor, as nothing here waits.
"""

from __future__ import annotations

import math
import pickle
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult

import ckptstore
from bench.bench import Bench
from bench.figures import Bound, Figure
from ckptstore.commit.shards import Listed, PutShards
from ckptstore.digest import Digest
from ckptstore.documents.boxes import Box, parts
from ckptstore.documents.chunks import whole
from ckptstore.integrations.dcp import StoreWriter
from ckptstore.integrations.dcp.stored import StoredNames
from ckptstore.integrations.dcp.values import path_of
from ckptstore.integrations.dcp.writer import _Saved
from ckptstore.store.reach import reached_by

RANKS = 512
LAYERS, WIDTH, KEYS, INNER, VOCABULARY = 80, 8_192, 1_024, 28_672, 128_256
FLOAT_BYTES = 4

Shape = tuple[int, ...]
Arrays = dict[tuple[str, ...], Shape]
T = TypeVar("T")


def figures(bench: Bench, ranks: int = RANKS) -> Iterator[Figure]:
    """Measure a save of all ranks on the coordinator, and the reads of each rank."""
    folder = bench.scratch / "ranks-70b"
    yield from _saved(folder, ranks)
    yield from _looked_at(folder)


def _saved(folder: Path, ranks: int) -> Iterator[Figure]:
    """Planning, what ranks send, and the commit."""
    arrays = _arrays()
    writer = StoreWriter(folder)
    gathered = [_plan(arrays, rank, ranks) for rank in range(ranks)]
    sent = len(pickle.dumps(gathered[0]))
    seconds, plans = _timed(lambda: writer.prepare_global_plan(gathered))
    yield _bound("grids of all arrays, on the coordinator", seconds, "s", 30)
    more = len(pickle.dumps(plans[0])) - sent
    yield _bound("what a plan is longer than that of torch", more / 1e6, "MB", 1)
    results, sizes, requests = [], [], []
    for rank, plan in enumerate(plans):
        put = _put(plan, rank)
        pickled = pickle.dumps(WriteResult(MetadataIndex(""), 0, _Saved(nodes={}, put=put)))
        sizes.append(len(pickled))
        requests.append(len(put.chunks))
        results.append([pickle.loads(pickled)])
    yield _bound("chunks that a rank puts", statistics.median(requests), "", 10_000)
    yield _bound("result of a rank", max(sizes) / 1e6, "MB", 2)
    metadata = _metadata(arrays)
    seconds, _ = _timed(lambda: writer.finish(metadata, results))
    yield _bound("assembling and publishing, on the coordinator", seconds, "s", 60)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    yield _bound("memory with the plans and results of all ranks", peak / 1e9, "GB", 16)


def _looked_at(folder: Path) -> Iterator[Figure]:
    """Measure the two reads of the pages on each rank: before a load, and before the next save."""
    side = ckptstore.open(folder)._side()  # noqa: SLF001
    id, manifest = side.resolver.readable("main")
    sizes = [
        len(side.catalog.objects.get(page.digest, bytes_max=1 << 30)) for page in manifest.pages
    ]
    yield _bound("pages", len(sizes), "", 10_000)
    yield _bound("bytes of all pages", sum(sizes) / 1e6, "MB", 200)
    seconds, names = _timed(lambda: StoredNames.open(ckptstore.open(folder), id))
    yield _bound("names and shapes before a load, on each rank", seconds, "s", 30)
    seconds, _ = _timed(names.metadata)
    yield _bound("metadata for the plan of a load, on each rank", seconds, "s", 10)
    seconds, _ = _timed(lambda: reached_by(id, side.catalog))
    yield _bound("what the parent reaches, before a save, on each rank", seconds, "s", 30)


def _bound(what: str, value: float, unit: str, must: float) -> Bound:
    return Bound(what=f"70B on 512 ranks: {what}", values=(value,), unit=unit, must=must)


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    start = time.process_time()
    made = call()
    return time.process_time() - start, made


def _arrays() -> Arrays:
    """The shape of each array by its keys."""
    layer: dict[str, Shape] = {
        "attention.wq": (WIDTH, WIDTH),
        "attention.wk": (KEYS, WIDTH),
        "attention.wv": (KEYS, WIDTH),
        "attention.wo": (WIDTH, WIDTH),
        "feed_forward.w1": (INNER, WIDTH),
        "feed_forward.w2": (WIDTH, INNER),
        "feed_forward.w3": (INNER, WIDTH),
        "attention_norm": (WIDTH,),
        "ffn_norm": (WIDTH,),
    }
    weights: dict[str, Shape] = {"tok_embeddings.weight": (VOCABULARY, WIDTH)}
    for number in range(LAYERS):
        weights |= {f"layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    weights |= {"norm.weight": (WIDTH,), "output.weight": (VOCABULARY, WIDTH)}
    arrays: Arrays = {(part, name): weights[name] for part in ("model", "ema") for name in weights}
    for name, shape in weights.items():
        slots: dict[str, Shape] = {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
        arrays |= {("optim", "state", name, slot): lengths for slot, lengths in slots.items()}
    return arrays


def _plan(arrays: Arrays, rank: int, ranks: int) -> SavePlan:
    """Return the shards of a rank: its rows of each array, and each number on one rank."""
    items = []
    for position, (keys, shape) in enumerate(arrays.items()):
        corner, lengths = [0] * len(shape), list(shape)
        if shape:  # as torch.chunk cuts
            rows = -(-shape[0] // ranks)
            corner[0] = min(rank * rows, shape[0])
            lengths[0] = min(rows, shape[0] - corner[0])
        if 0 in lengths or (not shape and position % ranks != rank):
            continue
        chunk = ChunkStorageMetadata(torch.Size(corner), torch.Size(lengths))
        data = TensorWriteData(chunk, TensorProperties(torch.float32), torch.Size(shape))
        index = MetadataIndex(".".join(keys), chunk.offsets)
        items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=data))
    return SavePlan(items, planner_data={".".join(keys): keys for keys in arrays})


def _put(plan: SavePlan, rank: int) -> PutShards:
    """Return the result that a rank sends when it has put its chunks."""
    random_bytes = random.Random(rank).randbytes
    arrays, chunks, left = {}, {}, []
    for item in plan.items:
        data = item.tensor_data
        shape, grid = tuple(data.size), plan.storage_data.get(item.index.fqn)
        path = path_of(plan.planner_data[item.index.fqn])
        arrays[path] = Listed("tensor", "float32", shape, grid)
        box = Box(tuple(data.chunk.offsets), tuple(data.chunk.sizes))
        for part in parts(box, shape=shape, grid=grid or whole(shape)):
            if grid and part.is_whole:
                chunks[path, part.number] = Digest(random_bytes(32).hex())
            else:
                left.append((path, part, bytes(FLOAT_BYTES * math.prod(part.box.shape))))
    return PutShards(arrays=arrays, tied={}, chunks=chunks, parts=left, new_bytes=0)


def _metadata(arrays: Arrays) -> Metadata:
    """The metadata that torch makes of all plans."""
    listed: dict[str, Any] = {
        ".".join(keys): TensorStorageMetadata(
            TensorProperties(torch.float32), torch.Size(shape), []
        )
        for keys, shape in arrays.items()
    }
    return Metadata(listed, planner_data={".".join(keys): keys for keys in arrays})
