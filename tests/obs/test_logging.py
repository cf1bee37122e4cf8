from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from citadel_py.core.join_token import new_token
from citadel_py.core.keys import KeyType, generate_key, private_key_pem
from citadel_py.obs import events
from citadel_py.obs.logging import LogLevel, configure, get_logger

JOIN_TOKEN = new_token(bytes(32))[0]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, config = root.handlers, root.level, structlog.get_config()
    yield
    root.handlers, config_level = handlers, level
    root.setLevel(config_level)
    structlog.configure(**config)
    structlog.contextvars.clear_contextvars()


def test_off_a_terminal_each_event_is_one_json_object_with_its_facts() -> None:
    stream = io.StringIO()
    configure(stream=stream)

    get_logger().info(events.SVID_ISSUED, serial="0a", text="two\nlines")

    line = json.loads(stream.getvalue())
    assert stream.getvalue().count("\n") == 1
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line.pop("timestamp").endswith("Z")
    assert line == {"level": "info", "event": "svid.issued", "serial": "0a", "text": "two\nlines"}


def test_on_a_terminal_events_are_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    configure(stream=stream)

    get_logger().info(events.SVID_ISSUED, serial="0a")

    assert "svid.issued" in stream.getvalue()
    assert "\x1b[" in stream.getvalue()


@pytest.mark.parametrize("variable", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_without_colours_gets_none(monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str]) -> None:
    monkeypatch.setenv(*variable)
    stream = Terminal()
    configure(stream=stream)

    get_logger().info(events.SVID_ISSUED, serial="0a")

    assert "\x1b[" not in stream.getvalue()


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_events_below_the_level_are_dropped(level: LogLevel, shown: int) -> None:
    stream = io.StringIO()
    configure("json", level, stream=stream)

    for name in ("debug", "info", "warning", "error"):
        getattr(get_logger(), name)(events.SVID_ISSUED)

    assert len(stream.getvalue().splitlines()) == shown


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_tracebacks_are_shown_without_secrets_and_without_local_variables(log_format: str) -> None:
    stream = io.StringIO()
    configure(log_format, stream=stream)  # type: ignore[arg-type]  # one of its values
    pem = private_key_pem(generate_key(KeyType.P256)).decode()

    def fail() -> None:
        local_variable = f"only local {pem}"
        raise ValueError(f"{JOIN_TOKEN} in {pem}{len(local_variable)}")

    try:
        fail()
    except ValueError:
        get_logger().exception(events.TASK_DIED)

    text = stream.getvalue()
    assert "ValueError" in text
    assert "test_logging.py" in text
    assert JOIN_TOKEN not in text
    assert "only local" not in text
    assert pem.splitlines()[1] not in text


def test_libraries_that_use_the_standard_library_are_redacted_too() -> None:
    stream = io.StringIO()
    configure(stream=stream)

    logging.getLogger("somebody.else").warning("token %s refused", JOIN_TOKEN)
    logging.getLogger("somebody.else").info("chatter")

    line = json.loads(stream.getvalue())
    assert line["event"] == "token [removed] refused"
    assert line["logger"] == "somebody.else"


def test_a_logger_made_before_configure_follows_it() -> None:
    early = get_logger()
    stream = io.StringIO()
    configure(stream=stream)

    early.warning(events.SVID_ISSUED)

    assert json.loads(stream.getvalue())["event"] == events.SVID_ISSUED
