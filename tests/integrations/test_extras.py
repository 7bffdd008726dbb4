"""An integration without its framework names the extra that brings it."""

from __future__ import annotations

import importlib
import sys

import pytest

EXTRAS = {
    "accelerate": ("accelerate", "hf"),
    "jax": ("jax", "jax"),
    "lightning": ("lightning.pytorch", "lightning"),
    "mlflow": ("mlflow", "mlflow"),
    "tensorboard": ("torch.utils.tensorboard", "tensorboard"),
    "transformers": ("transformers", "hf"),
    "wandb": ("wandb", "wandb"),
}


@pytest.mark.parametrize("module", EXTRAS)
def test_the_extra_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    framework, extra = EXTRAS[module]
    whole = f"ckptstore.integrations.{module}"
    for name in list(sys.modules):
        if f"{name}.".startswith(f"{whole}."):
            monkeypatch.delitem(sys.modules, name)
        elif f"{name}.".startswith(f"{framework}."):
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, framework, None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'ckptstore\[{extra}\]'$") as error:
        importlib.import_module(whole)
    assert f"{error.value.name}.".startswith(f"{framework}.")
