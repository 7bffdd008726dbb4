import numpy
import pytest

STATE = {
    "model": {"backbone.w": numpy.arange(5.0), "head.w": numpy.ones(2)},
    "optimizer": {"m": numpy.zeros(30_000)},
    "epoch": 3,
}


@pytest.fixture
def trained(repo):
    """main: steps 1 and 2, the first one the better."""
    repo.commit(STATE, step=1, metrics={"val_loss": 0.25})
    repo.commit({**STATE, "epoch": 4}, step=2, metrics={"val_loss": 0.5})
    return repo


def test_it_makes_a_seed_of_what_is_chosen_under_new_paths(ckpt, trained):
    said = ckpt.out(
        *("branch", "task-b", "best:val_loss", "--include", "model", "--exclude", "model/head.*"),
        *("--rename", r"model/backbone\.(.*)=model/encoder.\1"),
    )
    made = trained.branches()["task-b"]
    assert said == f"Created branch task-b at checkpoint {made.id.short}.\n"
    assert made.parents == (trained.resolve("main~1").id,)
    assert [array["path"] for array in ckpt.json("ls", "task-b")] == ["model/encoder.w"]
    assert trained.checkout("task-b")["model"]["encoder.w"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "step", "metrics"),
    [
        ([], None, {}),
        (["--keep-step"], 2, {}),
        (["--keep-metrics"], None, {"val_loss": 0.5}),
        (["--keep-step", "--keep-metrics"], 2, {"val_loss": 0.5}),
    ],
)
def test_step_and_metrics_are_kept_on_request(ckpt, trained, options, step, metrics):
    made = ckpt.json("branch", "seed", "--include", "model", *options)
    assert (made["name"], made["step"], made["metrics"]) == ("seed", step, metrics)


def test_several_renames_are_tried_in_order_and_may_hold_an_equals_sign(ckpt, trained):
    renames = ["model/head.w=a=b", "model/(.*)=net/\\1", "optimizer/m=m"]
    ckpt.out("branch", "seed", *(part for rename in renames for part in ("--rename", rename)))
    paths = [array["path"] for array in ckpt.json("ls", "seed")]
    assert paths == ["a=b", "m", "net/backbone.w"]


def test_the_list_shows_a_seed_beside_other_branches(ckpt, trained):
    ckpt.out("branch", "plain", "main~1")
    ckpt.out("branch", "seed", "--include", "model", "--keep-metrics")
    listed = [line.split()[:4] for line in ckpt.out("branch").splitlines()]
    ids = {name: checkpoint.id.short for name, checkpoint in trained.branches().items()}
    assert listed[1:3] == [
        ["main", ids["main"], "2", "0.5"],
        ["plain", ids["plain"], "1", "0.25"],
    ]
    assert listed[3][:2] == ["seed", ids["seed"]]
    assert listed[3][2:] == ["-", "0.5"]


def test_the_graph_draws_a_seed_at_its_fork(ckpt, trained):
    trained.branch("seed", "main~1", include="model")
    trained.commit(STATE, branch="seed", step=10)
    tuned, seed, new, old = (
        trained.resolve(rev).id.short for rev in ("seed", "seed~1", "main", "main~1")
    )
    assert ckpt.out("log", "--graph").splitlines() == [
        f"* {tuned}  (seed)  step 10  1 h ago",
        f"* {seed}  1 h ago  seed from {old}, step 1",
        f"| * {new}  (main)  step 2  val_loss=0.5  1 h ago",
        "|/",
        f"* {old}  step 1  val_loss=0.25  1 h ago",
    ]


def test_the_graph_draws_several_seeds_of_one_checkpoint(ckpt, trained):
    for name in ("a", "b"):
        ckpt.out("branch", name, "--include", "model", "--rename", f"model/(.*)={name}/\\1")
    made = {name: checkpoint.id.short for name, checkpoint in trained.branches().items()}
    drawn = ckpt.out("log", "--graph").splitlines()
    assert [line[: line.rfind("(")].rstrip() for line in (drawn[0], drawn[1], drawn[3])] == [
        f"* {made['b']}",
        f"| * {made['a']}",
        f"* {made['main']}",
    ]
    assert drawn[2] == "|/"


def test_undo_takes_a_seed_back(ckpt, trained):
    ckpt.out("branch", "seed", "--include", "model")
    ckpt.out("undo")
    assert list(trained.branches()) == ["main"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["main", "--include", "model"], "'main' already exists"),
        (["new", "--include", "nothing"], "List paths with: ckptstore ls"),
        (["new", "--rename", "nothing=x"], "'nothing' matches no array"),
        (["new", "--rename", "(=x"], "not a regular expression"),
        (["new", "--rename", "model/.*=x"], "Two arrays would have the path 'x'"),
        (["new", "--rename", "optimizer/m=epoch"], "cannot both be at 'epoch'"),
        (["new", "nowhere", "--include", "model"], "'nowhere'"),
    ],
)
def test_what_cannot_be_done_is_an_error(ckpt, trained, args, said):
    assert said in ckpt.error("branch", *args)
    assert list(trained.branches()) == ["main"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["new", "--rename", "x"], "'x' is not OLD=NEW"),
        (["new", "--rename", "=x"], "'=x' is not OLD=NEW"),
        (["new", "--rename", "a=b", "--rename", "a=c"], "given twice"),
        (["--include", "model"], "need the NAME"),
        (["-d", "main", "--keep-step"], "need the NAME"),
    ],
)
def test_wrong_usage_is_said(ckpt, trained, args, said):
    assert said in ckpt.error("branch", *args, code=2)
    assert list(trained.branches()) == ["main"]
