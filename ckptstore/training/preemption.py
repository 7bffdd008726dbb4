"""Preemption: a scheduler's SIGTERM remembered until the training loop comes to a place where it can save."""

from __future__ import annotations

import signal
import threading
from typing import Any

from ckptstore.errors import InvalidInputError

EXIT_CODE = 128 + signal.SIGTERM  # as a shell reports a program that SIGTERM ended


class Preemption:
    """Notes SIGTERM from `listen` until `close`, which gives the signal back to whoever handled it before."""

    def __init__(self) -> None:
        self.is_asked = False
        self._before: Any = None
        self._listens = False

    def listen(self) -> None:
        """Begin; InvalidInputError outside the main thread, where Python handles no signals."""
        if threading.current_thread() is not threading.main_thread():
            raise InvalidInputError(
                "save_on_signal works in the main thread only. Make the manager there, or pass save_on_signal=False."
            )
        self._before = signal.signal(signal.SIGTERM, lambda _number, _frame: self._note())
        self._listens = True

    def close(self) -> None:
        """End; harmless when it has not begun."""
        if self._listens and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)
            self._listens = False

    def _note(self) -> None:
        self.is_asked = True
