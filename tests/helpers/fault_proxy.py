"""A proxy on 127.0.0.1 that gives another server the faults, latency and counts of ours."""

from __future__ import annotations

import asyncio
from typing import Any

from ckptstore.testing.s3_server import Answer, Request, S3Server

_METHODS = {"get": "GET", "list": "GET", "head": "HEAD", "delete": "DELETE", "delete_many": "POST"}
_OWN = {"content-length", "transfer-encoding", "connection", "keep-alive", "date", "server"}


class FaultProxy(S3Server):
    """Answers as the server on another port does, except for the faults.

    Args:
        port: That of the other server.
        options: Those of S3Server.
    """

    def __init__(self, port: int, **options: Any) -> None:
        super().__init__(**options)
        self._upstream = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def answer(
        self, request: Request, target: str, headers: dict[str, str], body: bytes
    ) -> Answer:
        """Pass a request on, as often as it takes to find a connection that is open."""
        method = _METHODS.get(request.kind, "PUT")
        lines = [f"{method} {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items() if name != "connection"]
        message = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
        while self._idle:
            try:
                return await self._exchanged(*self._idle.pop(), message, method)
            except (ConnectionError, asyncio.IncompleteReadError):
                continue
        reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream, limit=1 << 20)
        return await self._exchanged(reader, writer, message, method)

    def __exit__(self, *error: object) -> None:
        assert self._loop
        self._loop.call_soon_threadsafe(lambda: [writer.close() for _, writer in self._idle])
        super().__exit__(*error)

    async def _exchanged(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        message: bytes,
        method: str,
    ) -> Answer:
        try:
            answer, is_open = await self._sent(reader, writer, message, method)
        except BaseException:
            writer.close()
            raise
        if is_open:
            self._idle.append((reader, writer))
        else:
            writer.close()
        return answer

    @staticmethod
    async def _sent(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes, method: str
    ) -> tuple[Answer, bool]:
        """The answer to a message, and whether the connection can be used again."""
        writer.write(message)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        version, status, *_ = head[0].split(" ")
        pairs = [line.partition(":") for line in head[1:] if line]
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        length = int(headers.get("content-length", "0"))
        if method == "HEAD" or status in ("204", "304"):
            body = bytes(length)  # of which only the length is sent
        elif headers.get("transfer-encoding", "").lower() == "chunked":
            body = b"".join([part async for part in _chunks(reader)])
        else:
            body = await reader.readexactly(length)
        is_open = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
        passed = tuple((name, value) for name, value in headers.items() if name not in _OWN)
        return Answer(int(status), body, passed), is_open


async def _chunks(reader: asyncio.StreamReader) -> Any:
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
