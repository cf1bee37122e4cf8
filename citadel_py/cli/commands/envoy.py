"""`envoy bootstrap`: a hardened configuration for a proxy beside an agent. What is in it is envoy_bootstrap.py's."""

from __future__ import annotations

from datetime import timedelta
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
@click.option("--sds", metavar="unix:PATH", required=True, help="The agent's socket.")
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
    brings and a static guard; there is no session resumption.
    """
    from citadel_py.agent.envoy_bootstrap import client_bootstrap, server_bootstrap, to_json

    if side is None:
        raise click.UsageError("one of --server and --client is needed")
    _check_options(side, options)
    if side == SERVER:
        session.answer(to_json(server_bootstrap(_server(options))))
    else:
        session.answer(to_json(client_bootstrap(_client(options))))


command.add_command(bootstrap)


def _server(options: dict[str, Any]) -> Any:  # noqa: ANN401 - imported when it is called
    from citadel_py.agent.envoy_bootstrap import ServerProxy

    admitted: tuple[SpiffeID, ...] | TrustDomain | None = options["peers"] or options["trust_domain"]
    if not admitted and options["id"]:
        admitted = options["id"].trust_domain
    if not admitted:
        raise click.UsageError("who may connect? give --trust-domain or --peer")
    return ServerProxy(**_common(SERVER, options), admitted=admitted, application=options["application"])


def _client(options: dict[str, Any]) -> Any:  # noqa: ANN401 - imported when it is called
    from citadel_py.agent.envoy_bootstrap import ClientProxy

    if len(options["peers"]) != 1 or options["upstream"] is None:
        raise click.UsageError("a client needs exactly one --peer and its address as --upstream")
    return ClientProxy(**_common(CLIENT, options), peer=options["peers"][0], upstream=options["upstream"])


def _common(side: str, options: dict[str, Any]) -> dict[str, Any]:
    from citadel_py.sds.socket import UnixAddress

    age: timedelta = options["max_connection_duration"]
    if age <= timedelta(0):
        raise click.UsageError("--max-connection-duration 0 would let connections outlive any certificate")
    certificate = {"certificate": str(options["id"])} if options["id"] else {}
    return {
        "node": options["node"] or side,
        "sds_socket": UnixAddress.parse(options["sds"]).path,
        "listen": options["listen"] or _parse_address(DEFAULT_LISTEN[side]),
        "admin_port": options["admin_port"],
        "bundle": options["bundle"],
        "max_connection_duration": age,
        "is_delta": options["is_delta"],
        **certificate,
    }


def _check_options(side: str, options: dict[str, Any]) -> None:
    """An option of the other side would be dropped without a word."""
    others = {SERVER: ("upstream",), CLIENT: ("application", "trust_domain")}[side]
    for name in others:
        if options[name] is not None:
            raise click.UsageError(f"--{name.replace('_', '-')} has no meaning with --{side}")
    if options["peers"] and options["trust_domain"]:
        raise click.UsageError("--peer and --trust-domain exclude each other: the one admits IDs, the other everybody")
