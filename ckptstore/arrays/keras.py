"""Keras models and their optimizers as tensors by stable names.

Keras numbers the layers of each new model differently, so the `.path` of a variable differs between
two runs of the same program. Variables are therefore named by their position and a readable name.
See docs/adr/0014. Keras is not imported here: only a process that has imported it can hold a model.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from ckptstore.errors import CheckoutMismatchError, Incompatible, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch


def is_keras(value: object) -> bool:
    """True for a Keras model; with the torch backend it is an nn.Module too."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(value, getattr(keras, "Model", ()))


class _Variables:
    """Variables as a stateful object. Subclasses name them."""

    what: str

    def __init__(self, model: Any) -> None:
        self._model = model

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the tensors in use, not copies, by names such as "000.dense.kernel"."""
        return {name: variable.value.detach() for name, variable in self._named()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Assign all variables, by position.

        Args:
            state: What `state_dict` of the same class, for a model with the same layers, returned.

        Raises:
            CheckoutMismatchError: Names, shapes or dtypes differ. Lists every difference, and
                nothing has been changed.
        """
        _assign(state, self._named(), what=self.what)

    def _named(self) -> list[tuple[str, Any]]:
        raise NotImplementedError


class ModelState(_Variables):
    """The variables of a Keras model: weights, statistics and the random seeds of layers.

    Args:
        model: A built Keras model with the torch backend.
    """

    what = "model"

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Assign all variables, by position.

        Args:
            state: What `state_dict` of a model with the same layers returned.

        Raises:
            CheckoutMismatchError: Names, shapes or dtypes differ. Lists every difference, and
                nothing has been changed.
            InvalidInputError: The model is not built yet.
        """
        if not self._model.built:
            raise InvalidInputError(
                "The Keras model is not built yet. Give it an Input, or call it on a batch of data."
            )
        super().load_state_dict(state)

    def _named(self) -> list[tuple[str, Any]]:
        pairs = enumerate(named_variables(self._model))
        return [(f"{position:03d}.{name}", variable) for position, (variable, name) in pairs]


class OptimizerState(_Variables):
    """The variables of a Keras model's optimizer: slots, iterations and learning rate.

    Args:
        model: A compiled Keras model with the torch backend. Its optimizer is built if necessary.
    """

    what = "optimizer"

    def _named(self) -> list[tuple[str, Any]]:
        """A slot that belongs to a weight is named after that weight."""
        optimizer = self._model.optimizer
        if not optimizer.built:
            optimizer.build(self._model.trainable_variables)
        weights = {
            variable.path.replace("/", "_"): name for variable, name in named_variables(self._model)
        }
        named = []
        for position, variable in enumerate(optimizer.variables):
            owner = max(
                (flat for flat in weights if variable.name.startswith(f"{flat}_")),
                key=len,
                default=None,
            )
            name = variable.name
            if owner is not None:
                name = f"{weights[owner]}.{variable.name[len(owner) + 1 :]}"
            named.append((f"{position:03d}.{name}", variable))
        return named


def named_variables(model: Any) -> list[tuple[Any, str]]:
    """All variables with readable names: paths without the model's name and Keras' numbers."""
    automatic = {_snake(type(layer).__name__) for layer in layers(model)} | {"seed_generator"}
    named = []
    for variable in model.variables:
        parts = variable.path.split("/")
        if len(parts) > 1 and parts[0] == model.name:
            parts = parts[1:]
        bases = [(part, re.sub(r"_\d+$", "", part)) for part in parts]
        name = ".".join(base if base in automatic else part for part, base in bases)
        named.append((variable, name))
    return named


def layers(model: Any) -> Iterator[Any]:
    """All layers, those of nested models included."""
    for layer in getattr(model, "layers", ()):
        yield layer
        yield from layers(layer)


def _snake(name: str) -> str:
    """The name that Keras gives to layers of a class."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _assign(state: Mapping[str, torch.Tensor], named: list[tuple[str, Any]], *, what: str) -> None:
    """Assign values to variables by position."""
    import torch

    values, names = list(state.values()), [name for name, _ in named]
    shared = min(len(values), len(names))
    misfit = Incompatible(
        missing=tuple(names[shared:]),
        unexpected=tuple(list(state)[shared:]),
        mismatched=tuple(
            f"{name} ({_described(value)} there, {_described(variable.value)} here)"
            for (name, variable), value in zip(named, values, strict=False)
            if _described(value) != _described(variable.value)
        )
        or _moved(list(state), names),
    )
    if misfit:
        raise CheckoutMismatchError(
            f"The checkpoint does not fit the Keras {what}: {misfit}.", misfit
        )
    with torch.no_grad():
        for value, (_, variable) in zip(values, named, strict=True):
            variable.assign(value)


def _moved(stored: list[str], names: list[str]) -> tuple[str, ...]:
    """The variables whose place another layer of the user's own name has in the checkpoint.

    Names that Keras numbers are the same in both, so a difference is a name that somebody chose.
    """
    pairs = zip(stored, names, strict=False)
    return tuple(f"{name} ({other} there)" for other, name in pairs if other != name)


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
