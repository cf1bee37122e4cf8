"""`verify`: does a chain verify against a bundle, and if not, by which rule. System roots are never asked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from citadel_py.cli import frame, options, params
from citadel_py.cli.exits import Exit
from citadel_py.cli.session import Session
from citadel_py.core.errors import VerificationFailed
from citadel_py.core.spiffe import SpiffeID, TrustDomain

if TYPE_CHECKING:
    from cryptography import x509

    from citadel_py.cli.describe import Facts
    from citadel_py.core.bundle import BundleSet
    from citadel_py.core.x509svid import X509SVID


@frame.command(
    "verify",
    examples=[
        "citadel-py verify web/tls.crt --bundle web/ca.crt",
        "citadel-py verify web/tls.crt --bundle web/ca.crt --id spiffe://example.org/web",
        "citadel-py verify web/tls.crt --bundle bundle.json --at 2030-01-31T12:00:00Z",
    ],
    meanings={
        Exit.DONE: "the chain verifies",
        Exit.NO: "it does not; stderr names the rule",
        Exit.BAD_INPUT: "an input cannot be read",
    },
)
@click.argument("chain", type=options.FILE)
@click.option(
    "--bundle",
    metavar="CA",
    type=options.FILE,
    required=True,
    help="Roots: PEM, a SPIFFE bundle, or a map of SPIFFE bundles.",
)
@click.option("--id", "expected", type=params.SPIFFE_ID, help="The ID that the leaf must have.")
@click.option("--at", type=params.MOMENT, help="Verify as of this moment (RFC 3339) instead of now.")
@options.as_json
@click.pass_obj
def command(
    session: Session, /, *, chain: str, bundle: str, expected: SpiffeID | None, at: datetime | None, as_json: bool
) -> int:
    """Verify CHAIN (leaf first, then intermediates; - is stdin) as an X509-SVID.

    Only the bundle of the leaf's own trust domain is asked. PEM and a single SPIFFE bundle do not
    say whose they are: they are taken as those of the leaf's trust domain.
    """
    from citadel_py.cli.inputs import read_certificates, read_input

    now = at or session.now()
    presented = read_certificates(session, chain, flag="CHAIN")
    bundles, is_named = _read_bundles(read_input(session, bundle, flag="--bundle"), bundle, presented[0])
    try:
        svid = _verify(presented, bundles, now, expected)
    except VerificationFailed as error:
        if as_json:
            session.answer_json(_document(presented, now, error=error))
        raise
    if as_json:
        session.answer_json(_document(presented, now, svid=svid))
    else:
        session.answer(_text(svid, now, is_named=is_named))
    return Exit.DONE


def _verify(
    presented: Sequence[x509.Certificate], bundles: BundleSet, now: datetime, expected: SpiffeID | None
) -> X509SVID:
    from citadel_py.core.verify import verify_in

    return verify_in(presented, bundles, now=now, expected=expected)


def _read_bundles(data: bytes, source: str, leaf: x509.Certificate) -> tuple[BundleSet, bool]:
    """The bundles, and whether they name their trust domains. Raises InvalidBundle."""
    from citadel_py.cli.inputs import naming
    from citadel_py.core.bundle import Bundle, BundleSet

    is_json = data.lstrip()[:1] == b"{"
    with naming(source):
        if is_json and b'"trust_domains"' in data:
            return BundleSet.from_json(data), True
        read = Bundle.from_jwks if is_json else Bundle.from_pem
        return BundleSet((read(_trust_domain_of(leaf), data),)), False


def _trust_domain_of(leaf: x509.Certificate) -> TrustDomain:
    """The leaf's; of a leaf that breaks a rule any does, since verification says so before it asks a bundle."""
    from citadel_py.core.verify import check_leaf

    try:
        return check_leaf(leaf).trust_domain
    except VerificationFailed:
        return TrustDomain("unknown")


def _document(
    presented: Sequence[x509.Certificate],
    now: datetime,
    *,
    svid: X509SVID | None = None,
    error: VerificationFailed | None = None,
) -> Facts:
    from citadel_py.cli.describe import certificate_facts
    from citadel_py.cli.render import rfc3339

    return {
        "is_valid": svid is not None,
        "rule": error.rule if error else None,
        "message": error.message if error else None,
        "id": str(svid.id) if svid else None,
        "at": rfc3339(now),
        "certificates": [certificate_facts(certificate, now=now) for certificate in presented],
    }


def _text(svid: X509SVID, now: datetime, *, is_named: bool) -> str:
    from citadel_py.cli.blocks import certificate_row
    from citadel_py.cli.describe import certificate_facts
    from citadel_py.cli.render import fields, heading, rfc3339

    origin = "" if is_named else " (the bundle names none: taken from the leaf)"
    rows = [certificate_row(certificate_facts(each, now=now), now=now) for each in svid.chain]
    trust_domain = f"{svid.id.trust_domain}{origin}"
    return heading("verified", str(svid.id)) + fields([("trust domain", trust_domain), ("at", rfc3339(now)), *rows])
