"""Clone: a new repository with the checkpoints of another one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ckptstore import repository
from ckptstore.errors import ConflictError
from ckptstore.transfer.remotes import DEFAULT, checked_url
from ckptstore.transfer.wanted import Wanted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import SupportsIndex

    from ckptstore.repository import Repository
    from ckptstore.store.meter import Progress
    from ckptstore.transfer.wanted import Branches


def clone(
    url: str | Path,
    path: str | Path,
    *,
    branches: Branches = None,
    depth: SupportsIndex | None = None,
    policies: bool = False,
    clock: Callable[[], float] = time.time,
    by_hand: bool = False,
    on_progress: Callable[[Progress], object] | None = None,
) -> Repository:
    """Make a new repository with the branches, tags and checkpoints of another one.

    Its remote "origin" is the other repository. Other settings stay behind, and so do retention
    policies unless they are asked for.
    A clone that was interrupted goes on when it is repeated.

    Args:
        url: The repository to copy.
        path: The path or URL of the new one.
        branches: The branches to copy, or a mapping of branches or revisions there to branches of
            the new repository. All when None.
        depth: How many of the newest checkpoints of each branch are copied with their arrays. Older
            ones become history, as expired ones are. All when None.
        policies: Whether saved retention policies go along, as in `Repository.plan_push`. A gc of
            the new repository then expires what they do not keep.
        clock: Returns the time in seconds since 1970.
        by_hand: As in `ckptstore.open`.
        on_progress: As in `Repository.on_progress`.

    Returns:
        The new repository.

    Raises:
        NotFoundError: There is no such repository or branch.
        ConflictError: There already is a repository, and not one that an interrupted clone left.
        InvalidInputError: An argument is wrong, or something else is at the path.

    Example:
        >>> import ckptstore
        >>> repo = ckptstore.init("memory://run")
        >>> _ = repo.commit({"lr": 0.1}, step=100)
        >>> copy = ckptstore.clone("memory://run", "memory://copy-of-run")
        >>> copy.resolve("main").step, copy.remotes
        (100, {'origin': 'memory://run'})
    """
    place = checked_url(url)
    source = repository.open(place, clock=clock)._side()  # noqa: SLF001
    Wanted.of(branches=branches, depth=depth).named(source, source.oplog.newest())  # or an error
    try:
        made = repository.init(path, chunk_size=source.chunk_bytes, clock=clock)
    except ConflictError:
        made = repository.open(path, clock=clock)
        if made.remotes.get(DEFAULT) != place or any(made.ref_names()):
            raise
    made = repository.open(made.url, clock=clock, by_hand=by_hand)
    made.on_progress(on_progress)
    if DEFAULT not in made.remotes:
        made.set_remote(DEFAULT, place)
    made.pull(DEFAULT, branches=branches, depth=depth, policies=policies)
    return made
