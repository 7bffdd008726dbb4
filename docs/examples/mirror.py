"""Train on one machine and evaluate on another, which share only a mirror.

    python docs/examples/mirror.py [--store PATH]

Machine A trains on its own disk, and its manager pushes to the mirror. An event tells machine B
what is there. B pulls it, evaluates it and pushes a note, by which the manager of A knows the best.
The machines are two processes with a folder each; the mirror is a third one, or any URL.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

import ckptstore
from ckptstore import ConflictError
from ckptstore.retention import KeepBest, MaxToKeep
from ckptstore.training import CallbackList, CheckpointManager, ModelCheckpoint, RemoteMonitor

if TYPE_CHECKING:
    from ckptstore import Checkpoint, Repository

EPOCHS = 8
STEPS = 20  # of an epoch
BATCH_IMAGES = 32
PATIENCE_SECONDS = 120


def main() -> None:
    """Start both machines, or be one of them."""
    parser = argparse.ArgumentParser(description="Train here, evaluate there.")
    parser.add_argument("--store", help="where to make the folders (default: a temporary one)")
    parser.add_argument("--machine", choices=("a", "b"), help="be one of the machines")
    parser.add_argument("--port", help="where machine B listens")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.machine:
        folder = Path(options.store)
        machine_a(folder, options.port) if options.machine == "a" else machine_b(folder)
        return
    if options.store and Path(options.store).exists():
        parser.error(f"{options.store} exists. Name a new folder.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.store or Path(temporary) / "machines")
        for name in ("a", "b"):
            (folder / name).mkdir(parents=True)
        start(folder)
        report(folder)


def start(folder: Path) -> None:
    """Run machine B, and A once B listens."""
    command = [sys.executable, __file__, "--store", str(folder), "--machine"]
    with subprocess.Popen([*command, "b"], stdout=subprocess.PIPE, text=True) as b:
        assert b.stdout
        port = b.stdout.readline().strip()
        a = subprocess.run([*command, "a", "--port", port], check=False)
        if a.returncode:
            b.kill()
            sys.exit("error: machine A failed.")
        print(b.stdout.read(), end="")
    if b.returncode:
        sys.exit("error: machine B failed.")


def network() -> nn.Module:
    """A small network for images of digits."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def machine_a(folder: Path, port: str) -> None:
    """Train, save to the own disk, and let the manager push to the mirror."""
    pixels, labels = digits(slice(1297))
    model = network()
    optimizer = AdamW(model.parameters(), lr=3e-3)
    mirror = folder / "mirror"
    manager = CheckpointManager(
        folder / "a" / "store",
        mirror=mirror,
        max_to_keep=2,
        keep_best="val_acc",
        mirror_retention=MaxToKeep(3) | KeepBest("val_acc", "max", 2),
        model=model,
        optimizer=optimizer,
    )
    monitor = RemoteMonitor(f"http://127.0.0.1:{port}", send_as_json=True, timeout=30)
    callbacks = CallbackList(
        [ModelCheckpoint(manager), monitor],
        model=model,
        optimizer=optimizer,
        epochs=EPOCHS,
        steps=STEPS,
    )
    with manager:
        callbacks.on_train_begin()
        for epoch in callbacks.epochs():
            callbacks.on_epoch_begin(epoch)
            for batch in range(STEPS):
                chosen = torch.randint(len(labels), (BATCH_IMAGES,))
                optimizer.zero_grad()
                loss = cross_entropy(model(pixels[chosen]), labels[chosen])
                loss.backward()
                optimizer.step()
                callbacks.on_train_batch_end(batch, {"loss": loss.detach()})
            callbacks.on_epoch_end(epoch, {"loss": loss.detach()})
            take_notes(manager, mirror)
        callbacks.on_train_end()
        wait_for_notes(manager, mirror)
        best = manager.best
        assert best
        print(f"A: the best is step {best.step}, val_acc {best.metrics['val_acc']:.1%}", flush=True)


def take_notes(manager: CheckpointManager, mirror: Path) -> None:
    """Pull what B has noted. The branch stays, as it is ahead of that in the mirror."""
    if manager.latest_durable("mirror"):
        manager.repository.pull(mirror, branches="main")


def wait_for_notes(manager: CheckpointManager, mirror: Path) -> None:
    """Pull until B has evaluated the last checkpoint."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        take_notes(manager, mirror)
        latest = manager.latest
        if latest is not None and "val_acc" in latest.metrics:
            return
        time.sleep(0.05)
    sys.exit("error: machine B has not evaluated the last checkpoint.")


def machine_b(folder: Path) -> None:
    """Listen for events, and evaluate what each says is in the mirror."""
    events: Queue[dict[str, Any]] = Queue()

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            events.put(json.loads(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        print(server.server_port, flush=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        step = 0
        while step < EPOCHS * STEPS:
            event = events.get(timeout=PATIENCE_SECONDS)
            if (event["mirrored_step"] or 0) > step:
                step = evaluate(event["mirror"], folder / "b" / "store").step or 0
        server.shutdown()


def evaluate(mirror: str, store: Path) -> Checkpoint:
    """Pull the newest checkpoint, add its accuracy as a note, and push that."""
    if store.exists():
        repo = ckptstore.open(store)
        repo.pull("origin", branches="main", depth=1)
    else:
        repo = ckptstore.clone(mirror, store, branches="main", depth=1)
    checkpoint = repo.resolve("main")
    model = network().eval()
    repo.checkout(checkpoint.id, part="model", into=model)
    pixels, labels = digits(slice(1297, None))
    with torch.no_grad():
        right = model(pixels).argmax(dim=1) == labels
    note = repo.annotate(checkpoint.id, metrics={"val_acc": right.float().mean()})
    publish(repo)
    print(f"B: step {checkpoint.step:4}   val_acc {note.metrics['val_acc']:.1%}", flush=True)
    return checkpoint


def publish(repo: Repository) -> None:
    """Push the note; if A has pushed meanwhile, pull its checkpoint first, as in git."""
    while True:
        try:
            repo.push("origin", branches="main")
        except ConflictError:
            repo.pull("origin", branches="main", depth=1)
        else:
            return


def report(folder: Path) -> None:
    """Print what each side keeps."""
    print()
    for name in ("a/store", "b/store", "mirror"):
        kept = [str(c.step) for c in ckptstore.open(folder / name).log() if not c.expired]
        print(f"   {name:8} keeps steps {', '.join(reversed(kept))}")


def digits(part: slice) -> tuple[Tensor, Tensor]:
    """Some of the images of digits in scikit-learn, and their labels."""
    data = load_digits()
    pixels = torch.tensor(data.images[part], dtype=torch.float32) / 16
    return pixels.flatten(1), torch.tensor(data.target[part])


if __name__ == "__main__":
    main()
