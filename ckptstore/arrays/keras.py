"""Keras models and their optimizers as arrays by stable names, on any backend.

Keras numbers the layers of each new model differently, so the `.path` of a variable differs between
two runs of the same program. Variables are therefore named by their position and a readable name.
See docs/adr/0014 and 0074. Keras is not imported here: only a process that has imported it can hold
a model.
"""

from __future__ import annotations

import math
import re
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ckptstore.arrays import frameworks
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import CheckoutMismatchError, Incompatible, InvalidInputError, shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

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

    @property
    def model(self) -> Any:
        """The model, whose variables may be out of date; None if it is not known."""
        return self._unsynced

    def state_dict(self) -> dict[str, Any]:
        """Return the arrays by names such as "000.dense.kernel".

        With the torch backend they are the tensors in use, not copies, and with others numpy arrays
        of the present values.
        """
        return {name: value_of(variable) for name, variable in self._named()}

    @property
    def nbytes(self) -> int:
        """The bytes of the variables that there are."""
        return sum(_bytes_of(variable) for variable in self._unsynced.variables)

    def targets(self, forms: Mapping[str, Form] = _FORMS) -> dict[str, Any]:
        """Return what a checkout fills, by name: the tensors in use, or the variables.

        forms: the dtypes and shapes of stored arrays, by name.
        """
        return {
            name: Variable(variable)
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
    """The variables of a Keras optimizer: slots, iterations and learning rate.

    Args:
        model: The Keras model that is trained; None if it is not known. Its optimizer is built if
            necessary.
        optimizer: The optimizer; None for the one the model was compiled with.
    """

    what = "optimizer"

    def __init__(self, model: Any, optimizer: Any = None) -> None:
        super().__init__(model)
        self._own = optimizer

    @property
    def optimizer(self) -> Any:
        """The optimizer."""
        return self._model.optimizer if self._own is None else self._own

    @property
    def nbytes(self) -> int:
        """The bytes of the variables; of an optimizer that has none yet, those to come."""
        if self.optimizer.built or self._unsynced is None:
            return sum(_bytes_of(variable) for variable in self.optimizer.variables)
        slots = 2 * hasattr(self.optimizer, "beta_2") or bool(
            getattr(self.optimizer, "momentum", 0)
        )
        return slots * sum(_bytes_of(weight) for weight in self._unsynced.trainable_variables)

    def find_model(self, models: Sequence[Any]) -> None:
        """Choose the model whose weights it has slots for, if the model is not known yet."""
        weights = {id(weight) for weight in getattr(self.optimizer, "_trainable_variables", ())}
        for model in models if self._unsynced is None else ():
            own = {id(weight) for weight in model.trainable_variables}
            if weights & own or (not weights and len(models) == 1):
                self._unsynced = model

    def _named(self) -> list[tuple[str, Any]]:
        """A slot that belongs to a weight is named after that weight."""
        optimizer, model = self.optimizer, self._model
        if not optimizer.built:
            if model is None or not model.built:
                raise InvalidInputError(
                    "The Keras optimizer is not built yet. Call optimizer.build(variables) with "
                    "those that it trains, once the model is built."
                )
            optimizer.build(model.trainable_variables)
        if model is None:
            pairs = [(item, _plain_path(item)) for item in optimizer._trainable_variables]  # noqa: SLF001
        else:
            pairs = named_variables(model)
        weights = {variable.path.replace("/", "_"): name for variable, name in pairs}
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


def pair_optimizers(objects: Collection[object]) -> None:
    """Let each optimizer of Keras among tracked objects find its model among them."""
    models = [item.model for item in objects if isinstance(item, ModelState)]
    for item in objects:
        if isinstance(item, OptimizerState):
            item.find_model(models)


def as_stateful(value: object) -> Any:
    """A stateful object for a model, optimizer, variable or generator of Keras or TensorFlow.

    None for any other value.
    """
    if frameworks.is_keras(value):
        return ModelState(value)
    if _is_a(value, "keras", "optimizers", "Optimizer"):
        return OptimizerState(None, value)
    is_generator = _is_a(value, "keras", "random", "SeedGenerator")
    if is_generator or _is_a(value, "tensorflow", "random", "Generator"):
        return Variable(value.state)  # type: ignore[attr-defined]
    is_variable = _is_a(value, "keras", "Variable") or _is_a(value, "tensorflow", "Variable")
    return Variable(value) if is_variable else None


def _is_a(value: object, *names: str) -> bool:
    """True for an instance of a class of a framework that the program has imported."""
    found: Any = sys.modules.get(names[0])
    for name in names[1:]:
        found = getattr(found, name, None)
    return isinstance(found, type) and isinstance(value, found)


def _plain_path(variable: Any) -> str:
    """The path of a variable without the numbers that Keras counts."""
    return ".".join(re.sub(r"_\d+$", "", part) for part in variable.path.split("/"))


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


class Variable:
    """A variable of Keras or TensorFlow as a stateful object.

    It takes integers of another width, as backends have seeds and counters in different dtypes.
    """

    def __init__(self, variable: Any) -> None:
        self._variable = variable

    def state_dict(self) -> Any:
        """The value."""
        return value_of(self._variable)

    @property
    def nbytes(self) -> int:
        """The bytes of the value."""
        return _bytes_of(self._variable)

    def load_state_dict(self, value: Any) -> None:
        """Assign an array; InvalidInputError for one of another shape or dtype."""
        if not frameworks.is_array(value):
            raise InvalidInputError(f"{shown(value)} is not an array.")
        stored, here = frameworks.form_of(value), frameworks.form_of(self._variable)
        if stored != here and not _is_another_integer(stored, here):
            raise InvalidInputError(f"{_described(stored)} there, {_described(here)} here")
        frameworks.copy(self._variable, _converted(value, self._variable))


def _bytes_of(variable: Any) -> int:
    """The bytes of a variable, without reading its value."""
    dtype, shape = frameworks.form_of(variable)
    return ITEM_BYTES.get(dtype, 0) * math.prod(shape)


def value_of(variable: Any) -> Any:
    """The tensor of a variable, or its value as a numpy array."""
    source = frameworks.describe(variable)
    assert source is not None
    return source.array


def _target(variable: Any) -> Any:
    """Return the tensor of a variable, which can be filled; the variable itself without one."""
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
            f"{getattr(variable, 'path', variable.name)} is {here[0]} here, which cannot hold "
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
