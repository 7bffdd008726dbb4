"""JAX: the training state as JAX arrays, committed and checked out, against Orbax.

Orbax is `StandardCheckpointer` with its defaults: it saves in the background, of which the end is
waited for, and compresses with zstd. It flushes the files that hold arrays. It flushes neither the
structure (`_METADATA`), nor its other small files, nor the last rename: "Orbax, durable" does that
after it, as a commit does. A restore is to devices, as `jax.ShapeDtypeStruct` describes the arrays;
Orbax does not verify what it reads.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import repositories, workloads
from bench.bench import Bench
from bench.figures import Bound, Figure, comparisons
from bench.measure import Contender, keep

AHEAD = 1.0  # the least ratio: no slower in any of it
UNCOMPRESSED = 1.1  # float32 states shrink by 8 % in Orbax; ckptstore does not compress
MEGABYTE = 1e6

_number = itertools.count()


def figures(bench: Bench) -> Iterator[Figure]:
    """Saves, restores, and the bytes of three saves."""
    import jax
    from orbax.checkpoint import StandardCheckpointer

    first, second, partly = (
        _as_jax(getattr(bench.training, moment)) for moment in workloads.MOMENTS
    )
    described = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), second)
    with StandardCheckpointer() as checkpointer:
        yield from _times(bench, checkpointer, (first, second), described)
        yield from _bytes(bench, checkpointer, (second, second, partly))


def _times(
    bench: Bench, checkpointer: Any, moments: tuple[Any, Any], described: Any
) -> Iterator[Figure]:
    first, second = moments
    musts = {"Orbax": AHEAD, "Orbax, durable": AHEAD}
    peers = [
        _save(checkpointer, second, bench.scratch, name="Orbax, durable", then=_flush),
        _save(checkpointer, second, bench.scratch, name="Orbax"),
    ]
    base = repositories.prepared(bench.scratch, "jax-first", first)
    yield from comparisons(
        "JAX: save, all new, durable",
        bench.run(repositories.commit(base, second), *peers),
        must=musts,
    )
    base = repositories.prepared(bench.scratch, "jax-second", first, second)
    yield from comparisons(
        "JAX: save, nothing changed, durable",
        bench.run(repositories.commit(base, second), *peers),
        must=musts,
    )
    there = bench.scratch / "orbax-restore"
    _saved(checkpointer, second, there)
    yield from comparisons(
        "JAX: restore to devices (ours verified)",
        bench.run(
            _ready(repositories.checkout_into(base, described)),
            _ready(Contender(name="Orbax", call=lambda _: checkpointer.restore(there, described))),
        ),
        must={"Orbax": AHEAD},
    )


def _bytes(bench: Bench, checkpointer: Any, states: tuple[Any, ...]) -> Iterator[Figure]:
    """The bytes on disk of one save, and of three: a second that is equal, a third 2 % of it."""
    there = bench.scratch / "orbax-bytes"
    base = repositories.prepared(bench.scratch, "jax-bytes")
    ours, theirs = [], []
    for number, state in enumerate(states):
        repositories.commit_now(base, state)
        ours.append(_size(base))
        _saved(checkpointer, state, there / str(number))
        theirs.append(_size(there))
    for what, place, allowed in (
        ("one save (Orbax: zstd)", 0, UNCOMPRESSED),
        ("three saves, 2 % of the last new", -1, 1),
    ):
        yield Bound(
            what=f"JAX: bytes on disk, {what}",
            values=(ours[place] / MEGABYTE,),
            unit="MB",
            must=allowed * theirs[place] / MEGABYTE,
            against="Orbax",
            theirs=theirs[place] / MEGABYTE,
        )


def _save(
    checkpointer: Any,
    state: Any,
    folder: Path,
    *,
    name: str,
    then: Callable[[Path], object] = lambda path: None,
) -> Contender:
    """Save to a new folder."""

    def call(path: Path) -> None:
        _saved(checkpointer, state, path)
        then(path)

    def prepare() -> Path:
        return folder / f"orbax-{next(_number)}"

    return Contender(name=name, prepare=prepare, call=call, clean=keep)


def _saved(checkpointer: Any, state: Any, path: Path) -> None:
    checkpointer.save(path, state)
    checkpointer.wait_until_finished()


def _flush(path: Path) -> None:
    """Fsync everything that was written, and its name."""
    for part in (*path.rglob("*"), path, path.parent):
        fd = os.open(part, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _ready(contender: Contender) -> Contender:
    """The same until all arrays are on their devices."""
    import jax

    return Contender(
        name=contender.name,
        prepare=contender.prepare,
        call=lambda prepared: jax.block_until_ready(contender.call(prepared)),
        clean=contender.clean,
    )


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _as_jax(state: workloads.State) -> Any:
    """The tensors of a state as arrays of JAX."""
    import jax

    arrays = {path: tensor.numpy() for path, tensor in workloads.tensors(state).items()}
    return jax.block_until_ready(jax.tree.map(jax.numpy.array, arrays))
