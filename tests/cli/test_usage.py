"""`ckptstore usage`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy

import ckptstore


def test_it_tells_what_is_held_and_what_that_takes(ckpt, history):
    used = ckpt.json("usage")
    assert used["url"] == history.url
    assert (used["checkpoints"], used["branches"], used["tags"]) == (3, 2, 1)
    assert used["array_bytes"] == 3 * 80024
    assert used["stored_bytes"] == sum(c.new_bytes for c in history.log())
    assert used["metadata_bytes"] > 0
    assert used["objects"] > 3
    shown = ckpt.out("usage")
    assert "checkpoints  3 (2 branches, 1 tag)\n" in shown
    assert "arrays       240.1 kB in all checkpoints together\n" in shown


def test_what_is_shared_counts_as_saved(ckpt, history):
    for step in range(3):
        history.commit(history.checkout("main"), step=step)
    assert ", 2." in ckpt.out("usage")
    assert " times less\n" in ckpt.out("usage")


def test_an_empty_repository_is_fine(ckpt, repo):
    assert "checkpoints  0 (0 branches, 0 tags)\n" in ckpt.out("usage")


def test_a_copy_without_objects_can_be_measured(ckpt, history):
    shutil.rmtree(Path(history.url, "objects"))
    assert "stored       0 B in 0 objects, with structure and pages\n" in ckpt.out("usage")


def test_objects_that_missing_checkpoints_may_need_are_no_leftovers(ckpt, history):
    Path(history.url, f"checkpoints/{history.resolve('main~1').id}.json").unlink()
    assert ckpt.json("usage")["is_torn"]
    shown = ckpt.out("usage")
    assert "leftovers" not in shown
    assert "Some are missing, so gc deletes none of these: see ckptstore verify" in shown


def test_what_interrupted_work_left_is_shown_and_not_before(ckpt, history):
    shown = ckpt.out("usage")
    assert "leftovers" not in shown
    assert "temporary" not in shown
    storage = history._storage
    storage.put("objects/" + "ab/" + 62 * "c", bytes(3000))
    history.commit({"w": numpy.zeros(1000)}, branch="mistake")
    history.delete_branch("mistake")
    tmp = Path(history.url, "tmp")
    (tmp / "1-0").write_bytes(bytes(500))
    (tmp / "1-1").write_bytes(bytes(200))
    os.utime(tmp / "1-1", (0, 0))
    used = ckpt.json("usage")
    assert used["unreached_objects"] == 4
    assert used["unreached_bytes"] > 3000 + 8000
    assert (used["temporary_files"], used["temporary_bytes"], used["left_bytes"]) == (2, 700, 200)
    shown = ckpt.out("usage")
    assert "of these in 4 objects of interrupted commits or deleted branches" in shown
    assert "700 B in 2 files being written, 200 B of it left by killed processes" in shown
    planned = ckpt("gc", "--dry-run").stderr
    assert "1 checkpoint on no branch" in planned
    assert ckpt.json("gc", "--dry-run")["young_bytes"] == used["unreached_bytes"]
    assert "200 B that killed processes left half written would be deleted too" in planned
    assert ckpt.json("gc", "--dry-run", "--grace", 0)["leftover_bytes"] == 3000
    assert "and 200 B that killed processes left." in ckpt.out("gc", "--grace", 0)
    used = ckpt.json("usage")
    assert (used["unreached_objects"], used["temporary_bytes"]) == (0, 500)


def test_shares_add_up_to_the_whole(ckpt, history):
    history.commit({"x": numpy.zeros(50_000)}, branch="gone")
    history.delete_branch("gone")
    used = ckpt.json("usage", "--checkpoints")
    assert {share["name"] for share in used["by_branch"]} == {"main", "tuned"}
    assert [share["name"] for share in used["by_checkpoint"]] == [c.id for c in history.log()]
    shown = ckpt.out("usage")
    rows = [line.split() for line in shown.splitlines()]
    assert ["main", "2"] in [row[:2] for row in rows]
    (left,) = (row[6] for row in rows if row[:2] == ["(on", "no"])
    assert left.startswith("400.")
    last = shown.splitlines()[-1].split()
    assert last == ["together", f"{used['bytes'] / 1000:.1f}", "kB"]
    assert ckpt.out("usage", "--checkpoints").splitlines()[-1].split() == last


def test_a_renamed_branch_has_its_name_of_now_and_a_deleted_one_says_so(ckpt, history):
    history.rename_branch("tuned", "better")
    history.commit({"x": 1}, branch="better")
    history.commit({"x": 2}, branch="tried")
    history.tag("good", "tried")
    history.delete_branch("tried")
    shares = {share["name"]: share for share in ckpt.json("usage")["by_branch"]}
    assert {name: share["checkpoints"] for name, share in shares.items()} == {
        "better": 2,
        "main": 2,
        "tried": 1,
    }
    assert [name for name, share in shares.items() if share["is_deleted"]] == ["tried"]
    assert "\ntried (deleted) " in ckpt.out("usage")


def test_the_shares_of_some_checkpoints(ckpt, history):
    rows = ckpt.out("usage", "v1", "tuned", "v1").splitlines()[1:]
    assert [row.split()[:3] for row in rows] == [
        [history.resolve("tuned").id.short, "tuned", "250"],
        [history.resolve("v1").id.short, "main", "100"],
    ]
    assert "'nope'" in ckpt.error("usage", "nope")


def test_the_forecast_says_what_a_day_adds(ckpt, repo):
    assert "\nforecast" not in ckpt.out("usage")
    for day in range(2):
        later = ckptstore.open(repo.url, clock=lambda day=day: 86400.0 * day)
        later.commit({"x": numpy.full(100_000, float(day))})
    shown = ckpt.out("usage")
    assert "forecast     the newest checkpoint stored 800." in shown
    assert " a day, with " in shown
    assert " free" in shown
