"""Preemption: remembers a scheduler's signal until the training loop can save.

It neither saves nor exits; `CheckpointManager.save` does. One handler of this process serves all
managers, and is put back when the last of them is closed. See docs/adr/0051.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from ckptstore.errors import InvalidInputError, shown

if TYPE_CHECKING:
    from types import FrameType

    Handler = Any  # a function, an int, SIG_DFL or SIG_IGN, as signal.getsignal returns it

END, CONTINUE = "end", "continue"
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU")
SAME_SECONDS = 0.2  # launchers pass on what the whole group has got already: that is one signal

_CHILD = signal.SIGCHLD
_LOADERS = "torch.utils.data._utils.signal_handling"  # where a DataLoader's SIGCHLD handler is
_LOADER_ERROR = "DataLoader worker (pid"  # how its errors begin


def chosen_signals(choice: object) -> dict[signal.Signals, str]:
    """The signals that a `save_on_signal` chooses, and whether the program ends after the save.

    Raises:
        InvalidInputError: It names no signal, or one that cannot wait for a save.
    """
    if isinstance(choice, bool):
        return {signal.SIGTERM: END} if choice else {}
    if isinstance(choice, Mapping):
        for name, action in choice.items():
            if action not in (END, CONTINUE):
                raise InvalidInputError(
                    f"save_on_signal[{shown(name)}] is {shown(action)}; {END!r} or {CONTINUE!r} is "
                    "expected."
                )
        return {_signal(name): action for name, action in choice.items()}
    names = choice if isinstance(choice, Iterable) and not isinstance(choice, str) else (choice,)
    return {_signal(name): END for name in names}


def _signal(name: object) -> signal.Signals:
    number = getattr(signal.Signals, name, name) if isinstance(name, str) else name
    with suppress(ValueError):
        if isinstance(number, int) and signal.Signals(number).name in NAMES:
            return signal.Signals(number)
    raise InvalidInputError(
        f"save_on_signal names {shown(name)}; one of {', '.join(NAMES)} is expected."
    )


def is_loader_error(error: BaseException | None) -> bool:
    """Whether an error is that of a DataLoader whose workers have ended."""
    return isinstance(error, RuntimeError) and str(error).startswith(_LOADER_ERROR)


class Preemption:
    """The requests of the signals that one manager listens to, from `listen` until `close`.

    Attributes:
        is_asked: True once a signal asked to save and end.
        is_save_asked: True from a signal that asks to save and go on until `saved`.
        is_served: True once the manager has saved for the signal that ends the program.
        asked_by: The signal that asked to end.
    """

    def __init__(self, signals: Mapping[signal.Signals, str]) -> None:
        self.signals = signals
        self.is_asked = self.is_save_asked = self.is_served = False
        self.asked_by, self._asked_at = signal.SIGTERM, 0.0

    @property
    def exit_code(self) -> int:
        """The exit code that a shell reports for a program that the signal has ended."""
        return 128 + self.asked_by

    def listen(self) -> None:
        """Begin. InvalidInputError outside the main thread, where Python handles no signals."""
        if not self.signals:
            return
        if not _is_main_thread():
            raise InvalidInputError(
                "save_on_signal works in the main thread only. Create the manager there, or pass "
                "save_on_signal=False."
            )
        _listeners.add(self)
        _settle()

    def close(self) -> None:
        """End. No effect before `listen`."""
        _listeners.discard(self)
        _settle()

    def saved(self) -> None:
        """Note that a save has begun."""
        self.is_save_asked = False

    def serve(self) -> bool:
        """Note that the manager has saved; True when all others that were asked have, too."""
        self.is_served = True
        return all(other.is_served for other in list(_listeners) if other.is_asked)

    def quiet_loaders(self) -> None:
        """Let workers of a DataLoader that this signal ended stop the loop no sooner than a save.

        The loader would raise an error from its handler of SIGCHLD, between any two instructions
        of a step. It raises one anyway when the batches of its workers have run out.
        """
        if self.signals and _is_main_thread() and self in _listeners:
            handler = _current(_CHILD)
            if getattr(handler, "__module__", None) == _LOADERS:
                signal.signal(_CHILD, _QuietLoaders(handler))

    def has_ended_loader(self, error: BaseException | None) -> bool:
        """Whether an error is that of a DataLoader whose workers got the same signal."""
        return self.is_asked and not self.is_served and is_loader_error(error)

    def note(self, number: signal.Signals) -> None:
        """Note a signal."""
        if self.signals[number] == CONTINUE:
            self.is_save_asked = True
        elif not self.is_asked:
            self.is_asked, self.asked_by, self._asked_at = True, number, time.monotonic()

    def note_of_other(self, number: int) -> None:
        """Note a signal to end that another rank got. If it comes here too, it is the same one."""
        if not self.is_asked:
            self.is_asked, self.asked_by = True, signal.Signals(number)
            self._asked_at = math.inf

    def is_second(self, number: signal.Signals) -> bool:
        """Whether a signal comes when one to end was already noted, and is not that one again."""
        if self.signals[number] == CONTINUE or not self.is_asked:
            return False
        is_other = number != self.asked_by
        return is_other or time.monotonic() - self._asked_at > SAME_SECONDS

    def leave_to_parent(self) -> None:
        """Forget what the parent of this process was asked for."""
        self.is_asked = self.is_save_asked = self.is_served = False


class _Handler:
    """The handler of one signal. Once it is replaced, it does what the one before it would do."""

    def __init__(self, number: signal.Signals, before: Handler) -> None:
        self.number, self.before = number, before

    def __call__(self, _number: int, frame: FrameType | None) -> None:
        is_current = _handlers.get(self.number) is self
        listeners = _listening(self.number) if is_current else []
        if not listeners or any(listener.is_second(self.number) for listener in listeners):
            self._as_before(frame, ignores=not listeners)
        else:
            for listener in listeners:
                listener.note(self.number)

    def _as_before(self, frame: FrameType | None, *, ignores: bool) -> None:
        if callable(self.before):
            self.before(self.number, frame)
        elif not (ignores and self.before == signal.SIG_IGN):
            signal.signal(self.number, signal.SIG_DFL)
            signal.raise_signal(self.number)


class _QuietLoaders:
    """The handler of SIGCHLD, while a signal of a manager may have ended workers of a loader."""

    def __init__(self, before: Handler) -> None:
        self.before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self.before(number, frame)
        except RuntimeError as error:
            told = [signal.strsignal(one) for one in _handlers if _listening(one)]
            if not any(f"killed by signal: {text}" in str(error) for text in told):
                raise


# A manager that nobody holds any more listens no more.
_listeners: WeakSet[Preemption] = WeakSet()
_handlers: dict[signal.Signals, _Handler] = {}
_masks = threading.local()


def _listening(number: signal.Signals) -> list[Preemption]:
    return [listener for listener in list(_listeners) if number in listener.signals]


def _settle() -> None:
    """Install handlers for the signals that are listened for, and put the others back."""
    if not _is_main_thread():
        return  # later, in the main thread; until then a handler does what the one before did
    for number in {number for listener in list(_listeners) for number in listener.signals}:
        current = _current(number)
        if current is not _handlers.get(number, _handlers):
            _handlers[number] = _Handler(number, current or signal.SIG_DFL)
            signal.signal(number, _handlers[number])
    for number in [number for number in _handlers if not _listening(number)]:
        handler = _handlers.pop(number)
        if _current(number) is handler:  # else another program's handler came on top
            signal.signal(number, handler.before)
    loaders = _current(_CHILD)
    if not _handlers and isinstance(loaders, _QuietLoaders):
        signal.signal(_CHILD, loaders.before)


def _current(number: signal.Signals) -> Handler:
    return signal.getsignal(number)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


# A signal for a child that is just being forked would be noted by a handler that the child then
# loses, and never end it. So these signals wait until the child has its own handlers.


def _before_fork() -> None:
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, _handlers) if _handlers else None


def _after_fork() -> None:
    if _masks.before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _after_fork_in_child() -> None:
    """Leave the signals to the parent.

    A signal that asks to save and go on does not end the workers of a loader: they ignore it, where
    its default would be to end them.
    """
    for number, handler in _handlers.items():
        goes_on = all(listener.signals[number] == CONTINUE for listener in _listening(number))
        if _current(number) is handler:
            is_default = handler.before == signal.SIG_DFL
            signal.signal(number, signal.SIG_IGN if goes_on and is_default else handler.before)
    _handlers.clear()
    for listener in list(_listeners):
        listener.leave_to_parent()
    _listeners.clear()
    _settle()
    _after_fork()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
)
