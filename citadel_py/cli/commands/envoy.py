"""`envoy`: hardened configurations for a proxy with an agent. What is in them is envoy_bootstrap.py's."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from citadel_py.cli import frame, params
from citadel_py.cli.session import Session
from citadel_py.core.errors import BadInput
from citadel_py.core.spiffe import SpiffeID, TrustDomain

if TYPE_CHECKING:
    from citadel_py.config import Address

SERVER, CLIENT = "server", "client"
DEFAULT_LISTEN = {SERVER: ":8443", CLIENT: "127.0.0.1:9000"}


def _parse_address(text: str) -> Address:
    from citadel_py.config import parse_address

    return parse_address(text)


def _parse_port(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535:
        return int(text)
    raise BadInput(f"{text[:20]!a} is not a number from 0 to 65535", rule="invalid_port", hint="--admin-port 9901")


_ADDRESS = params.Parsed("HOST:PORT", _parse_address)
_PORT = params.Parsed("PORT", _parse_port)


@frame.family(
    "envoy",
    examples=["citadel-py envoy bootstrap --server --sds unix:/run/web/sds.sock --trust-domain example.org > web.json"],
)
def command() -> None:
    """Configurations for Envoy."""


@frame.command(
    "bootstrap",
    examples=[
        """\
citadel-py envoy bootstrap --server --sds unix:/run/web/sds.sock --trust-domain example.org \\
    --listen :8443 --application 127.0.0.1:8080 > web.json""",
        """\
citadel-py envoy bootstrap --client --sds unix:/run/shop/sds.sock \\
    --peer spiffe://example.org/ns/shop/sa/web --upstream web.example.org:8443 > shop.json""",
    ],
)
@click.option("--server", "side", flag_value=SERVER, help="For a proxy that takes mTLS from peers.")
@click.option("--client", "side", flag_value=CLIENT, help="For a proxy that speaks mTLS to one server.")
@click.option("--sds", metavar="unix:PATH|HOST:PORT", required=True, help="The agent's socket, or its address for TCP.")
@click.option("--sds-id", type=params.SPIFFE_ID, help="Who the agent at HOST:PORT is.")
@click.option(
    "--sds-credentials", metavar="DIR", type=click.Path(path_type=Path),
    help="Where the proxy has the two files of `envoy credentials` (with HOST:PORT).",
)  # fmt: skip
@click.option(
    "--id", type=params.SPIFFE_ID, help="Which of the agent's identities to present.  [default: the socket's own]"
)
@click.option(
    "--peer", "peers", type=params.SPIFFE_ID, multiple=True,
    help="Who may connect (--server, may be repeated), or who the server is (--client).",
)  # fmt: skip
@click.option(
    "--trust-domain", type=params.TRUST_DOMAIN, help="Everybody in it may connect (--server).  [default: that of --id]"
)
@click.option(
    "--peers-from-agent", is_flag=True, help="The agent names the peers, in what its socket serves (`peers`)."
)
@click.option("--bundle", metavar="NAME", default="ROOTCA", show_default=True, help="Which bundle verifies peers.")
@click.option(
    "--listen", type=_ADDRESS, help="Where it listens.  [default: :8443 for --server, 127.0.0.1:9000 for --client]"
)
@click.option("--application", type=_ADDRESS, help="Where requests go (--server).  [default: it answers by itself]")
@click.option("--upstream", type=_ADDRESS, help="Where the server is (--client).")
@click.option("--admin-port", type=_PORT, default="9901", show_default=True, help="Envoy's admin port, on loopback.")
@click.option("--node", metavar="NAME", help="What the proxy calls itself in logs.  [default: server or client]")
@click.option(
    "--max-connection-duration", type=params.DURATION, default="10m", show_default=True,
    help="Age at which connections end: what SDS brings does not reach older ones.",
)  # fmt: skip
@click.option("--delta", "is_delta", is_flag=True, help="Take secrets by the incremental protocol.")
@click.pass_obj
def bootstrap(session: Session, /, *, side: str | None, **options: Any) -> None:  # noqa: ANN401 - checked by click
    """Print a hardened Envoy bootstrap as JSON.

    It is for a proxy that takes its certificate from an agent. Peers are verified with what SDS
    brings and a static guard; there is no session resumption. An agent at HOST:PORT is asked by mTLS.
    """
    from citadel_py.agent.envoy_bootstrap import client_bootstrap, server_bootstrap, to_json

    if side is None:
        raise click.UsageError("one of --server and --client is needed")
    _check_options(side, options)
    if side == SERVER:
        session.answer(to_json(server_bootstrap(_server(options))))
    else:
        session.answer(to_json(client_bootstrap(_client(options))))


@frame.command(
    "credentials",
    examples=[
        """\
citadel-py envoy credentials certificate /run/web/tls > /etc/envoy/sds-certificate.json
citadel-py envoy credentials trust /run/web/tls > /etc/envoy/sds-trust.json""",
    ],
)
@click.argument("part", type=click.Choice(["certificate", "trust"]))
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.pass_obj
def credentials(session: Session, /, *, part: str, directory: Path) -> None:
    """Print what tells Envoy how to reach an agent by mTLS.

    DIR is where `agent --out` keeps tls.crt, tls.key and ca.crt on the proxy's machine; Envoy reads them anew when
    they are renewed. The answers belong in one directory, as sds-certificate.json and sds-trust.json.
    """
    from citadel_py.agent.envoy_bootstrap import certificate_file, to_json, trust_file

    if not directory.is_absolute():
        raise click.UsageError("DIR is read by Envoy, from wherever that starts: write the whole path")
    session.answer(to_json((certificate_file if part == "certificate" else trust_file)(directory)))


command.add_command(bootstrap)
command.add_command(credentials)


def _server(options: dict[str, Any]) -> Any:  # noqa: ANN401 - imported when it is called
    from citadel_py.agent.envoy_proxy import Peers, ServerProxy

    admitted: tuple[SpiffeID, ...] | TrustDomain | Peers | None = options["peers"] or options["trust_domain"]
    if options["peers_from_agent"]:
        admitted = Peers.BY_AGENT
    if not admitted and options["id"]:
        admitted = options["id"].trust_domain
    if not admitted:
        raise click.UsageError("who may connect? give --trust-domain, --peer or --peers-from-agent")
    return ServerProxy(**_common(SERVER, options), admitted=admitted, application=options["application"])


def _client(options: dict[str, Any]) -> Any:  # noqa: ANN401 - imported when it is called
    from citadel_py.agent.envoy_proxy import ClientProxy, Peers

    peers = [Peers.BY_AGENT] if options["peers_from_agent"] else options["peers"]
    if len(peers) != 1 or options["upstream"] is None:
        raise click.UsageError(
            "a client needs exactly one --peer, or --peers-from-agent, and its address as --upstream"
        )
    return ClientProxy(**_common(CLIENT, options), peer=peers[0], upstream=options["upstream"])


def _common(side: str, options: dict[str, Any]) -> dict[str, Any]:
    age: timedelta = options["max_connection_duration"]
    if age <= timedelta(0):
        raise click.UsageError("--max-connection-duration 0 would let connections outlive any certificate")
    certificate = {"certificate": str(options["id"])} if options["id"] else {}
    return {
        "node": options["node"] or side,
        "sds": _agent(options),
        "listen": options["listen"] or _parse_address(DEFAULT_LISTEN[side]),
        "admin_port": options["admin_port"],
        "bundle": options["bundle"],
        "max_connection_duration": age,
        "is_delta": options["is_delta"],
        **certificate,
    }


def _agent(options: dict[str, Any]) -> Any:  # noqa: ANN401 - imported when it is called
    from citadel_py.agent.envoy_proxy import RemoteAgent
    from citadel_py.sds.socket import UnixAddress

    id, credentials = options["sds_id"], options["sds_credentials"]
    if options["sds"].startswith(("unix:", "/")):
        if id or credentials:
            raise click.UsageError("--sds-id and --sds-credentials are for an agent at HOST:PORT")
        return UnixAddress.parse(options["sds"]).path
    if not id or not credentials:
        raise click.UsageError("an agent at HOST:PORT needs --sds-id and --sds-credentials")
    return RemoteAgent(_parse_address(options["sds"]), id, credentials)


def _check_options(side: str, options: dict[str, Any]) -> None:
    """An option of the other side would be dropped without a word."""
    others = {SERVER: ("upstream",), CLIENT: ("application", "trust_domain")}[side]
    for name in others:
        if options[name] is not None:
            raise click.UsageError(f"--{name.replace('_', '-')} has no meaning with --{side}")
    if sum(bool(options[name]) for name in ("peers", "trust_domain", "peers_from_agent")) > 1:
        raise click.UsageError("--peer, --trust-domain and --peers-from-agent exclude each other")
