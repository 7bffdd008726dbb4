"""Lazy packages: what type checkers see is what programs get."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

PACKAGES = ("ckptstore", "ckptstore.training", "ckptstore.training.callbacks", "ckptstore.zarr")


def imported_for_type_checkers(package: str) -> dict[str, str]:
    """The module of each name that a package imports under TYPE_CHECKING."""
    tree = ast.parse(Path(str(import_module(package).__file__)).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert isinstance(block.test, ast.Name)
    assert block.test.id == "TYPE_CHECKING"
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(imports) == len(block.body)
    return {str(name.asname): str(node.module) for node in imports for name in node.names}


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_every_public_name_from_the_module_that_gives_it(package: str) -> None:
    module = import_module(package)
    homes = imported_for_type_checkers(package)
    assert sorted(homes) == module.__all__
    for name, home in homes.items():
        assert getattr(module, name) is getattr(import_module(home), name)


@pytest.mark.parametrize("package", PACKAGES)
def test_dir_lists_the_public_names_and_others_are_an_attribute_error(package: str) -> None:
    module = import_module(package)
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_what_is_pickled_by_its_public_name_comes_back() -> None:
    from ckptstore import Digest

    assert pickle.loads(pickle.dumps(Digest)) is Digest


def test_a_star_import_gives_the_public_names() -> None:
    program = "from ckptstore import *; from ckptstore.zarr import *; CheckpointStore, Digest, init"
    subprocess.run([sys.executable, "-c", program], check=True)
