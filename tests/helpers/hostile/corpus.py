"""The corpus of all hostile cases."""

from __future__ import annotations

from tests.helpers.hostile.inputs import arguments, destinations, files, states, torch_files
from tests.helpers.hostile.repositories import (
    entries,
    manifests,
    markers,
    notes,
    operations,
    pages,
    planted,
    structures,
    text,
    zarr_decoding,
    zarr_nodes,
)

CASES = (
    *markers.CASES,
    *operations.CASES,
    *notes.CASES,
    *manifests.CASES,
    *pages.CASES,
    *entries.CASES,
    *structures.CASES,
    *text.CASES,
    *planted.CASES,
    *zarr_nodes.CASES,
    *zarr_decoding.CASES,
    *states.CASES,
    *arguments.CASES,
    *destinations.CASES,
    *files.CASES,
    *torch_files.CASES,
)
