"""The table: every figure with a requirement, against the peers in the same run.

The names of the rows identify them in the comparison of two runs, so they do not change.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench import (
    follow,
    hierarchies,
    jax,
    memory,
    peers,
    ranks,
    ranks_70b,
    ranks_stall,
    remote,
    repositories,
    training,
    workloads,
)
from bench.bench import Bench
from bench.figures import Bound, Comparison, Figure, comparisons

WITHIN_15_PERCENT = 1 / 1.15
WITHIN_25_PERCENT = 1 / 1.25
WITHIN_10_PERCENT = 1 / 1.1
DOCUMENTS_SECONDS = 0.01  # a commit of nothing: the documents, and the fsyncs they wait for
BRANCH_MILLISECONDS = 20
DIFF_MILLISECONDS = 100
INTO_MEGABYTES = 64
COMMIT_MEGABYTES = 128


def figures(bench: Bench, parts: Iterable[str]) -> Iterator[Figure]:
    """The figures of these parts, in the order of the table."""
    for name in PARTS:
        if name in parts:
            yield from PARTS[name](bench)


def commits(bench: Bench) -> Iterator[Figure]:
    """Commits of the training state: all new, nothing changed, 2 % changed."""
    first, second, partly = (getattr(bench.training, moment) for moment in workloads.MOMENTS)
    tensors = workloads.tensors(second)
    views = peers.raw_views(tensors.values())
    base = repositories.prepared(bench.scratch, "first", first)
    yield from comparisons(
        "commit, all new, durable",
        bench.run(
            repositories.commit(base, second),
            peers.torch_save(second, bench.scratch),
            peers.loose_files(views, bench.scratch),
            peers.raw_write(views, bench.scratch),
            peers.safetensors_save(tensors, bench.scratch),
        ),
        must={"torch.save": 1.2, "loose files": WITHIN_25_PERCENT},
        aim={"loose files": WITHIN_10_PERCENT, "raw write": WITHIN_15_PERCENT},
    )
    base = repositories.prepared(bench.scratch, "second", first, second)
    yield from comparisons(
        "commit, nothing changed, durable",
        bench.run(
            repositories.commit(base, second),
            peers.torch_save(second, bench.scratch),
            peers.blake3_two_threads(views),
        ),
        must={"torch.save": 5, "BLAKE3, 2 threads": WITHIN_15_PERCENT},
        aim={"BLAKE3, 2 threads": WITHIN_10_PERCENT},
        spare_seconds={"BLAKE3, 2 threads": DOCUMENTS_SECONDS},
    )
    yield from comparisons(
        "commit, 2 % changed, durable",
        bench.run(repositories.commit(base, partly), peers.torch_save(partly, bench.scratch)),
        must={"torch.save": 4},
        aim={"torch.save": 7},
    )
    before, after = (workloads.mib_tensors(seed=seed) for seed in (1, 2))
    base = repositories.prepared(bench.scratch, "mib", before)
    yield from comparisons(
        "46 MB in 44 tensors: commit, all new, durable",
        bench.run(
            repositories.commit(base, after),
            peers.torch_save(after, bench.scratch),
            peers.loose_files(peers.raw_views(after.values()), bench.scratch),
        ),
        must={"torch.save": 1},
        aim={"loose files": WITHIN_10_PERCENT},
    )
    base = repositories.prepared(bench.scratch, "mib-new")
    yield from comparisons(
        "46 MB in 44 tensors: first commit of a repository, durable",
        bench.run(
            repositories.commit(base, after, has_folders=False),
            peers.torch_save(after, bench.scratch),
        ),
    )


def checkouts(bench: Bench) -> Iterator[Figure]:
    """Checkouts of the training state, fresh and into existing objects, from the page cache."""
    state = bench.training.second
    tensors = workloads.tensors(state)
    views = peers.raw_views(tensors.values())
    base = repositories.prepared(bench.scratch, "checkouts", state)
    torch_file, safetensors_file, raw_file = (
        bench.scratch / name for name in ("state.pt", "state.safetensors", "state.raw")
    )
    torch.save(state, torch_file)
    save_file(tensors, safetensors_file)
    peers.write_views(views, raw_file)
    fresh, into_module, into_tensors, *others = bench.run(
        repositories.checkout(base),
        repositories.checkout_into(base, workloads.live(state), name="into module"),
        repositories.checkout_into(base, copy.deepcopy(state), name="into tensors"),
        peers.torch_load(torch_file),
        peers.raw_read(raw_file, [len(view) for view in views]),
        peers.torch_load(torch_file, mapped=True),
        peers.torch_load_copied(torch_file),
        peers.safetensors_load(safetensors_file),
        peers.safetensors_load_copied(safetensors_file),
    )
    yield from comparisons(
        "checkout, fresh, verified",
        [fresh, *others],
        must={"torch.load": 1.3},
        aim={"raw read": WITHIN_25_PERCENT},
    )
    for what, ours in (("module and moments", into_module), ("tensors", into_tensors)):
        yield Comparison(what=f"checkout into {what}", ours=ours, theirs=fresh, must=1)


def small_tensors(bench: Bench) -> Iterator[Figure]:
    """5,000 small tensors: commit and checkout."""
    before, after = (workloads.small_tensors(seed=seed) for seed in (1, 2))
    base = repositories.prepared(bench.scratch, "small", before)
    yield from comparisons(
        "5,000 small tensors: commit, all new, durable",
        bench.run(
            repositories.commit(base, after),
            peers.torch_save(after, bench.scratch),
            peers.loose_files(peers.raw_views(after.values()), bench.scratch),
            peers.safetensors_save(after, bench.scratch),
        ),
        must={"torch.save": 1.5},
        aim={"safetensors": 1},
    )
    torch_file, safetensors_file = (
        bench.scratch / name for name in ("small.pt", "small.safetensors")
    )
    torch.save(before, torch_file)
    save_file(before, safetensors_file)
    yield from comparisons(
        "5,000 small tensors: checkout, fresh, verified",
        bench.run(
            repositories.checkout(base),
            peers.torch_load(torch_file),
            peers.safetensors_load(safetensors_file),
            peers.safetensors_load_copied(safetensors_file),
        ),
        must={"torch.load": 1},
        aim={"safetensors": 1},
    )


def branches(bench: Bench) -> Iterator[Figure]:
    """Creating a branch at an older checkpoint, and the bytes of objects that this adds."""
    first, second = bench.training.first, bench.training.second
    base = repositories.prepared(bench.scratch, "branches", first, second)
    _, before = repositories.object_bytes(base)
    (series,) = bench.run(repositories.branch(base, "main~1"))
    _, after = repositories.object_bytes(base)
    yield Bound(
        what="branch of a checkpoint",
        values=tuple(1e3 * seconds for seconds in series.seconds),
        unit="ms",
        must=BRANCH_MILLISECONDS,
    )
    yield Bound(
        what="array bytes that a branch writes", values=(after - before,), unit="bytes", must=0
    )


def diffs(bench: Bench) -> Iterator[Figure]:
    """The diff of two successive moments, from their pages alone and numerically."""
    first, second = bench.training.first, bench.training.second
    base = repositories.prepared(bench.scratch, "diffs", first, second)
    before, after = workloads.tensors(first), workloads.tensors(second)
    views = peers.raw_views([*before.values(), *after.values()])
    (structural,) = bench.run(repositories.diff(base, "main~1", "main", numeric=False))
    yield Bound(
        what="diff of two moments, from their pages",
        values=tuple(1e3 * seconds for seconds in structural.seconds),
        unit="ms",
        must=DIFF_MILLISECONDS,
    )
    series = bench.run(
        repositories.diff(base, "main~1", "main", numeric=True),
        peers.numpy_compared([(before[path], after[path]) for path in before]),
        peers.memory_read_two_threads(views),
    )
    gigabytes = sum(map(len, views)) / 2 / 1e9
    yield Bound(
        what="numeric diff, time for a GB of each side",
        values=tuple(seconds / gigabytes for seconds in series[0].seconds),
        unit="s",
        must=1,
    )
    yield from comparisons(
        "numeric diff, every array changed", series, aim={"memory read, 2 threads": 0.5}
    )


def peaks(bench: Bench) -> Iterator[Figure]:
    """Peak extra memory, each in a fresh process; none where it cannot be measured."""
    if not memory.SUPPORTED:
        return
    first, second = (workloads.training_file(bench.cache, name) for name in ("first", "second"))
    for what, states in (("", (second,)), (", state twice as large", (first, second))):
        store = repositories.prepared(bench.scratch, f"peak-{len(states)}")
        theirs = memory.peak_bytes("torch.save", bench.scratch / "peak.pt", *states)
        yield _peak(f"commit{what}", "commit", store, states, COMMIT_MEGABYTES, theirs)
        yield _peak(f"checkout into tensors{what}", "checkout into", store, states, INTO_MEGABYTES)


def _peak(
    what: str,
    call: str,
    store: Path,
    states: tuple[Path, ...],
    must: float,
    theirs: int | None = None,
) -> Bound:
    return Bound(
        what=f"peak extra memory: {what}",
        values=(memory.peak_bytes(call, store, *states) / 1e6,),
        unit="MB",
        must=must,
        against="" if theirs is None else "torch.save",
        theirs=None if theirs is None else theirs / 1e6,
    )


def _transfer(bench: Bench) -> Iterator[Figure]:
    """Imported with the first use: its peers are not installed for the other parts."""
    from bench import transfer

    return transfer.figures(bench)


PARTS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "commits": commits,
    "checkouts": checkouts,
    "small-tensors": small_tensors,
    "branches": branches,
    "diffs": diffs,
    "training": training.figures,
    "follow": follow.figures,
    "zarr": hierarchies.figures,
    "jax": jax.figures,
    "memory": peaks,
    "remote": remote.figures,
    "transfer": _transfer,
    "ranks-stall": ranks_stall.figures,
    "ranks": ranks.figures,
    "ranks-70b": ranks_70b.figures,
}
