from datetime import UTC, datetime

import pytest


def test_it_lists_tags_with_step_and_metrics(ckpt, history):
    assert [line.split()[:4] for line in ckpt.out("tag").splitlines()] == [
        ["tag", "id", "step", "val_loss"],
        ["v1", history.resolve("v1").id.short, "100", "0.5"],
    ]
    assert [tag["name"] for tag in ckpt.json("tag")] == ["v1"]


def test_no_tag_yet_is_said_on_stderr(ckpt, repo):
    assert ckpt("tag").stderr == "There is no tag yet.\n"


def test_it_makes_a_tag_that_stays(ckpt, history):
    before = history.resolve("main")
    said = ckpt.out("tag", "good", "main")
    assert said == f"Created tag good at checkpoint {before.id.short}, step 200.\n"
    history.commit({"epoch": 9})
    assert ckpt.json("show", "good")["id"] == before.id
    assert ckpt.json("show", "good")["tags"] == ["good"]


def test_without_a_revision_it_tags_main(ckpt, history):
    assert ckpt.json("tag", "here")["id"] == history.resolve("main").id


def test_it_deletes_a_tag(ckpt, history):
    id = history.tags()["v1"].id
    assert ckpt.json("tag", "--delete", "v1") == {
        "deleted": "v1",
        "id": id,
        "operation": history.operations(limit=1)[0].number,
    }
    assert history.tags() == {}
    assert "The repository has no tags" in ckpt.error("tag", "-d", "v1")


@pytest.mark.parametrize(
    ("args", "said"), [(["v1", "main"], "'v1' already exists"), (["a..b"], "cannot name a tag")]
)
def test_what_cannot_be_done_is_an_error(ckpt, history, args, said):
    assert said in ckpt.error("tag", *args)
    assert list(history.tags()) == ["v1"]


def test_making_and_deleting_at_once_is_wrong_usage(ckpt, history):
    assert "not both" in ckpt.error("tag", "new", "-d", "v1", code=2)


def test_a_tag_may_end_by_itself(ckpt, history):
    ckpt("tag", "reading", "main", "--ttl", "6h")
    listed = {tag["name"]: tag.get("until") for tag in ckpt.json("tag")}
    until = datetime.fromisoformat(listed["reading"])
    assert 5.9 < (until - datetime.now(UTC)).total_seconds() / 3600 < 6
    assert listed["v1"] is None
    heading, *rows = ckpt.out("tag").splitlines()
    assert heading.split()[-2:] == ["left", "message"]
    assert "6 h" in rows[0]
    ckpt("tag", "-d", "reading")
    assert "left" not in ckpt.out("tag")


def test_a_ttl_needs_a_name_and_has_to_be_a_time(ckpt, history):
    assert "needs the NAME" in ckpt.error("tag", "--ttl", "6h", code=2)
    assert "'6h'" in ckpt.error("tag", "new", "--ttl", "soon")


def test_a_second_name_to_delete_is_refused_and_nothing_is_deleted(ckpt, history):
    before = history.ref_names()
    said = ckpt.error("tag", "-d", "v1", "-d", "v2", code=2)
    assert "ckptstore tag -d v1, then ckptstore tag -d v2" in said
    assert history.ref_names() == before
