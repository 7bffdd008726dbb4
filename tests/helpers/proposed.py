"""The arguments that an error proposes, as a reader would paste them."""

from __future__ import annotations

import re
from typing import Any

from ckptstore.errors import CheckoutMismatchError

PROPOSED = re.compile(
    r"Pass ((?:part|rename)=.*?)(?:, where `error`.*?)?: then ([^.]*)\.", re.DOTALL
)


def proposed(error: CheckoutMismatchError) -> dict[str, Any]:
    """The keyword arguments in a message; it has to say that everything fits with them."""
    found = PROPOSED.search(str(error))
    assert found, str(error)
    assert found[2] == "everything fits", str(error)
    arguments: dict[str, Any] = eval(f"dict({found[1]})", {"error": error})
    assert arguments.get("rename", {}) == error.rename
    return arguments
