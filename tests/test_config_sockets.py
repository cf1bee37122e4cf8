"""The sockets of an agent in a settings file: what may be said, and where an error says that something is wrong."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from citadel_py.config import AgentSettings, load_agent
from citadel_py.core.context_options import ContextOptions, CrlCheck, PeerMatcher
from citadel_py.core.errors import InvalidConfiguration
from citadel_py.core.spiffe import SpiffeID

TOP = 'ca_dir = "ca"\nstate = "state"\n'
SERVICE = 'ca = "ca:1"\nca_bundle = "ca.crt"\nstate = "state"\n'
WEB = '[[agent.sockets]]\npath = "unix:/run/web.sock"\nidentities = ["spiffe://example.org/web"]\n'
SHOP = '[[agent.sockets]]\npath = "unix:/run/shop.sock"\nidentities = ["spiffe://example.org/shop"]\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "citadel.toml"


def load(file: Path, *sockets: str, top: str = TOP) -> AgentSettings:
    file.write_text(f"[agent]\n{top}{''.join(sockets)}")
    return load_agent({}, file)


def refused(file: Path, *sockets: str, top: str = TOP) -> InvalidConfiguration:
    with pytest.raises(InvalidConfiguration) as caught:
        load(file, *sockets, top=top)
    return caught.value


def id_of(name: str) -> SpiffeID:
    return SpiffeID.parse(f"spiffe://example.org/{name}")


# --- what may be said


def test_everything_can_be_said_of_a_socket(file: Path) -> None:
    more = (
        'mode = "0620"\nowner = "envoy"\ngroup = 1001\nroot_validator = "plain"\ncrl = "leaf"\n'
        'peers = ["spiffe://example.org/ns/**"]\nout = "tls"\nexec = "nginx -s reload"\nsignal_pid_file = "pid"\n'
        'signal = "USR1"\nlisten = "127.0.0.1:15020"\nkeys_to = ["spiffe://example.org/far"]\n'
    )
    (socket,) = load(file, WEB + more).served
    assert (socket.path, socket.identities, socket.mode) == ("unix:/run/web.sock", (id_of("web"),), 0o620)
    assert (socket.owner, socket.group) == ("envoy", 1001)
    peers = (PeerMatcher(id_of("ns"), is_prefix=True),)
    assert socket.context == ContextOptions(use_spiffe_validator=False, peers=peers, crl=CrlCheck.LEAF)
    assert (str(socket.listen), socket.keys_to) == ("127.0.0.1:15020", (id_of("far"),))
    assert (socket.out, socket.exec, socket.signal) == (Path("tls"), ("nginx", "-s", "reload"), "USR1")


def test_what_is_not_said_is_as_of_a_single_socket(file: Path) -> None:
    (socket,) = load(file, WEB).served
    single = load_agent({"ca_dir": "ca", "state": "s", "id": "spiffe://example.org/web", "sds": "unix:/run/web.sock"})
    assert single.served == (socket,)


def test_the_node_comes_first_and_each_identity_once(file: Path) -> None:
    node = f'{SERVICE}node_id = "spiffe://example.org/node"\n'
    two = SHOP.replace('"]', '", "spiffe://example.org/web"]')
    assert load(file, WEB, two, top=node).identities == (id_of("node"), id_of("web"), id_of("shop"))


def test_thousands_of_sockets_are_read_in_a_moment(file: Path) -> None:
    begin = time.process_time()
    settings = load(file, *(WEB.replace("web", f"w{number}") for number in range(5_000)))
    assert len(settings.identities) == 5_000
    assert time.process_time() - begin < 3.0


# --- what is wrong, and where

WRONG_VALUES = {
    'mode = "999"': "socket 2 (unix:/run/shop.sock): mode: '999' is no file mode",
    "mode = 660": "socket 2 (unix:/run/shop.sock): mode: write it in quotes",
    "owner = -1": "socket 2 (unix:/run/shop.sock): owner: it is neither the name nor the number of an account",
    "owner = true": "socket 2 (unix:/run/shop.sock): owner: it is neither",
    "owner = 4294967295": "socket 2 (unix:/run/shop.sock): owner: it is neither",
    'group = ""': "socket 2 (unix:/run/shop.sock): group: it is neither",
    'peers = ["spiffe://example.org/*"]': "socket 2 (unix:/run/shop.sock): peers: 'spiffe://example.org/*' does not",
    'peers = "spiffe://example.org/x"': "socket 2 (unix:/run/shop.sock): peers: input should be a valid tuple",
    'root_validator = "none"': "socket 2 (unix:/run/shop.sock): root_validator: ",
    'ownr = "envoy"': "socket 2 (unix:/run/shop.sock): unknown setting 'ownr': did you mean owner?",
    'zzz = "envoy"': "socket 2 (unix:/run/shop.sock): unknown setting 'zzz': known are crl, exec, group",
    'ttl = "1h"': "socket 2 (unix:/run/shop.sock): unknown setting 'ttl'",
}


@pytest.mark.parametrize("line", WRONG_VALUES)
def test_a_wrong_value_is_told_with_the_socket_the_setting_and_the_file(file: Path, line: str) -> None:
    error = refused(file, WEB, f"{SHOP}{line}\n")
    assert error.rule == "invalid_setting"
    assert str(error).startswith(WRONG_VALUES[line])
    assert str(error).endswith(f"([agent] in {file})")


def test_an_identity_that_is_none_is_told_by_its_number(file: Path) -> None:
    error = refused(file, WEB.replace('"]', '", "web"]'))
    assert str(error).startswith("socket 1 (unix:/run/web.sock): identities: number 2: 'web' does not start with")


def test_what_is_missing_is_told(file: Path) -> None:
    assert "socket 2: path is not set" in str(
        refused(file, WEB, '[[agent.sockets]]\nidentities = ["spiffe://e.org/w"]\n')
    )
    assert "socket 1 (unix:x): identities is not set" in str(refused(file, '[[agent.sockets]]\npath = "unix:x"\n'))


CONFLICTS = {
    'exec = "true"': "exec has no meaning without out",
    'signal_pid_file = "pid"': "signal_pid_file has no meaning without out",
    'keys_to = ["spiffe://example.org/far"]': "keys_to has no meaning without listen",
    'listen = "127.0.0.1:15020"': "listen is that of socket 1 (unix:/run/web.sock), too",
    'out = "state"': "out and state are one directory",
    'out = "tls"': "out is that of socket 1 (unix:/run/web.sock), too",
}


@pytest.mark.parametrize("line", CONFLICTS)
def test_what_does_not_fit_is_told_with_the_socket(file: Path, line: str) -> None:
    error = refused(file, f'{WEB}out = "tls"\nlisten = "127.0.0.1:15020"\n', f"{SHOP}{line}\n")
    assert error.rule == "settings_conflict"
    assert str(error).startswith(f"socket 2 (unix:/run/shop.sock): {CONFLICTS[line]}")


@pytest.mark.parametrize("path", ["/run/web.sock", "///run/web.sock", "/run/../run/./web.sock"])
def test_one_path_cannot_be_two_sockets_however_it_is_written(file: Path, path: str) -> None:
    error = refused(file, WEB, SHOP.replace("/run/shop.sock", path))
    assert str(error) == f"socket 2 (unix:{path}): the path is that of socket 1 (unix:/run/web.sock), too"


def test_envoys_spiffe_validator_does_not_look_at_leaves_alone(file: Path) -> None:
    error = refused(file, f'{WEB}root_validator = "spiffe"\ncrl = "leaf"\n')
    assert error.rule == "crl_leaf_unsupported"
    assert str(error).startswith("socket 1 (unix:/run/web.sock): ")


def test_identities_are_of_one_trust_domain_and_each_stands_once(file: Path) -> None:
    other = refused(file, WEB, SHOP.replace("example.org", "other.org"))
    assert "spiffe://other.org/shop is not of the trust domain example.org" in str(other)
    twice = refused(file, WEB.replace('"]', '", "spiffe://example.org/web"]'))
    assert "identities has spiffe://example.org/web twice" in str(twice)
    assert "identities has none" in str(refused(file, WEB.replace('"spiffe://example.org/web"', "")))
    assert "sockets has none" in str(refused(file, top=f"{TOP}sockets = []\n"))
    assert str(refused(file, top=f"{TOP}sockets = 3\n")).startswith("sockets: input should be a valid tuple")
    assert str(refused(file, top=f"{TOP}sockets = [3]\n")).startswith("socket 1: input should be a valid dictionary")


@pytest.mark.parametrize(
    "line",
    ['id = "spiffe://example.org/x"', 'sds = "unix:/run/x.sock"', 'sds_mode = "0600"', 'root_validator = "plain"',
     'out = "tls"', 'signal = "HUP"'],
)  # fmt: skip
def test_one_socket_and_several_cannot_both_be_meant(file: Path, line: str) -> None:
    name = line.split(" ", 1)[0]
    error = refused(file, WEB, top=f"{TOP}{line}\n")
    assert str(error) == f"{name} and sockets cannot be both: say it for each of [[agent.sockets]]"


def test_a_node_vouches_for_sockets_of_a_service(file: Path) -> None:
    node = 'node_id = "spiffe://example.org/node"\n'
    assert "node_id has no meaning with ca_dir" in str(refused(file, WEB, top=TOP + node))
    single = 'id = "spiffe://example.org/x"\nsds = "unix:x"\n'
    assert "node_id has no meaning without sockets" in str(refused(file, top=SERVICE + single + node))
    foreign = node.replace("example.org", "other.org")
    assert "is not of the trust domain other.org" in str(refused(file, WEB, top=SERVICE + foreign))


def test_sockets_are_for_a_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CITADEL_AGENT__SOCKETS", "unix:/run/web.sock")
    error = refused(file)
    assert str(error).startswith("sockets: input should be a valid tuple")
    assert str(error).endswith("(variable CITADEL_AGENT__SOCKETS)")
