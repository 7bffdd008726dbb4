"""RemoteMonitor: sends the metrics of each epoch to a web server."""

# ruff: noqa: ARG002 - a hook is called with more than each of them needs

from __future__ import annotations

import json
import math
import urllib.error
import urllib.parse
import urllib.request
import warnings
from http.client import HTTPException
from threading import Thread
from typing import TYPE_CHECKING, Any

from ckptstore.commit_hooks import CommitEvent, address
from ckptstore.errors import InvalidInputError, printable, shown
from ckptstore.training.arguments import explained
from ckptstore.training.callbacks.callback import Callback
from ckptstore.training.callbacks.monitor import plain
from ckptstore.training.callbacks.saver import managers_of, newest_of, savers_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptstore.training.callbacks.callback import Logs

TIMEOUT_SECONDS = 3.0
REASON_LENGTH_MAX = 200


class RemoteMonitor(Callback):
    """Sends the metrics of each epoch to a web server, in an HTTP POST to root + path.

    The event of an epoch is a JSON object with "epoch", counted from 0, and the metrics. Once a
    callback of the training has made a checkpoint, it also has "checkpoint", the id of the newest
    durable one, its "checkpoint_step", and "repository", the address without user, password and
    query. That is the checkpoint of this epoch unless it is still being written in the background
    (`async_save`). With a manager that has a mirror, "mirror" is its address, and "mirrored" and
    "mirrored_step" are the newest checkpoint that is durable there, or null: another machine can
    pull it. When training ends, the last event is sent again if a checkpoint has become durable
    since, in the mirror too: for this it waits as long as for the server.

    A server that cannot be reached, or that refuses, causes a warning and never ends the training.
    Unlike Keras' class it needs no `requests` package, waits for at most `timeout` in all, and
    sends null for NaN and infinity, which JSON cannot represent. It follows no redirects: another
    server would get the headers, and the metrics would be lost on the way. An epoch is left out
    while the request of the one before is still waiting.

    Args:
        root: The server's URL, http or https.
        path: The path of the requests.
        field: The form field that holds the metrics as JSON.
        headers: Further headers of the requests.
        send_as_json: Send the JSON itself as the body instead of a form.
        timeout: Seconds to wait for the server, from the look-up of its name to its answer.

    Raises:
        InvalidInputError: `root` is not an http or https URL, or has a password in it.

    Example:
        >>> import http.server, threading
        >>> from ckptstore.training import CallbackList, RemoteMonitor
        >>> class Handler(http.server.BaseHTTPRequestHandler):
        ...     def do_POST(self):
        ...         print(self.path, self.rfile.read(int(self.headers["Content-Length"])).decode())
        ...         self.send_response(200)
        ...         self.end_headers()
        ...     def log_message(self, *args):
        ...         pass
        >>> with http.server.HTTPServer(("localhost", 0), Handler) as server:
        ...     thread = threading.Thread(target=server.handle_request)
        ...     thread.start()
        ...     monitor = RemoteMonitor(
        ...         f"http://localhost:{server.server_port}", send_as_json=True
        ...     )
        ...     CallbackList([monitor]).on_epoch_end(0, {"loss": 0.5})
        ...     thread.join()
        /publish/epoch/end/ {"epoch": 0, "loss": 0.5}
    """

    turn = 3  # after the callbacks that save

    @explained
    def __init__(
        self,
        root: str = "http://localhost:9000",
        path: str = "/publish/epoch/end/",
        field: str = "data",
        headers: Mapping[str, str] | None = None,
        send_as_json: bool = False,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        if not root.startswith(("http://", "https://")):
            raise InvalidInputError(
                f"RemoteMonitor: root is {shown(root)}; http://… or https://… is expected."
            )
        if "@" in urllib.parse.urlsplit(root).netloc:  # warnings would show it
            raise InvalidInputError(
                "RemoteMonitor: root has a user name or password. Pass them in a header: "
                'headers={"Authorization": …}.'
            )
        self.root, self.path, self.field = root, path, field
        self.headers, self.send_as_json, self.timeout = dict(headers or {}), send_as_json, timeout
        self._sending: Thread | None = None
        self._epoch = 0
        self._event: dict[str, Any] = {}  # of that epoch

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Send the metrics, once the callbacks that save have done so."""
        if self._training is not None:
            self.training.settle(self, "on_epoch_end", epoch, logs)
        self._report(epoch, logs)

    def on_train_end(self, logs: Logs = None) -> None:
        """Send the last event again if its checkpoint was not durable then."""
        if self._training is None or not self._event:
            return
        for saver in savers_of(self.training):
            saver.finish()
        for manager in managers_of(self.training):
            manager.wait_for_mirror(self.timeout)
        if self._event != self._event | self._checkpoint():
            self._report(self._epoch, self._event)
        self._event = {}

    def _checkpoint(self) -> dict[str, Any]:
        """The newest checkpoint of the training and its mirror, for an event; empty without one."""
        if self._training is None:
            return {}
        found: dict[str, Any] = {}
        if (newest := newest_of(self.training)) is not None:
            found = CommitEvent.of(newest).document()
        states = (manager.mirror_state for manager in managers_of(self.training))
        if (state := next(filter(None, states), None)) is not None:
            there = state.checkpoint
            found |= {
                "mirror": address(state.url),
                "mirrored": None if there is None else str(there.id),
                "mirrored_step": None if there is None else there.step,
            }
        return found

    def _report(self, epoch: int, logs: Logs) -> None:
        """Send an event. If that fails, warn."""
        try:
            metrics = {name: _as_json(value) for name, value in plain(logs).items()}
            self._epoch, self._event = epoch, {"epoch": epoch, **metrics, **self._checkpoint()}
            self._send(self._request(self._event))
        except (OSError, ValueError, HTTPException, RuntimeError) as error:  # also of a new thread
            warnings.warn(
                f"RemoteMonitor could not send epoch {epoch + 1} to {self.root + self.path}: "
                f"{printable(str(error)[:REASON_LENGTH_MAX])}.",
                stacklevel=3,
            )

    def _send(self, request: urllib.request.Request) -> None:
        """Send a request on a thread, because a timeout of a socket starts again with each byte."""
        if self._sending is not None and self._sending.is_alive():
            raise TimeoutError("the server is still busy with the request before")
        errors: list[Exception] = []

        def send() -> None:
            try:
                opener = urllib.request.build_opener(_NoRedirects)
                with opener.open(request, timeout=self.timeout):
                    pass  # nothing of the body is read
            except Exception as error:  # noqa: BLE001 - raised by the thread that waits
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                errors.append(error)

        self._sending = Thread(target=send, name="ckptstore-monitor", daemon=True)
        self._sending.start()
        self._sending.join(self.timeout)
        if self._sending.is_alive():
            raise TimeoutError(f"no answer within {self.timeout:g} s")
        if errors:
            raise errors[0]

    def _request(self, event: Mapping[str, Any]) -> urllib.request.Request:
        text = json.dumps(event, default=str)
        if self.send_as_json:
            body, kind = text.encode(), "application/json"
        else:
            body = urllib.parse.urlencode({self.field: text}).encode()
            kind = "application/x-www-form-urlencoded"
        return urllib.request.Request(  # noqa: S310 - http or https, checked above
            self.root + self.path,
            data=body,
            headers={"Content-Type": kind, **self.headers},
            method="POST",
        )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an error like any other answer that is not a success."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


def _as_json(value: object) -> object:
    """A value that JSON can represent: None for NaN and infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.tolist() if hasattr(value, "tolist") else value
