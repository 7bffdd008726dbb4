"""Checkpoints as Zarr v3 hierarchies: `CheckpointStore` reads one, `SessionStore` writes the next.

Most users get them from `checkpoint.zarr()` and `repo.session(branch).store`. Decoding is left to
zarr-python, once `encoding` and `frames` have checked what it is given. See docs/adr/0016,
docs/adr/0040 and section 10.5 of docs/reference/format.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.lazy_module import lazy_names

if TYPE_CHECKING:
    from ckptstore.zarr.encoding import allow_codec as allow_codec
    from ckptstore.zarr.session import Session as Session
    from ckptstore.zarr.session import SessionStore as SessionStore
    from ckptstore.zarr.store import CheckpointStore as CheckpointStore
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "encoding": ("allow_codec",),
            "session": ("Session", "SessionStore"),
            "store": ("CheckpointStore",),
        },
    )
