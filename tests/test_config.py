from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from citadel_py import config
from citadel_py.config import Address, AgentSettings, ServeSettings, load_agent, load_serve, parse_address
from citadel_py.core.errors import InvalidConfiguration
from citadel_py.core.policy import TTLLimits
from citadel_py.core.renewal import RenewalPolicy
from citadel_py.core.spiffe import SpiffeID

SERVE = {"dir": "/srv/ca", "listen": "127.0.0.1:15012", "admin": "127.0.0.1:9090"}
AGENT = {"ca_dir": "/srv/ca", "id": "spiffe://example.org/web", "state": "/var/lib/web", "sds": "unix:/run/web.sock"}


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No settings but those of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "SEARCHED_FILES", (Path("citadel.toml"),))
    for name in ("CITADEL_CONFIG",):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def refused(section: str, flags: dict[str, object], file: Path | None = None) -> InvalidConfiguration:
    with pytest.raises(InvalidConfiguration) as caught:
        load_serve(flags, file) if section == "serve" else load_agent(flags, file)
    return caught.value


# --- addresses


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8443", "127.0.0.1", 8443),
        ("[::1]:443", "::1", 443),
        ("ca.example.org:15012", "ca.example.org", 15012),
        ("localhost:0", "localhost", 0),
    ],
)
def test_an_address_is_read_and_written_back(text: str, host: str, port: int) -> None:
    address = parse_address(text)

    assert (address.host, address.port, address.bind_host, str(address)) == (host, port, host, text)


def test_an_address_without_a_host_means_all_of_them() -> None:
    address = parse_address(":15012")

    assert (address.bind_host, address.port, str(address)) == (None, 15012, "[::]:15012")


@pytest.mark.parametrize(
    "text",
    ["", "8443", "localhost", "localhost:", "localhost:x", "localhost:-1", "localhost:65536", "localhost:٣", "::1:443",
     "[::1]", "[localhost]:1", "[::1:443", "a/b:1", "a b:1", "http://a:1", "localhost:000001"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        parse_address(text)

    assert caught.value.rule == "invalid_address"


@given(st.text())
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = parse_address(text)
    except InvalidConfiguration:
        return
    assert parse_address(str(address)).port == address.port


# --- where values come from


def test_defaults_are_those_of_the_documentation() -> None:
    settings = load_serve(SERVE)

    assert settings == ServeSettings(
        dir=Path("/srv/ca"),
        listen=Address("127.0.0.1", 15012),
        listen_mtls=None,
        admin=Address("127.0.0.1", 9090),
        server_name=(),
        passphrase_file=None,
        jwt_issuer=None,
        jwt_jwks=None,
        jwt_audience="istio-ca",
        clock_skew=timedelta(seconds=10),
        default_ttl=timedelta(hours=24),
        min_ttl=timedelta(minutes=1),
        max_ttl=timedelta(days=90),
        relax_names=False,
        allow_ed25519=False,
        log_format="auto",
        log_level="info",
        shutdown_grace=timedelta(seconds=20),
    )
    assert settings.ttl_limits == TTLLimits()


def test_the_agents_defaults_are_those_of_the_documentation() -> None:
    settings = load_agent(AGENT)

    assert settings == AgentSettings(
        ca_dir=Path("/srv/ca"),
        id=SpiffeID.parse("spiffe://example.org/web"),
        state=Path("/var/lib/web"),
        sds="unix:/run/web.sock",
        renew_earliest=0.5,
        renew_latest=0.66,
    )
    assert settings.renewal == RenewalPolicy()
    assert (settings.sds_mode, settings.ca, settings.ttl, settings.admin) == (0o660, None, None, None)


def test_a_flag_stands_above_a_variable_and_a_variable_above_the_file(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nowhere / "citadel.toml").write_text(
        '[serve]\ndefault_ttl = "1h"\nmin_ttl = "2m"\nmax_ttl = "3h"\n[agent]\nid = "spiffe://x/y"\n'
    )
    monkeypatch.setenv("CITADEL_SERVE__MIN_TTL", "5m")
    monkeypatch.setenv("CITADEL_SERVE__MAX_TTL", "6h")

    settings = load_serve({**SERVE, "max_ttl": "7h"})

    assert settings.ttl_limits == TTLLimits(timedelta(hours=1), timedelta(minutes=5), timedelta(hours=7))


def test_everything_can_be_said_by_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SERVE, "server_name": "ca.example.org, 10.0.0.1", "relax_names": "true"}.items():
        monkeypatch.setenv(f"CITADEL_SERVE__{name.upper()}", value)

    settings = load_serve({})

    assert settings.listen == Address("127.0.0.1", 15012)
    assert settings.server_name == ("ca.example.org", "10.0.0.1")
    assert settings.relax_names


def test_everything_can_be_said_by_a_file_of_any_name(nowhere: Path) -> None:
    file = nowhere / "other.toml"
    file.write_text(
        '[agent]\nca = "ca.example.org:15012"\nca_bundle = "ca.crt"\nca_mtls = "ca.example.org:15013"\n'
        'token_file = "token"\nid = "spiffe://example.org/web"\nstate = "state"\nsds = "unix:sds"\nsds_mode = "0600"\n'
        'ttl = "90m"\nrenew_earliest = 0.3\nrenew_latest = 0.4\nadmin = "[::1]:9901"\n'
    )

    settings = load_agent({}, file)

    assert settings.ca == Address("ca.example.org", 15012)
    assert settings.sds_mode == 0o600
    assert settings.ttl == timedelta(minutes=90)
    assert settings.renewal == RenewalPolicy(0.3, 0.4)


def test_the_file_can_be_named_by_a_variable(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nowhere / "citadel.toml").write_text('[serve]\nlog_level = "debug"\n')
    (nowhere / "other.toml").write_text('[serve]\nlog_level = "error"\n')
    monkeypatch.setenv("CITADEL_CONFIG", "other.toml")

    assert load_serve(SERVE).log_level == "error"


def test_flags_that_were_not_given_hide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CITADEL_SERVE__LOG_LEVEL", "debug")

    assert load_serve({**SERVE, "log_level": None}).log_level == "debug"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_serve(SERVE).log_level = "debug"  # type: ignore[misc]  # that is the point


# --- unknown names


def test_an_unknown_name_in_the_file_is_told_with_the_nearest_known_one(nowhere: Path) -> None:
    (nowhere / "citadel.toml").write_text('[serve]\nlisten-mtls = ":1"\n')

    error = refused("serve", {**SERVE})

    assert error.rule == "unknown_setting"
    assert str(error) == "unknown setting 'listen-mtls' ([serve] in citadel.toml)"
    assert error.hints == ("did you mean listen_mtls?",)


def test_an_unknown_section_of_the_file_is_told(nowhere: Path) -> None:
    (nowhere / "citadel.toml").write_text("[server]\n")

    error = refused("agent", {**AGENT})

    assert (str(error), error.hints) == ("unknown setting 'server' (citadel.toml)", ("did you mean serve?",))


@pytest.mark.parametrize(
    "variable", ["CITADEL_SERVE__LISTN", "CITADEL_SERVE_LISTEN", "CITADEL_SERVE__listen", "CITADEL_SERVE___LISTEN"]
)
def test_an_unknown_variable_is_told_with_the_nearest_known_one(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "127.0.0.1:1")

    error = refused("serve", {**SERVE})

    assert str(error) == f"unknown setting '{variable}' (in the environment)"
    if not variable.islower() and variable.isupper():
        assert error.hints == ("did you mean CITADEL_SERVE__LISTEN?",)


@pytest.mark.parametrize("variable", ["CITADEL_SERVICE_HOST", "CITADEL_SERVE_PORT", "CITADEL_DIR", "CITADEL_AGENT__ID"])
def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "anything")

    assert load_serve(SERVE) == ServeSettings.model_validate(SERVE)


def test_an_unknown_flag_is_told() -> None:
    assert str(refused("serve", {**SERVE, "lisen": ":1"})) == "unknown setting 'lisen' (flag --lisen)"


# --- values that cannot be


def test_a_bad_value_is_told_with_the_flag_it_came_from() -> None:
    error = refused("serve", {**SERVE, "listen": "8443"})

    assert error.rule == "invalid_setting"
    assert str(error) == "listen: '8443' is no address: it is not HOST:PORT (flag --listen)"


def test_a_bad_value_is_told_with_the_variable_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CITADEL_SERVE__DEFAULT_TTL", "1 day")

    assert str(refused("serve", {**SERVE})).endswith("(variable CITADEL_SERVE__DEFAULT_TTL)")


def test_a_bad_value_is_told_with_the_file_it_came_from(nowhere: Path) -> None:
    (nowhere / "citadel.toml").write_text('[serve]\nlog_level = "loud"\n')

    error = refused("serve", {**SERVE})

    assert str(error).startswith("log_level: ")
    assert "'loud'" in str(error)
    assert str(error).endswith("([serve] in citadel.toml)")


def test_several_bad_values_are_told_at_once() -> None:
    error = refused("agent", {**AGENT, "id": "example.org", "ttl": "soon"})

    assert "id: " in str(error)
    assert "ttl: " in str(error)


def test_a_setting_that_is_missing_is_told_with_all_the_ways_to_give_it() -> None:
    error = refused("serve", {"dir": "/srv/ca", "admin": ":9090"})

    assert (error.rule, str(error)) == ("missing_setting", "listen is not set")
    assert error.hints == ("give --listen, CITADEL_SERVE__LISTEN, or listen under [serve] of a file",)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ttl", 3600), ("sds_mode", 660), ("sds_mode", 0o660), ("sds_mode", "rw-rw----"), ("sds_mode", "1777"),
     ("renew_latest", "most"), ("id", 7), ("ca_dir", 7), ("log_format", "xml")],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_refused(name: str, value: object) -> None:
    assert refused("agent", {**AGENT, name: value}).rule == "invalid_setting"


# --- settings that do not fit together


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"ca_dir": None}, "exactly one of ca"),
        ({"ca": "ca:1", "ca_bundle": "ca.crt"}, "exactly one of ca"),
        ({"ca_dir": None, "ca": "ca:1"}, "ca needs ca_bundle"),
        ({"ca_dir": None, "ca": ":1", "ca_bundle": "ca.crt"}, "a host and a port to call"),
        ({"ca_dir": None, "ca": "ca:0", "ca_bundle": "ca.crt"}, "a host and a port to call"),
        ({"token_file": "t"}, "token_file has no meaning without ca"),
        (
            {"ca_dir": None, "ca": "ca:1", "ca_bundle": "b", "passphrase_file": "p"},
            "passphrase_file has no meaning without ca_dir",
        ),
    ],
)
def test_an_agent_has_one_authority_and_what_belongs_to_it(flags: dict[str, object], text: str) -> None:
    error = refused("agent", {**AGENT, **flags})

    assert error.rule == "settings_conflict"
    assert text in str(error)


@pytest.mark.parametrize("name", ["jwt_issuer", "jwt_jwks"])
def test_the_issuer_of_tokens_and_its_keys_come_together(name: str) -> None:
    assert refused("serve", {**SERVE, name: "https://issuer.example.org"}).rule == "settings_conflict"


def test_lifetimes_out_of_order_are_refused() -> None:
    assert refused("serve", {**SERVE, "default_ttl": "91d"}).rule == "ttl_limits_order"


def test_a_renewal_window_beyond_the_lifetime_is_refused() -> None:
    assert refused("agent", {**AGENT, "renew_latest": 1.0}).rule == "renewal_window"
    assert refused("serve", {**SERVE, "renew_latest": 1.0}).rule == "renewal_window"


@pytest.mark.parametrize(
    "limit", [{"issue_rate": 0}, {"caller_rate": -1}, {"identity_limit": 0}, {"identity_window": "0s"}]
)
def test_a_limit_that_lets_nothing_pass_is_refused(limit: dict[str, object]) -> None:
    assert refused("serve", {**SERVE, **limit}).rule == "rate_limit"


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("nginx -s reload", ("nginx", "-s", "reload")),
        ("sh -c 'kill -HUP $(cat a.pid)'", ("sh", "-c", "kill -HUP $(cat a.pid)")),
        (["one word", "$HOME"], ("one word", "$HOME")),
    ],
)
def test_a_command_is_split_into_words_and_nothing_else_of_a_shell_is_done(
    written: object, words: tuple[str, ...]
) -> None:
    assert load_agent({**AGENT, "out": "tls", "exec": written}).exec == words


@pytest.mark.parametrize("written", ["", "  ", "nginx 'reload"])
def test_a_command_without_words_or_with_an_open_quote_is_refused(written: str) -> None:
    assert refused("agent", {**AGENT, "out": "tls", "exec": written}).rule == "invalid_setting"


@pytest.mark.parametrize("name", ["exec", "signal_pid_file"])
def test_nobody_is_told_of_files_that_are_not_written(name: str) -> None:
    assert refused("agent", {**AGENT, name: "web"}).rule == "settings_conflict"


@pytest.mark.parametrize("name", ["KILL", "hup", "SIGHUP", "STOP"])
def test_signals_that_no_program_takes_for_reload_are_refused(name: str) -> None:
    assert (
        refused("agent", {**AGENT, "out": "tls", "signal_pid_file": "web.pid", "signal": name}).rule
        == "invalid_setting"
    )


def test_files_for_others_are_kept_out_of_the_agents_own_state() -> None:
    assert refused("agent", {**AGENT, "out": AGENT["state"]}).rule == "settings_conflict"


# --- files that cannot be


def test_a_file_that_was_named_and_is_not_there_is_an_error(nowhere: Path) -> None:
    assert refused("serve", {**SERVE}, nowhere / "none.toml").rule == "config_file_unreadable"


@pytest.mark.parametrize("text", [b"[serve\n", b"\xff\xfe", b"listen = 1\nlisten = 2\n"])
def test_a_file_that_is_not_toml_is_an_error_that_names_it(nowhere: Path, text: bytes) -> None:
    (nowhere / "citadel.toml").write_bytes(text)

    error = refused("serve", {**SERVE})

    assert error.rule == "config_file_syntax"
    assert "citadel.toml" in str(error)


def test_a_section_that_is_no_table_is_an_error(nowhere: Path) -> None:
    (nowhere / "citadel.toml").write_text("serve = 1\n")

    assert refused("serve", {**SERVE}).rule == "invalid_setting"


def test_a_file_beyond_all_measure_is_not_read(nowhere: Path) -> None:
    (nowhere / "citadel.toml").write_bytes(b"#" * (config.MAX_FILE_BYTES + 1))

    assert refused("serve", {**SERVE}).rule == "config_file_too_large"


# --- workers


def test_workers_are_a_number_or_one_for_each_processor() -> None:
    assert load_serve(SERVE).workers == 1
    assert load_serve({**SERVE, "workers": "3"}).workers == 3
    assert load_serve({**SERVE, "workers": "auto"}).workers == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("text", ["0", "-1", "129", "many", "1.5", ""])
def test_other_workers_are_refused(text: str) -> None:
    error = refused("serve", {**SERVE, "workers": text})

    assert "flag --workers" in error.message


@given(
    host=st.sampled_from(["", "127.0.0.1", "::1", "ca.example.org"]),
    port=st.integers(min_value=0, max_value=65535),
    skew=st.integers(min_value=0, max_value=100_000),
    names=st.lists(st.sampled_from(["a.example", "b.example"])),
    policy=st.none() | st.just(Path("/etc/policy.toml")),
    relax=st.booleans(),
)
def test_settings_go_to_another_process_as_json_and_arrive_as_they_were(
    host: str, port: int, skew: int, names: list[str], policy: Path | None, *, relax: bool
) -> None:
    address = Address(host, port)
    changes = {"clock_skew": timedelta(seconds=skew), "server_name": tuple(names), "policy": policy}
    settings = ServeSettings(
        **{"dir": Path("/ca"), "listen": address, "listen_mtls": address, "admin": address, **changes},
        relax_names=relax,
    )
    for exclude_defaults in (True, False):  # those that have their defaults could be written too
        there = json.loads(json.dumps(settings.model_dump(mode="json", exclude_defaults=exclude_defaults)))
        assert ServeSettings.model_validate(there) == settings
