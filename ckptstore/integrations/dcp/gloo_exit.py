"""An exit after a collective of gloo does not abort the process.

`dcp.save` and `dcp.load` end with a collective. A thread of gloo drops its tensors once the ranks
have gone on, and takes the lock of the interpreter for that. CPython ends a thread that asks for
the lock while the interpreter ends, and gloo's C++ code makes an abort of that. So a program whose
last act is a save could end with SIGABRT after all had been published, and a launcher calls the run
failed: https://github.com/pytorch/pytorch/issues/190489. Neither a barrier nor
`destroy_process_group` waits for these threads.
"""

import atexit
import time
from functools import cache
from typing import Final

from ckptstore.rank_group import distributed

EXIT_PAUSE_SECONDS: Final = 0.2  # in which the threads get the lock, even on a busy machine


def expect_collectives() -> None:
    """Have this process pause before it ends, if it is one rank of several."""
    group = distributed()
    if group is not None and group.get_world_size() > 1:
        _pause_at_exit()


@cache
def _pause_at_exit() -> None:
    atexit.register(time.sleep, EXIT_PAUSE_SECONDS)
