"""Where credentials come from, what is said when they are refused, and that nothing shows them."""

from __future__ import annotations

import json
import logging
import pickle
import sys
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import ckptstore
from ckptstore.errors import CkptStoreError, InvalidInputError, StorageError
from ckptstore.storage import open_storage, remote
from ckptstore.testing.s3_server import Answer, Request, S3Server
from tests.helpers.transfers import state

KEY, SECRET, TOKEN = "AKIDFORTESTS", "s3cr3tS3CR3Ts3cr3t", "t0k3nT0K3Nt0k3n"
METADATA = "/latest/meta-data/iam/security-credentials/"


@pytest.fixture(autouse=True)
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without credentials, and without a metadata service."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.001)


@pytest.fixture
def server() -> Iterator[Signed]:
    with Signed() as server:
        yield server


class Signed(S3Server):
    """Remembers whose requests it gets, and may refuse them."""

    def __init__(self) -> None:
        super().__init__()
        self.signers: set[str] = set()
        self.tokens: set[str] = set()
        self.refusal: tuple[int, str] | None = None

    async def answer(
        self, request: Request, target: str, headers: dict[str, str], body: bytes
    ) -> Answer:
        self.signers.add(request.signer)
        self.tokens.add(headers.get("x-amz-security-token", ""))
        if self.refusal:
            status, code = self.refusal
            said = f"<Error><Code>{code}</Code><Message>No.</Message><CanonicalRequest>GET\n/\n"
            said += f"x-amz-security-token:{TOKEN}\n</CanonicalRequest></Error>"
            return Answer(status, said.encode())
        return await super().answer(request, target, headers, body)


def _write_profile(tmp_path: Path, name: str) -> None:
    (tmp_path / "config").write_text(f"[profile {name}]\nregion = eu-central-1\n")
    (tmp_path / "credentials").write_text(
        f"[{name}]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
        f"aws_session_token = {TOKEN}\n"
    )


def _used(url: str) -> None:
    """A commit and what else may write credentials somewhere."""
    repo = ckptstore.open(url, create=True)
    repo.commit(state(1), step=1)
    assert ckptstore.open(url).resolve("main").step == 1


def test_a_profile_signs_the_requests(server: Signed, tmp_path: Path) -> None:
    """Also where the environment has other credentials, and with the region of the profile."""
    _write_profile(tmp_path, "research")
    _used(server.url("run").replace("region=us-east-1", "profile=research"))
    _used(f"{server.url('run')}&profile=research")
    assert (server.signers, server.tokens) == ({KEY}, {TOKEN})


def test_a_profile_that_does_not_exist_is_named(server: Signed, tmp_path: Path) -> None:
    _write_profile(tmp_path, "research")
    with pytest.raises(InvalidInputError, match="reseach"):
        open_storage(f"{server.url('run')}&profile=reseach")


def test_a_profile_may_have_a_program_that_gives_credentials(
    server: Signed, tmp_path: Path
) -> None:
    """As companies do it for their single sign-on; one that fails is an error without a retry."""
    credentials = {"Version": 1, "AccessKeyId": KEY, "SecretAccessKey": SECRET}
    (tmp_path / "given").write_text(json.dumps(credentials))
    (tmp_path / "config").write_text(
        f"[profile given]\ncredential_process = cat {tmp_path / 'given'}\n"
        f"[profile failed]\ncredential_process = cat {tmp_path / 'missing'}\n"
    )
    _used(f"{server.url('run')}&profile=given")
    assert server.signers == {KEY}
    with pytest.raises(InvalidInputError, match="failed"):
        open_storage(f"{server.url('run')}&profile=failed")


def test_a_profile_without_credentials_is_named(server: Signed, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[profile empty]\nregion = eu-central-1\n")
    with pytest.raises(InvalidInputError, match="empty"):
        open_storage(f"{server.url('run')}&profile=empty")


def test_a_profile_without_boto3_says_what_to_install(
    server: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_profile(tmp_path, "research")
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.delitem(sys.modules, "obstore.auth.boto3", raising=False)
    with pytest.raises(InvalidInputError, match="pip install boto3"):
        open_storage(f"{server.url('run')}&profile=research")


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The services of a cloud's machine that give out the credentials of its role."""
    credentials = {
        "Code": "Success",
        "LastUpdated": "2026-11-30T12:00:00Z",
        "Type": "AWS-HMAC",
        "AccessKeyId": KEY,
        "SecretAccessKey": SECRET,
        "Token": TOKEN,
        "Expiration": "2099-01-01T00:00:00Z",
    }
    answers = {
        "/latest/api/token": "for-metadata",
        METADATA: "role",
        f"{METADATA}role": json.dumps(credentials),
        "/container": json.dumps(credentials),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answers[self.path].encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as service:
        thread = threading.Thread(target=service.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{service.server_port}"
        service.shutdown()
        thread.join()


def test_the_role_of_a_machine_signs_the_requests(
    server: Signed, metadata: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", metadata)
    _used(server.url("run"))
    assert (server.signers, server.tokens) == ({KEY}, {TOKEN})


def test_the_role_of_a_container_signs_the_requests(
    server: Signed, metadata: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("for-container")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{metadata}/container")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
    _used(server.url("run"))
    assert (server.signers, server.tokens) == ({KEY}, {TOKEN})


def test_a_machine_without_credentials_is_told_where_they_come_from(server: Signed) -> None:
    with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID"):
        open_storage(server.url("run")).get("x", bytes_max=1)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "RequestTimeTooSkewed", "clock"),
        (400, "ExpiredToken", "expired"),
        (403, "ExpiredToken", "expired"),
        (403, "SignatureDoesNotMatch", "secret key"),
        (403, "InvalidAccessKeyId", "access key"),
        (403, "AccessDenied", "may not"),
        (403, "AllAccessDisabled", "AllAccessDisabled"),
        (501, "NotImplemented", "NotImplemented"),
    ],
)
def test_a_refusal_says_why_and_shows_no_secret(
    server: Signed, status: int, code: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, for reads and writes alike; the answer of the server may hold the token."""
    storage = open_storage(server.url("run"))
    server.refusal = status, code
    uses = (
        lambda: storage.get("a", bytes_max=1),
        lambda: storage.put("a", b""),
        lambda: storage.create("a", b""),
        lambda: storage.delete(["a"]),
        lambda: list(storage.list("")),
    )
    for use in uses:
        server.counts.clear()
        with pytest.raises(StorageError, match=message) as caught:
            use()
        shown = "".join(traceback.format_exception(caught.value))
        assert not [text for text in (SECRET, TOKEN) if text in shown + caplog.text]
        assert sum(server.counts.values()) == 1


@pytest.mark.usefixtures("given")
def test_nothing_that_is_kept_or_said_holds_a_secret(
    server: Signed,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The bucket, a repository that knows it as a remote, logs, errors, reprs and pickles."""
    caplog.set_level(logging.DEBUG)
    local = ckptstore.init(tmp_path / "run")
    local.commit(state(1), step=1)
    local.set_remote("origin", server.url("run"))
    far = ckptstore.init(server.url("run"))
    local.push("origin")
    texts = [repr(far), repr(far._storage), far.url, str(local.remotes), str(far.operations())]
    server.fault = lambda request: "error" if request.kind == "get" else None
    for use in (lambda: local.pull("origin"), lambda: ckptstore.open(server.url("run"))):
        with pytest.raises(CkptStoreError) as caught:
            use()
        texts += traceback.format_exception(caught.value)
    said = capfd.readouterr()
    texts += [caplog.text, said.out, said.err]
    kept = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    kept += [*server.objects.values(), pickle.dumps(far), *(text.encode() for text in texts)]
    assert not [secret for secret in (SECRET, TOKEN) for data in kept if secret.encode() in data]
