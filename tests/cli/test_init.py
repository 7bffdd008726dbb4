import ckptstore


def test_without_a_path_the_repository_is_made_in_the_working_folder(ckpt):
    assert ckpt.out("init") == f"Created a repository at {ckpt.folder}/.ckptstore\n"
    assert ckpt.json("log") == []


def test_a_repository_elsewhere_is_made_and_told_how_to_find(ckpt):
    result = ckpt("init", "runs/my store")
    assert f"export CKPTSTORE_REPO='{ckpt.folder}/runs/my store'" in result.stderr
    assert ckptstore.open("runs/my store").log() == []


def test_no_hint_is_given_where_the_environment_finds_it_already(ckpt):
    assert ckpt("init", CKPTSTORE_REPO="elsewhere").stderr == ""
    assert ckptstore.open("elsewhere").log() == []


def test_the_path_wins_over_the_option_and_the_option_over_the_environment(ckpt):
    ckpt("-r", "option", "init", "path", CKPTSTORE_REPO="environment")
    ckpt("-r", "option", "init", CKPTSTORE_REPO="environment")
    assert sorted(path.name for path in ckpt.folder.iterdir()) == ["option", "path"]


def test_json_says_where_it_is(ckpt):
    assert ckpt.json("init", "store") == {"url": f"{ckpt.folder}/store"}


def test_a_repository_is_never_made_twice_nor_over_other_things(ckpt):
    ckpt("init")
    assert "is already a repository" in ckpt.error("init")
    (ckpt.folder / "full").mkdir()
    (ckpt.folder / "full" / "thesis.tex").touch()
    assert "thesis.tex" in ckpt.error("init", "full")
    (ckpt.folder / "file").touch()
    for place in ("file", "file/store"):
        expected = f"error: {ckpt.folder}/file is a file; a folder is expected.\n"
        assert ckpt.error("init", place) == expected
        assert ckpt("log", code=1, CKPTSTORE_REPO=place).stderr == expected
    assert "/proc/foo could not be made" in ckpt.error("init", "/proc/foo")


def test_a_marker_that_is_lost_or_damaged_is_made_anew_and_the_checkpoints_stay(ckpt, history):
    marker = ckpt.folder / ".ckptstore" / "ckptstore.json"
    marker.write_bytes(b"{")
    told = ckpt.error("log")
    assert f"{ckpt.folder}/.ckptstore cannot be opened: ckptstore.json is not" in told
    assert "Copy ckptstore.json from another copy" in told
    assert "use 'ckptstore init'" in told
    marker.unlink()
    told = ckpt.error("log")
    assert "holds checkpoints, but ckptstore.json is missing" in told
    assert "use 'ckptstore init'" in told
    made = ckpt.out("init")
    assert made == (
        f"Made ckptstore.json anew at {ckpt.folder}/.ckptstore, with the 3 checkpoints there.\n"
    )
    assert [c["step"] for c in ckpt.json("log")] == [250, 200, 100]
    assert ckpt.json("verify")["ok"]
