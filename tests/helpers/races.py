"""Writers that create the same keys at once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ckptstore.storage import Storage

WRITERS, ROUNDS = 16, 60


def assert_one_winner(storages: Sequence[Storage]) -> None:
    """Have each storage create the same keys, and compare who won with what is there."""
    for round in range(ROUNDS):
        won: list[int] = []
        start = threading.Barrier(len(storages))

        def create(number: int, round: int = round, won: list[int] = won) -> None:
            start.wait()  # noqa: B023
            if storages[number].create(f"ops/{round}", f"{number}".encode()):
                won.append(number)

        threads = [threading.Thread(target=create, args=(n,)) for n in range(len(storages))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        kept = storages[0].get(f"ops/{round}", bytes_max=9)
        assert [f"{number}".encode() for number in won] == [kept]
