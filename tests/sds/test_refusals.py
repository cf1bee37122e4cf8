"""What is kept of the text of a NACK."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_py._proto.envoy.config.core.v3.base_pb2 import DataSource
from citadel_py._proto.envoy.extensions.transport_sockets.tls.v3.common_pb2 import TlsCertificate
from citadel_py._proto.envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from citadel_py.core.keys import KeyType, generate_key, private_key_pem
from citadel_py.sds.refusals import MAX_REFUSAL, redact_refusal

CONSTRAINT = (
    "Proto constraint validation failed (TlsCertificateValidationError.PrivateKeyProvider: embedded message failed "
    "validation | caused by PrivateKeyProviderValidationError.ProviderName: value length must be at least 1 characters)"
)


@pytest.fixture(scope="module")
def key() -> str:
    return private_key_pem(generate_key(KeyType.P256)).decode()


@pytest.fixture(scope="module")
def dump(key: str) -> str:
    """A secret as Envoy prints it: protobuf's text form."""
    inline = DataSource(inline_bytes=key.encode())
    return str(Secret(name="default", tls_certificate=TlsCertificate(certificate_chain=inline, private_key=inline)))


def leaks(text: str, key: str) -> bool:
    body = key.splitlines()[1:-1]
    return any(line[start : start + 12] in text for line in body for start in range(len(line) - 12))


@pytest.mark.parametrize(
    "message",
    [
        "Failed to load certificate chain from <inline>",
        "Failed to load private key from <inline>, Cause: error:0b000074:X.509 routines:KEY_VALUES_MISMATCH",
        "SAN-based verification of peer certificates without trusted CA is insecure and not allowed",
        "Multiple trust bundles are given for one trust domain for td1.test",
        "Proto constraint validation failed (CertificateValidationContextValidationError.TrustedCa: value is required)",
    ],
)
def test_what_envoy_says_about_a_plain_mistake_is_kept(message: str) -> None:
    assert redact_refusal(message) == message


def test_of_a_broken_constraint_only_the_constraint_is_kept(dump: str) -> None:
    assert redact_refusal(f"{dump}: {CONSTRAINT}") == CONSTRAINT


@pytest.mark.parametrize("template", ["{dump}", "bad: {dump}", "{constraint}: {dump}", "{key}", "x {key}", "{body}"])
def test_no_part_of_a_private_key_is_kept(template: str, dump: str, key: str) -> None:
    body = "".join(key.splitlines()[1:-1])
    kept = redact_refusal(template.format(dump=dump, key=key, constraint=CONSTRAINT, body=body))
    assert not leaks(kept, key)
    assert kept.endswith("[removed]")


@given(st.text(max_size=2000))
def test_what_is_kept_is_short_printable_and_on_one_line(message: str) -> None:
    kept = redact_refusal(message)
    assert len(kept) <= MAX_REFUSAL + len("...")
    assert kept.isascii()
    assert kept == "" or kept.isprintable()
