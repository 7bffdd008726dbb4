import pytest

import ckptstore
from ckptstore.store.author import as_training


def damage(ckpt, pattern, change):
    """Change each file that a pattern finds; returns their keys."""
    root = ckpt.folder / ".ckptstore"
    found = sorted(path for path in root.glob(pattern) if path.is_file())
    for path in found:
        path.chmod(0o600)
        change(path)
    return [str(path.relative_to(root)) for path in found]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_sound_repository_is_well(ckpt, history):
    result = ckpt("verify")
    assert result.stdout.startswith("Verified 3 checkpoints (")
    assert result.stdout.endswith("): no problems found.\n")
    assert result.stderr == ""
    report = ckpt.json("verify")
    assert (report["ok"], report["checkpoints"], report["problems"]) == (True, 3, [])
    assert report["bytes"] == sum(c.new_bytes for c in history.log())


def test_each_problem_names_the_checkpoints_and_refs_that_suffer(ckpt, history):
    seed = history.resolve("v1").id
    state = history.checkout("v1")
    copy = history.commit(state, branch="copy").id
    digest = ckptstore.Digest.of(state["model"]["weight"].tobytes())
    (key,) = damage(ckpt, f"objects/{digest[:2]}/{digest[2:]}", flip)

    found = ckpt("verify", code=1).stdout.splitlines()
    assert found[0].startswith(f"{key} is damaged")
    assert sorted(found[1:3]) == sorted(
        [
            f"    affects checkpoint {seed.short}, step 100 (tag: v1)",
            f"    affects checkpoint {copy.short} (copy)",
        ]
    )
    assert found[3].startswith(f"To heal {key}: Once repair has moved it aside, commit")
    assert found[4].endswith(": 1 problem, 2 checkpoints affected.")
    (problem,) = ckpt.json("verify", code=1)["problems"]
    assert sorted(problem["checkpoints"]) == sorted([seed, copy])
    assert (problem["branches"], problem["tags"]) == (["copy"], ["v1"])


def truncate(path):
    path.write_bytes(b"")


def unlink(path):
    path.unlink()


@pytest.mark.parametrize("change", [flip, truncate, unlink])
def test_whatever_was_done_to_the_objects_the_refs_that_suffer_are_named(ckpt, history, change):
    keys = damage(ckpt, "objects/*/*", change)
    report = ckpt.json("verify", code=1)
    assert not report["ok"]
    assert {problem["key"] for problem in report["problems"]} <= set(keys)
    refs = [(*problem["branches"], *problem["tags"]) for problem in report["problems"]]
    assert {name for names in refs for name in names} == {"main", "tuned", "v1"}


def test_beside_a_damaged_branch_the_others_can_be_looked_at(ckpt, history):
    (key,) = damage(ckpt, f"checkpoints/{history.resolve('main').id}.json", flip)
    assert ckpt.json("show", "tuned")["branches"] == ["tuned"]
    assert [c["tags"] for c in ckpt.json("log", "tuned")] == [[], ["v1"]]
    assert key in ckpt.error("log")
    assert ckpt("verify", code=1).stdout.startswith(f"{key} is damaged")


def test_a_damaged_manifest_or_operation_does_not_stop_it(ckpt, history):
    keys = damage(ckpt, "checkpoints/*", flip) + damage(ckpt, "ops/*", flip)
    report = ckpt.json("verify", code=1)
    assert {problem["key"] for problem in report["problems"]} >= set(keys)
    assert f"{len(report['problems'])} problems" in ckpt.out("verify", code=1)


def test_errors_of_a_damaged_repository_are_told_without_a_traceback(ckpt, history):
    damage(ckpt, "ops/*", flip)
    for args in (["log"], ["branch"], ["show", "main"], ["undo"], ["usage"]):
        assert ckpt.error(*args).startswith("error: ")


def test_what_is_damaged_is_moved_aside_on_demand_and_stored_again(ckpt, history):
    structure = history.resolve("main")._manifest.structure
    (key,) = damage(ckpt, f"objects/{structure[:2]}/{structure[2:]}", flip)
    before = ckpt.out("verify", code=1)
    assert "ckptstore verify --repair moves damaged objects aside." in before
    assert "Moved 1 damaged object to damaged/." in ckpt.out("verify", "--repair", code=1)
    root = ckpt.folder / ".ckptstore"
    assert not (root / key).exists()
    digest = key.removeprefix("objects/").replace("/", "")
    assert (root / "damaged" / digest).exists()
    (problem,) = ckpt.json("verify", code=1)["problems"]
    assert "commit the same state again" in problem["heal"]


def test_each_way_to_heal_is_printed_once(ckpt, history):
    keys = damage(ckpt, "objects/*/*", flip)
    healing = [line for line in ckpt.out("verify", code=1).splitlines() if "To heal" in line]
    assert len(healing) == 1
    assert f" and {len(keys) - 1} more: " in healing[0]


def test_notes_are_printed_and_the_exit_code_is_0(ckpt, history):
    made = history.commit({"x": 1}, branch="gone", step=77)
    history.delete_branch("gone")
    (ckpt.folder / ".ckptstore" / "objects" / ".DS_Store").write_bytes(b"x")
    lines = ckpt.out("verify").splitlines()
    assert lines[0].endswith("no problems found.")
    assert f"No branch and no tag reaches 1 checkpoint: {made.id.short} (step 77)." in lines
    assert "1 file of other programs: objects/.DS_Store." in lines
    report = ckpt.json("verify")
    assert report["foreign"] == ["objects/.DS_Store"]
    assert report["unreachable"]["checkpoints"] == [made.id]
    assert "and 1 that none reaches: see ckptstore verify" in ckpt.out("usage")


def test_the_backup_of_a_finished_run_is_called_so(ckpt, history):
    made = history.commit({"x": 1}, branch="gone", step=77)
    history.delete_branch("gone")
    for step in (3, 4):
        backup = history.commit({"x": step}, branch="backup", step=step, message="backup")
    with as_training():
        history.delete_branch("backup")
    lines = ckpt.out("verify").splitlines()
    (earlier,) = backup.parents
    assert lines[1:4] == [
        f"No branch and no tag reaches 1 checkpoint: {made.id.short} (step 77).",
        "2 backups, deleted at the end of the run: "
        f"{backup.id.short} (step 4), {earlier.short} (step 3).",
        "    ckptstore branch NAME ID brings one back.",
    ]
    history.tag("kept", at=earlier)
    history.tag("kept-too", at=made.id)
    line = f"1 backup, deleted at the end of the run: {backup.id.short} (step 4)."
    assert ckpt.out("verify").splitlines()[1] == line


def test_a_missing_operation_is_told_with_what_it_means(ckpt, history):
    damage(ckpt, "ops/000000000002.json", unlink)
    assert ckpt.out("verify").endswith(
        "1 operation is missing, so undo goes back only to the one after.\n"
    )


def test_some_checkpoints_or_a_sample_are_checked(ckpt, history):
    assert ckpt.out("verify", "v1", "v1").startswith("Verified 1 checkpoint (")
    report = ckpt.json("verify", "v1", "tuned")
    assert (report["ok"], report["checkpoints"]) == (True, 2)
    assert report["objects"] < report["stored_objects"] == ckpt.json("usage")["objects"]
    assert " objects, " in ckpt.out("verify", "--sample", "100%")
    assert ckpt.json("verify", "--sample", "0.000001 %")["checkpoints"] == 3
    for wrong in ("0", "101%", "x", "-5%", "5%%", "1.5"):
        assert "is not a share" in ckpt.error("verify", "--sample", wrong, code=2)
    assert "'nope'" in ckpt.error("verify", "nope")
