"""A verify of some checkpoints, and of a sample of the objects."""

import random
from pathlib import Path

import numpy as np
import pytest

import ckptstore
from ckptstore import ExpiredError, InvalidInputError, NotFoundError
from ckptstore import repository as repository_module
from ckptstore.retention import MaxToKeep
from ckptstore.store.reach import reached_by
from tests.helpers.counting_storage import CountingStorage, array_objects, repository


@pytest.fixture
def repo(tmp_path):
    """Four checkpoints that share one large array and have another each, and small ones."""
    repo = ckptstore.init(tmp_path / "store", chunk_size=64 << 10)
    shared = np.random.default_rng(0).random(50_000)
    for step in range(4):
        own = np.random.default_rng(step + 1).random(50_000)
        repo.commit({"shared": shared, "own": own, "bias": np.full(3, step)}, step=step)
    return repo


def flip(repo, digest):
    path = Path(repo.url) / repo._objects.key(digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def reached(repo, rev):
    return reached_by(repo.resolve(rev).id, repo._catalog).digests


def test_only_what_some_checkpoints_refer_to_is_read(repo):
    report = repo.verify("main~1")
    assert report.ok
    assert (report.checkpoints, report.objects) == (1, len(reached(repo, "main~1")))
    two = repo.verify(["main", "main~1", "main"])
    assert two.objects == len(reached(repo, "main") | reached(repo, "main~1"))
    whole = repo.verify()
    assert (whole.objects, whole.bytes) == (whole.stored_objects, whole.stored_bytes)
    assert (two.stored_objects, two.stored_bytes) == (whole.objects, whole.bytes)
    assert report.bytes < two.bytes < whole.bytes


@pytest.mark.parametrize("kind", ["chunk", "page", "structure"])
def test_damage_is_found_in_the_checkpoints_that_it_affects_and_not_in_others(repo, kind):
    manifest = repo.resolve("main~2")._manifest
    own = reached(repo, "main~2") - reached(repo, "main")
    pages = {ref.digest for ref in manifest.pages}
    chunks = own - pages - {manifest.structure}
    victim = {"chunk": min(chunks), "page": min(pages), "structure": manifest.structure}[kind]
    flip(repo, victim)
    users = {
        id for id, step in ((c.id, c.step) for c in repo.log()) if victim in reached_or(repo, id)
    }
    for rev in ("main", "main~1", "main~2", "main~3"):
        problems = repo.verify(rev).problems
        if repo.resolve(rev).id in users:
            assert [problem.key for problem in problems] == [repo._objects.key(victim)]
            assert set(problems[0].checkpoints) == users
        else:
            assert problems == ()
    assert repo.verify("main~2").repair() == (victim,)
    assert "is missing" in repo.verify("main~2").problems[0].error


def reached_or(repo, id):
    """What a checkpoint reaches, also where its page is damaged."""
    return reached(repo, id) | repo._catalog.manifest(id).documents()


def test_a_checkpoint_that_no_ref_reaches_can_be_checked_too(repo):
    lost = repo.commit({"x": np.ones(50_000)}, branch="other")
    repo.delete_branch("other")
    assert repo.verify(lost.id).ok
    victim = min(reached(repo, lost.id) - {lost._manifest.structure} - {
        ref.digest for ref in lost._manifest.pages
    })  # fmt: skip
    (Path(repo.url) / repo._objects.key(victim)).unlink()
    (problem,) = repo.verify(lost.id).problems
    assert problem.checkpoints == (lost.id,)
    assert "is missing" in problem.error


def test_a_sample_reads_its_share_and_finds_damage_in_time(monkeypatch):
    # A sample is a random arc of the circle of digests. Of 20 arcs of a quarter, one time in 200
    # a tenth of the circle is in none.
    monkeypatch.setattr(repository_module.secrets, "randbelow", random.Random(0).randrange)
    storage = CountingStorage()
    repo = repository(storage)
    repo.commit({str(number): np.full(8192, float(number)) for number in range(100)})
    checkpoint = repo.resolve("main")
    whole = repo.verify()
    assert whole.objects == whole.stored_objects > 100
    chunks = array_objects(checkpoint)
    read = []
    for _ in range(20):
        storage.forget()
        report = repo.verify(sample=0.25)
        assert report.ok
        read.append(chunks & storage.reads.keys())
        assert len(read[-1]) <= report.objects <= len(read[-1]) + 2  # the page and the structure
    assert min(map(len, read)) > 10
    assert max(map(len, read)) < 45
    assert len(set.union(*read)) > 90  # each time others
    victim = min(chunks)
    storage.put(victim, bytes(storage.size(victim) or 0))
    found = [bool(repo.verify(sample=0.5).problems) for _ in range(20)]
    assert 0 < sum(found) < 20


def test_of_a_small_repository_a_sample_reads_at_least_one_object():
    storage = CountingStorage()
    repo = repository(storage)
    assert repo.verify(sample=0.001).objects == 0
    repo.commit({"w": np.ones(8192)})
    other = repo.commit({"w": np.zeros(8192)})
    for _ in range(20):
        assert repo.verify(sample=0.001).objects == 1
        assert repo.verify(other.id, sample=0.001).objects == 1
    for key in array_objects(other):
        storage.put(key, bytes([255]) * (storage.size(key) or 0))
    assert any(repo.verify(sample=0.001).problems for _ in range(200))


@pytest.mark.parametrize("sample", [0, -1, 1.5, float("nan"), True, "5%"])
def test_a_sample_is_a_share(repo, sample):
    with pytest.raises(InvalidInputError, match="sample is"):
        repo.verify(sample=sample)


def test_revisions_have_to_name_what_is_stored(repo):
    with pytest.raises(NotFoundError, match="nothing"):
        repo.verify("nothing")
    old = repo.resolve("main~3").id
    repo.gc(MaxToKeep(1))
    with pytest.raises(ExpiredError, match="were deleted"):
        repo.verify(["main", old])
