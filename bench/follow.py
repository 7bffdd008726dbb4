"""The cost of keeping a model at the newest checkpoint of a running training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ckptstore
from bench import repositories, workloads
from bench.bench import Bench
from bench.figures import Bound, Figure, comparisons
from bench.measure import Contender

READ_PERCENT = 10


def figures(bench: Bench) -> Iterator[Figure]:
    """An update after 2 % of the bytes changed, against a checkout into the same model."""
    second, partly = bench.training.second, bench.training.partly
    base = repositories.prepared(bench.scratch, "follow", second, partly)
    model = workloads.live(partly)
    repository = ckptstore.open(base)
    repository.branch("followed", at="main~1")
    updates: list[Any] = []

    def prepare() -> Any:
        """A follower whose model is at the previous checkpoint."""
        repository.delete_branch("followed")
        repository.branch("followed", at="main~1")
        follower = ckptstore.open(base).follow("followed")
        follower.update(model, full=True)
        repository.delete_branch("followed")
        repository.branch("followed", at="main")
        return follower

    series = bench.run(
        Contender(
            name="ckptstore",
            prepare=prepare,
            call=lambda follower: updates.append(follower.update(model)),
        ),
        repositories.checkout_into(base, model, name="checkout into"),
    )
    share = [100 * update.read_bytes / update.whole_bytes for update in updates]
    yield Bound(
        what="bytes that following 2 % changed reads, of a full checkout's",
        values=tuple(share),
        unit="%",
        must=READ_PERCENT,
    )
    yield from comparisons("following, 2 % changed", series)
