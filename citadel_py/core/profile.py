"""The certificates that this authority makes: root, intermediate and leaf, field by field.

The profile is the one that OpenSSL, Go, BoringSSL, rustls, GnuTLS and pyca all accept; the reasons
are in docs/reference/certificates.md. Nothing here decides who gets a certificate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from citadel_py.core.errors import InvalidConfiguration
from citadel_py.core.keys import PrivateKey, PublicKey, check_authority_key, signing_hash
from citadel_py.core.policy import Grant
from citadel_py.core.spiffe import TrustDomain

ROOT_LIFETIME = timedelta(days=3650)
INTERMEDIATE_LIFETIME = timedelta(days=365)
DEFAULT_BACKDATE = timedelta(minutes=2)
SERIAL_BYTES = 16
_MAX_ORGANIZATION = 64  # RFC 5280 appendix A.1, ub-organization-name

_EMPTY_NAME = x509.Name([])
_LEAF_EKU = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
_LEAF_CONSTRAINTS = x509.BasicConstraints(ca=False, path_length=None)


@dataclass(frozen=True, slots=True)
class Validity:
    """From and to, both inclusive, whole seconds of aware UTC (RFC 5280 4.1.2.5)."""

    not_before: datetime
    not_after: datetime

    def __post_init__(self) -> None:
        if self.not_before >= self.not_after:
            raise InvalidConfiguration(
                f"validity ends ({self.not_after:%FT%TZ}) before it begins ({self.not_before:%FT%TZ})",
                rule="validity_empty",
            )


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA certificate together with the key that signs under it."""

    certificate: x509.Certificate
    key: PrivateKey

    @property
    def id(self) -> str:
        """Authority id: lower-case hex of the certificate's subject key identifier."""
        return subject_key_id(self.certificate)


def subject_key_id(certificate: x509.Certificate) -> str:
    """Lower-case hex of the subject key identifier, computed from the key where none is there."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        public_key = certificate.public_key()
        return x509.SubjectKeyIdentifier.from_public_key(public_key).digest.hex()
    return extension.value.digest.hex()


def serial_number(entropy: bytes) -> int:
    """A serial of 126 random bits, positive, exactly 16 octets (RFC 5280 4.1.2.2).

    The first of them is never below 0x40, so that every tool writes the same 32 hex digits, with or
    without leading zeros.
    """
    if len(entropy) != SERIAL_BYTES:
        raise ValueError(f"a serial number needs {SERIAL_BYTES} bytes of entropy")
    return int.from_bytes(entropy, "big") >> 1 | 1 << 126


def root_certificate(
    key: PrivateKey, trust_domain: TrustDomain, validity: Validity, *, serial: int
) -> x509.Certificate:
    """A self-signed root. Raises InvalidKey, InvalidConfiguration."""
    name = _authority_name(trust_domain, "root CA", serial)
    builder = _authority_builder(trust_domain, key.public_key(), name, validity, serial=serial, path_length=1)
    return builder.issuer_name(name).sign(key, signing_hash(key))


def intermediate_certificate(
    public_key: PublicKey, trust_domain: TrustDomain, parent: Authority, validity: Validity, *, serial: int
) -> x509.Certificate:
    """An intermediate under `parent`. Raises InvalidConfiguration where it would outlive its parent."""
    if validity.not_after > parent.certificate.not_valid_after_utc:
        raise InvalidConfiguration(
            f"an intermediate until {validity.not_after:%FT%TZ} would outlive its root, "
            f"which ends {parent.certificate.not_valid_after_utc:%FT%TZ}",
            rule="authority_outlives_parent",
        )
    name = _authority_name(trust_domain, "intermediate CA", serial)
    builder = _authority_builder(trust_domain, public_key, name, validity, serial=serial, path_length=0)
    builder = builder.issuer_name(parent.certificate.subject)
    return builder.add_extension(authority_key_identifier(parent.certificate), critical=False).sign(
        parent.key, signing_hash(parent.key)
    )


def authority_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """The key identifier form only (RFC 5280 4.2.1.1)."""
    digest = bytes.fromhex(subject_key_id(issuer))
    return x509.AuthorityKeyIdentifier(digest, authority_cert_issuer=None, authority_cert_serial_number=None)


def leaf_builder(
    public_key: PublicKey,
    grant: Grant,
    validity: Validity,
    *,
    serial: int,
    issuer: x509.Name,
    issuer_key_id: x509.AuthorityKeyIdentifier,
    common_name: bool = False,
) -> x509.CertificateBuilder:
    """The to-be-signed leaf: X509-SVID section 3 and 4.

    `common_name` puts the first granted DNS name into the subject, for peers that look there.
    """
    subject = _EMPTY_NAME
    if common_name and grant.dns and len(grant.dns[0]) <= 64:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, grant.dns[0])])
    # RFC 5280 4.2.1.6: critical where the subject is empty
    has_subject = subject is not _EMPTY_NAME
    return (
        x509.CertificateBuilder(issuer, subject, public_key, serial, validity.not_before, validity.not_after)
        .add_extension(_LEAF_CONSTRAINTS, critical=True)
        .add_extension(_leaf_key_usage(public_key), critical=True)
        .add_extension(_LEAF_EKU, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(issuer_key_id, critical=False)
        .add_extension(_leaf_names(grant), critical=not has_subject)
    )


def _leaf_names(grant: Grant) -> x509.SubjectAlternativeName:
    names: Sequence[x509.GeneralName] = (
        x509.UniformResourceIdentifier(str(grant.id)),
        *map(x509.DNSName, grant.dns),
        *map(x509.IPAddress, grant.ips),
    )
    return x509.SubjectAlternativeName(names)


def _authority_name(trust_domain: TrustDomain, kind: str, serial: int) -> x509.Name:
    """Unique for each authority: Envoy tries only the first of several roots of one name."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain.name[:_MAX_ORGANIZATION]),
            x509.NameAttribute(NameOID.COMMON_NAME, f"citadel-py {kind}"),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, f"{serial:x}"),
        ]
    )


def _authority_builder(
    trust_domain: TrustDomain,
    public_key: PublicKey,
    name: x509.Name,
    validity: Validity,
    *,
    serial: int,
    path_length: int,
) -> x509.CertificateBuilder:
    check_authority_key(public_key)
    if trust_domain.has_empty_label:
        raise InvalidConfiguration(
            f"trust domain {trust_domain} has an empty label: Go cannot parse it in a certificate",
            rule="trust_domain_empty_label",
        )
    return (
        x509.CertificateBuilder(None, name, public_key, serial, validity.not_before, validity.not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(trust_domain.id))]), critical=False
        )
    )


def _leaf_key_usage(public_key: PublicKey) -> x509.KeyUsage:
    return _RSA_LEAF_USAGE if isinstance(public_key, rsa.RSAPublicKey) else _EC_LEAF_USAGE


def _key_usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


_EC_LEAF_USAGE = _key_usage(digital_signature=True)
_RSA_LEAF_USAGE = _key_usage(digital_signature=True, key_encipherment=True)
