"""Certificates, requests, keys and bundles as facts for JSON. What a person sees is rendered from the same facts.

It judges nothing but what core judges: an SVID's own rules, and the CSR policy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeAlias, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, SignatureAlgorithmOID

from citadel_py.cli.render import rfc3339
from citadel_py.core.csr import parse_csr
from citadel_py.core.errors import CitadelError
from citadel_py.core.verify import check_leaf

Facts: TypeAlias = dict[str, Any]  # what JSON can say
_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521", "secp192r1": "P-192", "secp224r1": "P-224"}
_USAGES = {
    "digital_signature": "digitalSignature",
    "content_commitment": "contentCommitment",
    "key_encipherment": "keyEncipherment",
    "data_encipherment": "dataEncipherment",
    "key_agreement": "keyAgreement",
    "key_cert_sign": "keyCertSign",
    "crl_sign": "cRLSign",
}
_PURPOSES = {
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
    ExtendedKeyUsageOID.CODE_SIGNING: "codeSigning",
    ExtendedKeyUsageOID.EMAIL_PROTECTION: "emailProtection",
    ExtendedKeyUsageOID.TIME_STAMPING: "timeStamping",
    ExtendedKeyUsageOID.OCSP_SIGNING: "OCSPSigning",
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE: "anyExtendedKeyUsage",
}
_SIGNATURES = {
    oid: name.lower().replace("_", "-")
    for name, oid in vars(SignatureAlgorithmOID).items()
    if isinstance(oid, x509.ObjectIdentifier)
}


def certificate_facts(certificate: x509.Certificate, *, now: datetime) -> Facts:
    """All about one certificate. It must be one that core.pem has read, so that every part can be."""
    constraints = _find(certificate.extensions, x509.BasicConstraints)
    role = role_of(certificate)
    return {
        "type": "certificate",
        "role": role,
        **_names(certificate.extensions),
        "subject": _name(certificate.subject),
        "issuer": _name(certificate.issuer),
        "serial": f"{certificate.serial_number:x}",
        "not_before": rfc3339(certificate.not_valid_before_utc),
        "not_after": rfc3339(certificate.not_valid_after_utc),
        "seconds_left": int((certificate.not_valid_after_utc - now).total_seconds()),
        "is_valid_now": certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc,
        "key": public_key_facts(certificate.public_key()),
        "signature_algorithm": _signature(certificate.signature_algorithm_oid),
        "key_usage": key_usages(certificate.extensions),
        "extended_key_usage": purposes(certificate.extensions),
        "path_length": constraints.path_length if constraints else None,
        "subject_key_id": _subject_key_id(certificate.extensions),
        "authority_key_id": _authority_key_id(certificate.extensions),
        "sha256": certificate.fingerprint(SHA256()).hex(),
        "svid": _verdict(lambda: check_leaf(certificate)) if role == "leaf" else None,
    }


def role_of(certificate: x509.Certificate) -> str:
    """`leaf`, `intermediate` or `root`: by CA:TRUE, and by whether it names itself as its issuer."""
    constraints = _find(certificate.extensions, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        return "leaf"
    return "root" if certificate.subject == certificate.issuer else "intermediate"


def csr_facts(csr: x509.CertificateSigningRequest, data: bytes) -> Facts:
    """All about a request, with the CSR policy's verdict on the bytes that it came as."""
    return {
        "type": "csr",
        **_names(csr.extensions),
        "subject": _name(csr.subject),
        "key": public_key_facts(csr.public_key()),
        "signature_algorithm": _signature(csr.signature_algorithm_oid),
        "policy": _verdict(lambda: parse_csr(data)),
    }


def public_key_facts(key: object) -> Facts:
    """Kind and hash of a public key of any kind."""
    encode = getattr(key, "public_bytes", None)
    digest = hashlib.sha256(encode(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest() if encode else None
    return {"kind": _key_kind(key), "public_key_sha256": digest}


def key_usages(extensions: x509.Extensions) -> list[str]:
    """Key usages by their names in RFC 5280 4.2.1.3."""
    usage = _find(extensions, x509.KeyUsage)
    return [name for attribute, name in _USAGES.items() if getattr(usage, attribute, None)]


def purposes(extensions: x509.Extensions) -> list[str]:
    """Extended key usages by their names in RFC 5280 4.2.1.12, others by number."""
    return [_PURPOSES.get(oid, oid.dotted_string) for oid in _find(extensions, x509.ExtendedKeyUsage) or ()]


def error_facts(error: CitadelError) -> Facts:
    return {"rule": error.rule, "message": error.message}


def _name(name: x509.Name) -> str:
    return name.rfc4514_string({NameOID.SERIAL_NUMBER: "serialNumber"})  # RFC 4514 leaves it a number


def _key_kind(key: object) -> str:
    match key:
        case ec.EllipticCurvePublicKey():
            return _CURVES.get(key.curve.name, key.curve.name)
        case rsa.RSAPublicKey():
            return f"RSA {key.key_size}"
        case dsa.DSAPublicKey():
            return f"DSA {key.key_size}"
        case _:
            return type(key).__name__.removesuffix("PublicKey")


def _names(extensions: x509.Extensions) -> Facts:
    """The names in a SAN, each kind in a list of its own."""
    names = list(_find(extensions, x509.SubjectAlternativeName) or ())
    uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    dns = [name.value for name in names if isinstance(name, x509.DNSName)]
    ips = [str(name.value) for name in names if isinstance(name, x509.IPAddress)]
    known = (x509.UniformResourceIdentifier, x509.DNSName, x509.IPAddress)
    others = [f"{type(name).__name__}:{name.value}" for name in names if not isinstance(name, known)]
    return {"uris": uris, "dns": dns, "ips": ips, "other_names": others}


def _verdict(check: Callable[[], object]) -> Facts:
    """Whether a rule of core is kept, in one shape for yes and no."""
    try:
        check()
    except CitadelError as error:
        return {"ok": False, **error_facts(error)}
    return {"ok": True, "rule": None, "message": None}


def _subject_key_id(extensions: x509.Extensions) -> str | None:
    extension = _find(extensions, x509.SubjectKeyIdentifier)
    return extension.digest.hex() if extension else None


def _authority_key_id(extensions: x509.Extensions) -> str | None:
    extension = _find(extensions, x509.AuthorityKeyIdentifier)
    return extension.key_identifier.hex() if extension and extension.key_identifier else None


def _signature(oid: x509.ObjectIdentifier) -> str:
    return _SIGNATURES.get(oid, oid.dotted_string)


def _find(extensions: x509.Extensions, kind: type[_Extension]) -> _Extension | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
