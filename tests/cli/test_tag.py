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
    assert ckpt.json("tag", "--delete", "v1") == {"deleted": "v1", "id": id}
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
