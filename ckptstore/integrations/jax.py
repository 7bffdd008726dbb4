"""JAX: a training state that is replaced at each step, for CheckpointManager.

Arrays and pytrees of JAX need nothing of this module: `Repository.commit` takes them, and
`Repository.checkout(into=)` returns new ones. See docs/adr/0075.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptstore.arrays.pytrees import PytreeState
from ckptstore.errors import InvalidInputError, shown
from ckptstore.integrations import needed

with needed("jax"):
    import jax

if TYPE_CHECKING:
    from collections.abc import Iterator, KeysView

__all__ = ["JaxState"]


class JaxState:
    """Pytrees by name that a training loop replaces, for a CheckpointManager to save and restore.

    A step of JAX returns new arrays, so an object that keeps the newest is what a manager tracks.
    Pass all of them on as in `CheckpointManager(store, **state)`. A restore replaces them by new
    pytrees of the same structure, on the devices and with the shardings that the present ones have.

    Args:
        **pytrees: The pytrees by name, such as `params=`, `opt_state=` and `key=`; each becomes an
            attribute, and is saved under its name. What is no data in a registered node, such as
            static fields and functions, is not saved.

    Raises:
        InvalidInputError: One has a name that mappings use.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ckptstore.integrations.jax import JaxState
        >>> from ckptstore.training import CheckpointManager
        >>> state = JaxState(params={"w": jnp.zeros(3)}, key=jax.random.key(0))
        >>> with CheckpointManager("memory://jax-example", **state) as manager:
        ...     for step in range(manager.restore_or_initialize(), 3):
        ...         state.params = jax.tree.map(lambda x: x + 1, state.params)
        ...         _ = manager.save(step + 1)
        >>> again = JaxState(params={"w": jnp.zeros(3)}, key=jax.random.key(1))
        >>> CheckpointManager("memory://jax-example", **again).restore_or_initialize()
        3
        >>> again.params["w"].tolist()
        [3.0, 3.0, 3.0]
    """

    def __init__(self, **pytrees: Any) -> None:
        taken = [name for name in pytrees if hasattr(type(self), name)]
        if taken:
            raise InvalidInputError(f"A pytree cannot have the name {shown(taken[0])} here.")
        vars(self).update(pytrees)

    def __repr__(self) -> str:
        return f"JaxState({', '.join(vars(self))})"

    def __delattr__(self, name: str) -> None:
        raise InvalidInputError(f"{shown(name)} is tracked. Replace it by another pytree.")

    def keys(self) -> KeysView[str]:
        """The names of the pytrees."""
        return vars(self).keys()

    def __iter__(self) -> Iterator[str]:
        """Their names."""
        return iter(vars(self))

    def __getitem__(self, name: str) -> PytreeState:
        """The pytree of a name, as what a manager tracks."""
        if name not in vars(self):
            raise KeyError(name)
        return _Tracked(self, name)


class _Tracked(PytreeState):
    """One pytree of a state, as it is at each save."""

    def __init__(self, owner: JaxState, name: str) -> None:
        self._owner, self._name = owner, name

    def __repr__(self) -> str:
        leaves = len(jax.tree_util.tree_leaves(self.state_dict()))
        return f"<pytree {self._name} of {leaves} leaves>"

    def state_dict(self) -> Any:
        """The pytree."""
        return getattr(self._owner, self._name)

    def adopt(self, pytree: Any) -> None:
        """Replace the pytree."""
        setattr(self._owner, self._name, pytree)
