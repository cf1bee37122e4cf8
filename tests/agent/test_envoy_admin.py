"""What Envoy's admin address answers is bounded and read strictly."""

from __future__ import annotations

import socket
import threading

import pytest

from citadel_py.agent import envoy_admin as envoy_admin_module
from citadel_py.agent.envoy_admin import read_admin
from citadel_py.config import Address
from citadel_py.core.errors import CitadelError, InvalidConfiguration, Unavailable
from tests.agent.fake_envoy_admin import envoy_admin


def failure(address: Address) -> CitadelError:
    with pytest.raises(CitadelError) as failed:
        read_admin(address)
    return failed.value


def test_what_envoy_says_is_read() -> None:
    with envoy_admin() as address:
        admin = read_admin(address)
    assert not admin.is_ready
    assert (admin.certs, admin.config) == ({"certificates": []}, {"configs": []})
    assert (admin.stats, admin.texts) == ({"sds.a.update_rejected": 1}, {"sds.a.version_text": "v"})


@pytest.mark.parametrize("answer", [(404, b"{}"), (200, b"hello"), (200, b"[]"), (200, b"[" * 100_000), (200, b"\xff")])
def test_what_is_not_envoy_is_told(answer: tuple[int, bytes]) -> None:
    with envoy_admin(certs=answer) as address:
        error = failure(address)
    assert isinstance(error, InvalidConfiguration)
    assert error.rule == "not_envoy_admin"


def test_an_endless_answer_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envoy_admin_module, "MAX_BYTES", 1000)
    with envoy_admin(config_dump=(200, b" " * 1001)) as address:
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
