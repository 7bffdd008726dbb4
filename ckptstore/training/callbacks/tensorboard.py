"""TensorBoard: writes metrics, weights, the graph and the checkpoints of a training run.

torch's SummaryWriter and the tensorboard package do the writing; TensorFlow is not needed.
"""

# ruff: noqa: ARG002 - a hook is called with more than each of them needs

from __future__ import annotations

import io
import os
import secrets
import time
import warnings
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptstore.commit_hooks import CommitEvent
from ckptstore.errors import InvalidInputError, shown
from ckptstore.forks import renewed
from ckptstore.training.arguments import explained
from ckptstore.training.callbacks.callback import Callback
from ckptstore.training.callbacks.monitor import metrics_of
from ckptstore.training.checkpoint_writer import CheckpointWriter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.training.callbacks.callback import Logs

TRAIN, VALIDATION = "train", "validation"
CHANNELS = (1, 3, 4)  # that an image can have
DT_STRING = 7  # of TensorFlow's DataType


class TensorBoard(Callback):
    """Writes event files for TensorBoard to log_dir/train and log_dir/validation.

    Metrics have the names that Keras gives them. Unlike Keras' class it needs no TensorFlow, also
    writes the id, address, step and metrics of each checkpoint that a callback of the same training
    makes, and continues a resumed training: with its batch numbers, in files that are cut to what
    they held at the checkpoint, so that no point is there twice. It profiles with torch.profiler.

    Args:
        log_dir: The folder.
        histogram_freq: Epochs between two histograms of the weights, 0 for none.
        write_graph: Write the model's graph, traced with the inputs of the first batch; of a Keras
            model its layers. A model that cannot be traced causes a warning.
        write_images: Write the weights as images, together with the histograms.
        write_steps_per_second: Write the speed of each epoch, and of each batch that is written.
        update_freq: When to write the metrics of batches: "batch", a number of batches, or "epoch"
            for never.
        profile_batch: The batch to profile, counted over all epochs from 1, or the first and the
            last of several as a pair or as "2,5". 0 for none.
        embeddings_freq: Epochs between two snapshots of embedding layers, 0 for none.
        embeddings_metadata: A text file with a label for each row of the embedding, or such files
            by the name of the layer.
        hparams: The hyperparameters of the run by name. TensorBoard's HParams page shows them with
            the metrics of the newest checkpoint.

    Raises:
        ImportError: The tensorboard package is missing.
        InvalidInputError: `profile_batch` is invalid.

    Example:
        >>> import tempfile, pathlib
        >>> from ckptstore.training import CallbackList, TensorBoard
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> callbacks = CallbackList([TensorBoard(folder)], epochs=1)
        >>> callbacks.on_train_begin()
        >>> callbacks.on_epoch_end(0, {"loss": 0.5, "val_loss": 0.75})
        >>> callbacks.on_train_end()
        >>> sorted(path.name for path in folder.iterdir())
        ['train', 'validation']
    """

    _kept = ("_train_batch", "_test_batch", "_run", "_sizes")

    @explained
    def __init__(
        self,
        log_dir: str | PathLike[str] = "logs",
        histogram_freq: int = 0,
        write_graph: bool = True,
        write_images: bool = False,
        write_steps_per_second: bool = False,
        update_freq: str | int = "epoch",
        profile_batch: int | str | Sequence[int] = 0,
        embeddings_freq: int = 0,
        embeddings_metadata: str | Mapping[str, str] | None = None,
        hparams: Mapping[str, bool | str | float] | None = None,
    ) -> None:
        _writer_class()
        self.log_dir = Path(log_dir)
        self.histogram_freq, self.embeddings_freq = histogram_freq, embeddings_freq
        self.write_graph, self.write_images = write_graph, write_images
        self.write_steps_per_second = write_steps_per_second
        self.update_freq = 1 if update_freq == "batch" else update_freq
        self.embeddings_metadata, self.hparams = embeddings_metadata, dict(hparams or {})
        self._profiled = _batches_to_profile(profile_batch)
        self._writers: dict[str, Any] = {}
        self._run = ""  # the end of the names of all files that one training writes
        self._sizes: dict[str, int] = {}  # bytes of each of them, by its path in the folder
        renewed(self, TensorBoard._leave_to_parent)
        self._graph_hook: Any = None
        self._profiler: Any = None
        self._has_ended = False
        self._reset()

    def _reset(self) -> None:
        self._run, self._sizes = f".{secrets.token_hex(4)}", {}
        self._train_batch = self._test_batch = 0
        self._epoch_began = self._batch_began = 0.0
        self._epoch_first_batch = 0

    def on_train_begin(self, logs: Logs = None) -> None:
        """Write the graph.

        Raises:
            InvalidInputError: `embeddings_metadata` names a layer that the model does not have.
        """
        self._has_ended = False
        self._reset()
        if self.embeddings_freq:
            self._check_metadata()
        if self.write_graph:
            self._prepare_graph()

    def state_dict(self) -> dict[str, Any]:
        """The numbers of batches, and the sizes of the files."""
        self._flush()
        self._sizes = {
            path.relative_to(self.log_dir).as_posix(): path.stat().st_size for path in self._files()
        }
        return super().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, and remove from the files what was written after it."""
        self._cut()  # the graph, written when this run began, is in the earlier files
        super().load_state_dict({"run": self._run, "sizes": {}} | state)
        self._cut()

    def _cut(self) -> None:
        """Cut each file of the training to the size of the last state; remove later files."""
        self._close()
        for path in self._files():
            size = self._sizes.get(path.relative_to(self.log_dir).as_posix(), 0)
            if size:
                os.truncate(path, min(size, path.stat().st_size))
            else:
                path.unlink()

    def _files(self) -> list[Path]:
        """The event files of the training."""
        parts = (self.log_dir / part for part in (TRAIN, VALIDATION))
        return [path for part in parts for path in sorted(part.glob(f"*{self._run}"))]

    def on_train_end(self, logs: Logs = None) -> None:
        """Close the files."""
        self._stop_profiler()
        self._remove_graph_hook()
        self._close()
        self._has_ended = True

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Note the time."""
        self._epoch_began, self._epoch_first_batch = time.monotonic(), self._train_batch

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Write the epoch's metrics, and weights and embeddings when they are due."""
        self._write_epoch(epoch, logs)
        if self.histogram_freq and epoch % self.histogram_freq == 0:
            self._write_weights(epoch)
        if self.embeddings_freq and epoch % self.embeddings_freq == 0:
            self._write_embeddings(epoch)
        self._flush()

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Note the time, and start the profiler when it is due."""
        self._train_batch += 1
        self._batch_began = time.monotonic()
        if self._profiled is not None and self._train_batch == self._profiled[0]:
            self._start_profiler()

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Write the batch's metrics when they are due."""
        if self._is_due(self._train_batch):
            speed = self._speed(1, since=self._batch_began)
            self._scalars(TRAIN, "batch_", metrics_of(logs) | speed, self._train_batch)
        if self._profiled is not None and self._train_batch >= self._profiled[1]:
            self._stop_profiler()

    def on_test_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Write the batch's metrics when they are due."""
        self._test_batch += 1
        if self._is_due(self._test_batch):
            self._scalars(VALIDATION, "batch_", metrics_of(logs), self._test_batch)

    def on_test_end(self, logs: Logs = None) -> None:
        """Write the metrics of an evaluation at the current step."""
        metrics = {f"{name}_vs_iterations": value for name, value in metrics_of(logs).items()}
        self._scalars(VALIDATION, "evaluation_", metrics, self.training.step)
        self._flush()

    def on_checkpoint(self, checkpoint: Checkpoint, branch: str) -> None:
        """Write the id, address, step and metrics of a checkpoint."""
        CheckpointWriter(self._writer(TRAIN), self.hparams).write(CommitEvent.of(checkpoint))
        if self._has_ended:  # the last save of another callback
            self._close()

    def _is_due(self, batch: int) -> bool:
        return isinstance(self.update_freq, int) and batch % self.update_freq == 0

    def _writer(self, part: str) -> Any:
        """The writer of a part. It is created on first use, so that no empty files appear."""
        if part not in self._writers:
            self._writers[part] = _writer_class()(
                str(self.log_dir / part), filename_suffix=self._run
            )
        return self._writers[part]

    def _leave_to_parent(self) -> None:
        """Forget the writers in a forked child, where they have no threads and would wait."""
        self._writers = {}

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()

    def _scalars(self, part: str, prefix: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer(part).add_scalar(prefix + name, value, step)

    def _speed(self, batches: int, *, since: float) -> dict[str, float]:
        """Steps per second as a metric, if it is to be written."""
        if not self.write_steps_per_second:
            return {}
        return {"steps_per_second": batches / max(time.monotonic() - since, 1e-9)}

    def _write_epoch(self, epoch: int, logs: Logs) -> None:
        """Write the metrics of training and validation, each to its part under the same name."""
        metrics = metrics_of(logs)
        if not metrics:
            return
        with suppress(InvalidInputError):  # there is no optimizer
            metrics |= self.training.learning_rates
        batches = self._train_batch - self._epoch_first_batch
        for name, value in (metrics | self._speed(batches, since=self._epoch_began)).items():
            part = VALIDATION if name.startswith("val_") else TRAIN
            self._scalars(part, "epoch_", {name.removeprefix("val_"): value}, epoch)

    def _write_weights(self, epoch: int) -> None:
        writer = self._writer(TRAIN)
        for name, weight in self.training.weights:
            array = weight.detach().float().cpu()
            writer.add_histogram(f"{name}/histogram", array, epoch)
            if self.write_images and (image := _image(array)) is not None:
                writer.add_images(f"{name}/image", image, epoch, dataformats="NHWC")

    def _write_embeddings(self, epoch: int) -> None:
        writer = self._writer(TRAIN)
        for name, table in self.training.embeddings.items():
            file = self.embeddings_metadata
            if isinstance(file, dict):
                file = file.get(name)
            labels = Path(str(file)).read_text().splitlines() if file is not None else None
            writer.add_embedding(table.detach().cpu(), metadata=labels, global_step=epoch, tag=name)

    def _check_metadata(self) -> None:
        if not isinstance(self.embeddings_metadata, dict):
            return
        unknown = sorted(set(self.embeddings_metadata) - set(self.training.embeddings))
        if unknown:
            known = ", ".join(self.training.embeddings) or "none"
            raise InvalidInputError(
                f"TensorBoard: there is no embedding layer {shown(unknown[0])}. Available: {known}."
            )

    def _prepare_graph(self) -> None:
        """Write the layers of a Keras model, or trace a torch model at its next call."""
        layers = self.training.architecture
        if layers is not None:
            self._write_layers(layers)
        elif (module := self.training.traceable) is not None:
            self._remove_graph_hook()
            self._graph_hook = module.register_forward_pre_hook(self._write_graph)

    def _write_layers(self, layers: str) -> None:
        """Write the layers of a Keras model for TensorBoard's graph plugin."""
        proto = import_module("tensorboard.compat.proto.summary_pb2")
        summary = proto.Summary()
        value = summary.value.add(tag="keras")
        value.metadata.plugin_data.plugin_name = "graph_keras_model"
        value.metadata.plugin_data.content = b"1"
        value.tensor.dtype = DT_STRING
        value.tensor.string_val.append(layers.encode())
        self._writer(TRAIN).file_writer.add_summary(summary, 0)

    def _write_graph(self, model: Any, inputs: tuple[Any, ...]) -> None:
        """Trace the model once, and undo the changes to modes and random states that this makes."""
        import torch

        self._remove_graph_hook()
        modes = [(module, module.training) for module in model.modules()]
        devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
        try:
            with (
                torch.random.fork_rng(devices),
                torch.no_grad(),
                warnings.catch_warnings(action="ignore"),  # of values that become constants
                redirect_stdout(io.StringIO()),  # torch prints the error that it raises
            ):
                self._writer(TRAIN).add_graph(model, inputs)
        except Exception as error:  # noqa: BLE001 - tracing can fail with any error
            warnings.warn(
                f"TensorBoard: the model cannot be traced ({type(error).__name__}), so no graph is "
                "written.",
                stacklevel=2,
            )
        finally:
            for module, mode in modes:
                module.training = mode

    def _remove_graph_hook(self) -> None:
        if self._graph_hook is not None:
            self._graph_hook.remove()
            self._graph_hook = None

    def _start_profiler(self) -> None:
        from torch.profiler import profile, tensorboard_trace_handler

        folder = str(self.log_dir / TRAIN)
        self._profiler = profile(on_trace_ready=tensorboard_trace_handler(folder))
        self._profiler.start()

    def _stop_profiler(self) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "The TensorBoard callback needs the tensorboard package: "
            "pip install 'ckptstore[tensorboard]'."
        ) from error
    return SummaryWriter


def _batches_to_profile(batches: int | str | Sequence[int]) -> tuple[int, int] | None:
    """The first and the last batch, counted from 1; None for none."""
    try:
        parts = batches.split(",") if isinstance(batches, str) else batches
        numbers = [parts] if isinstance(parts, int) else [int(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    if not 1 <= len(numbers) <= 2 or numbers[0] < 0 or numbers[-1] < numbers[0]:
        raise InvalidInputError(
            f"TensorBoard: profile_batch is {shown(batches)}; a batch, or the first and the last "
            "of several, is expected."
        )
    return (numbers[0], numbers[-1]) if numbers[-1] else None


def _image(weight: Any) -> Any:
    """Weights as images of shape [N, H, W, channels] from 0 to 1; None for other shapes."""
    squeezed = weight.squeeze()
    if squeezed.ndim == 1:
        shaped = squeezed.reshape(1, -1, 1, 1)
    elif squeezed.ndim == 2:
        wide = squeezed if squeezed.shape[0] <= squeezed.shape[1] else squeezed.T
        shaped = wide.reshape(1, *wide.shape, 1)
    elif squeezed.ndim == 3:
        shaped = squeezed.unsqueeze(-1)
    elif squeezed.ndim == 4 and squeezed.shape[-1] in CHANNELS:
        shaped = squeezed
    else:
        return None
    low, high = shaped.min(), shaped.max()
    return (shaped - low) / (high - low if high > low else 1)
