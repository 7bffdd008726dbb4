"""CSVLogger, ProgbarLogger, RemoteMonitor and LambdaCallback by themselves."""

from __future__ import annotations

import io
import math
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from ckptstore import InvalidInputError
from ckptstore.training.callbacks import (
    CallbackList,
    CSVLogger,
    LambdaCallback,
    ProgbarLogger,
    RemoteMonitor,
)


def write(path, epochs, *, state=None, append=False, first=0):
    callback = CSVLogger(path, append=append)
    callback.on_train_begin()
    if state is not None:
        callback.load_state_dict(state)
    for epoch in range(first, epochs):
        callback.on_epoch_end(epoch, {"loss": float(epoch)})
    return callback.state_dict()


def test_a_resumed_run_goes_on_after_the_lines_its_checkpoint_knows_of(tmp_path):
    path = tmp_path / "log.csv"
    write(path, 5)
    whole = path.read_bytes()
    state = write(path, 2)
    write(path, 4)  # what came after the checkpoint is taken away
    write(path, 5, state=state, first=2)
    assert path.read_bytes() == whole


def test_a_resumed_run_keeps_what_earlier_runs_appended_to(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b"epoch,loss,val_loss\r\n7,1.0,NA\r\n")
    state = write(path, 0, append=True)
    write(path, 3, append=True)
    write(path, 3, append=True, state=state)
    rows = path.read_bytes().split(b"\r\n")
    assert rows[:2] == [b"epoch,loss,val_loss", b"7,1.0,NA"]
    assert [row[:1] for row in rows[2:]] == [b"0", b"1", b"2", b""]


@pytest.mark.parametrize("held", [None, b"", b"short\n", b"x" * 1000])
def test_a_file_that_is_another_one_is_begun_anew_with_a_warning(tmp_path, held):
    path = tmp_path / "log.csv"
    state = write(path, 2)
    path.unlink()
    if held is not None:
        path.write_bytes(held)
    with pytest.warns(UserWarning, match="is not the file"):
        write(path, 3, state=state, first=2)
    assert path.read_bytes() == b"epoch,loss,val_loss\r\n2,2.0,NA\r\n"


def test_a_file_that_cannot_be_written_is_found_at_the_beginning(tmp_path):
    with pytest.raises(FileNotFoundError):
        CSVLogger(tmp_path / "nowhere" / "log.csv").on_train_begin()


def test_a_training_without_epochs_leaves_an_empty_file(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("old")
    callback = CSVLogger(path)
    callback.on_train_begin()
    callback.on_train_end()
    assert path.read_bytes() == b""


def run(**params):
    callbacks = CallbackList([ProgbarLogger()], epochs=2, steps=3, **params)
    callbacks.on_train_begin()
    for epoch in range(2):
        callbacks.on_epoch_begin(epoch)
        for batch in range(3):
            callbacks.on_train_batch_end(batch, {"loss": 1.0})
        callbacks.on_test_begin()
        callbacks.on_test_batch_end(0)
        callbacks.on_test_end({"loss": 2.0})
        callbacks.on_epoch_end(epoch, {"loss": 0.5, "val_loss": 2.0, "note": "x"})
    callbacks.on_train_end()
    callbacks.on_test_begin()
    callbacks.on_test_batch_end(0, {"loss": 3.0})
    callbacks.on_test_end({"loss": 3.0})
    callbacks.on_predict_begin()
    callbacks.on_predict_batch_end(0)
    callbacks.on_predict_end()


def test_without_a_terminal_each_epoch_is_a_line(capsys):
    run()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "Epoch 1/2  loss: 0.5  val_loss: 2",
        "Epoch 2/2  loss: 0.5  val_loss: 2",
        "Evaluation  loss: 3",
        "Prediction",
    ]
    run(verbose=0)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run()
    text = terminal.getvalue()
    for wanted in ("Epoch 1/2", "Epoch 2/2", "3/3", "val_loss: 2", "Evaluation", "Prediction", "━"):
        assert wanted in text
    terminal.truncate(0)
    run(verbose=2)
    assert "━" not in terminal.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_names_of_metrics_are_neither_markup_nor_steer_the_terminal(monkeypatch, terminal):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    err = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    callbacks = CallbackList([ProgbarLogger()], epochs=1, steps=1)
    logs = {"loss[/]": 1.0, "[bold]x": 2.0, "\x1b]0;owned\x07\u202e\r": 3.0, "y" * 5000: 4.0}
    callbacks.on_epoch_begin(0)
    callbacks.on_train_batch_end(0, logs)
    callbacks.on_epoch_end(0, logs)
    text = err.getvalue()
    for wanted in ("loss[/]: 1", "[bold]x: 2", "\\x1b]0;owned\\x07\\u202e\\r: 3"):
        assert wanted in text
    assert not {"\x07", "\u202e"} & set(text)
    assert "\x1b]" not in text
    assert "y" * 61 not in text


def test_a_server_that_cannot_be_reached_is_a_warning():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    callback = RemoteMonitor(f"http://127.0.0.1:{port}")
    with pytest.warns(UserWarning, match="could not send epoch 3"):
        callback.on_epoch_end(2, {"loss": 1.0})


def test_a_server_that_never_answers_does_not_hold_the_training_up():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        callback = RemoteMonitor(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2)
        with pytest.warns(UserWarning, match="could not send"):
            callback.on_epoch_end(0, {})


def test_a_server_that_drips_its_answer_does_not_hold_the_training_up():
    """Each byte comes in time for the timeout of a socket, the answer as a whole never."""
    ended = threading.Event()

    class Dripping(BaseHTTPRequestHandler):
        def do_POST(self):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            for _ in range(500):  # then it ends well, for a client that waits so long
                if ended.wait(0.02):
                    break
                self.wfile.write(b"x")
            self.wfile.write(b"\r\n\r\n")

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Dripping) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        callback = RemoteMonitor(f"http://127.0.0.1:{server.server_port}", timeout=0.3)
        with pytest.warns(UserWarning, match=r"no answer within 0\.3 s"):
            callback.on_epoch_end(0, {})
        assert not ended.is_set()
        with pytest.warns(UserWarning, match="still busy"):
            callback.on_epoch_end(1, {})
        ended.set()
        thread.join()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_gets_no_request_and_so_no_credentials(status):
    asked = []

    class Redirecting(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            self.send_response(status, "\x1b[2JElsewhere")
            self.send_header("Location", f"http://127.0.0.1:{server.server_port}/elsewhere")
            self.end_headers()

        def do_GET(self):
            self.do_POST()

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Redirecting) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        callback = RemoteMonitor(
            f"http://127.0.0.1:{server.server_port}", headers={"Authorization": "secret"}
        )
        with pytest.warns(UserWarning, match=rf"HTTP Error {status}: \\x1b\[2JElsewhere"):
            callback.on_epoch_end(0, {})
        server.shutdown()
        thread.join()
    assert asked == ["/publish/epoch/end/"]


def test_a_password_in_the_url_is_refused_and_not_shown():
    with pytest.raises(InvalidInputError, match="header") as raised:
        RemoteMonitor("https://me:secret@example.com")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "answer", [b"nonsense\r\n\r\n", b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", b""]
)
def test_a_server_that_answers_nonsense_is_a_warning(answer):
    with socket.socket() as strange:
        strange.bind(("127.0.0.1", 0))
        strange.listen()

        def serve():
            connection, _ = strange.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        callback = RemoteMonitor(f"http://127.0.0.1:{strange.getsockname()[1]}", timeout=5)
        with pytest.warns(UserWarning, match="could not send"):
            callback.on_epoch_end(0, {})
        thread.join()


def test_what_is_sent_is_json_whatever_the_metrics_are():
    import json

    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        callback = RemoteMonitor(f"http://127.0.0.1:{server.server_port}", send_as_json=True)
        logs = {"a": math.nan, "b": -math.inf, "c": np.arange(2), "d": object, "e": np.float32(1)}
        callback.on_epoch_end(0, logs)
        thread.join()

    def refuse(name):
        raise AssertionError(name)

    found = json.loads(received[0], parse_constant=refuse)
    assert found | {"d": ""} == {"epoch": 0, "a": None, "b": None, "c": [0, 1], "d": "", "e": 1.0}


@pytest.mark.parametrize("root", ["file:///etc/passwd", "localhost:9000", "ftp://x"])
def test_only_the_web_is_posted_to(root):
    with pytest.raises(InvalidInputError, match="http"):
        RemoteMonitor(root)


def test_a_wrong_url_is_a_warning():
    with pytest.warns(UserWarning, match="could not send"):
        RemoteMonitor("http://exa mple:port").on_epoch_end(0)


@pytest.mark.parametrize("name", ["on_epoch_ends", "set_model", "epoch"])
def test_a_hook_that_is_none_is_an_error(name):
    with pytest.raises(InvalidInputError, match="no hook"):
        LambdaCallback(**{name: print})
