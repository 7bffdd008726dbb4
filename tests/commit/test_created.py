"""The time of a checkpoint may be given."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

import ckptstore


def test_a_given_time_is_that_of_the_checkpoint() -> None:
    repo = ckptstore.init("memory://")
    at = datetime(2024, 2, 3, 4, 5, 6, 789, tzinfo=timezone(timedelta(hours=2)))
    assert repo.commit({"lr": 1}, created=at).created == at
    later = repo.commit({"lr": 2}, created=at - timedelta(days=1))
    assert repo.resolve("main").created == later.created == at - timedelta(days=1)
    assert repo.log()[0].id == later.id


@pytest.mark.parametrize(
    "created",
    [datetime(2024, 1, 1), datetime(1969, 1, 1, tzinfo=UTC), 1_700_000_000, "now"],  # noqa: DTZ001
    ids=str,
)
def test_what_is_no_time_is_refused(created: object) -> None:
    with pytest.raises(ckptstore.InvalidInputError, match="a datetime with a time zone"):
        ckptstore.init("memory://").commit({"lr": 1}, created=created)  # type: ignore[arg-type]
