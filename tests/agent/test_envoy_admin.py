"""What Envoy's admin address answers is bounded and read strictly."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from citadel_py.agent import envoy_admin
from citadel_py.agent.envoy_admin import read_admin
from citadel_py.config import Address
from citadel_py.core.errors import CitadelError, InvalidConfiguration, Unavailable

STATS = {
    "stats": [
        {"name": "sds.a.update_rejected", "value": 1},
        {"name": "sds.a.version_text", "value": "v"},
        {"histograms": {}},
    ]
}
GOOD: Mapping[str, tuple[int, bytes]] = {
    "/ready": (503, b"INITIALIZING"),
    "/certs": (200, b'{"certificates": []}'),
    "/config_dump": (200, b'{"configs": []}'),
    "/stats": (200, json.dumps(STATS).encode()),
}


class Admin(BaseHTTPRequestHandler):
    """Answers with what the test has put into `answers`."""

    answers: Mapping[str, tuple[int, bytes]] = GOOD

    def do_GET(self) -> None:
        status, body = self.answers[self.path.partition("?")[0]]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[Address]:
    monkeypatch.setattr(Admin, "answers", GOOD)
    with HTTPServer(("127.0.0.1", 0), Admin) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Address("127.0.0.1", server.server_port)
        server.shutdown()
        thread.join()


def failure(address: Address) -> CitadelError:
    with pytest.raises(CitadelError) as failed:
        read_admin(address)
    return failed.value


def test_what_envoy_says_is_read(address: Address) -> None:
    admin = read_admin(address)
    assert not admin.is_ready
    assert (admin.certs, admin.config) == ({"certificates": []}, {"configs": []})
    assert (admin.stats, admin.texts) == ({"sds.a.update_rejected": 1}, {"sds.a.version_text": "v"})


@pytest.mark.parametrize("answer", [(404, b"{}"), (200, b"hello"), (200, b"[]"), (200, b"[" * 100_000), (200, b"\xff")])
def test_what_is_not_envoy_is_told(
    address: Address, answer: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Admin, "answers", {**GOOD, "/certs": answer})
    error = failure(address)
    assert isinstance(error, InvalidConfiguration)
    assert error.rule == "not_envoy_admin"


def test_an_endless_answer_is_not_read_to_its_end(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envoy_admin, "MAX_BYTES", 1000)
    monkeypatch.setattr(Admin, "answers", {**GOOD, "/config_dump": (200, b" " * 1001)})
    assert "more than 1000 bytes" in failure(address).message


def test_what_does_not_speak_http_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-x\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        error = failure(Address("127.0.0.1", listener.getsockname()[1]))
        thread.join()
    assert error.rule == "not_envoy_admin"


def test_nobody_there_is_worth_another_try() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = failure(Address("127.0.0.1", port))
    assert isinstance(error, Unavailable)
    assert error.rule == "envoy_unreachable"
