"""Object stores of other people, as judges of ours: ministack, moto, Azurite and rclone.

Each is a process on a free port of 127.0.0.1, which ends with its `with` block, and also if this
process is killed. They keep objects in memory, or in a folder that is deleted, and take any
credentials but Azurite, which has a public account for tests.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.helpers import until_closed

if TYPE_CHECKING:
    from collections.abc import Iterator

BUCKET = "bucket"
STARTS = 3  # in case another program takes the port
READY_SECONDS = 120.0  # on a machine with much else to do
AZURITE = Path(sys.prefix) / "azurite" / "node_modules" / ".bin" / "azurite-blob"
ACCOUNT = "devstoreaccount1"
# Published with Azurite, for its account of the same name.
ACCOUNT_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
AWS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
AZURE = {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY}


@dataclass(frozen=True, slots=True)
class Judge:
    """A server that runs.

    Attributes:
        kind: "s3" or "az", the scheme of its URLs.
        port: Where it listens, on 127.0.0.1.
        path: The beginning of the path of its addresses, which names the account.
        credentials: Environment variables with what it takes.
    """

    kind: str
    port: int
    path: str = ""
    credentials: Mapping[str, str] = field(default_factory=lambda: AWS)

    def url(self, prefix: str = "", *, port: int | None = None) -> str:
        """The URL of a storage here, or behind a proxy on another port."""
        endpoint = quote(f"http://127.0.0.1:{port or self.port}{self.path}", safe="")
        region = "&region=us-east-1" if self.kind == "s3" else ""
        return f"{self.kind}://{BUCKET}/{prefix}?endpoint={endpoint}{region}"


@contextmanager
def ministack() -> Iterator[Judge]:
    """ministack, which is installed with the tools of development."""

    def command(port: int, folder: str) -> list[str]:
        return [sys.executable, "-m", "ministack"]

    def environment(port: int) -> dict[str, str]:
        return {
            "BIND_HOST": "127.0.0.1",  # else all addresses
            "GATEWAY_PORT": str(port),
            "SERVICES": "s3",
            "LOG_LEVEL": "WARNING",
            "SFTP_ENABLED": "0",
        }

    with _running(command, environment) as port:
        _asked(port, "PUT", f"/{BUCKET}")
        yield Judge("s3", port)


@contextmanager
def moto() -> Iterator[Judge]:
    """moto's server, which `make test-deep` installs."""

    def command(port: int, folder: str) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]

    with _running(command, lambda port: {}) as port:
        _asked(port, "PUT", f"/{BUCKET}")
        yield Judge("s3", port)


@contextmanager
def azurite() -> Iterator[Judge]:
    """Azurite, which `make test-deep` installs by npm."""

    def command(port: int, folder: str) -> list[str]:
        options = ["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--location", folder]
        return [str(AZURITE), *options, "--blobHost", "127.0.0.1", "--blobPort", str(port)]

    with _running(command, lambda port: {}) as port:
        path = f"/{ACCOUNT}/{BUCKET}?restype=container"
        _asked(port, "PUT", path, _signed(path))
        yield Judge("az", port, f"/{ACCOUNT}", AZURE)


@contextmanager
def rclone() -> Iterator[Judge]:
    """`rclone serve s3`, which ignores conditions. `make test-deep` installs it."""

    def command(port: int, folder: str) -> list[str]:
        (Path(folder) / BUCKET).mkdir(exist_ok=True)
        program = Path(sys.prefix) / "bin" / "rclone"
        return [str(program), "serve", "s3", "--addr", f"127.0.0.1:{port}", folder]

    with _running(command, lambda port: {}) as port:
        yield Judge("s3", port)


JUDGES: Mapping[str, Callable[[], AbstractContextManager[Judge]]] = {
    "ministack": ministack,
    "moto": moto,
    "azurite": azurite,
}


@contextmanager
def _running(
    command: Callable[[int, str], list[str]], environment: Callable[[int], dict[str, str]]
) -> Iterator[int]:
    """Run a server until the end of the block; gives its port."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    folder = tempfile.mkdtemp(prefix="ckptstore-judge-")
    try:
        with open(Path(folder) / "log", "w+b") as log:
            for _ in range(STARTS):
                port = _free_port()
                process = subprocess.Popen(
                    [sys.executable, until_closed.__file__, *command(port, folder)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    cwd=folder,
                    env={**kept, "HOME": folder, "TMPDIR": folder, **environment(port)},
                    start_new_session=True,  # Ctrl-C is for the tests, which end it then
                )
                try:
                    if _is_ready(process, port):
                        yield port
                        return
                finally:
                    assert process.stdin
                    process.stdin.close()
                    process.wait()
            log.seek(0)
            raise RuntimeError(f"The server does not start: {log.read().decode()}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _is_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until a server answers; False if it has ended."""
    end = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            _asked(port, "GET", "/", is_strict=False)
        except OSError:
            time.sleep(0.05)
        else:
            return process.poll() is None
    return False


def _asked(
    port: int,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    *,
    is_strict: bool = True,
) -> None:
    """Make one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, headers=dict(headers or {}))
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status < 300 or not is_strict, (answer.status, body)
    finally:
        connection.close()


def _signed(path: str) -> dict[str, str]:
    """The headers of a put of a container, signed with the key of the account."""
    date, version = formatdate(usegmt=True), "2021-12-02"
    place, _, query = path.partition("?")
    text = (
        "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n"
        f"/{ACCOUNT}{place}\n{query.replace('=', ':')}"
    )
    key = base64.b64decode(ACCOUNT_KEY)
    signature = base64.b64encode(hmac.digest(key, text.encode(), hashlib.sha256)).decode()
    return {
        "x-ms-date": date,
        "x-ms-version": version,
        "Authorization": f"SharedKey {ACCOUNT}:{signature}",
        "Content-Length": "0",
    }
