"""A gRPC client in Go that knows only the public fields of the Istio CA API, against a running `serve`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.interop.conftest import TRUST_DOMAIN, GoClient, Service

WEB = f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/web"


def test_the_answer_is_leaf_then_intermediates_then_the_whole_bundle(
    service: Service, go_client: GoClient, tmp_path: Path
) -> None:
    answer = go_client(token_file=service.token(WEB, tmp_path / "token"))

    assert (answer.code, answer.message) == ("OK", "")
    *chain, roots = answer.cert_chain
    leaf, *intermediates = [one_certificate(element) for element in chain]
    assert spiffe_id(leaf) == WEB
    assert len(intermediates) == 1
    assert leaf.issuer == intermediates[0].subject
    assert x509.load_pem_x509_certificates(roots.encode()) == x509.load_pem_x509_certificates(
        service.bundle.read_bytes()
    )


def test_every_element_of_the_answer_ends_in_exactly_one_newline(
    service: Service, go_client: GoClient, tmp_path: Path
) -> None:
    answer = go_client(token_file=service.token(WEB, tmp_path / "token"))

    assert len(answer.cert_chain) == 3
    assert all(element.endswith("-----END CERTIFICATE-----\n") for element in answer.cert_chain)


def test_the_lifetime_that_was_asked_for_is_given(service: Service, go_client: GoClient, tmp_path: Path) -> None:
    answer = go_client(token_file=service.token(WEB, tmp_path / "token"), ttl="10m")

    leaf = one_certificate(answer.cert_chain[0])
    lifetime = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert timedelta(minutes=10) <= lifetime <= timedelta(minutes=13)  # with the time it is dated back


def test_a_lifetime_above_the_maximum_is_refused_and_both_are_named(
    service: Service, go_client: GoClient, tmp_path: Path
) -> None:
    answer = go_client(token_file=service.token(WEB, tmp_path / "token"), ttl="9000h")

    assert answer.code == "InvalidArgument"
    assert answer.detail("ErrorInfo")["reason"] == "LIFETIME_ABOVE_MAXIMUM"
    asked, maximum = timedelta(hours=9000), timedelta(days=90)
    assert all(f"{limit.total_seconds():.0f} s" in answer.message for limit in (asked, maximum))
    assert answer.cert_chain == []


def test_a_certificate_renews_itself(service: Service, go_client: GoClient, tmp_path: Path) -> None:
    key, cert = tmp_path / "tls.key", tmp_path / "tls.crt"
    first = go_client(token_file=service.token(WEB, tmp_path / "token"), key_out=key)
    cert.write_text("".join(first.cert_chain[:-1]))

    renewed = go_client(ca=service.listen_mtls, cert=cert, key=key)

    assert renewed.code == "OK", renewed.message
    old, new = (one_certificate(answer.cert_chain[0]) for answer in (first, renewed))
    assert spiffe_id(new) == WEB
    assert new.serial_number != old.serial_number


def test_a_token_works_once(service: Service, go_client: GoClient, tmp_path: Path) -> None:
    token = service.token(WEB, tmp_path / "token")
    assert go_client(token_file=token).code == "OK"

    again = go_client(token_file=token)

    assert again.code == "Unauthenticated"
    assert again.cert_chain == []


@pytest.mark.parametrize("token", [None, "not-a-token"])
def test_an_unknown_caller_learns_nothing_but_a_reason(go_client: GoClient, tmp_path: Path, token: str | None) -> None:
    flags = {}
    if token:
        flags["token_file"] = tmp_path / "token"
        flags["token_file"].write_text(token)

    answer = go_client(**flags)

    assert answer.code == "Unauthenticated"
    assert answer.detail("ErrorInfo")["reason"] == "UNAUTHENTICATED"
    assert answer.cert_chain == []


def test_a_refused_csr_is_an_invalid_argument_that_names_its_rule(
    service: Service, go_client: GoClient, tmp_path: Path
) -> None:
    csr = tmp_path / "ca.csr"
    csr.write_bytes(csr_that_wants_to_be_an_authority())

    answer = go_client(token_file=service.token(WEB, tmp_path / "token"), csr=csr)

    assert answer.code == "InvalidArgument"
    assert answer.detail("ErrorInfo")["reason"] == "CSR_REQUESTS_CA"
    assert answer.cert_chain == []


def csr_that_wants_to_be_an_authority() -> bytes:
    authority = x509.BasicConstraints(ca=True, path_length=None)
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(authority, critical=True)
    signed = request.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def one_certificate(pem: str) -> x509.Certificate:
    (certificate,) = x509.load_pem_x509_certificates(pem.encode())
    return certificate


def spiffe_id(leaf: x509.Certificate) -> str:
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uri
