"""`agent`: flags become settings, and app.agent runs on them. What the settings mean is config's."""

from __future__ import annotations

from pathlib import Path

import click

from citadel_py.cli import frame, options, services
from citadel_py.cli.exits import Exit


@frame.command(
    "agent",
    examples=[
        """\
citadel-py agent --ca ca.example:8443 --ca-bundle ca.crt --token-file web.token \\
    --id spiffe://example.org/web --state /var/lib/web --sds unix:/run/web/sds.sock""",
        "citadel-py agent --ca-dir /srv/ca --id spiffe://example.org/web --state web --sds unix:web/sds.sock",
        'citadel-py agent --config citadel.toml --out /run/web/tls --exec "nginx -s reload"',
    ],
    codes=[Exit.UNAVAILABLE, Exit.DENIED],
    meanings={Exit.DONE: "stopped by SIGTERM or SIGINT"},
)
@click.option("--ca", metavar="HOST:PORT", help="The CA service.")
@click.option("--ca-mtls", metavar="HOST:PORT", help="Where it renews by certificate.  [default: as the service says]")
@click.option("--ca-bundle", metavar="FILE", type=options.FILE, help="Roots that verify the CA service.")
@click.option("--token-file", metavar="F", type=options.FILE, help="Join token or JWT for the first certificate.")
@click.option(
    "--ca-dir", metavar="D", type=options.FILE, help="Sign in this process with the authority in D, without a service."
)
@services.passphrase_file("Passphrase of the authority's key in --ca-dir.")
@click.option(
    "--node-id", metavar="ID", help="With [[agent.sockets]]: the node's own SPIFFE ID, which vouches for the others."
)
@click.option("--id", metavar="ID", help="The SPIFFE ID to have certificates for.")
@click.option("--state", metavar="S", type=options.FILE, help="Directory that keeps key and certificate (made 0700).")
@click.option(
    "--state-passphrase-file", metavar="F", type=options.FILE, help="Encrypt what is in --state with this passphrase."
)
@click.option("--sds", metavar="unix:PATH", help="Socket on which Envoy gets them.")
@click.option("--sds-mode", metavar="MODE", help="Mode of the socket.  [default: 0660]")
@click.option("--out", metavar="D", type=options.FILE, help="Directory for tls.crt, tls.key and ca.crt (made 0700).")
@click.option("--exec", metavar="CMD", help="Run this, without a shell, when the files in --out have changed.")
@click.option("--signal-pid-file", metavar="F", type=options.FILE, help="Signal the process with the number in F then.")
@click.option("--signal", metavar="NAME", help="Which signal: HUP, USR1, ...  [default: HUP]")
@click.option(
    "--federated", metavar="NAME=FILE", multiple=True, help="Bundle of another trust domain; may be repeated."
)
@click.option(
    "--root-validator", type=click.Choice(("plain", "spiffe")), help="How Envoy verifies with ROOTCA.  [default: plain]"
)
@click.option("--ttl", metavar="DURATION", help="Lifetime to ask for.")
@click.option("--renew-earliest", metavar="PART", type=float, help="Renew after this part of a life.  [default: 0.5]")
@click.option("--renew-latest", metavar="PART", type=float, help="Renew before this part of a life.  [default: 0.66]")
@click.option("--admin", metavar="HOST:PORT", help="Health and metrics (HTTP).")
@services.common_options
def command(config_file: Path | None, **flags: object) -> None:
    """Keep a certificate fresh and serve it to Envoy over SDS.

    It makes the key itself, asks the CA, renews ahead of expiry, and goes on with what it holds
    while the CA is away. Several sockets with several identities stand in a file: [[agent.sockets]].
    """
    from citadel_py.app.agent import agent
    from citadel_py.config import load_agent

    has_authority = services.is_set("ca_dir", "agent", services.given(flags, "agent", {}))
    fallbacks = {"passphrase_file": options.PASSPHRASE_VARIABLE} if has_authority else {}
    services.run_service(agent(load_agent(services.given(flags, "agent", fallbacks), config_file)))
