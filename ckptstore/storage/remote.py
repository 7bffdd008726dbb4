"""RemoteStorage: keys are objects in a bucket of S3, Google Cloud Storage, Azure or alike.

Every object is sent by one request, so it is there as a whole or not at all, and is durable once it
is acknowledged. `create` is a conditional put. A request that failed may have taken effect, and a
conflict does not mean that the key exists: both are decided by reading the key back.

A forked child of a process that has made requests would hang in the client's threads, which it does
not have. It gets an error instead. See docs/adr/0059.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import threading
import time
from collections import defaultdict
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptstore import moment
from ckptstore.errors import (
    CkptStoreError,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    StorageError,
    first_line,
)
from ckptstore.forks import free_in_child
from ckptstore.storage.copies import copy_bytes
from ckptstore.storage.diskless import DisklessStorage
from ckptstore.storage.protocol import Listed, check_key, refuse_foreign
from ckptstore.storage.remote_errors import RangeError, missing, reason, translated
from ckptstore.storage.requests import RefusedError, check_process, parts_of, sleep, wait
from ckptstore.threads import Workers, beside

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from typing_extensions import Buffer

    from ckptstore.moment import Moment
    from ckptstore.storage.protocol import Seen
    from ckptstore.storage.remote_url import RemoteUrl

HIDDEN = "tmp/"  # keys that no listing shows
ATTEMPTS = 8  # of a request
PAUSE_SECONDS, PAUSE_SECONDS_MAX = 0.1, 5.0  # between attempts: doubled each time, and scattered
LEASE_SECONDS = 300.0
LIST_KEYS = 1000  # a page of a listing
DELETE_KEYS = 1000  # the most keys that a server deletes by one request
DELETE_SECONDS = 120.0  # for these; far less than the margin of a gc (docs/adr/0060)
STREAM_BYTES = 2 << 20  # the parts in which an object is read; each takes a turn of three threads
QUICK_BYTES = 1 << 20  # a larger object may take longer than a document
PROBE_BYTES_MAX = 64 << 10  # of what a probe sends again
PROBE_SECONDS = 30.0  # since its put: far less than the grace of a gc (docs/adr/0078)
OTHERS_BYTES_MAX = 1 << 20  # more than this another writer's bytes are longer, they are not read


class Timeouts(NamedTuple):
    """How long requests may take, in seconds.

    Attributes:
        connect: Until a connection is there.
        quick: A whole request for a document or a small object.
        slow: A whole request for a large object, on a slow line.
        silence: While an object is read, until its next bytes come.
        retry: After which a request is not repeated any more.
    """

    connect: float = 5.0
    quick: float = 30.0
    slow: float = 600.0
    silence: float = 30.0
    retry: float = 60.0


class RemoteStorage(DisklessStorage):
    """Bytes by key, in a bucket.

    Args:
        url: Where.
        timeouts: How long requests may take.

    Raises:
        InvalidInputError: The URL cannot be used as it is.
    """

    def __init__(self, url: RemoteUrl, *, timeouts: Timeouts = Timeouts()) -> None:  # noqa: B008
        check_process()
        super().__init__(_locks[str(url)])
        self.url = str(url)
        self._url, self._timeouts = url, timeouts
        self._quick = _store(url, timeouts, timeouts.quick)
        self._reads = _store(url, timeouts, timeouts.slow, silence=timeouts.silence)
        self._writes = _store(url, timeouts, timeouts.slow)
        self._is_probed = False  # whether the server is known to honour conditions
        self._last_put: tuple[str, bytes, Moment] | None = None  # a small one, until then
        self._has_ranges = True
        self._has_rivals = False  # whether another caller was first to create the last key

    def prepare(self, keys: Collection[str]) -> None:
        """Refuse a place that holds other things, and a server that ignores conditions."""
        listed = self._tried(lambda: self._ask("list_with_delimiter_async", self._quick))
        names = {*listed["common_prefixes"], *(item["path"] for item in listed["objects"])}
        refuse_foreign(self._url.place, names, keys={*keys, HIDDEN})
        self._probe()

    def get(self, key: str, *, bytes_max: int) -> bytes:
        """Return all bytes of a key."""

        check_key(key)

        async def get() -> bytes:
            result = await self._request("get_async", self._reads, key)
            self._check_result(result, key)
            size = result.meta["size"]
            if size > bytes_max:
                raise CorruptError(f"{key} has {size} bytes; at most {bytes_max} are expected.")
            data = bytes(await result.bytes_async())
            if len(data) != size:
                raise StorageError(f"{key} in {self._url.place} came incomplete.")
            return data

        data: bytes = self._tried(lambda: wait(get), key)
        return data

    def read_into(
        self, key: str, buffer: memoryview, *, start: int | None = None, seen: Seen | None = None
    ) -> None:
        """Fill a buffer from position `start`, or with the whole key, part by part."""
        check_key(key)
        begin, length = start or 0, len(buffer)
        filled = 0  # kept over attempts, as `seen` takes each part once

        def read() -> None:
            nonlocal filled
            skipped = begin + filled
            end = begin + length if start is not None or filled else None
            if end is None or not self._has_ranges:
                result = self._ask("get_async", self._reads, key)
            else:
                result, skipped = self._ranged(key, skipped, end), 0
            self._check_result(result, key)
            size = result.meta["size"]
            if begin + length > size or (start is None and length != size):
                raise CorruptError(f"{key} has {size} bytes; {begin + length} are expected.")
            for part in _behind(skipped, parts_of(result.stream(min_chunk_size=STREAM_BYTES))):
                view = part[: length - filled]
                target = buffer[filled : filled + len(view)]
                copy_bytes(view, target)
                filled += len(view)
                if seen:
                    seen(target)
                if filled == length:
                    return
            raise StorageError(f"{key} in {self._url.place} came incomplete.")

        if length:
            try:
                self._tried(read, key)
            except RangeError:
                pass
            else:
                return
        size = self.size(key)
        if size is None:
            raise missing(key, self._url)
        if length or size < begin or (start is None and size):
            raise CorruptError(f"{key} has {size} bytes; {begin + length} are expected.")

    def _ranged(self, key: str, begin: int, end: int) -> Any:
        """Ask for a range; remember if the server has none, as many web servers."""
        from obstore.exceptions import NotSupportedError

        try:
            return self._ask("get_async", self._reads, key, options={"range": (begin, end)})
        except NotSupportedError:
            self._has_ranges = False
            raise

    def _check_result(self, result: Any, key: str) -> None:
        """Look at an answer before its bytes are read."""

    def put(self, key: str, data: Buffer) -> None:
        """Store bytes under a key by one request."""
        check_key(key)
        view = memoryview(data).cast("B")
        store = self._store_for(len(view))
        self._tried(
            lambda: self._ask("put_async", store, key, view, use_multipart=False), key, to=True
        )
        if not self._is_probed and len(view) <= PROBE_BYTES_MAX:
            self._last_put = (key, bytes(view), moment.now())

    def copy(self, key: str, to: str) -> None:
        """Have the server copy an object."""
        check_key(to)
        self._tried(lambda: self._ask("copy_async", self._writes, check_key(key), to), key)

    def create(self, key: str, data: Buffer, *, seen: Seen | None = None) -> bool:
        """Store bytes under a key unless it exists; an unclear answer is cleared by a look.

        The first one of a process also finds out whether the server honours conditions: what was
        put last is created again meanwhile, else this key afterwards, by the same bytes.
        """
        check_key(key)
        copied = bytes(data)
        create = partial(self._create, key, copied, seen)
        last_put, self._last_put = self._last_put, None
        if self._is_probed or last_put is None or last_put[2].seconds_ago > PROBE_SECONDS:
            is_new = create()
        else:
            is_new, self._is_probed = beside(create, partial(self._is_refused, *last_put[:2]))
        self._has_rivals = not is_new
        if self._has_rivals:
            return False
        if not self._is_probed:
            has_overwritten = False
            with suppress(StorageError):  # the key is there, so a look that fails changes nothing
                has_overwritten = self._create_once(key, copied)  # harmless: by the same bytes
                self._is_probed = not has_overwritten
            if has_overwritten:
                raise self._ignores_conditions()
        return True

    def delete(self, keys: Iterable[str]) -> None:
        """Remove keys, as many as a request takes at a time.

        For each of these it ends within minutes, so that a gc knows when nothing is sent any more.
        """
        batch: list[str] = []
        for key in dict.fromkeys(keys):
            batch.append(check_key(key))
            if len(batch) == DELETE_KEYS:
                self._delete(batch)
                batch.clear()
        if batch:
            self._delete(batch)

    def _delete(self, keys: Sequence[str]) -> None:
        """Remove the keys of one request, or one by one if the server minds missing ones."""
        end = time.monotonic() + DELETE_SECONDS

        def delete(keys: Sequence[str]) -> None:
            left = end - time.monotonic()
            if left <= 0:
                raise RefusedError(
                    f"{len(keys)} keys in {self._url.place} could not be deleted within "
                    f"{DELETE_SECONDS:.0f} s. Retry."
                )
            try:
                self._ask("delete_async", self._quick, list(keys), within=left)
            except FileNotFoundError:  # a server that minds missing keys, one of several
                for key in keys if len(keys) > 1 else ():
                    self._tried(lambda key=key: delete([key]))  # type: ignore[misc]

        self._tried(lambda: delete(keys))

    def list(self, prefix: str) -> Iterator[Listed]:
        """List every key under a folder; goes on behind the last key after an error."""
        after: str | None = None
        attempt = 0
        while True:
            try:
                for page in self._pages(prefix, after):
                    for item in page:
                        after = key = item["path"]
                        if key.startswith(prefix) and not key.startswith(HIDDEN):
                            yield Listed(key, item["size"], item["last_modified"].timestamp())
                    attempt = 0
            except Exception as error:  # noqa: BLE001  whatever the client raises
                attempt += 1
                failed = translated(error, self._url)
                if isinstance(failed, RefusedError) or attempt == ATTEMPTS:
                    raise failed from None
                _pause(attempt)
            else:
                return

    def size(self, key: str) -> int | None:
        """Return the size of a key, or None."""
        check_key(key)
        try:
            head = self._tried(lambda: self._ask("head_async", self._quick, key), key)
        except NotFoundError:
            return None
        return int(head["size"])

    def now(self) -> float:
        """Return the time that the server gives to an object that is put now."""
        key = f"{HIDDEN}clock"
        self.put(key, secrets.token_bytes(8))
        time_put = self._hidden().get(key)
        if time_put is None:
            raise self._lists_late()
        return time_put

    @property
    def is_far(self) -> bool:
        """Return True."""
        return True

    @property
    def lease_seconds(self) -> float:
        """Return the time after which a gc that died may be taken over."""
        return LEASE_SECONDS

    def _ask(self, name: str, *args: Any, within: float | None = None, **options: Any) -> Any:
        """Call a function of the client and wait for its answer, some seconds at most."""
        return wait(lambda: asyncio.wait_for(self._request(name, *args, **options), within))

    async def _request(self, name: str, *args: Any, **options: Any) -> Any:
        """Call a function of the client."""
        import obstore

        return await getattr(obstore, name)(*args, **options)

    def _store_for(self, size: int) -> Any:
        return self._quick if size <= QUICK_BYTES else self._writes

    def _pages(self, prefix: str, after: str | None = None) -> Iterator[Sequence[Any]]:
        """The pages of a listing."""
        import obstore

        check_process()
        return parts_of(  # type: ignore[no-any-return]
            obstore.list(self._quick, prefix.strip("/") or None, offset=after, chunk_size=LIST_KEYS)
        )

    def _hidden(self) -> dict[str, float]:
        """The hidden keys, and when they were put."""
        return self._tried(  # type: ignore[no-any-return]
            lambda: {
                item["path"]: item["last_modified"].timestamp()
                for page in self._pages(HIDDEN)
                for item in page
            }
        )

    def _create(self, key: str, data: bytes, seen: Seen | None = None) -> bool:
        """Create a key; decide by a look where the answer decides nothing.

        While others are often first, that look is under way with the first request.
        """
        error: Exception | None = None
        get = partial(self.get, key, bytes_max=len(data) + OTHERS_BYTES_MAX)
        for attempt in range(ATTEMPTS):
            looks: list[Callable[[], bytes]] = [get]
            if attempt:
                _pause(attempt)
            with Workers(1, is_ahead=True) as workers:
                if self._has_rivals and not attempt:
                    looks.insert(0, workers.submit(get).result)
                try:
                    if self._create_once(key, data):
                        return True
                    error = None
                except StorageError as failed:
                    if isinstance(failed, RefusedError):
                        raise
                    error = failed
            for look in looks:
                try:
                    found = look()
                except CorruptError:  # longer, so it is another writer's
                    return False
                except NotFoundError:  # a conflict with what is gone, or a request that was lost
                    continue
                if seen and found != data:
                    seen(memoryview(found))
                return found == data
        raise StorageError(
            f"{key} could not be created in {self._url.place}: the server answers "
            f"{'conflict' if error is None else first_line(error)!r} {ATTEMPTS} times, and the key "
            "is not there. Retry."
        ) from error

    def _create_once(self, key: str, data: bytes) -> bool:
        """Send one conditional put; False if the server says that the key exists."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            self._ask("put_async", self._quick, key, data, mode="create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return False
        except Exception as error:  # noqa: BLE001
            raise translated(error, self._url, key, to=True) from None
        return True

    def _is_refused(self, key: str, data: bytes) -> bool:
        """Return True if the server refuses to create a key again; False if that is not known."""
        with suppress(CkptStoreError):
            return not self._create_once(key, data)
        return False

    def _probe(self) -> None:
        """Find out whether the server honours conditions and lists what it was given."""
        key = f"{HIDDEN}probe-{secrets.token_hex(8)}"
        try:
            if not self._create(key, b"first"):
                raise StorageError(f"{self._url.place} has a key that was never created: {key}.")
            if self._create_once(key, b"second") or self.get(key, bytes_max=9) != b"first":
                raise self._ignores_conditions()
            if key not in self._hidden():
                raise self._lists_late()
        finally:
            self.delete([key])
        self._is_probed = True

    def _lists_late(self) -> StorageError:
        return RefusedError(
            f"{self._url.place} is on a server that does not list at once what it was given, which "
            "a repository needs. Use another server."
        )

    def _ignores_conditions(self) -> StorageError:
        return RefusedError(
            f"{self._url.place} is on a server that ignores conditions (If-None-Match: *), so two "
            "writers would overwrite each other. Use another server."
        )

    def _tried(self, call: Callable[[], Any], key: str = "", *, to: bool = False) -> Any:
        """Make a request that may be repeated, until it succeeds or fails for good."""
        end = time.monotonic() + self._timeouts.retry
        attempt = 0
        while True:
            attempt += 1
            try:
                return call()
            except (CorruptError, NotFoundError, InvalidInputError):
                raise
            except Exception as error:  # noqa: BLE001
                failed = translated(error, self._url, key, to=to)
                is_final = isinstance(failed, (NotFoundError, RefusedError))
                if is_final or attempt == ATTEMPTS or time.monotonic() > end:
                    raise failed from None
            _pause(attempt)


def _behind(skipped: int, parts: Iterable[Buffer]) -> Iterator[memoryview]:
    """The parts behind so many bytes, for a server that has no ranges."""
    for part in parts:
        view = memoryview(part)
        if skipped < len(view):
            yield view[skipped:]
        skipped = max(0, skipped - len(view))


_locks: defaultdict[str, threading.Lock] = defaultdict(lambda: free_in_child(threading.Lock()))


def _store(
    url: RemoteUrl, timeouts: Timeouts, whole: float, *, silence: float | None = None
) -> Any:
    """A store of the client, whose requests end after a time."""
    from obstore import store

    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=timeouts.connect),
        "timeout": timedelta(seconds=whole),
        "user_agent": "ckptstore",
        "allow_http": url.is_plain,
    }
    if silence is not None:
        client["read_timeout"] = timedelta(seconds=silence)
    endpoint = url.endpoint
    retry: Any = {
        "max_retries": 0,  # see `_tried`
        "retry_timeout": timedelta(seconds=timeouts.retry),
    }
    if url.is_web:
        return _web_store(url.address, client, retry)
    shared: dict[str, Any] = {
        "prefix": url.prefix or None,
        "client_options": client,
        "retry_config": retry,
    }
    if endpoint is not None:
        shared["base_url" if url.kind == "gs" else "endpoint"] = endpoint
    if url.is_anonymous:
        shared["skip_signature"] = True
    try:
        if url.kind == "s3":
            if "region" in url.options:
                shared["region"] = url.options["region"]
            if "profile" in url.options:
                shared["credential_provider"] = _profile(url.options["profile"])
            return store.S3Store(url.bucket, **shared)
        if url.kind == "gs":
            return store.GCSStore(url.bucket, **shared)
        if "account" in url.options:
            shared["account_name"] = url.options["account"]
        return store.AzureStore(url.bucket, **shared)
    except InvalidInputError:
        raise
    except Exception as error:
        raise InvalidInputError(
            f"{url.place} cannot be used: {reason(error)} Credentials come from {url.sources}."
        ) from error


def _web_store(address: str, client: Any, retry: Any) -> Any:
    """A store of the client for a web server, past what caches on the way may have of it."""
    from obstore.store import HTTPStore

    client["default_headers"] = {"Cache-Control": "no-cache"}
    return HTTPStore.from_url(address, client_options=client, retry_config=retry)


def _profile(name: str) -> Any:
    """The credentials of a profile of the AWS command line."""
    try:
        import boto3  # type: ignore[import-not-found, import-untyped, unused-ignore]
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise InvalidInputError(
            "The option profile needs boto3, which reads profiles: pip install boto3."
        ) from error
    try:
        return Boto3CredentialProvider(boto3.Session(profile_name=name))
    except Exception as error:
        raise InvalidInputError(f"The profile {name!r} cannot be used: {error}") from error


def _pause(attempt: int) -> None:
    """Wait before the next attempt, scattered so that writers do not meet again."""
    pause = min(PAUSE_SECONDS * 2 ** (attempt - 1), PAUSE_SECONDS_MAX)
    sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
