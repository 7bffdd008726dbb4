"""A web server on 127.0.0.1 that publishes a folder, as `python -m http.server` does or worse."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path

MISSING_PAGE = b"<!DOCTYPE html><html><body>Not found. <a href='about'>About</a></body></html>"


class WebServer:
    """Serves a folder from `with` until the end of the block.

    Attributes:
        lists_folders: Whether a folder is answered with a page of its files; else with 403.
        has_ranges: Whether ranges are honoured.
        is_soft: Whether 200 and a page are answered for what is missing.
        fault: The fault of one answer with a body: "truncated", "flipped", "page" or 500.
        faulty: How many such answers come before it.
        moved_to: Where everything is redirected to.
        requests: Methods, paths and headers since the last `clear`.
    """

    def __init__(self, folder: Path) -> None:
        self.lists_folders = self.has_ranges = True
        self.is_soft = False
        self.fault: str | int | None = None
        self.faulty = 0
        self.moved_to: str | None = None
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self._lock = threading.Lock()
        handler = partial(_Handler, self, directory=str(folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def taken_fault(self) -> str | int | None:
        """The fault of this answer."""
        with self._lock:
            if self.fault is None or self.faulty:
                self.faulty = max(0, self.faulty - 1)
                return None
            fault, self.fault = self.fault, None
            return fault

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self._server.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def __init__(self, server: WebServer, *args: Any, **options: Any) -> None:
        self.mine = server
        super().__init__(*args, **options)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def _answer(self, *, has_body: bool) -> None:
        mine = self.mine
        mine.requests.append((self.command, self.path, dict(self.headers)))
        if mine.moved_to:
            self._send(302, b"", has_body=has_body, Location=mine.moved_to + self.path)
            return
        fault = mine.taken_fault() if has_body else None
        if fault == 500:
            self._send(500, b"", has_body=has_body)
            return
        path = self.translate_path(self.path)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except IsADirectoryError:
            if not mine.lists_folders:
                self._send(403, b"", has_body=has_body)
            elif has_body:
                super().do_GET()
            else:
                super().do_HEAD()
            return
        except OSError:
            status, page = (200, MISSING_PAGE) if mine.is_soft else (404, b"")
            self._send(status, page, has_body=has_body, **{"Content-Type": "text/html"})
            return
        if fault == "page":
            self._send(200, MISSING_PAGE, has_body=has_body, **{"Content-Type": "text/html"})
            return
        status, headers = 200, {"Content-Type": "application/octet-stream"}
        wanted = self.headers.get("Range")
        if wanted and mine.has_ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or len(data)) + 1, len(data))
            if begin >= len(data):
                self._send(416, b"InvalidRange", has_body=has_body)
                return
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
            status, data = 206, data[begin:end]
        if fault == "flipped" and data:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        self._send(status, data, has_body=has_body, is_cut=fault == "truncated", **headers)

    def _send(
        self, status: int, data: bytes, *, has_body: bool, is_cut: bool = False, **headers: str
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if has_body:
            self.wfile.write(data[: len(data) // 2] if is_cut else data)
        if is_cut:
            self.close_connection = True
