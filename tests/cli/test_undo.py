def test_it_takes_back_one_operation_after_the_other(ckpt, history):
    tuned, main = history.resolve("tuned").id, history.resolve("main").id
    assert ckpt.out("undo") == f"Undone: committed {tuned.short} to tuned\n"
    assert ckpt.out("undo") == f"Undone: committed {main.short} to main\n"
    assert ckpt.out("undo").startswith("Undone: made tag v1 at ")
    assert {name: c.step for name, c in history.branches().items()} == {"main": 100, "tuned": 100}
    assert ckpt.json("show", main[:6])["step"] == 200


def test_json_says_which_operation(ckpt, history):
    undone = ckpt.json("undo")
    assert undone["operation"] == 5
    assert "tuned" in undone["description"]


def test_there_may_be_nothing_to_undo(ckpt, repo):
    assert ckpt.error("undo").startswith("error: ")
    repo.commit({"epoch": 1})
    ckpt("undo")
    assert ckpt.error("undo").startswith("error: ")
