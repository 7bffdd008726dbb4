"""Every public callable with parameters describes them in a section "Args"."""

import inspect
import os
from importlib import import_module

import pytest

from ckptstore.storage import Storage
from tests.docs.test_api import MODULES

os.environ.setdefault("KERAS_BACKEND", "torch")
INTERNAL = ("_", "of", "on_", "test_")  # hooks are described once, in Callback


def is_described_elsewhere(name, owner):
    """A method of a base class, of the Zarr store or of the protocol of storages."""
    bases = owner.__mro__[1:] if owner is Storage else (*owner.__mro__[1:], Storage)
    return any(hasattr(base, name.removesuffix("_sync")) for base in bases)


def callables(module):
    for name in import_module(module).__all__:
        value = getattr(import_module(module), name)
        if inspect.isclass(value):
            yield name, value
            for method in vars(value):
                if not method.startswith(INTERNAL) and not is_described_elsewhere(method, value):
                    yield f"{name}.{method}", getattr(value, method)
        elif callable(value):
            yield name, value


def parameters(value):
    try:
        names = inspect.signature(value).parameters
    except (TypeError, ValueError):  # a property, or a class without a constructor of its own
        return []
    return [name for name in names if name not in {"self", "cls", "args", "kwargs"}]


def describes_its_arguments(value):
    """A class may list its attributes, or name the function that makes it."""
    text = inspect.getdoc(value) or ""
    if inspect.isclass(value) and ("Attributes:" in text or "ade by `" in text):
        return True
    return "Args:" in text


@pytest.mark.parametrize("module", MODULES)
def test_every_callable_with_parameters_has_args(module):
    listed = list(callables(module))
    assert [
        name for name, value in listed if parameters(value) and not describes_its_arguments(value)
    ] == []
