"""A Zarr hierarchy on its way between a folder and a repository: in, the files that `commit` takes; out, the values by key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ckptstore.arrays.source import ArraySource
    from ckptstore.state.tree import Flat


@dataclass(frozen=True, slots=True)
class ZarrFiles:
    """A hierarchy in a folder, which `commit` takes as it is, whatever its codecs.

    keys: of the store; each is the path of a file in the folder. documents: what keys hold that no file holds so.
    flat: the state that lies in the folder as well, in whose structure some arrays are those of the hierarchy; None for none.
    """

    folder: Path
    keys: tuple[str, ...]
    documents: Mapping[str, bytes] = field(default_factory=dict)
    flat: Flat[ArraySource] | None = None


class ZarrValues(ABC):
    """A hierarchy in a repository, key by key as it was set; what `formats.write_file` makes a folder of."""

    @abstractmethod
    def keys(self) -> Iterator[str]:
        """Every key of the store, in order."""

    @abstractmethod
    def pieces(self, key: str) -> Iterator[bytes | memoryview]:
        """What a key holds, a piece at a time."""
