"""Handover: objects load what a checkpoint holds for them, all of them or none.

An object may refuse its state halfway. So each is asked before any array is filled, and when one
refuses, those that were asked before it get back what they had. Reading is the caller's job.
See docs/adr/0053.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.frameworks import is_module, is_uninitialized
from ckptstore.checkout.modules import writing_to
from ckptstore.documents.nodes import ArrayNode
from ckptstore.errors import CheckoutMismatchError, Incompatible

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ckptstore.arrays.dtensor import Layout
    from ckptstore.documents.nodes import Node

NO_DIFFERENCES = Incompatible()
REASON_LENGTH_MAX = 1_000  # of what an object says when it refuses


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """A node of the structure, and what takes the value that is built from it.

    path: of the node. assign: takes the value, and may return an `Incompatible` of what it left
    out. owner: the object or module whose method that is; None for a value that is only put in its
    place, which nothing can refuse. differences: what seems not to fit the owner, which may know
    better. layouts: of the arrays, by path, that the owner has as DTensors.
    """

    node: Node
    path: str
    assign: Callable[[Any], object]
    owner: object = None
    differences: Incompatible = NO_DIFFERENCES
    layouts: Mapping[str, Layout] = field(default_factory=dict)

    @property
    def may_refuse(self) -> bool:
        """True when a method of the owner is called."""
        return self.owner is not None

    @property
    def is_array(self) -> bool:
        """True for an array that is read whole and copied, as those that came in through Zarr."""
        return isinstance(self.node, ArrayNode)

    @property
    def is_last(self) -> bool:
        """True for an owner that cannot be put back, and is therefore asked after the others."""
        return _put_back_of(self.owner) is None


class Refused(Exception):  # noqa: N818  it never reaches a user
    """An object did not take its state, and was put back."""

    def __init__(self, handover: Handover, error: Exception) -> None:
        reason = str(error).strip()[:REASON_LENGTH_MAX]
        super().__init__(
            f"{handover.path or 'the state'} (its load_state_dict refused what the checkpoint "
            f"holds for it: {type(error).__name__}: {reason})"
        )
        self.differences = handover.differences


@dataclass(slots=True)
class Handing:
    """Objects that take their states one after the other.

    Attributes:
        left_out: The names that objects left out, if the restore is not strict.
        halfway: Objects that could not be put back, by path.
    """

    left_out: list[Incompatible] = field(default_factory=list)
    halfway: list[str] = field(default_factory=list)
    _taken: list[tuple[str, Callable[[], None] | None]] = field(default_factory=list)

    def give(self, handover: Handover, value: Any) -> None:
        """Hand a value over.

        Args:
            handover: The object that takes it.
            value: The value, in memory of its own.

        Raises:
            Refused: The object raised an error, and was put back.
        """
        put_back = _put_back_of(handover.owner)
        undo = None if put_back is None else put_back()
        try:
            result = handover.assign(value)
        except BaseException as error:  # a load_state_dict may raise anything
            self._undo(handover.path, undo)
            if not isinstance(error, Exception):
                raise
            raise Refused(handover, error) from error
        self._taken.append((handover.path, undo))
        if isinstance(result, Incompatible):
            self.left_out.append(result)

    def undo(self) -> None:
        """Put every object back, the last one first."""
        while self._taken:
            self._undo(*self._taken.pop())

    def refusal(
        self, refused: Refused, *, hint: str = "", rename: Mapping[str, str] | None = None
    ) -> CheckoutMismatchError:
        """The error for an object that refused. It puts the others back."""
        self.undo()
        said = "Nothing was changed."
        if self.halfway:
            said = f"It could not be undone, so these may hold a part of it: {self.halfway}."
        differences = refused.differences
        misfit = replace(differences, mismatched=(str(refused), *differences.mismatched))
        message = f"The checkpoint does not fit: {misfit}. {said} {hint}"
        return CheckoutMismatchError(message.rstrip(), misfit, rename)

    def _undo(self, path: str, undo: Callable[[], None] | None) -> None:
        try:
            if undo is not None:
                undo()
                return
        except Exception:  # noqa: BLE001, S110  it is reported, and others are still put back
            pass
        self.halfway.append(path)


def _put_back_of(owner: object) -> Callable[[], Callable[[], None] | None] | None:
    """Return a function that copies the state of an object and returns one that puts it back.

    None for objects that cannot be put back, or that do something when they are asked for a state:
    a data loader starts its workers and draws random numbers.
    """
    is_loader = hasattr(owner, "__iter__") and hasattr(owner, "dataset")
    if is_loader and not getattr(owner, "may_be_asked", False):
        return None
    if is_module(owner):
        module: Any = owner
        if any(map(is_uninitialized, (*module.parameters(), *module.buffers()))):
            return None
        return lambda: _module_copy(module)
    if is_optimizer(owner) and loads_as_torch(owner):
        return lambda: _attributes_copy(owner)
    return lambda: _state_copy(owner)


def is_optimizer(value: object) -> bool:
    """True for a torch optimizer."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.optim.Optimizer)


def loads_as_torch(optimizer: Any) -> bool:
    """True for an optimizer that loads its state by torch's own method, without hooks."""
    base = sys.modules["torch"].optim.Optimizer
    return (
        type(optimizer).load_state_dict is base.load_state_dict
        and "load_state_dict" not in vars(optimizer)
        and not optimizer._optimizer_load_state_dict_pre_hooks  # noqa: SLF001
        and not optimizer._optimizer_load_state_dict_post_hooks  # noqa: SLF001
    )


def _attributes_copy(owner: Any) -> Callable[[], None]:
    """Of an optimizer as torch loads it: it exchanges its dicts and changes none of them."""
    attributes = dict(vars(owner))

    def put_back() -> None:
        vars(owner).clear()
        vars(owner).update(attributes)

    return put_back


def _state_copy(owner: Any) -> Callable[[], None] | None:
    """Of any object: a copy of its state, which it loads again."""
    try:
        state = deepcopy(owner.state_dict())
    except Exception:  # noqa: BLE001  such as a state that cannot be copied, or is not there yet
        return None
    return lambda: owner.load_state_dict(state)


def _module_copy(module: Any) -> Callable[[], None]:
    """Of a module: copies of its tensors, whose places and contents are restored.

    Then it loads its own state, from which it may derive others.
    """
    torch = sys.modules["torch"]
    homes = [vars(part)[name] for part in module.modules() for name in ("_parameters", "_buffers")]
    kept = [dict(home) for home in homes]
    tensors = [tensor for home in kept for tensor in home.values() if tensor is not None]
    copies = {id(tensor): (tensor, tensor.detach().clone()) for tensor in tensors}
    known = {tensor.data_ptr() for tensor in tensors}
    state: Any = None
    with suppress(Exception):  # without it only the tensors are put back
        state = {
            key: value if torch.is_tensor(value) and value.data_ptr() in known else deepcopy(value)
            for key, value in module.state_dict().items()
        }

    def put_back() -> None:
        for home, entries in zip(homes, kept, strict=True):
            home.clear()
            home.update(entries)
        with torch.no_grad(), writing_to(module):
            for tensor, copy in copies.values():
                if tensor.shape == copy.shape:
                    tensor.detach().copy_(copy)
                else:
                    tensor.data = copy
        if state is not None:
            with suppress(Exception):  # it may refuse this too, after its tensors are back
                module.load_state_dict(state)

    return put_back
