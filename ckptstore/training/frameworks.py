"""Trainings of models of other frameworks, made by the integrations that register for them.

An integration is an entry point of the group "ckptstore.integrations" whose name is the top-level
module of its framework. It is imported when a model is met that no registered framework matches,
and only if the program has imported that framework. See docs/adr/0024.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.frameworks import is_keras
from ckptstore.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptstore.training.training import Training

GROUP = "ckptstore.integrations"


@dataclass(frozen=True, slots=True)
class _Framework:
    matches: Callable[[object], bool]
    make: Callable[[Any], Training]


_registered: list[_Framework] = []


def register(matches: Callable[[object], bool], make: Callable[[Any], Training]) -> None:
    """Register the models of a framework; an integration calls this when it is imported.

    Args:
        matches: True for a model of the framework.
        make: Makes the `Training` of such a model, which callbacks then see.
    """
    _registered.append(_Framework(matches, make))


def training_for(model: object) -> Training | None:
    """A new training from the integration that knows the model; None for any other model.

    InvalidInputError for a Keras model without its integration: it is a torch module too, and would
    be saved as one, without its optimizer.
    """
    make = _maker(model)
    if make is None and _import_integrations():
        make = _maker(model)
    if make is None and is_keras(model):
        raise InvalidInputError(
            "This Python has no installed ckptstore, only its source, so the integration with "
            "Keras is not found. Install ckptstore, or import ckptstore.integrations.keras."
        )
    return None if make is None else make(model)


def _maker(model: object) -> Callable[[Any], Training] | None:
    return next((framework.make for framework in _registered if framework.matches(model)), None)


def _import_integrations() -> bool:
    """Import the integrations whose frameworks have been imported; True if there were new ones."""
    points = [point for name, point in _waiting().items() if sys.modules.get(name)]
    for point in points:
        point.load()
        _waiting().pop(point.name, None)
    return bool(points)


@cache
def _waiting() -> dict[str, metadata.EntryPoint]:
    """The integrations that have not been imported yet, by the name of their framework."""
    return {point.name: point for point in metadata.entry_points(group=GROUP)}
