"""Every kind of certificate that is issued, judged by verifiers and a linter that know nothing of this program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.interop.conftest import TRUST_DOMAIN, citadel
from tests.verifiers.linter import lint, unexplained
from tests.verifiers.programs import VERIFIERS, purposes

WEB = f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/web"


@dataclass(frozen=True)
class Issued:
    """Files: `chain` holds leaf and intermediates, `root` the bundle."""

    chain: Path
    root: Path


def issue(folder: Path, *options: str, key_type: str = "p256") -> Issued:
    citadel("init", "--dir", folder / "ca", "--trust-domain", TRUST_DOMAIN, "--key-type", key_type)
    citadel("issue", WEB, "--dir", folder / "ca", "--out", folder / "web", *options)
    return Issued(folder / "web" / "tls.crt", folder / "web" / "ca.crt")


def sign_for_rsa_key(folder: Path) -> Issued:
    citadel("init", "--dir", folder / "ca", "--trust-domain", TRUST_DOMAIN)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, hashes.SHA256())
    (folder / "web.csr").write_bytes(request.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.crt").write_text(citadel("sign", folder / "web.csr", "--id", WEB, "--dir", folder / "ca"))
    return Issued(folder / "tls.crt", folder / "ca" / "ca.crt")


KINDS: dict[str, Callable[[Path], Issued]] = {
    "p256": issue,
    "p384-authority": lambda folder: issue(folder, key_type="p384"),
    "rsa-authority": lambda folder: issue(folder, key_type="rsa3072"),
    "rsa-leaf": sign_for_rsa_key,
    "dns-name": lambda folder: issue(folder, "--dns", "web.shop.example"),
}


@pytest.fixture(scope="session", params=[*KINDS, "create-certificate"])
def issued(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Issued:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in KINDS:
        return KINDS[request.param](folder)
    service, client = request.getfixturevalue("service"), request.getfixturevalue("go_client")
    *chain, roots = client(token_file=service.token(WEB, folder / "token")).cert_chain
    (folder / "tls.crt").write_text("".join(chain))
    (folder / "ca.crt").write_text(roots)
    return Issued(folder / "tls.crt", folder / "ca.crt")


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_the_chain_is_accepted_under_its_root(issued: Issued, verifier: str) -> None:
    for purpose in purposes(verifier, issued.chain):
        verdict = VERIFIERS[verifier](issued.root, issued.chain, purpose)
        assert verdict.accepted, f"as {purpose}: {verdict.text}"


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_the_chain_is_refused_under_a_forged_root(issued: Issued, verifier: str, tmp_path: Path) -> None:
    forged = tmp_path / "forged.crt"
    forged.write_bytes(pem(forge(x509.load_pem_x509_certificate(issued.root.read_bytes()))))
    for purpose in purposes(verifier, issued.chain):
        assert not VERIFIERS[verifier](forged, issued.chain, purpose).accepted, purpose


def test_the_linter_finds_nothing_that_is_not_explained(issued: Issued, tmp_path: Path) -> None:
    certificates = [file for source in (issued.chain, issued.root) for file in single_files(source, tmp_path)]
    assert len(certificates) == 3
    assert unexplained(lint(certificates)) == []


def test_the_linter_finds_what_is_wrong(tmp_path: Path) -> None:
    flawed = tmp_path / "flawed.crt"
    flawed.write_bytes(pem(leaf_without_subject_and_critical_name()))
    assert unexplained(lint([flawed])) != []


def forge(root: x509.Certificate) -> x509.Certificate:
    """The same in all that is written in it, under another key."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(root.subject)
        .issuer_name(root.issuer)
        .serial_number(root.serial_number)
        .not_valid_before(root.not_valid_before_utc)
        .not_valid_after(root.not_valid_after_utc)
        .public_key(key.public_key())
    )
    for extension in root.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    return builder.sign(key, hashes.SHA256())


def leaf_without_subject_and_critical_name() -> x509.Certificate:
    """RFC 5280 4.2.1.6: where the subject is empty, the subject alternative name must be critical."""
    key = ec.generate_private_key(ec.SECP256R1())
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody")]))
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
        .public_key(key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(WEB)]), critical=False)
        .sign(key, hashes.SHA256())
    )


def single_files(source: Path, folder: Path) -> list[Path]:
    """One file per certificate of `source`."""
    files = []
    for position, certificate in enumerate(x509.load_pem_x509_certificates(source.read_bytes())):
        files.append(folder / f"{source.stem}-{position}.pem")
        files[-1].write_bytes(pem(certificate))
    return files


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
