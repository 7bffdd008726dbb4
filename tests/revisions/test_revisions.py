"""Revisions over a small history: every form, and the errors for those that match none."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from ckptstore.digest import Digest
from ckptstore.documents.manifest import Manifest
from ckptstore.errors import CorruptError, InvalidInputError, NotFoundError
from ckptstore.revisions import Names, ranked, resolve

NOTHING = Digest.of(b"")


def checkpoint(name: str) -> Digest:
    return Digest.of(name.encode())


def manifest(*parents: str, created: int, step: int | None = None, **metrics: float) -> Manifest:
    return Manifest(
        pages=(),
        structure=NOTHING,
        parents=tuple(map(checkpoint, parents)),
        created=created,
        step=step,
        metrics=metrics,
    )


# The main branch is a, b, c, d; the branch "seed" goes off behind b: e, f.
HISTORY = {
    "a": manifest(created=1, step=10, val_loss=0.5, val_acc=0.1),
    "b": manifest("a", created=2, step=20, val_loss=0.3, val_acc=0.9),
    "c": manifest("b", created=3, step=20, val_loss=0.3, val_acc=0.4),
    "d": manifest("c", created=4, step=30, val_loss=math.nan),
    "e": manifest("b", created=5, step=25, val_loss=0.2, val_acc=0.9),
    "f": manifest("e", created=6, step=None, val_loss=math.inf),
}
MANIFESTS = {checkpoint(name): found for name, found in HISTORY.items()}
NAMES = Names(
    heads={"main": checkpoint("d"), "seed": checkpoint("f")},
    tags={"v1": checkpoint("b"), "main-old": checkpoint("a")},
    lookup=MANIFESTS.get,
    ids=lambda prefix: (id for id in MANIFESTS if id.startswith(prefix)),
)


@pytest.mark.parametrize(
    ("revision", "name"),
    [
        ("main", "d"),
        ("v1", "b"),
        (checkpoint("e"), "e"),
        (checkpoint("e")[:6], "e"),
        ("main~0", "d"),
        ("main~", "c"),
        ("main~1", "c"),
        ("main~3", "a"),
        ("main~1~1", "b"),
        ("seed~2", "b"),
        ("v1~1", "a"),
        (f"{checkpoint('f')[:8]}~1", "e"),
        ("main@step=10", "a"),
        ("main@step=20", "c"),
        ("main~2@step=20", "b"),
        ("seed@step=25~1", "b"),
        ("best:val_loss", "c"),
        ("best:val_loss:min", "c"),
        ("best:val_loss:max", "a"),
        ("best:val_loss~1", "b"),
        ("best:val_acc", "b"),
        ("best:val_acc:min", "a"),
        ("seed@best:val_loss", "e"),
        ("seed@best:val_loss:max", "a"),
        ("seed@best:val_acc", "e"),
        ("v1@best:val_acc:auto", "b"),
        ("main@best:val_loss~2", "a"),
        ("latest", "f"),
        ("latest~1", "e"),
    ],
)
def test_a_revision_names_its_checkpoint(revision: str, name: str) -> None:
    """NaN and infinity never win, a tie goes to the newest."""
    assert resolve(revision, NAMES) == checkpoint(name)


@pytest.mark.parametrize(
    ("revision", "said"),
    [
        ("nope", "Known names: main, seed, main-old, v1"),
        ("main~4", "main has only 3 earlier checkpoints"),
        ("main@step=25", "no checkpoint in that history has step 25"),
        ("best:f1", "Known metrics: val_acc, val_loss"),
        ("0123456", "begins with '0123456'"),
        ("0" * 64, "is not in this repository"),
        ("nope@best:val_loss", "is not a branch, tag or checkpoint"),
    ],
)
def test_a_revision_that_names_nothing_says_what_there_is(revision: str, said: str) -> None:
    with pytest.raises(NotFoundError, match=said):
        resolve(revision, NAMES)


@pytest.mark.parametrize(
    "revision",
    ["", "main~x", "main@", "main@{yesterday}", "main@step=", "main@best:", "main~1x", "~1" * 600],
)
def test_text_that_is_no_revision_is_refused(revision: str) -> None:
    with pytest.raises((InvalidInputError, NotFoundError)):
        resolve(revision, NAMES)


@pytest.mark.parametrize(
    ("revision", "advice"),
    [
        ("mian", "Did you mean main?"),
        ("best", "The best checkpoint is that of a metric: best:val_"),
        ("abc", "An id needs at least 6 digits"),
        (checkpoint("e")[:4], f"Ids that begin so: {checkpoint('e').short}."),
        (checkpoint("e")[:8].upper(), f"lowercase. Ids that begin so: {checkpoint('e').short}."),
        ("HEAD", "A branch names its own newest checkpoint; 'latest' is the newest over all."),
        ("HEAD~1", "'latest' is the newest over all."),
        ("main^", "Use main~1"),
        ("main^^", "Use main~2"),
        ("main@step=24", "The nearest: 20, 30."),
        ("seed@step=999", "The nearest: 20, 25."),
        ("v1~9", "v1 has only 1 earlier checkpoint."),
        ("main~3~2", "has no earlier checkpoint"),
        ("best:", "Name a metric, as in best:val_loss"),
        ("best:~1", "Name a metric, as in best:val_loss"),
        ("best:val_los", "Did you mean val_loss?"),
        ("best:val_acc:up", "After best:val_acc, only :min or :max may follow"),
        ("best:recall@10:max", 'is quoted: best:"recall@10":max'),
        ("seed@best:mAP@.5:.95", 'is quoted: best:"mAP@.5:.95"'),
        ("main@best:acc~top5~1", "is quoted: best:"),
        ('best:"recall@1"', 'Did you mean "recall@10"?'),
        ("v1@best:depth", "depth:max or depth:min"),
        ("main@best:val_acc:maximum", "After best:val_acc, only :min or :max may follow"),
        ("best:val_acc:max@x", "'@x' was found where ~N, @step=N or @best:METRIC was expected"),
    ],
)
def test_an_error_names_the_next_step(revision: str, advice: str) -> None:
    with pytest.raises((InvalidInputError, NotFoundError), match=re.escape(advice)):
        resolve(revision, QUOTED)


QUOTED = replace(
    NAMES,
    lookup=lambda id: (
        (found := MANIFESTS.get(id))
        and replace(found, metrics={**found.metrics, **NAMED.get(id, {})})
    ),
)
NAMED = {
    checkpoint("a"): {"recall@10": 0.5, "mAP@.5:.95": 0.1, 'a"b': 1, "depth": 1},
    checkpoint("b"): {"recall@10": 0.4, "mAP@.5:.95": 0.2, 'a"b': 2, "depth": 2},
}


@pytest.mark.parametrize(
    ("revision", "name"),
    [
        ('best:"recall@10"', "a"),
        ('seed@best:"recall@10":min', "b"),
        ('best:"mAP@.5:.95"', "b"),
        ('best:"mAP@.5:.95":auto~1', "a"),
        ('best:"mAP@.5:.95"@step=10', "a"),
        ('best:"val_loss"', "c"),
        (r'best:"a\"b":min', "a"),
        ("best:depth:max", "b"),
    ],
)
def test_any_metric_can_be_quoted(revision: str, name: str) -> None:
    assert resolve(revision, QUOTED) == checkpoint(name)


def test_a_prefix_of_two_ids_asks_for_more_digits() -> None:
    ids = [Digest("abcdef" + "0" * 58), Digest("abcdef" + "1" * 58)]
    names = Names(heads={}, tags={}, lookup=lambda id: HISTORY["a"], ids=lambda prefix: ids)
    with pytest.raises(InvalidInputError, match="2 ids begin with"):
        resolve("abcdef", names)


def test_nothing_is_offered_where_nothing_was_committed() -> None:
    names = Names(heads={}, tags={}, lookup=lambda id: None, ids=lambda prefix: [])
    for revision in ("main", "latest", "best:val_loss"):
        with pytest.raises(NotFoundError):
            resolve(revision, names)


@pytest.mark.parametrize(
    ("revision", "after"),
    [
        ("main~3", "c"),
        ("main~2", "c"),
        ("v1~1", "b"),
        ("main@step=10", "c"),
        ("main~1@best:val_loss~1", "c"),
        ("seed@best:f1", "e"),
    ],
)
def test_a_gap_in_the_history_is_no_end_of_it(revision: str, after: str) -> None:
    missing = HISTORY[after].parents[0]
    names = replace(NAMES, lookup=lambda id: None if id == missing else MANIFESTS.get(id))
    with pytest.raises(CorruptError) as raised:
        resolve(revision, names)
    assert f"checkpoint {missing.short}, from which {checkpoint(after).short}" in str(raised.value)
    assert revision in str(raised.value)


def test_what_is_before_a_gap_is_found() -> None:
    missing = checkpoint("b")
    names = replace(NAMES, lookup=lambda id: None if id == missing else MANIFESTS.get(id))
    assert resolve("main~1", names) == checkpoint("c")
    assert resolve("main@best:val_loss", names) == checkpoint("c")


@pytest.mark.parametrize("revision", ["first~x", "first~1x", "none~x", "first@step="])
def test_text_that_is_no_revision_is_named_before_it_is_looked_up(revision: str) -> None:
    names = replace(NAMES, heads={"first": checkpoint("a")})
    with pytest.raises(InvalidInputError, match="where ~N, @step=N or @best:METRIC was expected"):
        resolve(revision, names)


def test_the_best_of_another_branch_is_offered_where_there_is_no_default_one() -> None:
    names = replace(NAMES, heads={"seed": checkpoint("f")})
    with pytest.raises(NotFoundError, match="For another branch: seed@best:val_loss:min~1"):
        resolve("best:val_loss:min~1", names)


def on_branches(**branches: str) -> Names:
    """The same history, with the branch of each checkpoint on record."""
    manifests = {
        checkpoint(name): replace(found, branch=branches.get(name))
        for name, found in HISTORY.items()
    }
    return replace(NAMES, lookup=manifests.get)


@pytest.mark.parametrize(
    ("revision", "name"),
    [
        ("seed@best:val_acc", "e"),
        ("seed@best:val_loss:max", "e"),
        ("main@best:val_loss", "c"),
        ("seed~2@best:val_acc:min", "a"),  # a checkpoint of main, so up to there on main
        ("v1@best:val_acc", "b"),
        (f"{checkpoint('e')}@best:val_loss", "e"),
    ],
)
def test_the_best_of_a_branch_is_one_of_its_own(revision: str, name: str) -> None:
    names = on_branches(a="main", b="main", c="main", d="main", e="seed", f="seed")
    assert resolve(revision, names) == checkpoint(name)


def test_a_branch_without_a_checkpoint_of_its_own_has_no_best_one() -> None:
    names = on_branches(**dict.fromkeys("abcdef", "main"))
    with pytest.raises(NotFoundError, match="from which it was started") as raised:
        resolve("seed@best:val_loss", names)
    assert f"branch 'main', from which it was started: {checkpoint('f').short}" in str(raised.value)


def test_checkpoints_that_record_no_branch_belong_to_each_that_reaches_them() -> None:
    names = on_branches(c="main", d="main", e="seed", f="seed")
    assert resolve("seed@best:val_acc:min", names) == checkpoint("a")
    assert resolve("main@best:val_acc:min", names) == checkpoint("a")


@pytest.mark.parametrize(("branch", "missing"), [("seed", "e"), ("main", "b"), ("seed", "b")])
def test_a_gap_on_the_branch_itself_is_no_end_of_it(branch: str, missing: str) -> None:
    names = on_branches(a="main", b="main", c="main", d="main", e="seed", f="seed")
    gone, lookup = checkpoint(missing), names.lookup
    cut = replace(names, lookup=lambda id: None if id == gone else lookup(id))
    with pytest.raises(CorruptError, match=gone.short):
        resolve(f"{branch}@best:f1", cut)


def test_the_best_of_nothing_is_nothing() -> None:
    assert ranked([], "val_loss") == []
    assert ranked([(checkpoint("d"), HISTORY["d"])], "val_loss") == []
