"""Keras on TensorFlow and on JAX: tests of the torch backend, a restart and a change of backend.

The backend is fixed once Keras is imported, so each has two processes of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ckptstore
from tests.helpers import keras_processes

pytestmark = [
    pytest.mark.framework,
    # Keras 3.15 hands torch parameters to numpy 2 in a way that numpy warns of.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

ROOT = Path(__file__).parents[2]
TESTS = ["tests/integrations/test_keras.py", "tests/training/callbacks/test_keras_fit.py"]
PROGRAM = """
import runpy, sys
sys.modules.update(dict.fromkeys({forbidden}))
runpy.run_module("tests.helpers.keras_processes", run_name="__main__", alter_sys=True)
"""
CHOSEN = {
    "tensorflow": "(test_keras.py and not integration_is) or article or terminating",
    "jax": "few_batches or are_loaded or nested_structure or generators or integers or terminating",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of the torch backend."""
    path = tmp_path_factory.mktemp("keras")
    keras_processes.save(path)
    return path


def run(backend: str, *arguments: str) -> None:
    """Run a process with a backend of Keras; an AssertionError has its output if it fails.

    JAX has to do without TensorFlow, which Keras would import to set its seed.
    """
    forbidden = [] if backend == "tensorflow" else ["tensorflow"]
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(forbidden=forbidden), *arguments],
        cwd=ROOT,
        env=kept | quiet | {"KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


def check(backend: str, source: str, folder: Path, chosen: list[str]) -> None:
    """Run the tests and the restart of a backend; it loads what `source` saved."""
    own = folder / backend
    own.mkdir()
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS, *chosen]
    run(backend, "first", str(own), *options)
    for name in ("others", "others.npz"):
        (own / name).symlink_to(folder / name)
    run(backend, "second", str(own), source)


@pytest.mark.parametrize("backend", CHOSEN)
def test_what_works_with_torch_works_with_another_backend(backend: str, folder: Path) -> None:
    """Each loads what the one before it saved: torch, then TensorFlow, then JAX."""
    branches = ckptstore.open(folder / "others").branches()
    source = "tensorflow" if "tensorflow" in branches else "torch"
    check(backend, source, folder, ["-k", CHOSEN[backend]])


@pytest.mark.deep
@pytest.mark.parametrize("backend", CHOSEN)
def test_all_that_works_with_torch_works_with_another_backend(backend: str, tmp_path: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS]
    run(backend, "first", str(tmp_path), *options)
