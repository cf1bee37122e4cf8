"""`serve` and `agent`: flags become settings; how a service ends becomes an exit code. The services are stand-ins."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from citadel_py.cli.commands.agent import command as agent_command
from citadel_py.cli.commands.serve import command as serve_command
from citadel_py.config import AgentSettings, ServeSettings, Settings
from citadel_py.core.errors import NotReady, PermissionDenied
from tests.cli.support import Outcome, cli

SERVE = ("serve", "--dir", "ca", "--listen", "127.0.0.1:8443", "--admin", "127.0.0.1:9090")
AGENT = ("agent", "--ca-dir", "ca", "--id", "spiffe://example.org/web", "--state", "s", "--sds", "unix:s/sds.sock")

Service = Callable[[Settings], Coroutine[Any, Any, None]]


class StandIn:
    """Takes the place of both services; keeps the settings, and ends as it is told to."""

    def __init__(self) -> None:
        self.settings: list[Any] = []
        self.error: BaseException | None = None

    async def run(self, settings: Settings) -> None:
        self.settings.append(settings)
        if self.error:
            raise self.error


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StandIn:
    stand_in = StandIn()
    for name in ("serve", "agent"):
        module = ModuleType(f"citadel_py.app.{name}")
        setattr(module, name, stand_in.run)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)  # no citadel.toml here
    return stand_in


def settings_of(service: StandIn, *arguments: str) -> Any:
    outcome = cli(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    return service.settings[-1]


@pytest.mark.parametrize(
    ("command", "model"), [(serve_command, ServeSettings), (agent_command, AgentSettings)], ids=["serve", "agent"]
)
def test_there_is_a_flag_for_every_setting_and_no_other(command: click.Command, model: type[Settings]) -> None:
    flags = {param.name for param in command.params} - {"config_file", "verbose"}
    only_in_a_file = {"sockets"}  # tables
    assert flags == set(model.model_fields) - only_in_a_file


@pytest.mark.parametrize(
    ("command", "model"), [(serve_command, ServeSettings), (agent_command, AgentSettings)], ids=["serve", "agent"]
)
def test_the_defaults_in_the_help_are_those_of_the_settings(command: click.Command, model: type[Settings]) -> None:
    told = {
        param.name: param.help.split("[default: ")[1].rstrip("]")
        for param in command.params
        if isinstance(param, click.Option) and param.help and "[default: " in param.help
    }
    said = {name: text for name, text in told.items() if not text.startswith(("a ", "as "))}
    assert said
    required = {"dir": "d", "listen": "h:1", "admin": "h:1"} if model is ServeSettings else {
        "id": "spiffe://a/b", "state": "s", "sds": "unix:s", "ca_dir": "d",
    }  # fmt: skip
    assert model.model_validate(required) == model.model_validate({**required, **said})


def test_flags_of_serve_become_settings(service: StandIn) -> None:
    more = (
        "--listen-mtls",
        "[::1]:8444",
        "--server-name",
        "a",
        "--server-name",
        "b",
        "--max-ttl",
        "2d",
        "--relax-names",
    )
    settings = settings_of(service, *SERVE, *more)
    assert (str(settings.listen), str(settings.listen_mtls)) == ("127.0.0.1:8443", "[::1]:8444")
    assert (settings.dir, settings.server_name, settings.relax_names) == (Path("ca"), ("a", "b"), True)
    assert settings.max_ttl == timedelta(days=2)


def test_flags_of_agent_become_settings(service: StandIn) -> None:
    settings = settings_of(service, *AGENT, "--ttl", "1m", "--renew-earliest", "0.3", "--sds-mode", "0600")
    assert (str(settings.id), settings.ca_dir, settings.sds) == (
        "spiffe://example.org/web",
        Path("ca"),
        "unix:s/sds.sock",
    )
    assert (settings.ttl, settings.renew_earliest, settings.sds_mode) == (timedelta(minutes=1), 0.3, 0o600)


def test_a_flag_stands_above_a_variable_and_a_variable_above_the_file(
    service: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text('[serve]\nlisten = "h:1"\nadmin = "h:2"\nmax_ttl = "3d"\n')
    monkeypatch.setenv("CITADEL_SERVE__ADMIN", "h:22")
    monkeypatch.setenv("CITADEL_SERVE__LISTEN", "h:11")
    settings = settings_of(service, "serve", "--config", "c.toml", "--dir", "ca", "--listen", "h:111")
    assert (str(settings.listen), str(settings.admin), settings.max_ttl) == ("h:111", "h:22", timedelta(days=3))


def test_the_variables_of_all_commands_count_for_serve_below_its_own(
    service: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CITADEL_DIR", "common")
    monkeypatch.setenv("CITADEL_PASSPHRASE_FILE", "phrase")
    rest = ("serve", "--listen", "h:1", "--admin", "h:2")
    assert (settings_of(service, *rest).dir, settings_of(service, *rest).passphrase_file) == (
        Path("common"),
        Path("phrase"),
    )
    monkeypatch.setenv("CITADEL_SERVE__DIR", "own")
    assert settings_of(service, *rest).dir == Path("own")
    assert settings_of(service, *rest, "--dir", "flag").dir == Path("flag")


def test_an_agent_of_a_service_does_not_mind_a_passphrase_variable(
    service: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CITADEL_PASSPHRASE_FILE", "phrase")
    assert settings_of(service, *AGENT).passphrase_file == Path("phrase")
    remote = ("--ca", "ca:8443", "--ca-bundle", "ca.crt", "--token-file", "t")
    assert settings_of(service, "agent", *remote, *AGENT[3:]).passphrase_file is None


def test_a_passphrase_on_stdin_is_a_file_too(service: StandIn) -> None:
    assert settings_of(service, *SERVE, "--passphrase-file", "-").passphrase_file == Path("/dev/stdin")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("serve", "--listen", "h:1", "--admin", "h:2"), "dir is not set"),
        ((*SERVE, "--max-ttl", "soon"), "flag --max-ttl"),
        ((*SERVE, "--listen", "8443"), "flag --listen"),
        ((*AGENT, "--ca", "h:1"), "exactly one of ca"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_cannot_work_are_bad_input(service: StandIn, arguments: tuple[str, ...], what: str) -> None:
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out, service.settings) == (3, "", [])
    assert what in outcome.err


def ended_by(service: StandIn, error: BaseException) -> Outcome:
    service.error = error
    return cli(*SERVE)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotReady("no authority"), 4),
        (PermissionDenied("no"), 5),
        (OSError(98, "Address already in use"), 4),
        (KeyboardInterrupt(), 130),
        (ExceptionGroup("several", [ExceptionGroup("inner", [NotReady("x")]), ValueError("y")]), 4),
    ],
    ids=ascii,
)
def test_how_a_service_ends_becomes_an_exit_code(service: StandIn, error: BaseException, code: int) -> None:
    outcome = ended_by(service, error)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith("citadel-py: error: ")


def test_what_nobody_expected_stays_an_error_of_ours(service: StandIn) -> None:
    with pytest.raises(ExceptionGroup):
        ended_by(service, ExceptionGroup("bugs", [ValueError("x")]))
