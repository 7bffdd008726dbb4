"""Runs of Lightning's Trainer that CkptStoreCallback saves, and that go on as if never stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

import ckptstore
from ckptstore import (
    CkptStoreError,
    ConflictError,
    InvalidInputError,
    UnsupportedValueError,
)
from ckptstore.formats import write_file
from ckptstore.integrations.lightning import CkptStoreCallback, CkptStoreIO
from ckptstore_cli.main import cli
from tests.helpers.equality import difference
from tests.helpers.root import ROOT

pytestmark = [
    pytest.mark.framework,
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:The '(train|val|test)_dataloader' does not have many work"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
    pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
    pytest.mark.filterwarnings('ignore:.fit\\(ckpt_path="last"\\) is set, but there is no last'),
]


class Model(pl.LightningModule):
    def __init__(self, width: int = 8, rate: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(4, width), nn.Dropout(0.5), nn.BatchNorm1d(width), nn.Linear(width, 1)
        )

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        return (self.net(x) - y).square().mean()

    def training_step(self, batch: Any) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any) -> None:
        self.log("val_loss", self.loss(batch))

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.rate)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


class Noisy(Dataset):
    """Samples with noise of the process, which a resumed run has to draw alike."""

    def __init__(self) -> None:
        x = torch.linspace(-1, 1, 64 * 4).reshape(64, 4)
        self.x, self.y = x, x.sum(1, keepdim=True)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.x[index] + 0.1 * torch.randn(4), self.y[index]


def stateful() -> Any:
    return StatefulDataLoader(Noisy(), batch_size=8, shuffle=True)


def plain() -> Any:
    return DataLoader(Noisy(), batch_size=8, shuffle=True)


def validation() -> Any:
    data = Noisy()
    return DataLoader(TensorDataset(data.x, data.y), batch_size=16)


class StopError(Exception):
    pass


class StopAfter(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise StopError


def fit(
    *callbacks: Any,
    loader: Any = plain,
    ckpt_path: Any = None,
    module: Any = None,
    stop: int | None = None,
    max_epochs: int = 3,
    **options: Any,
) -> Any:
    pl.seed_everything(1, verbose=False)
    if stop is not None:
        callbacks = (StopAfter(stop), *callbacks)
    trainer = pl.Trainer(
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        **options,
    )
    module = module or Model()
    if stop is not None:
        with pytest.raises(StopError):
            trainer.fit(module, loader(), validation(), ckpt_path=ckpt_path)
    else:
        trainer.fit(module, loader(), validation(), ckpt_path=ckpt_path)
    return trainer


def final(trainer: Any) -> dict[str, Any]:
    """All that a run ends with."""
    optimizer = trainer.optimizers[0].state_dict()
    scheduler = trainer.lr_scheduler_configs[0].scheduler.state_dict()
    return {
        "step": trainer.global_step,
        "model": {name: value.clone() for name, value in trainer.model.state_dict().items()},
        "optimizer": optimizer,
        "scheduler": scheduler,
    }


@pytest.fixture(scope="module")
def references() -> dict[Any, Any]:
    """Runs that no checkpoint was made of and that were never stopped, by their loader."""
    return {loader: final(fit(loader=loader, enable_checkpointing=False)) for loader in LOADERS}


def assert_final(trainer: Any, expected: Any) -> None:
    assert difference(final(trainer), expected) is None


LOADERS = (plain, stateful)


@pytest.mark.parametrize("stop", [9, 23])
def test_a_run_goes_on_from_the_end_of_an_epoch(tmp_path: Path, references: Any, stop: int) -> None:
    fit(CkptStoreCallback(tmp_path), stop=stop)
    assert_final(fit(CkptStoreCallback(tmp_path), ckpt_path="last"), references[plain])


class Plateaued(Model):
    """Its rate falls when the loss of a validation, or of every other one, is no better."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.rate)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, threshold=10.0
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss", "frequency": 2},
        }


@pytest.mark.parametrize("limit", [{}, {"max_epochs": -1, "max_steps": 40}])
def test_a_rate_that_falls_on_a_plateau_falls_in_a_run_that_goes_on(
    tmp_path: Path, limit: dict[str, int]
) -> None:
    """Lightning updates it after the checkpoint of the epoch, and forgets that where it resumes."""
    limit = limit or {"max_epochs": 5}
    whole = final(fit(module=seeded(Plateaued), enable_checkpointing=False, **limit))
    assert whole["scheduler"]["_last_lr"] == [0.0025]
    for stop in (9, 17, 33):
        callback = CkptStoreCallback(tmp_path)
        fit(callback, module=seeded(Plateaued), ckpt_path="last", stop=stop, **limit)
    callback = CkptStoreCallback(tmp_path)
    assert_final(fit(callback, module=seeded(Plateaued), ckpt_path="last", **limit), whole)


class Drawing(Model):
    """It draws random numbers at each start, before the order of an epoch is drawn."""

    def on_fit_start(self) -> None:
        torch.rand(5)


def test_random_numbers_that_a_start_draws_do_not_count(tmp_path: Path) -> None:
    whole = final(fit(module=seeded(Drawing), enable_checkpointing=False))
    fit(CkptStoreCallback(tmp_path), module=seeded(Drawing), stop=9)
    again = fit(CkptStoreCallback(tmp_path), module=seeded(Drawing), ckpt_path="last")
    assert_final(again, whole)


def seeded(kind: type) -> Any:
    """A model that always begins with the same weights."""
    pl.seed_everything(1, verbose=False)
    return kind()


@pytest.mark.parametrize(
    ("stop", "every", "saved"), [(7, 3, 6), (8, 8, 8), (9, 4, 8), (17, 3, 15), (23, 1, 23)]
)
def test_a_run_goes_on_from_the_middle_of_an_epoch(
    tmp_path: Path, references: Any, stop: int, every: int, saved: int
) -> None:
    def callback() -> Any:
        return CkptStoreCallback(tmp_path, every_n_train_steps=every)

    fit(callback(), loader=stateful, stop=stop)
    store = ckptstore.open(tmp_path)
    assert [c.step for c in store.log(limit=1)] == ([saved] if saved else [])
    assert_final(fit(callback(), loader=stateful, ckpt_path="last"), references[stateful])


@pytest.mark.parametrize(("loader", "stops"), [(plain, (8, 16, 20)), (stateful, (8, 13, 20))])
def test_a_run_that_counts_steps_goes_on_from_the_end_of_an_epoch(
    tmp_path: Path, loader: Any, stops: tuple[int, ...]
) -> None:
    """Lightning restores such a run in another way."""
    whole = final(fit(loader=loader, enable_checkpointing=False, max_epochs=-1, max_steps=20))
    for steps in stops:
        again = fit(
            CkptStoreCallback(tmp_path, every_n_train_steps=4),
            loader=loader,
            ckpt_path="last",
            max_epochs=-1,
            max_steps=steps,
        )
        assert again.global_step == steps
    assert_final(again, whole)


def test_a_new_process_goes_on(tmp_path: Path, references: Any) -> None:
    """By the callback, and by the files that CkptStoreIO leaves."""
    fit(CkptStoreCallback(tmp_path / "store", every_n_train_steps=3), loader=stateful, stop=14)
    io_fit(tmp_path / "io", max_epochs=2)
    program = f"""
import torch
from pathlib import Path
from tests.integrations.test_lightning import *
folder = Path({str(tmp_path)!r})
callback = CkptStoreCallback(folder / "store", every_n_train_steps=3)
torch.save(final(fit(callback, loader=stateful, ckpt_path="last")), folder / "final.pt")
by_io = io_fit(folder / "io", max_epochs=3, ckpt_path="last")
assert (by_io.global_step, by_io.fit_loop.epoch_progress.total.ready) == (24, 3)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, cwd=ROOT)
    assert difference(torch.load(tmp_path / "final.pt"), references[stateful]) is None


def test_a_checkpoint_has_the_facts_and_the_names_of_the_run(tmp_path: Path) -> None:
    trainer = fit(CkptStoreCallback(tmp_path, monitor="val_loss", save_top_k=-1), max_epochs=2)
    repo = ckptstore.open(tmp_path)
    newest, first = repo.log()
    assert (first.step, newest.step) == (8, 16)
    assert first.meta["epoch"] == 0
    assert first.meta["hyper_parameters"] == {"width": 8, "rate": 0.01}
    assert first.metrics.keys() == {
        "train_loss",
        "train_loss_step",
        "train_loss_epoch",
        "val_loss",
    }
    assert newest.metrics["val_loss"] == float(trainer.callback_metrics["val_loss"])
    changed = {change.path for change in repo.diff(first.id, newest.id).changed}
    assert "state_dict/net.0.weight" in changed
    other = Model()
    ckptstore.load_weights(other, repo)
    expected = trainer.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())


def test_metrics_of_a_validation_belong_to_its_step(tmp_path: Path) -> None:
    fit(
        CkptStoreCallback(tmp_path, every_n_train_steps=3, monitor="val_loss", save_top_k=-1),
        loader=stateful,
        max_epochs=2,
        val_check_interval=4,
    )
    log = ckptstore.open(tmp_path).log()
    measured = {
        c.step: ("val_loss" in c.metrics, "train_loss_epoch" in c.metrics) for c in reversed(log)
    }
    assert measured == {
        3: (False, False),
        4: (True, False),
        6: (False, False),
        8: (True, True),
        9: (False, False),
        12: (True, False),
        15: (False, False),
        16: (True, True),
    }


@pytest.mark.parametrize("metric", ["val_loss", "val_los"])
def test_a_metric_that_no_validation_has_measured_yet_is_not_warned_of(
    tmp_path: Path, metric: str, caplog: pytest.LogCaptureFixture
) -> None:
    callback = CkptStoreCallback(tmp_path, every_n_train_steps=3, monitor=metric, mode="min")
    fit(callback, loader=stateful, val_check_interval=7, max_epochs=1, stop=4)
    assert "none of them expires" not in caplog.text
    fit(callback, loader=stateful, val_check_interval=4, max_epochs=1, ckpt_path="last")
    assert caplog.text.count("none of them expires") == (metric == "val_los")


def test_the_best_is_kept_found_and_tested(tmp_path: Path) -> None:
    class Worse(Model):
        def validation_step(self, batch: Any) -> None:
            self.log("score", float(-self.current_epoch % 3))  # 0, 2, 1, 0

    callback = CkptStoreCallback(tmp_path, monitor="score", mode="max")
    trainer = fit(callback, module=Worse(), max_epochs=4)
    repo = ckptstore.open(tmp_path)
    best = repo.resolve("best:score:max")
    assert [c.step for c in repo.log(expired=False)] == [32, 16]
    assert callback.best_model_path.endswith(f"#{best.id}")
    assert callback.best_model_score == 2
    trainer.test(ckpt_path="best", dataloaders=validation(), verbose=False)
    of_best = repo.checkout(best.id, part="state_dict")
    assert all(torch.equal(of_best[n], v) for n, v in trainer.model.state_dict().items())
    loaded = Model.load_from_checkpoint(callback.best_model_path)
    assert all(torch.equal(of_best[n], v) for n, v in loaded.state_dict().items())
    other = CkptStoreCallback(tmp_path, monitor="score", mode="max")
    fit(other, max_epochs=4, ckpt_path="last")  # which has nothing to do
    assert other.best_model_path == callback.best_model_path


def test_a_run_goes_on_from_any_revision(tmp_path: Path) -> None:
    fit(CkptStoreCallback(tmp_path / "a"), max_epochs=2)
    older = "ckptstore://main~1"
    with pytest.raises(ConflictError, match="pass a new branch=") as raised:
        fit(CkptStoreCallback(tmp_path / "a"), ckpt_path=older)
    advice = re.search("ckpt_path='([^']*)'", str(raised.value))
    assert advice is not None
    fit(CkptStoreCallback(tmp_path / "a", branch="other"), ckpt_path=advice[1])
    fit(CkptStoreCallback(tmp_path / "a", reset=True), ckpt_path=older)
    elsewhere = f"ckptstore://{tmp_path / 'a'}#other"
    fit(CkptStoreCallback(tmp_path / "b"), ckpt_path=elsewhere, max_epochs=4)
    repo = ckptstore.open(tmp_path / "a")
    assert [c.step for c in repo.log("other")] == [24, 16, 8]
    assert [c.step for c in repo.log("main")] == [24, 16, 8]
    assert repo.diff("main", "other").is_empty
    assert [c.step for c in ckptstore.open(tmp_path / "b").log()] == [32]


def test_files_are_saved_and_loaded_as_ever(tmp_path: Path, references: Any) -> None:
    """A file that was made of a checkpoint brings its random states along."""
    file = pl.callbacks.ModelCheckpoint(tmp_path / "files", every_n_epochs=1, save_top_k=-1)
    trainer = fit(CkptStoreCallback(tmp_path / "a"), file, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "own.ckpt", weights_only=False)
    repo = ckptstore.open(tmp_path / "a")
    write_file(repo.checkout("main", lazy=True), tmp_path / "exported.ckpt")
    for name in (tmp_path / "own.ckpt", Path(file.best_model_path)):
        assert fit(enable_checkpointing=False, ckpt_path=name).global_step == 24
    again = fit(CkptStoreCallback(tmp_path / "b"), ckpt_path=tmp_path / "exported.ckpt")
    assert_final(again, references[plain])
    fit(enable_checkpointing=False, ckpt_path=tmp_path / "exported.ckpt")


def test_states_of_callbacks_are_saved(tmp_path: Path) -> None:
    """Averages, early stops and the paths of files come back."""

    def callbacks(folder: Path) -> list[Any]:
        return [
            pl.callbacks.EarlyStopping("val_loss", patience=50),
            pl.callbacks.StochasticWeightAveraging(1e-2, swa_epoch_start=1),
            pl.callbacks.ModelCheckpoint(tmp_path / "files", monitor="val_loss"),
            pl.callbacks.Timer("00:01:00:00"),
            CkptStoreCallback(folder),
        ]

    whole = fit(*callbacks(tmp_path / "whole"), max_epochs=4)
    fit(*callbacks(tmp_path / "s"), max_epochs=4, stop=20)
    names = ckptstore.open(tmp_path / "s").checkout("main", part="callbacks", lazy=True)
    assert {name.split("{")[0] for name in names} >= {
        "EarlyStopping",
        "StochasticWeightAveraging",
        "ModelCheckpoint",
    }
    assert_final(fit(*callbacks(tmp_path / "s"), max_epochs=4, ckpt_path="last"), final(whole))


def test_a_hyperparameter_that_no_checkpoint_holds_is_an_error_before_the_training(
    tmp_path: Path,
) -> None:
    class Odd(Model):
        def __init__(self, loss: Any) -> None:
            super().__init__()
            self.save_hyperparameters()

    with pytest.raises(UnsupportedValueError, match=r"hyper_parameters/loss.*ignore="):
        fit(CkptStoreCallback(tmp_path), module=Odd(loss=object()))
    assert [*tmp_path.iterdir()] == []


def test_what_the_training_adds_and_no_checkpoint_holds_is_named(tmp_path: Path) -> None:
    class Odd(Model):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["odd"] = {"thing": object()}

    with pytest.raises(UnsupportedValueError, match="odd/thing"):
        fit(CkptStoreCallback(tmp_path), module=Odd())


def test_names_of_the_store_are_refused(tmp_path: Path) -> None:
    class Odd(Model):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["rng"] = 1

    with pytest.raises(InvalidInputError, match="'rng'"):
        fit(CkptStoreCallback(tmp_path), module=Odd())


def test_several_callbacks_save_one_run(tmp_path: Path) -> None:
    often = CkptStoreCallback(tmp_path, branch="often", every_n_train_steps=3)
    fit(CkptStoreCallback(tmp_path), often, loader=stateful, max_epochs=2)
    repo = ckptstore.open(tmp_path)
    assert [c.step for c in repo.log("main")] == [16, 8]
    assert [c.step for c in repo.log("often")] == [15, 12, 9, 6, 3]


def test_a_signal_saves_and_ends_the_program(tmp_path: Path, references: Any) -> None:
    class Signal(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 12:
                os.kill(os.getpid(), signal.SIGUSR1)

    def callback() -> Any:
        return CkptStoreCallback(tmp_path, save_on_signal="SIGUSR1")

    with pytest.raises(SystemExit):
        fit(Signal(), callback(), loader=stateful)
    assert ckptstore.open(tmp_path).resolve("main").step == 13
    assert_final(fit(callback(), loader=stateful, ckpt_path="last"), references[stateful])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"save_top_k": 0, "monitor": "val_loss"}, "save_top_k"),
        ({"save_top_k": 3}, "^save_top_k needs a monitor.* leave save_top_k out to keep all.$"),
        ({"mode": "min"}, "^mode needs a monitor.* leave mode out.$"),
        ({"mode": "min", "save_top_k": -1}, "leave mode out. save_top_k needs"),
        ({"monitor": "quux"}, "quux"),
        ({"monitor": "val_loss", "mode": "up"}, "mode"),
        ({"branch": "a..b"}, "cannot name a branch"),
        ({"max_to_keep": -1}, "MaxToKeep"),
        ({"policy": 3}, "policy"),
        ({"every_n_train_steps": 0}, "every_n_train_steps"),
        ({"every_n_epochs": "x"}, "every_n_epochs"),
        ({"train_time_interval": 30}, "timedelta"),
        ({"every_n_train_steps": 2, "every_n_epochs": 2}, "exclude each other"),
    ],
)
def test_arguments_that_make_no_sense_are_errors(arguments: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        CkptStoreCallback("memory://", **arguments)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ckptstore://", "names no checkpoint"),
        ("ckptstore://nothing", "nothing"),
        ("ckptstore://best", "no best checkpoint"),
        ("ckptstore://last", "no last checkpoint"),
    ],
)
def test_addresses_that_name_nothing_are_errors(address: str, words: str) -> None:
    with pytest.raises(CkptStoreError, match=words):
        fit(CkptStoreCallback("memory://"), ckpt_path=address)


def test_a_checkpoint_that_lightning_did_not_make_is_refused() -> None:
    repo = ckptstore.init("memory://")
    repo.commit({"model": Model().state_dict()})
    with pytest.raises(InvalidInputError, match="no checkpoint of Lightning"):
        fit(CkptStoreCallback(repo, branch="run"), ckpt_path="ckptstore://main")


def test_a_strategy_that_saves_by_itself_is_refused() -> None:
    class Own(pl.strategies.SingleDeviceStrategy):
        def save_checkpoint(self, *args: Any, **options: Any) -> None:
            pass

    with pytest.raises(InvalidInputError, match="a format of its own"):
        fit(CkptStoreCallback("memory://"), strategy=Own(device=torch.device("cpu")))


def test_runs_on_two_ranks_go_on_there_and_on_one(tmp_path: Path) -> None:
    launched = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
            *("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"),
            *("-m", "tests.helpers.lightning_ranks", str(tmp_path)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("went on") == 8
    for name in ("ddp-7", "shards-7", "gathered-9"):
        repo = ckptstore.open(tmp_path / name)
        newest = repo.resolve("main")
        assert newest.step == 12
        assert {array.path.split("/")[0] for array in newest.arrays} <= {
            *("state_dict", "optimizer_states", "loaders", "rng", "ranks", "loops"),
        }
        ranks = [array.path for array in newest.arrays if array.path.startswith("ranks/")]
        assert {path.split("/")[2] for path in ranks} == {"rng"}  # all else is alike
        expected = repo.checkout("main")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The checkpoint was saved by 2 ranks")
            one = fit(
                CkptStoreCallback(repo, branch="one"),
                loader=stateful,
                ckpt_path="ckptstore://main",
                max_epochs=3,
            )
            state = {name: value.clone() for name, value in one.model.state_dict().items()}
            assert difference(state, dict(expected["state_dict"])) is None
            optimizer = one.optimizers[0].state_dict()
            assert difference(optimizer["state"], expected["optimizer_states"][0]["state"]) is None
            go_on = fit(
                CkptStoreCallback(repo, branch="one"),
                loader=stateful,
                ckpt_path="ckptstore://main",
                max_epochs=4,
            )
        assert go_on.global_step == 20  # one rank has eight batches in an epoch
        assert repo.resolve("one").parents == (newest.id,)


def io_fit(folder: Path, **options: Any) -> Any:
    """A run of ModelCheckpoint whose files name checkpoints."""
    files = pl.callbacks.ModelCheckpoint(
        folder / "files", monitor="val_loss", save_top_k=1, save_last=True
    )
    return fit(files, plugins=[CkptStoreIO(folder / "store")], **options)


def test_model_checkpoint_saves_to_the_store(tmp_path: Path) -> None:
    trainer = io_fit(tmp_path, max_epochs=3)
    repo = ckptstore.open(tmp_path / "store")
    best = Path(trainer.checkpoint_callback.best_model_path)
    assert {file.name for file in best.parent.iterdir()} == {best.name, "last.ckpt"}
    assert best.stat().st_size < 1_000
    kept = {c.meta["file"]: c for c in repo.log(expired=False)}
    assert kept.keys() == {best.name, "last.ckpt"}
    assert kept[best.name].metrics == {
        "val_loss": float(trainer.checkpoint_callback.best_model_score)
    }
    assert kept["last.ckpt"].step == 24
    trainer.test(ckpt_path="best", dataloaders=validation(), verbose=False)
    state = repo.checkout("main", part="state_dict")
    found = Model()
    ckptstore.load_weights(found, repo)
    assert all(torch.equal(value, state[name]) for name, value in found.state_dict().items())


def test_the_last_file_is_found_by_a_later_trainer(tmp_path: Path) -> None:
    io_fit(tmp_path, max_epochs=2)
    again = io_fit(tmp_path, max_epochs=3, ckpt_path="last")
    assert again.global_step == 24
    assert again.fit_loop.epoch_progress.total.ready == 3  # it went on
    by_rev = io_fit(tmp_path, max_epochs=4, ckpt_path="ckptstore://main")
    assert by_rev.global_step == 32


def test_a_file_of_lightning_is_committed_and_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command line, with its step, epoch, metric and hyperparameters."""
    callbacks = [
        pl.callbacks.ModelCheckpoint(tmp_path / "files", monitor="val_loss", save_last=True),
        pl.callbacks.EarlyStopping("val_loss", patience=50),
        pl.callbacks.StochasticWeightAveraging(1e-2, swa_epoch_start=1),
    ]
    trainer = fit(*callbacks, max_epochs=3, enable_checkpointing=True)
    best = trainer.checkpoint_callback.best_model_path
    monkeypatch.chdir(tmp_path)
    run = CliRunner()
    for arguments in (
        ["init"],
        ["commit", best],
        ["commit", str(tmp_path / "files" / "last.ckpt")],
        ["checkout", "main", "-o", "again.ckpt"],
    ):
        result = run.invoke(cli, ["-r", "store", *arguments])
        assert result.exit_code == 0, result.output
    repo = ckptstore.open("store")
    last, first = repo.log()
    assert first.metrics == {"val_loss": float(trainer.checkpoint_callback.best_model_score)}
    assert (last.step, last.metrics) == (24, {})
    assert last.meta["epoch"] == 2
    assert last.meta["hyper_parameters"] == {"width": 8, "rate": 0.01}
    one = fit(*new(callbacks, tmp_path / "b"), max_epochs=4, ckpt_path="files/last.ckpt")
    other = fit(*new(callbacks, tmp_path / "c"), max_epochs=4, ckpt_path="again.ckpt")
    assert_final(other, final(one))


def new(callbacks: list[Any], folder: Path) -> list[Any]:
    """The same callbacks for another run."""
    return [
        pl.callbacks.ModelCheckpoint(folder, monitor="val_loss", save_last=True),
        pl.callbacks.EarlyStopping("val_loss", patience=50),
        pl.callbacks.StochasticWeightAveraging(1e-2, swa_epoch_start=1),
    ][: len(callbacks)]
