"""What the import contract cannot see: imports by name."""

from __future__ import annotations

import re
from pathlib import Path

LIBRARY = Path(__file__).parents[1] / "ckptstore"


def test_only_the_lazy_public_faces_import_the_library_by_name() -> None:
    found = {
        str(path.relative_to(LIBRARY))
        for path in LIBRARY.rglob("*.py")
        if re.search(r'import_module\(\s*f?["\'](ckptstore\.|\{__name__)', path.read_text())
    }
    faces = ("__init__.py", "zarr", "training", "training/callbacks", "formats")
    assert found <= {f"{face}/__init__.py".replace(".py/__init__", "") for face in faces}
