"""A Zarr hierarchy between a folder and a repository: `ZarrFiles` goes in, `ZarrValues` comes out.

Values pass as they are, never decoded. See docs/adr/0016 and docs/adr/0018.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ckptstore.arrays.source import ArraySource
    from ckptstore.state.flatten import Flat


@dataclass(frozen=True, slots=True)
class ZarrFiles:
    """A hierarchy in a folder, which `commit` stores unchanged, whatever its codecs.

    Attributes:
        folder: The folder.
        keys: The keys of the store; each is also the path of a file in the folder.
        documents: Values by key that replace or complement those of the files.
        flat: The state that was exported to the same folder, whose structure names some arrays of
            the hierarchy; None where there is no state.
    """

    folder: Path
    keys: tuple[str, ...]
    documents: Mapping[str, bytes] = field(default_factory=dict)
    flat: Flat[ArraySource] | None = None


class ZarrValues(ABC):
    """A hierarchy in a repository, value by value, which `formats.write_file` writes out."""

    @abstractmethod
    def keys(self) -> Iterator[str]:
        """Every key of the store, in order."""

    @abstractmethod
    def pieces(self, key: str) -> Iterator[bytes | memoryview]:
        """Yield the value of a key in pieces of a few MiB."""
