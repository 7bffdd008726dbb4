"""Times as documents have them."""

from datetime import UTC, datetime, timedelta

import pytest

from ckptstore.digest import Digest
from ckptstore.documents.facts import check_created
from ckptstore.documents.let_go import LetGo
from ckptstore.documents.manifest import CREATED_MAX
from ckptstore.times import EPOCH, seconds_of, to_the_minute, utc


def test_every_time_of_a_document_is_one_of_python() -> None:
    """The last one too, which a float would round to the year after it."""
    assert utc(0) == EPOCH
    assert utc(CREATED_MAX) == datetime.max.replace(tzinfo=UTC)
    for microseconds in (1, 1_700_000_000_000_001, CREATED_MAX - 1, CREATED_MAX):
        assert check_created(utc(microseconds)) == microseconds


def test_messages_name_the_minute_in_utc() -> None:
    """Of the last time too."""
    time = datetime(2026, 11, 30, 14, 5, 59, tzinfo=UTC)
    assert to_the_minute((time - EPOCH) // timedelta(microseconds=1)) == "2026-11-30 14:05 UTC"
    entry = LetGo(id=Digest.of(b""), name="main", way="branch deleted", time=CREATED_MAX)
    assert str(entry) == "branch main was deleted on 9999-12-31 23:59 UTC"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("90min", 5400),
        ("90m", 5400),
        ("1.5 h", 5400),
        ("2d", 172_800),
        ("1w", 604_800),
        *((text, None) for text in ("", "6", "h", "6 years", "-6h", "6h ", "6H", "٣h")),
    ],
)
def test_a_length_of_time_is_a_number_and_a_unit(text: str, seconds: float | None) -> None:
    """In the digits and the lower case that people type."""
    assert seconds_of(text) == seconds
