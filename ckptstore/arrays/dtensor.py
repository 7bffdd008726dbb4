"""DTensors: tensors of which each rank of a mesh holds a box.

A rank saves and loads the box that it holds; nothing here communicates. torch describes the layout
by a mesh and placements, from which the boxes of all ranks follow. ADR 0069.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ckptstore.documents.boxes import Box
from ckptstore.errors import UnsupportedValueError

if TYPE_CHECKING:
    from ckptstore.documents.boxes import Shape

LAYOUTS_CACHED = 4096  # a model has a few shapes, in one or two layouts


def is_sharded(value: object) -> bool:
    """True for a DTensor."""
    home: Any = sys.modules.get("torch.distributed.tensor")
    return home is not None and isinstance(value, home.DTensor)


def any_sharded(module: Any) -> bool:
    """True for a module that has DTensors among its parameters."""
    return any(map(is_sharded, module.parameters()))


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """How the ranks of a mesh hold a tensor.

    Attributes:
        shape: Of the whole tensor.
        stride: Of the whole tensor.
        mesh: The torch DeviceMesh.
        placements: Those of torch, one for each dimension of the mesh.
        device: Where this rank has its box.
    """

    shape: Shape
    stride: Shape
    mesh: Any
    placements: tuple[Any, ...]
    device: Any

    @classmethod
    def of(cls, tensor: Any) -> Layout:
        """The layout of a DTensor.

        Raises:
            UnsupportedValueError: The ranks do not hold boxes of it.
        """
        if any(placement.is_partial() for placement in tensor.placements):
            raise UnsupportedValueError(
                "is a DTensor whose value is a sum over ranks (a Partial placement). Redistribute "
                "it first: tensor.redistribute(placements=[Replicate()])."
            )
        local = local_of(tensor)
        found = cls(
            tuple(tensor.shape),
            tuple(tensor.stride()),
            tensor.device_mesh,
            tuple(tensor.placements),
            local.device,
        )
        if found.box.shape != tuple(local.shape):
            raise UnsupportedValueError(
                f"is a DTensor of which this rank holds {list(local.shape)}, where its placements "
                f"mean {list(found.box.shape)}. Redistribute it first."
            )
        return found

    @property
    def boxes(self) -> tuple[tuple[int, Box], ...]:
        """The rank and the box of each member of the mesh."""
        ranks = tuple(self.mesh.mesh.flatten().tolist())
        return _boxes(self.shape, tuple(self.mesh.mesh.shape), self.placements, ranks)

    @property
    def box(self) -> Box:
        """The box of this rank."""
        coordinate = tuple(self.mesh.get_coordinate())
        return _box(self.shape, tuple(self.mesh.mesh.shape), coordinate, self.placements)

    def holders(self) -> list[int]:
        """The ranks that hold the same box as this one, in order."""
        return sorted(rank for rank, box in self.boxes if box == self.box)

    def empty(self, dtype: str) -> Any:
        """A tensor for the box of this rank."""
        import torch

        return torch.empty(self.box.shape, dtype=getattr(torch, dtype), device="cpu")

    def joined(self, local: Any) -> Any:
        """The DTensor of which this rank has this box, and other ranks the others."""
        import torch
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(
            local.to(self.device),
            self.mesh,
            self.placements,
            run_check=False,
            shape=torch.Size(self.shape),
            stride=self.stride,
        )


def local_of(tensor: Any) -> Any:
    """The box that this rank has, which shares its memory."""
    return tensor.detach().to_local()


@lru_cache(LAYOUTS_CACHED)
def _boxes(
    shape: Shape, sizes: Shape, placements: tuple[Any, ...], ranks: tuple[int, ...]
) -> tuple[tuple[int, Box], ...]:
    import numpy as np

    return tuple(
        (rank, _box(shape, sizes, tuple(map(int, coordinate)), placements))
        for rank, coordinate in zip(ranks, np.ndindex(*sizes), strict=True)
    )


@lru_cache(LAYOUTS_CACHED)
def _box(shape: Shape, sizes: Shape, coordinate: Shape, placements: tuple[Any, ...]) -> Box:
    """The box at a coordinate of a mesh of these sizes."""
    from torch.distributed.tensor import _utils

    compute: Any = _utils._compute_local_shape_and_global_offset  # noqa: SLF001
    sizes_of_box, corner = compute(shape, sizes, list(coordinate), placements)
    return Box(tuple(corner), tuple(sizes_of_box))
