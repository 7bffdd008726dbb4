"""S3Server: a small object store on 127.0.0.1, in a thread, that can be slow, wrong and unlucky.

It speaks the part of the S3 protocol that `ckptstore.storage.remote` uses, and the conditional
header of Google Cloud Storage. It keeps objects in memory, takes any credentials, counts requests
and has faults injected by a function. It is for tests: of this machine, and of anybody's.

Example:
    >>> from ckptstore.testing.s3_server import S3Server
    >>> with S3Server() as server:
    ...     server.url("runs").partition("?")[0]
    's3://bucket/runs'
"""

from __future__ import annotations

import asyncio
import re
import threading
from calendar import timegm
from collections import Counter
from dataclasses import dataclass, field
from email.utils import formatdate
from time import gmtime, strftime, strptime, time
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

from blake3 import blake3

if TYPE_CHECKING:
    from collections.abc import Callable

BUCKET = "bucket"
PAGE_KEYS = 1000  # the most keys in one page of a listing
FAULTS = (
    "reset",  # the connection is reset before the request takes effect
    "dropped",  # the request takes effect, and the connection is closed without an answer
    "truncated",  # the answer ends in the middle of its body
    "flipped",  # one bit of the body of the answer is another
    "conflict",  # 409, as of a create beside a delete
    "throttled",  # 429
    "error",  # 500
    "unavailable",  # 503
    "duplicated",  # the request takes effect twice; the second answer is returned
    "stalled",  # no answer for `stall_seconds`
)
_KEY = re.compile("<Key>(.*?)</Key>")
_SIGNER = re.compile("Credential=([^/]+)/")
_CONFLICT = b"<Error><Code>ConditionalRequestConflict</Code></Error>"
_CODES = {"conflict": 409, "throttled": 429, "error": 500, "unavailable": 503}
_REASONS = {200: "OK", 204: "No Content", 206: "Partial Content", 404: "Not Found"}


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        kind: "get", "put", "create" (a put that may only create), "copy", "head", "delete",
            "list", or "delete_many".
        key: The key with the prefix of its store, or the prefix of a listing.
        number: How many requests came before it.
        signer: The access key that signed it; "" for none, or for one of Google.
    """

    kind: str
    key: str
    number: int
    signer: str = ""


@dataclass(slots=True)
class _Object:
    data: bytes
    modified: float = field(default_factory=time)
    etag: str = field(init=False)  # like that of S3, the same for the same bytes

    def __post_init__(self) -> None:
        self.etag = f'"{blake3(self.data).hexdigest(length=16)}"'


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, before a fault is applied to it.

    Attributes:
        status: The status of HTTP.
        body: The body, also of an answer to HEAD, which sends only its length.
        headers: The names and values of further headers.
    """

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


class S3Server:
    """An object store on a free port of 127.0.0.1, from `with` until the end of the block.

    Args:
        latency: Seconds that each request waits before it takes effect.
        fault: Called with each request; returns one of `FAULTS` to inject, or None.
        ignores_conditions: Create over what is there, as some servers do.
        stall_seconds: How long a stalled request goes without an answer.
        signed_seconds: The age of a signature from which on a request is refused. S3 does so after
            15 minutes.

    Attributes:
        counts: The number of requests of each kind since the last `counts.clear()`.
        objects: The keys that are kept, with their bucket and prefix, and their bytes.
    """

    def __init__(
        self,
        *,
        latency: float = 0.0,
        fault: Callable[[Request], str | None] = lambda request: None,
        ignores_conditions: bool = False,
        stall_seconds: float = 5.0,
        signed_seconds: float = 900.0,
    ) -> None:
        self.signed_seconds = signed_seconds
        self.latency, self.fault = latency, fault
        self.ignores_conditions, self.stall_seconds = ignores_conditions, stall_seconds
        self.counts: Counter[str] = Counter()
        self._objects: dict[str, _Object] = {}
        self._lock = threading.Lock()
        self._number = 0
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="s3-server", daemon=True)
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *error: object) -> None:
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)
        self._thread.join()

    @property
    def endpoint(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def objects(self) -> dict[str, bytes]:
        """The bytes of every object, by bucket and key."""
        with self._lock:
            return {key: item.data for key, item in self._objects.items()}

    def url(self, prefix: str = "") -> str:
        """The URL of a storage here, for `ckptstore.open` with credentials in the environment."""
        return f"s3://{BUCKET}/{prefix}?endpoint={quote(self.endpoint, safe='')}&region=us-east-1"

    def damage(self, key: str, data: bytes | None, *, modified: float | None = None) -> None:
        """Replace the bytes of an object behind everyone's back, or remove it.

        Args:
            key: The key after its bucket.
            data: The new bytes; None to remove it.
            modified: When it was put, in seconds since 1970; now when None.
        """
        name = f"{BUCKET}/{key}"
        with self._lock:
            if data is None:
                del self._objects[name]
            else:
                self._objects[name] = _Object(data, time() if modified is None else modified)

    def _run(self) -> None:
        self._loop = loop = asyncio.new_event_loop()
        server = loop.run_until_complete(
            asyncio.start_server(self._accepted, "127.0.0.1", 0, limit=1 << 20, backlog=256)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        loop.run_forever()
        server.close()
        for task in list(self._connections):
            task.cancel()
        if self._connections:
            loop.run_until_complete(asyncio.gather(*self._connections, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._serve(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False when the connection is to be closed."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ", 2)
        pairs = (line.partition(":") for line in head[1:] if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        request = self._request(method, target, headers)
        fault = self.fault(request)
        if self.latency:
            await asyncio.sleep(self.latency)
        if fault == "reset":
            return False
        if fault == "stalled":
            await asyncio.sleep(self.stall_seconds)
            return False
        if fault in _CODES:
            answer = Answer(_CODES[fault], _CONFLICT if fault == "conflict" else b"")
        elif _age(headers) > self.signed_seconds:
            answer = _OLD
        else:
            if fault == "duplicated":
                await self.answer(request, target, headers, body)
            answer = await self.answer(request, target, headers, body)
        if fault == "dropped":
            return False
        return await _send(writer, answer, fault, has_body=method != "HEAD")

    def _request(self, method: str, target: str, headers: dict[str, str]) -> Request:
        parts = urlsplit(target)
        query = parse_qs(parts.query, keep_blank_values=True)
        key = unquote(parts.path).lstrip("/")
        kind = method.lower()
        if method == "PUT" and _copied_from(headers):
            kind = "copy"
        elif method == "PUT" and _is_create(headers):
            kind = "create"
        elif "list-type" in query:
            kind, key = "list", f"{key.rstrip('/')}/{query.get('prefix', [''])[0]}"
        elif "delete" in query:
            kind = "delete_many"
        with self._lock:
            number, self._number = self._number, self._number + 1
            self.counts[kind] += 1
        signed = _SIGNER.search(headers.get("authorization", ""))
        return Request(kind, key, number, signed[1] if signed else "")

    async def answer(
        self, request: Request, target: str, headers: dict[str, str], body: bytes
    ) -> Answer:
        """Carry a request out.

        Args:
            request: The request.
            target: Its path and query.
            headers: Its headers, by names in lower case.
            body: Its body.
        """
        with self._lock:
            if request.kind == "list":
                return self._listing(target)
            if request.kind == "delete_many":
                return self._delete_many(request.key, body)
            if request.kind in ("put", "create", "copy"):
                return self._put(request, headers, body)
            if request.kind == "delete":
                self._objects.pop(request.key, None)
                return Answer(204)
            return self._get(request.key, headers)

    def _put(self, request: Request, headers: dict[str, str], body: bytes) -> Answer:
        if request.kind == "copy":
            source = self._objects.get(_copied_from(headers))
            if source is None:
                return _missing(request.key)
            item = self._objects[request.key] = _Object(source.data)
            return Answer(
                body=f"<CopyObjectResult><ETag>{escape(item.etag)}</ETag></CopyObjectResult>".encode()
            )
        is_there = request.key in self._objects
        if request.kind == "create" and is_there and not self.ignores_conditions:
            return Answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        item = self._objects[request.key] = _Object(body)
        return Answer(headers=(("ETag", item.etag), ("x-goog-generation", str(request.number + 1))))

    def _get(self, key: str, headers: dict[str, str]) -> Answer:
        item = self._objects.get(key)
        if item is None:
            return _missing(key)
        shared = (
            ("ETag", item.etag),
            ("Last-Modified", formatdate(item.modified, usegmt=True)),
            ("Accept-Ranges", "bytes"),
        )
        wanted = headers.get("range", "")
        if not wanted:
            return Answer(200, item.data, shared)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        begin = int(first)
        end = min(int(last) + 1 if last else len(item.data), len(item.data))
        if begin >= len(item.data):
            return Answer(416, b"<Error><Code>InvalidRange</Code></Error>")
        content_range = ("Content-Range", f"bytes {begin}-{end - 1}/{len(item.data)}")
        return Answer(206, item.data[begin:end], (*shared, content_range))

    def _delete_many(self, bucket: str, body: bytes) -> Answer:
        keys = _KEY.findall(body.decode())
        for key in keys:
            self._objects.pop(f"{bucket.strip('/')}/{unescape(key)}", None)
        deleted = [f"<Deleted><Key>{key}</Key></Deleted>" for key in keys]
        return Answer(body=f"<DeleteResult>{''.join(deleted)}</DeleteResult>".encode())

    def _listing(self, target: str) -> Answer:
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        bucket = unquote(parts.path).strip("/")
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        begin = len(bucket) + 1
        names = sorted(
            name[begin:]
            for name in self._objects
            if name.startswith(f"{bucket}/{prefix}") and name[begin:] > after
        )
        rows: list[str] = []
        folders: dict[str, None] = {}
        last = ""
        for name in names:
            if len(rows) + len(folders) >= PAGE_KEYS:
                break
            last = name
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders[prefix + rest.partition(delimiter)[0] + delimiter] = None
                continue
            item = self._objects[f"{bucket}/{name}"]
            rows.append(
                f"<Contents><Key>{escape(name)}</Key><Size>{len(item.data)}</Size>"
                f"<LastModified>{_iso(item.modified)}</LastModified>"
                f"<ETag>{escape(item.etag)}</ETag></Contents>"
            )
        rows += [
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders
        ]
        if names and last != names[-1]:
            token = escape(last)
            rows.append(f"<NextContinuationToken>{token}</NextContinuationToken>")
        is_cut = str(bool(names) and last != names[-1]).lower()
        return Answer(
            body=(
                '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>'
                f"<IsTruncated>{is_cut}</IsTruncated>{''.join(rows)}</ListBucketResult>"
            ).encode()
        )


_OLD = Answer(403, b"<Error><Code>RequestTimeTooSkewed</Code></Error>")


def _age(headers: dict[str, str]) -> float:
    """The seconds since a request was signed; 0 if that is not known."""
    signed = headers.get("x-amz-date")
    return time() - timegm(strptime(signed, "%Y%m%dT%H%M%SZ")) if signed else 0.0


async def _send(
    writer: asyncio.StreamWriter, answer: Answer, fault: str | None, *, has_body: bool
) -> bool:
    """Write an answer; False when the connection is to be closed."""
    body = answer.body
    lines = [f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, 'Error')}"]
    lines += [f"{name}: {value}" for name, value in answer.headers]
    lines += [f"Content-Length: {len(body)}", f"Date: {formatdate(usegmt=True)}", "", ""]
    writer.write("\r\n".join(lines).encode("latin-1"))
    if not has_body:
        body = b""
    if fault == "flipped" and body:
        middle = len(body) // 2
        body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    is_cut = fault == "truncated" and bool(body)
    writer.write(body[: len(body) // 2] if is_cut else body)
    await writer.drain()
    return not is_cut


def _copied_from(headers: dict[str, str]) -> str:
    """The bucket and key that a request copies; "" for any other request."""
    source = headers.get("x-amz-copy-source") or headers.get("x-goog-copy-source") or ""
    return unquote(source).lstrip("/")


def _is_create(headers: dict[str, str]) -> bool:
    return headers.get("if-none-match") == "*" or headers.get("x-goog-if-generation-match") == "0"


def _missing(key: str) -> Answer:
    return Answer(404, f"<Error><Code>NoSuchKey</Code><Key>{escape(key)}</Key></Error>".encode())


def _iso(seconds: float) -> str:
    return strftime("%Y-%m-%dT%H:%M:%S.000Z", gmtime(seconds))
