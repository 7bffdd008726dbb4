from datetime import UTC, datetime

from ckptstore.retention import KeepBest, MaxToKeep


def test_it_shows_every_field(ckpt, history):
    c, parent = history.log("main")
    shown = ckpt.out("show", "main")
    created = datetime.strptime(shown.split("created  ")[1][:25], "%Y-%m-%d %H:%M:%S %z")
    assert created == c.created.replace(microsecond=0).astimezone(UTC)
    assert [line for line in shown.splitlines() if not line.startswith("created")] == [
        f"id       {c.id}",
        "refs     main",
        "branch   main",
        "step     200",
        "message  lower",
        "         rate",
        "metrics  val_loss = 0.25",
        f"parents  {parent.id}",
        "arrays   2, 80.0 kB",
        "values   epoch = 2",
        f"new      {c.new_bytes / 1000:.1f} kB stored by this commit",
    ]


def test_metrics_are_shown_to_the_last_digit(ckpt, repo):
    repo.commit({"x": 1}, metrics={"loss": 1 / 3, "count": 12345678901}, meta={"run": {"n": [1]}})
    shown = ckpt.out("show", "main")
    assert "loss = 0.3333333333333333\n" in shown
    assert "count = 12345678901\n" in shown
    assert 'run = {"n": [1]}' in shown


def test_json_has_the_fields_of_the_log_and_the_values(ckpt, history):
    shown = ckpt.json("show", "tuned")
    assert shown.pop("values") == 1
    assert shown.pop("seed") == history.resolve("v1").id
    assert shown == ckpt.json("log", "tuned")[0]


def test_the_seed_of_the_branch_is_named(ckpt, history):
    seed = history.resolve("v1").id
    assert f"seed     {seed} (main, step 100)\n" in ckpt.out("show", "tuned")
    assert "seed" not in ckpt.out("show", "main")
    assert ckpt.json("show", "main")["seed"] is None


def test_any_revision_can_be_shown(ckpt, history):
    id = history.resolve("v1").id
    for rev in (id, id[:6], "main~1", "main@step=100", "main@best:accuracy", "tuned~"):
        assert ckpt.json("show", rev)["id"] == id


def test_a_revision_must_be_given_and_be_there(ckpt, history):
    assert "Missing argument 'REV'" in ckpt.error("show", code=2)
    assert "main~9" in ckpt.error("show", "main~9")
    assert "error: " in ckpt.error("show", "")
    assert "is not a revision" in ckpt.error("show", "main~x")


def test_why_names_every_reason(ckpt, history):
    history.set_retention(MaxToKeep(1))
    history.tag("v2", history.commit({"x": 1}, step=300).id)
    kept = ckpt.json("show", "main", "--why")
    assert kept["kept"] is True
    assert kept["why"] == [reason.to_json() for reason in history.resolve("main").why]
    assert kept["why"][0] == {"kind": "head", "text": "head of main", "branch": "main"}
    assert kept["is_next_to_go"] is False
    lines = ckpt.out("show", "main", "--why").splitlines()
    assert lines[-len(kept["why"])].split() == ["kept", "head", "of", "main"]
    gone = ckpt.json("show", "main~1", "--why")
    assert gone["kept"] is False
    assert f"not kept  {gone['why'][0]['text']}" in ckpt.out("show", "main~1", "--why")
    tag = {"kind": "tag", "text": "tag v1", "tag": "v1"}
    assert tag in ckpt.json("show", "v1", "--why")["why"]
    assert "kept" not in ckpt.json("show", "main")


def test_why_agrees_with_the_plan_and_changes_nothing(ckpt, history):
    for step, loss in enumerate((0.1, 0.4, 0.3), start=301):
        history.commit({"x": step}, step=step, metrics={"val_loss": loss})
    history.set_retention(MaxToKeep(1) | KeepBest("val_loss"))
    before = history.usage().bytes
    for verdict in history.plan_gc().verdicts:
        assert history.why(verdict.id).kept == verdict.kept
        assert history.why(verdict.id).reasons == verdict.reasons
    assert history.usage().bytes == before


def test_why_of_an_expired_one_is_what_expired_it(ckpt, history):
    history.commit({"x": 1}, step=300)
    history.gc(MaxToKeep(1))
    shown = ckpt.json("show", "main~1", "--why")
    assert shown["kept"] is False
    (operation,) = history.operations(limit=1)
    assert [reason["kind"] for reason in shown["why"]] == ["expired"]
    why = shown["why"][0]["text"]
    assert why.startswith("expired 2")
    assert why.endswith(f" by {operation.who}: Keep the newest of each branch.")
    assert shown["expiry"] == why.removeprefix("expired ")
    assert shown["expiry"] in " ".join(ckpt.out("show", "main~1").split())


def test_why_tells_what_expires_with_the_next_checkpoint(ckpt, history):
    history.set_retention(MaxToKeep(1))
    assert ckpt.json("show", "main", "--why")["is_next_to_go"] is True
    said = ckpt.out("show", "main", "--why")
    assert said.splitlines()[-1].strip() == "expires when the next checkpoint of its branch comes"
    assert history.resolve("main").id in history.plan_gc().next_to_go
    history.tag("kept", "main")
    assert ckpt.json("show", "main", "--why")["is_next_to_go"] is False


def test_arguments_are_shown_as_a_shell_takes_them(ckpt, repo):
    repo.commit({"x": 1}, meta={"argv": ["--name", "two words", "--lr=0.1"], "list": ["a b"]})
    shown = ckpt.out("show", "main")
    assert "argv = --name 'two words' --lr=0.1\n" in shown
    assert 'list = ["a b"]\n' in shown


def test_random_states_come_after_all_other_values(ckpt, repo):
    optimizer = {"param_groups": [{"lr": 0.1, "betas": [0.9, 0.99]}]}
    repo.commit({"rng": {str(n): n for n in range(20)}, "optimizer": optimizer, "epoch": 3})
    shown = ckpt.out("show", "main")
    values = shown[shown.index("values") :].splitlines()
    assert values[:2] == ["values   epoch = 3", "         optimizer/param_groups/0/lr = 0.1"]
    assert values[4].startswith("         rng/")
