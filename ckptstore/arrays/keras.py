"""Keras models and their optimizers as arrays by stable names, on any backend.

Keras numbers the layers of each new model differently, so the `.path` of a variable differs between
two runs of the same program. Variables are therefore named by their position and a readable name.
See docs/adr/0014 and 0074. Keras is not imported here: only a process that has imported it can hold
a model.
"""

from __future__ import annotations

import re
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ckptstore.arrays import frameworks
from ckptstore.errors import CheckoutMismatchError, Incompatible, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ckptstore.arrays.source import Form

_FORMS: Mapping[str, Form] = MappingProxyType({})
_INTEGERS = re.compile(r"u?int\d+")


def synced(model: Any) -> Any:
    """A model whose variables are up to date: in `fit` JAX has them elsewhere between batches."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
    return model


def tensor_of(variable: Any) -> Any:
    """The tensor of a variable with the torch backend; None with others."""
    value = variable.value
    torch = sys.modules.get("torch")
    return value.detach() if torch is not None and isinstance(value, torch.Tensor) else None


class _Variables:
    """Variables as a stateful object. Subclasses name them."""

    what: str

    def __init__(self, model: Any) -> None:
        self._unsynced = model

    @property
    def _model(self) -> Any:
        return synced(self._unsynced)

    def state_dict(self) -> dict[str, Any]:
        """Return the arrays by names such as "000.dense.kernel".

        With the torch backend they are the tensors in use, not copies, and with others numpy arrays
        of the present values.
        """
        return {name: value_of(variable) for name, variable in self._named()}

    def targets(self, forms: Mapping[str, Form] = _FORMS) -> dict[str, Any]:
        """Return what a checkout fills, by name: the tensors in use, or the variables.

        forms: the dtypes and shapes of stored arrays, by name.
        """
        return {
            name: Integers(variable)
            if _is_another_integer(forms.get(name), frameworks.form_of(variable))
            else _target(variable)
            for name, variable in self._named()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
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
        model: A built Keras model.
    """

    what = "model"

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
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
        model: A compiled Keras model. Its optimizer is built if necessary.
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


class Integers:
    """A variable of integers as a stateful object, which takes integers of another width.

    Backends have their seeds and counters in different dtypes.
    """

    def __init__(self, variable: Any) -> None:
        self._variable = variable

    def state_dict(self) -> Any:
        """The value."""
        return value_of(self._variable)

    def load_state_dict(self, value: Any) -> None:
        """Assign a value; InvalidInputError for one that the dtype of the variable cannot hold."""
        frameworks.copy(self._variable, _converted(value, self._variable))


def value_of(variable: Any) -> Any:
    """The tensor of a variable, or its value as a numpy array."""
    tensor = tensor_of(variable)
    if tensor is not None:
        return tensor
    source = frameworks.describe(variable)
    assert source is not None
    return source.array


def _target(variable: Any) -> Any:
    """What is filled to change a variable."""
    tensor = tensor_of(variable)
    return variable if tensor is None else tensor


def _is_another_integer(stored: Form | None, here: Form) -> bool:
    """True for integers of the same shape but another dtype."""
    return (
        stored is not None
        and stored[1] == here[1]
        and stored[0] != here[0]
        and all(_INTEGERS.fullmatch(dtype) for dtype in (stored[0], here[0]))
    )


def _converted(value: Any, variable: Any) -> Any:
    """An array in the dtype of a variable; InvalidInputError for integers too large for it."""
    stored, here = frameworks.form_of(value), frameworks.form_of(variable)
    if not _is_another_integer(stored, here):
        return value
    import numpy as np

    numbers = np.asarray(value)
    converted = numbers.astype(here[0])
    if not np.array_equal(converted.astype(object), numbers.astype(object)):
        raise InvalidInputError(
            f"{variable.path} is {here[0]} with this backend of Keras, which cannot hold "
            f"{numbers.tolist()}."
        )
    return converted


def _assign(state: Mapping[str, Any], named: list[tuple[str, Any]], *, what: str) -> None:
    """Assign values to variables by position."""
    values, names = list(state.values()), [name for name, _ in named]
    shared = min(len(values), len(names))
    forms = [
        (name, frameworks.form_of(value), frameworks.form_of(variable))
        for (name, variable), value in zip(named, values, strict=False)
    ]
    misfit = Incompatible(
        missing=tuple(names[shared:]),
        unexpected=tuple(list(state)[shared:]),
        mismatched=tuple(
            f"{name} ({_described(stored)} there, {_described(here)} here)"
            for name, stored, here in forms
            if stored != here and not _is_another_integer(stored, here)
        )
        or _moved(list(state), names),
    )
    if misfit:
        raise CheckoutMismatchError(
            f"The checkpoint does not fit the Keras {what}: {misfit}.", misfit
        )
    pairs = zip(values, named, strict=True)
    converted = [(_converted(value, variable), variable) for value, (_, variable) in pairs]
    for value, variable in converted:
        frameworks.copy(variable, value)


def _moved(stored: list[str], names: list[str]) -> tuple[str, ...]:
    """The variables whose place another layer of the user's own name has in the checkpoint.

    Names that Keras numbers are the same in both, so a difference is a name that somebody chose.
    """
    pairs = zip(stored, names, strict=False)
    return tuple(f"{name} ({other} there)" for other, name in pairs if other != name)


def _described(form: Form) -> str:
    return f"{form[0]} {list(form[1])}"
