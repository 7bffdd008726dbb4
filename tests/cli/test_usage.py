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
