"""Imports ckptstore so that a fuzzer sees its coverage, and what a fuzzer needs besides.

That takes 8 s, so all fuzzers are forks of one process that has done it.
"""

from __future__ import annotations

import importlib
import pkgutil

import atheris

# They read no files, or need a framework that may not be installed.
WITHOUT = (
    "ckptstore.arrays.jax",
    "ckptstore.arrays.keras_variable",
    "ckptstore.arrays.tensorflow",
    "ckptstore.integrations",
    "ckptstore.testing",
    "ckptstore.training",
)

with atheris.instrument_imports(include=["ckptstore"]):
    import ckptstore

    for module in pkgutil.walk_packages(ckptstore.__path__, "ckptstore."):
        if not module.name.startswith(WITHOUT):
            importlib.import_module(module.name)
    from tests.helpers import peak
    from tests.helpers.fuzz import bugs, mutate, targets

__all__ = ["bugs", "ckptstore", "mutate", "peak", "targets"]  # imported for the forks
