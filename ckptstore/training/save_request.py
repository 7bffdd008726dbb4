"""SaveRequest: the arguments of one save, checked and copied while its caller still waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from ckptstore.documents.facts import Facts, check_step
from ckptstore.documents.names import check_ref_name
from ckptstore.errors import InvalidInputError, shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import SupportsIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveRequest:
    """The facts of a checkpoint to be made, its tag, and the position in the data that it records.

    Nothing in it belongs to the caller, who may count on in the same tensor or append to the same
    list while the checkpoint is written.
    """

    step: int
    facts: Facts
    position: Mapping[str, int | None]
    tag: str | None = None

    @classmethod
    def of(
        cls,
        step: int,
        *,
        metrics: Mapping[str, object] | None = None,
        message: str = "",
        meta: Mapping[str, Any] | None = None,
        epoch: SupportsIndex | None = None,
        batch: SupportsIndex | None = None,
        tag: str | None = None,
        run: Mapping[str, Any],
    ) -> Self:
        """Check the arguments of `CheckpointManager.save`. run: goes into meta, under the user's.

        Raises:
            InvalidInputError: One of them is invalid. The message names it.
        """
        facts = Facts.of(step=step, metrics=metrics, message=message, meta=meta)
        return cls(
            step=step,
            facts=Facts(
                step=facts.step,
                metrics=facts.metrics,
                message=facts.message,
                meta={**run, **facts.meta},
            ),
            position={"epoch": _position("epoch", epoch), "batch": _position("batch", batch)},
            tag=None if tag is None else check_ref_name(tag, kind="tag"),
        )


def step_number(step: SupportsIndex) -> int:
    """The number of steps done, as a plain int.

    Raises:
        InvalidInputError: It is not an integer of at most 63 bits.
    """
    number = check_step(step)
    if number is None:
        raise InvalidInputError("The step is None; the number of steps done is expected.")
    return number


def _position(name: str, value: SupportsIndex | None) -> int | None:
    try:
        return check_step(value)
    except InvalidInputError as error:
        message = f"{name} is {shown(value)}; an int, or None, is expected."
        raise InvalidInputError(message) from error
