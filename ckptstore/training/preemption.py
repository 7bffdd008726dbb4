"""Preemption: remembers a scheduler's SIGTERM until the training loop can save.

It neither saves nor exits; `CheckpointManager.save` does.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

from ckptstore.errors import InvalidInputError
from ckptstore.forks import renewed

EXIT_CODE = 128 + signal.SIGTERM  # what a shell reports for a program that SIGTERM ended


class Preemption:
    """Records SIGTERM from `listen` until `close`, which restores the previous handler.

    A forked child does not inherit it: SIGTERM ends the workers of a data loader.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._before: Any = None  # the previous handler while it listens

    def listen(self) -> None:
        """Begin. InvalidInputError outside the main thread, where Python handles no signals."""
        if threading.current_thread() is not threading.main_thread():
            raise InvalidInputError(
                "save_on_signal works in the main thread only. Create the manager there, or pass "
                "save_on_signal=False."
            )
        self._before = signal.signal(signal.SIGTERM, self._note) or signal.SIG_DFL
        renewed(self, Preemption._leave_to_parent)

    def close(self) -> None:
        """End. No effect before `listen`."""
        if self._before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _leave_to_parent(self) -> None:
        self.close()
        self.is_asked = False

    def _note(self, _number: int, _frame: object) -> None:
        self.is_asked = True
