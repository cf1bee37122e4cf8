"""`serve`: flags become settings, and app.serve runs on them. What the settings mean is config's."""

from __future__ import annotations

from pathlib import Path

import click

from citadel_py.cli import frame, options, services
from citadel_py.cli.exits import Exit


@frame.command(
    "serve",
    examples=[
        "citadel-py serve --dir /srv/ca --listen 127.0.0.1:8443 --admin 127.0.0.1:9090",
        """\
citadel-py serve --dir /srv/ca --listen 0.0.0.0:8443 --listen-mtls 0.0.0.0:8444 \\
    --admin 127.0.0.1:9090 --server-name ca.example""",
        "citadel-py serve --config citadel.toml --workers auto",
    ],
    codes=[Exit.UNAVAILABLE],
    meanings={Exit.DONE: "stopped by SIGTERM or SIGINT, with every request answered"},
)
@click.option(
    "--dir",
    metavar="D",
    type=options.FILE,
    help=f"Directory of the authority.  [env var: {options.DIRECTORY_VARIABLE}]",
)
@click.option("--listen", metavar="HOST:PORT", help="Where callers with a token ask (TLS).")
@click.option(
    "--listen-mtls", metavar="HOST:PORT", help="Where callers with a certificate renew.  [default: a free port]"
)
@click.option("--admin", metavar="HOST:PORT", help="Health and metrics (HTTP).")
@click.option(
    "--server-name", metavar="NAME", multiple=True, help="A further name of the serving certificate; may be repeated."
)
@click.option("--workers", metavar="N", help="Processes that issue: a number, or auto for one per CPU.  [default: 1]")
@services.passphrase_file("Passphrase of the authority's key.")
@click.option(
    "--ledger", metavar="URL",
    help="The ledger, when it is not D/ledger.db: a path, or postgresql://HOST/DATABASE.  "
    f"[env var: {options.LEDGER_VARIABLE}]",
)  # fmt: skip
@click.option("--jwt-issuer", metavar="ISS", help="Accept JSON Web Tokens of this issuer.")
@click.option("--jwt-jwks", metavar="FILE_OR_URL", type=options.FILE, help="Its keys.")
@click.option("--jwt-audience", metavar="AUD", help="The audience that a token must have.  [default: istio-ca]")
@click.option(
    "--clock-skew", metavar="DURATION", help="By how much clocks of token issuers may differ.  [default: 10s]"
)
@click.option(
    "--default-ttl", metavar="DURATION", help="Lifetime of certificates when none is asked for.  [default: 24h]"
)
@click.option("--min-ttl", metavar="DURATION", help="Shortest lifetime.  [default: 1m]")
@click.option("--max-ttl", metavar="DURATION", help="Longest lifetime.  [default: 90d]")
@click.option(
    "--ttl-spread", metavar="PART", type=float, help="Shorten each lifetime by up to this part.  [default: 0.1]"
)
@click.option("--renew-earliest", metavar="PART", type=float, help="Ask for renewal after this part.  [default: 0.5]")
@click.option("--renew-latest", metavar="PART", type=float, help="Ask for renewal before this part.  [default: 0.66]")
@click.option("--issue-rate", metavar="N", type=int, help="Certificates per second in all.  [default: 5000]")
@click.option("--caller-rate", metavar="N", type=int, help="Certificates per second for one caller.  [default: 500]")
@click.option(
    "--identity-limit", metavar="N", type=int, help="Certificates for one identity in a window.  [default: 5000]"
)
@click.option("--identity-window", metavar="DURATION", help="That window.  [default: 1h]")
@click.option("--policy", metavar="FILE", type=options.FILE, help="Rules of who may have what, in TOML.")
@click.option("--probe-every", metavar="DURATION", help="Ask itself for a certificate; 0s is never.  [default: 30s]")
@click.option("--trust-clock/--no-trust-clock", default=None, help="The clock is right, whatever the ledger has seen.")
@click.option("--relax-names/--no-relax-names", default=None, help="Ignore names in a CSR that were not granted.")
@click.option("--allow-ed25519/--no-allow-ed25519", default=None, help="Accept Ed25519 keys (Envoy does not).")
@services.common_options
def command(config_file: Path | None, **flags: object) -> None:
    """Run the CA service on the authority in D.

    It issues over gRPC to callers with a join token, a JWT or a certificate, and renews its own
    serving certificate. SIGTERM stops it gracefully.
    """
    from citadel_py.config import load_serve

    fallbacks = {
        "dir": options.DIRECTORY_VARIABLE,
        "passphrase_file": options.PASSPHRASE_VARIABLE,
        "ledger": options.LEDGER_VARIABLE,
    }
    settings = load_serve(services.given(flags, "serve", fallbacks), config_file)
    if settings.workers > 1:
        from citadel_py.app.workers import serve_with_workers as serve
    else:
        from citadel_py.app.serve import serve
    services.run_service(serve(settings))
