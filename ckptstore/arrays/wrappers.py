"""Wrappers: the module inside those of torch that add a prefix to the names of its state.

Only the types themselves count. An average of weights, or any object that passes attributes on, has
a state of its own.
"""

from __future__ import annotations

import sys
from typing import Any

COMPILED = "_orig_mod"  # the attribute, and the prefix, of torch.compile


def unwrapped(value: Any) -> Any:
    """Return the module inside torch.compile, DistributedDataParallel and DataParallel, in any mix.

    Anything else is returned as it is.
    """
    while True:
        if is_compiled(value):
            value = getattr(value, COMPILED)
        elif _is_parallel(value):
            value = value.module
        else:
            return value


def is_compiled(value: object) -> bool:
    """True for what torch.compile returned for a module."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and isinstance(value, dynamo.OptimizedModule)


def _is_parallel(value: object) -> bool:
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    parallel = torch.nn.parallel
    return isinstance(value, (parallel.DistributedDataParallel, parallel.DataParallel))
