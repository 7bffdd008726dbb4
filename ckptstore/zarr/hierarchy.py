"""A Zarr hierarchy in a folder on its way into a repository.

Values pass as they are, never decoded. See docs/adr/0016 and docs/adr/0018. The way back is
`contents.ZarrValues`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
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
