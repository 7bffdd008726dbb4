"""RankGroup: exchanges between the ranks of a training that end within a bounded time.

The collectives of torch wait for each rank, for half an hour by default, and a rank that died or
hangs is not named. Here values travel through the key-value store by which the ranks found one
another, over a connection and a thread of its own. So there is no traffic on the groups of the
training, whose collectives may run at any moment, and no device is needed. Each rank gives a sign
of life every few seconds. Rank 0 waits for all and the others for rank 0. Where a rank stays silent
or makes no progress, all others raise one RankError that names it.

Between ranks values are pickled, as torch does. It knows nothing of checkpoints. ADR 0070.
"""

from __future__ import annotations

import os
import pickle
import queue
import secrets
import sys
import threading
import time
import traceback
import weakref
from collections import Counter
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from ckptstore.errors import InvalidInputError, RankError, first_line, shown
from ckptstore.forks import renewed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    Store = Any  # of torch.distributed
    Watched = dict[int, tuple[bytes, float, float]]  # the sign of each rank; its last two changes

Value = TypeVar("Value")
Result = TypeVar("Result")

TIMEOUT_SECONDS: Final = 300.0
SILENT_SECONDS: Final = 60.0  # without a sign of life, after which a rank is given up
SIGN_SECONDS: Final = 5.0  # between two signs of life
PIECE_BYTES: Final = 4 << 20  # of a value; the server of torch takes 8 MiB
POLL_SECONDS: Final = (0.001, 0.05)  # the first and the longest pause between two looks

_numbers: Counter[str] = Counter()


class RankGroup:
    """The ranks of a training, of which each makes one, in the same order.

    Without a group of torch.distributed it consists of this process.

    Args:
        name: Of what is exchanged; the same on all ranks.
        group: A group of torch.distributed; None for all ranks.
        timeout: Seconds that a rank may take to come to a meeting, and, once there, from one object
            put to the next. A rank that gives no sign of life is given up after 60 s, or after
            `timeout` if that is less.

    Attributes:
        rank: The number of this process in the group. Rank 0 coordinates.
        size: The number of processes.
    """

    def __init__(self, name: str, *, group: Any = None, timeout: float = TIMEOUT_SECONDS) -> None:
        is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
        if not (is_number and 0 < timeout <= threading.TIMEOUT_MAX):
            raise InvalidInputError(f"timeout is {shown(timeout)}; seconds above 0 are expected.")
        self.timeout = float(timeout)
        self.silence = min(SILENT_SECONDS, self.timeout)
        self.rank, self.size, prefix, store = _found(group)
        base = f"ckptstore/{prefix}/{name}/{_numbers[f'{prefix}/{name}']}"
        _numbers[f"{prefix}/{name}"] += 1
        self._meetings = 0
        self.line: _Line | None = None
        if self.size > 1:
            interval = min(SIGN_SECONDS, self.silence / 8)
            greeting = _Greeting(base, self.rank, self.size)
            self.line = _Line(store, greeting, self.silence, interval)
            weakref.finalize(self, self.line.close)

    def close(self) -> None:
        """Give no more signs of life. The group is not used again."""
        if self.line is not None:
            self.line.close()

    @property
    def prefix(self) -> str:
        """The prefix of the keys of this group, once rank 0 has published it.

        Raises:
            RankError: Rank 0 does not come.
        """
        assert self.line is not None, "there are other ranks"
        end = time.monotonic() + self.timeout
        pause = POLL_SECONDS[0]
        while not (prefix := self.line.greeting.prefix):
            if not self.line.is_alive or time.monotonic() > end:
                error = TimeoutError(f"has not come within {self.timeout:g} s")
                raise RankError(
                    f"The ranks have not met: rank 0 {error}. End this run on all ranks and start "
                    "it again, from the last checkpoint, which is whole.",
                    {0: error},
                )
            time.sleep(pause)
            pause = min(pause * 1.5, POLL_SECONDS[1])
        return prefix

    def key_of_sign(self, rank: int) -> str:
        """Where a rank leaves its signs of life."""
        return _key_of_sign(self.prefix, rank)

    def advance(self) -> None:
        """Note that this rank makes progress with what the others wait for."""
        if self.line is not None:
            self.line.progress += 1

    def raise_flag(self, text: str) -> None:
        """Leave a text for the other ranks in place of an earlier one; none waits for it."""
        meeting = self._meeting("flag")
        meeting.call("set", f"{self.prefix}/flag/{self.rank}", text)
        meeting.call("add", f"{self.prefix}/flags", 1)

    @property
    def flags(self) -> int:
        """How often ranks have raised their flags."""
        return int(self._meeting("flag").call("add", f"{self.prefix}/flags", 0))

    def flag(self, rank: int) -> bytes:
        """Return the text that a rank has left; empty if it has left none."""
        return self._meeting("flag").get(f"{self.prefix}/flag/{rank}")

    def _meeting(self, purpose: str) -> Meeting:
        return Meeting(self, purpose, 0)

    def meeting(self, purpose: str) -> Meeting:
        """Return the next meeting of all ranks; every rank calls this in the same order.

        Args:
            purpose: For messages, such as "save of step 5".
        """
        self._meetings += 1
        return Meeting(self, purpose, self._meetings)


class Meeting:
    """Exchanges that belong together: all ranks do the same ones in the same order.

    It is entered for the exchanges, and for whatever this rank does to prepare them. When one rank
    leaves by an error the others raise a RankError. Later meetings are not affected.
    """

    def __init__(self, group: RankGroup, purpose: str, number: int) -> None:
        self._group, self._purpose, self._number = group, purpose, number
        self._exchanges = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Have the others raise an error of this rank."""
        if error is not None and not isinstance(error, RankError):
            self.give_up({self._group.rank: _picklable(error)})

    @property
    def _prefix(self) -> str:
        return f"{self._group.prefix}/{self._number}"

    def agree(
        self, work: Callable[[], Value], join: Callable[[list[Value]], Result] | None = None
    ) -> Result:
        """Have each rank do some work, and rank 0 join the results; all return what it makes.

        Args:
            work: Done on every rank.
            join: Done on rank 0, with the results of all ranks in their order. None returns these.

        Raises:
            RankError: A rank died, hangs or raised. Without other ranks, the error itself.
        """
        made: list[Result] = self._exchange(
            work, lambda values: [join(values) if join else values], is_same=True
        )
        return made[0]

    def told(self, work: Callable[[], Value]) -> Value:
        """Have rank 0 do some work; all return what it makes. Rank 0 waits for no other rank.

        Raises:
            RankError: Rank 0 died, hangs or raised. Without other ranks, the error itself.
        """
        group = self._group
        if group.line is None:
            return work()
        key, self._exchanges = f"{self._prefix}/{self._exchanges}", self._exchanges + 1
        if group.rank:
            value: Value = _checked(_unpickled(self._received({0: key})[0]))
            return value
        made = self._joined([_result(work)], lambda values: values)[0]
        self._send(key, pickle.dumps(made), readers=group.size - 1)
        told: Value = _checked(made)
        return told

    def divide(
        self, work: Callable[[], Value], join: Callable[[list[Value]], Sequence[Result]]
    ) -> Result:
        """Have each rank do some work, and rank 0 make of the results one part for each rank.

        Args:
            work: Done on every rank.
            join: Done on rank 0, with the results of all ranks in their order.

        Raises:
            RankError: A rank died, hangs or raised. Without other ranks, the error itself.
        """
        parts: Sequence[Result] = self._exchange(work, join, is_same=False)
        return parts[0]

    def _exchange(self, work: Any, join: Any, *, is_same: bool) -> Any:
        group = self._group
        if group.line is None:
            return join([work()])
        self._raise_failure()
        group.advance()
        key, self._exchanges = f"{self._prefix}/{self._exchanges}", self._exchanges + 1
        own = _result(work)
        group.advance()
        if group.rank:
            self._send(f"{key}/from/{group.rank}", pickle.dumps(own))
            name = f"{key}/to/{'all' if is_same else group.rank}"
            return [_checked(_unpickled(self._received({0: name})[0]))]
        others = self._received({n: f"{key}/from/{n}" for n in range(1, group.size)})
        self._raise_failure()
        parts = self._joined([own, *map(_unpickled, others.values())], join)
        self._raise_failure()  # others gave this rank up while it joined
        if is_same:
            self._send(f"{key}/to/all", pickle.dumps(parts[0]), readers=group.size - 1)
        else:
            for rank in range(1, group.size):
                self._send(f"{key}/to/{rank}", pickle.dumps(parts[rank]))
        return [_checked(parts[0])]

    def _joined(self, results: list[Any], join: Any) -> Any:
        """Join the results on rank 0 to parts for the ranks, or to an error for each of them."""
        failures = {n: one.error for n, one in enumerate(results) if isinstance(one, _Failed)}
        if not failures:
            parts = _result(lambda: join(results))
            if not isinstance(parts, _Failed):
                return parts
            failures = {0: parts.error}
        return [_Failed(self._error(failures))] * self._group.size

    def give_up(self, failures: dict[int, BaseException]) -> None:
        """Have all ranks raise an error, if possible; the first one counts."""
        if self._group.line is not None:
            with suppress(RankError):
                data = pickle.dumps(self._error(failures))
                self.call("compare_set", f"{self._prefix}/failed", "", data)

    def _error(self, failures: dict[int, BaseException]) -> RankError:
        texts = [f"rank {rank} {_told(error)}" for rank, error in sorted(failures.items())]
        more = f", and {len(texts) - 4} more" if len(texts) > 4 else ""
        is_lost = any(isinstance(error, TimeoutError) for error in failures.values())
        advice = (
            "End this run on all ranks and start it again, from the last checkpoint, which is whole"
            if is_lost
            else "The last checkpoint is whole"
        )
        return RankError(
            f"The {self._purpose} has failed on all {self._group.size} ranks: "
            f"{'; '.join(texts[:4])}{more}. {advice}.",
            failures,
        )

    def _raise_failure(self) -> None:
        if found := self.get(f"{self._prefix}/failed"):
            raise _unpickled(found)

    def _send(self, key: str, data: bytes, readers: int = 1) -> None:
        view = memoryview(data)
        pieces = range(0, len(data), PIECE_BYTES)
        for number, start in enumerate(pieces):
            self.call("set", f"{key}/{number}", bytes(view[start : start + PIECE_BYTES]))
            self._group.advance()
        self.call("set", key, f"{len(pieces)} {readers}")

    def _received(self, keys: dict[int, str]) -> dict[int, bytes]:
        """The data under keys, of which each is to come from a rank."""
        watch = _Watch(self._group, self, keys)
        pause = POLL_SECONDS[0]
        received = {}
        for rank, key in keys.items():
            while not self.call("check", [key]):
                self._raise_failure()
                if lost := watch.lost():
                    self.give_up(lost)
                    self._raise_failure()  # that of whoever was first
                    raise self._error(lost)
                time.sleep(pause)
                pause = min(pause * 1.5, POLL_SECONDS[1])
            received[rank] = self._read(key)
            del watch.keys[rank]
        return received

    def _read(self, key: str) -> bytes:
        """The data under a key; whoever reads it last deletes it."""
        count, readers = map(int, self.call("get", key).split())
        pieces = []
        for number in range(count):
            pieces.append(self.call("get", f"{key}/{number}"))
            self._group.advance()
        if readers == 1 or self.call("add", f"{key}/read", 1) == readers:
            for name in (key, f"{key}/read", *(f"{key}/{number}" for number in range(count))):
                self.call("delete_key", name)
        return b"".join(pieces)

    def get(self, key: str) -> bytes:
        """The data under a key; empty if there is none."""
        found: bytes = self.call("get", key) if self.call("check", [key]) else b""
        return found

    def call(self, method: str, *arguments: object) -> Any:
        """Call a method of the store.

        Raises:
            RankError: It does not answer.
        """
        assert self._group.line is not None, "there are other ranks"
        try:
            return self._group.line.call(method, *arguments)
        except (RuntimeError, TimeoutError) as error:  # torch's errors are RuntimeErrors
            is_of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            holder = "torchrun" if is_of_agent else "rank 0"
            raise RankError(
                f"The {self._purpose} has failed on rank {self._group.rank}: {holder}, by which "
                f"the ranks reach one another, does not answer and has died or hangs. End this run "
                "on all ranks and start it again, from the last checkpoint, which is whole.",
                {} if is_of_agent else {0: TimeoutError(first_line(error))},
            ) from None


class _Failed:
    """The error of a rank, in place of its result."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _result(work: Callable[[], object]) -> object:
    """The result of some work, or its error; both can be pickled."""
    try:
        result = work()
        pickle.dumps(result)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - torch's CheckpointException is no Exception
        return _Failed(_portable(error))
    return result


def _portable(error: BaseException) -> BaseException:
    """An error that can be pickled, with the traceback as a note."""
    error.add_note(traceback.format_exc())
    return _picklable(error)


def _picklable(error: BaseException) -> BaseException:
    """An error, or one with its text if it cannot be pickled."""
    try:
        _unpickled(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - an error of any class
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _unpickled(data: bytes) -> Any:
    """A value from another rank of this training, which runs the same program."""
    return pickle.loads(data)  # noqa: S301


def _checked(result: Any) -> Any:
    if isinstance(result, _Failed):
        raise result.error
    return result


def _told(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return str(error)
    text = shown(str(error), 400)[1:-1] if str(error) else "no message"
    return f"raised {type(error).__name__}: {text.rstrip('.')}"


class _Watch:
    """Notices ranks that give no sign of life, or make no progress, while this one waits."""

    def __init__(self, group: RankGroup, meeting: Meeting, keys: dict[int, str]) -> None:
        self.keys = dict(keys)
        self._group, self._meeting = group, meeting
        self._begin()

    def _begin(self) -> None:
        self._last = time.monotonic()
        self._seen: Watched = dict.fromkeys(self.keys, (b"", self._last, self._last))

    def lost(self) -> dict[int, BaseException]:
        """The ranks to give up, each with the reason."""
        group, now = self._group, time.monotonic()
        interval = min(SIGN_SECONDS, group.silence / 8)
        if now - self._last < interval:
            return {}
        if now - self._last > 4 * interval:  # this process was stopped, and sees it first
            self._begin()
        self._last = now
        if not group.rank:
            group.advance()  # its wait is bounded here, so the others wait for it
        found: dict[int, BaseException] = {}
        for rank, (sign, life, progress) in self._seen.items():
            if rank not in self.keys:
                continue
            new = self._meeting.get(group.key_of_sign(rank))
            if new != sign:
                life = now
            if new.split()[1:] != sign.split()[1:]:
                progress = now
            self._seen[rank] = new, life, progress
            if new and now - life > group.silence:
                found[rank] = TimeoutError(
                    f"has given no sign of life for {group.silence:g} s, so it has died or hangs"
                )
            elif now - progress > group.timeout:
                found[rank] = TimeoutError(
                    f"has made no progress for {group.timeout:g} s"
                    if new
                    else f"has not come within {group.timeout:g} s"
                )
        return {
            rank: error
            for rank, error in found.items()
            if not self._meeting.call("check", [self.keys[rank]])
        }


def _key_of_sign(prefix: str, rank: int) -> str:
    return f"{prefix}/sign/{rank}"


class _Greeting:
    """Agrees on keys that no earlier attempt of the run has used.

    torchrun starts all ranks again when one dies, and the store keeps what the former ones left.
    So rank 0 draws a number for the keys. Each other rank draws one to ask for it, which only a
    rank 0 of the same attempt answers.
    """

    def __init__(self, base: str, rank: int, size: int) -> None:
        self._base, self.rank = base, rank
        self._own = secrets.token_hex(8)
        self.prefix = "" if rank else f"{base}/{self._own}"
        self._pending = {} if rank else dict.fromkeys(range(1, size), b"")
        self._has_asked = False

    @property
    def is_done(self) -> bool:
        """True when this rank has nothing more to do for it."""
        return not self._pending if self.rank == 0 else bool(self.prefix)

    def go_on(self, store: Store) -> None:
        """Ask, or answer, as far as that is possible now."""
        if self.rank:
            if not self._has_asked:
                store.set(f"{self._base}/hello/{self.rank}", self._own)
                self._has_asked = True
            if store.check([f"{self._base}/welcome/{self._own}"]):
                self.prefix = store.get(f"{self._base}/welcome/{self._own}").decode()
            return
        for rank, answered in list(self._pending.items()):
            if store.check([_key_of_sign(self.prefix, rank)]):
                del self._pending[rank]
            elif store.check([f"{self._base}/hello/{rank}"]):
                asked = store.get(f"{self._base}/hello/{rank}")
                if asked != answered:
                    self._pending[rank] = asked
                    store.set(f"{self._base}/welcome/{asked.decode()}", self.prefix)


class _Line:
    """A connection to the store of the group, with a thread of its own.

    A call to a server that hangs never returns, not even after the timeout of the store. Its thread
    is then given up, and the caller raises.
    """

    def __init__(self, store: Store, greeting: _Greeting, seconds: float, interval: float) -> None:
        self.progress = 0
        self.greeting = greeting
        self._seconds, self._interval = seconds, interval
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._run, args=(store,), name="ckptstore-ranks", daemon=True
        )
        self._is_ended = False
        renewed(self, _Line._end)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """True until the thread ends, or is a parent's."""
        return not self._is_ended and self._thread.is_alive()

    def call(self, method: str, *arguments: object) -> Any:
        """Call a method of the store; TimeoutError when it does not answer."""
        if self._is_ended:
            raise RuntimeError("The group of ranks was closed, or belongs to a parent process.")
        done: Future[Any] = Future()
        self._jobs.put((done, method, arguments))
        return done.result(self._seconds)

    def close(self) -> None:
        """End the thread."""
        if not self._is_ended:
            self._end()
            self._jobs.put(None)
            self._thread.join(1)

    def _end(self) -> None:
        self._is_ended = True

    def _run(self, store: Store) -> None:
        connection = None
        signs, due, pause = 0, 0.0, POLL_SECONDS[0]
        greeting = self.greeting
        while True:
            if not greeting.is_done:
                with suppress(Exception):  # the next call raises it
                    connection = connection or store.clone()
                    greeting.go_on(connection)
            if greeting.prefix and time.monotonic() >= due:
                with suppress(Exception):
                    connection = connection or store.clone()
                    key = _key_of_sign(greeting.prefix, greeting.rank)
                    connection.set(key, f"{signs} {self.progress}")
                signs, due = signs + 1, time.monotonic() + self._interval
            wait = max(0.0, due - time.monotonic())
            if not greeting.is_done:
                wait, pause = pause, min(pause * 1.5, POLL_SECONDS[1])
            try:
                task = self._jobs.get(timeout=wait)
            except queue.Empty:
                continue
            if task is None:
                return
            done, method, arguments = task
            try:
                connection = connection or store.clone()
                done.set_result(getattr(connection, method)(*arguments))
            except Exception as error:  # noqa: BLE001 - the caller raises it
                done.set_exception(error)


def distributed() -> Any:
    """torch.distributed, if its group is initialised; or None."""
    home: Any = sys.modules.get("torch.distributed")
    return home if home is not None and home.is_available() and home.is_initialized() else None


def group_store() -> Any:
    """The key-value store of the group, through which its processes found each other; or None."""
    groups = sys.modules.get("torch.distributed.distributed_c10d")
    get: Any = getattr(groups, "_get_default_store", None)
    with suppress(ValueError, RuntimeError):  # there is no group
        return get() if get else None
    return None


def _found(group: Any) -> tuple[int, int, str, Store]:
    """The rank, the size, the name and the store of a group; a group of one has no store."""
    torch_groups = distributed()
    if torch_groups is None:
        return 0, 1, "", None
    rank, size = torch_groups.get_rank(group), torch_groups.get_world_size(group)
    if rank < 0:
        raise InvalidInputError("This process is no rank of the group that was passed.")
    return rank, size, "" if group is None else group.group_name, group_store()
