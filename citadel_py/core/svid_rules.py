"""The rules for one certificate: what an X509-SVID leaf must be, and what may sign for it.

X509-SVID sections 2 to 5 and RFC 5280 section 4.2. Nothing here looks at signatures, times or other
certificates: that is path validation, in verify.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, PublicKeyAlgorithmOID

from citadel_py.core.errors import InvalidCertificate, InvalidSpiffeID, VerificationFailed
from citadel_py.core.pem import check_readable
from citadel_py.core.spiffe import SpiffeID, TrustDomain

_BOTH_SIDES = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
_ANY_SIDE = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_MAX_SERIAL_BITS = 160  # RFC 5280 4.1.2.2
_MIN_RSA_BITS, _MAX_RSA_BITS, _MIN_RSA_EXPONENT = 2048, 8192, 65537

# Extensions that are understood, so that they may be critical (RFC 5280 4.2).
_LEAF_EXTENSIONS = (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.SubjectAlternativeName)
_SIGNING_EXTENSIONS = (*_LEAF_EXTENSIONS, x509.NameConstraints)
_CONSTRAINT_FORMS = (x509.DNSName, x509.IPAddress, x509.RFC822Name)  # those that the library evaluates

_Kind = TypeVar("_Kind", bound=x509.ExtensionType)


def check_leaf(leaf: x509.Certificate) -> SpiffeID:
    """The ID of an X509-SVID leaf, whose path is still to be verified.

    Accepted keys are more than we issue by default: P-256, P-384, P-521, Ed25519 and RSA from 2048
    bits, because an option or another authority of the trust domain may issue them.
    Raises VerificationFailed; `rule` names the rule that is broken.
    """
    extensions = _read(leaf)
    _check_leaf_key(leaf)
    _check_is_no_authority(extensions)
    _check_leaf_usage(extensions)
    _check_critical(extensions, _LEAF_EXTENSIONS, "the leaf")
    return _leaf_id(leaf, extensions)


def check_intermediate(certificate: x509.Certificate, trust_domain: TrustDomain) -> None:
    """What a certificate that a peer presents must be, to sign within `trust_domain`.

    X509-SVID 3.2 and 4.3: CA:TRUE and keyCertSign, both stated; a SPIFFE ID, if it has one, without
    a path. That the ID's trust domain is the leaf's is a SHOULD there and a rule here: an authority
    of another trust domain stands in that one's bundle. Raises VerificationFailed.
    """
    extensions, what = _read(certificate), describe(certificate, "intermediate")
    _check_is_authority(extensions, what)
    _check_signing_key(certificate, what)
    check_signing_limits(certificate, what)
    signing_id = spiffe_id_of_authority(certificate, what)
    if signing_id is not None and signing_id.trust_domain != trust_domain:
        raise VerificationFailed(
            f"{what} belongs to trust domain {signing_id.trust_domain}, the leaf to {trust_domain}",
            rule="authority_trust_domain",
        )


def check_signing_limits(certificate: x509.Certificate, what: str) -> None:
    """Limits on what an authority may sign for, which hold for the bundle's own authorities too.

    An SVID works on both sides of a connection, so an authority that is limited to one cannot sign
    it. Name constraints of forms that the library does not evaluate are refused, not overlooked
    (RFC 5280 4.2.1.10). Raises VerificationFailed.
    """
    extensions = certificate.extensions
    _check_critical(extensions, _SIGNING_EXTENSIONS, what)
    usage = find(extensions, x509.ExtendedKeyUsage)
    if usage is not None and _ANY_SIDE not in usage.value and not set(usage.value) >= _BOTH_SIDES:
        raise VerificationFailed(
            f"{what} is limited to purposes other than serverAuth and clientAuth", rule="authority_extended_key_usage"
        )
    constraints = find(extensions, x509.NameConstraints)
    if constraints is not None:
        subtrees = (*(constraints.value.permitted_subtrees or ()), *(constraints.value.excluded_subtrees or ()))
        if not all(isinstance(each, _CONSTRAINT_FORMS) for each in subtrees):
            raise VerificationFailed(
                f"{what} has name constraints of a form that is not supported",
                rule="name_constraints",
                hint="rustls, pyca and others refuse them too: use an authority without name constraints",
            )


def spiffe_id_of_authority(certificate: x509.Certificate, what: str) -> SpiffeID | None:
    """The SPIFFE ID that a signing certificate carries, None where it carries none (X509-SVID 3.2).

    Raises VerificationFailed where it is more than one, has a path, or is none by its grammar.
    """
    names = find(certificate.extensions, x509.SubjectAlternativeName)
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier) if names else []
    ids = [uri for uri in uris if uri.lower().startswith("spiffe:")]
    if not ids:
        return None
    try:
        signing_id = SpiffeID.parse(ids[0])
    except InvalidSpiffeID as error:
        raise VerificationFailed(
            f"{what} has an invalid SPIFFE ID: {error.message}", rule="authority_spiffe_id"
        ) from error
    if len(ids) > 1 or signing_id.path:
        raise VerificationFailed(f"{what} does not carry one SPIFFE ID without a path", rule="authority_spiffe_id")
    return signing_id


def find(extensions: x509.Extensions, kind: type[_Kind]) -> x509.Extension[_Kind] | None:
    """The extension of that kind, if it is there."""
    try:
        return extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def describe(certificate: x509.Certificate, role: str) -> str:
    """A certificate for a message: `intermediate 'CN=...'`, bounded and without control characters."""
    return f"{role} {show_name(certificate.subject)}"


def show_name(name: x509.Name) -> str:
    """A distinguished name for a message: bounded, quoted, in ASCII."""
    return ascii(name.rfc4514_string()[:160])


def _read(certificate: x509.Certificate) -> x509.Extensions:
    """The extensions of a certificate that can be read in full, so that nothing later fails to parse."""
    try:
        check_readable(certificate)
    except InvalidCertificate as error:
        raise VerificationFailed(error.message, rule=error.rule) from error
    if certificate.version is not x509.Version.v3:
        raise VerificationFailed("a certificate is not of X.509 version 3", rule="version")
    if certificate.serial_number.bit_length() > _MAX_SERIAL_BITS:
        raise VerificationFailed("a certificate's serial number is longer than 20 octets", rule="serial_number")
    return certificate.extensions


def _check_leaf_key(leaf: x509.Certificate) -> None:
    key = leaf.public_key()
    if leaf.public_key_algorithm_oid != PublicKeyAlgorithmOID.RSASSA_PSS:
        if isinstance(key, ed25519.Ed25519PublicKey) or _is_known_curve(key):
            return
        if isinstance(key, rsa.RSAPublicKey):
            _check_rsa_strength(key, "the leaf")
            return
    raise VerificationFailed("the leaf's key is of a kind that TLS peers do not accept", rule="key_kind")


def _check_signing_key(certificate: x509.Certificate, what: str) -> None:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        _check_rsa_strength(key, what)
    elif not _is_known_curve(key):
        raise VerificationFailed(f"{what} has a key of a kind that does not sign SVIDs", rule="authority_key_kind")


def _is_known_curve(key: object) -> bool:
    return isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES


def _check_rsa_strength(key: rsa.RSAPublicKey, what: str) -> None:
    if not _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS:
        raise VerificationFailed(
            f"{what} has an RSA key of {key.key_size} bits, {_MIN_RSA_BITS} to {_MAX_RSA_BITS} are accepted",
            rule="key_strength",
        )
    exponent = key.public_numbers().e
    if exponent < _MIN_RSA_EXPONENT or exponent % 2 == 0:
        raise VerificationFailed(f"{what} has an RSA key with a weak public exponent", rule="key_strength")


def _check_is_no_authority(extensions: x509.Extensions) -> None:
    """X509-SVID 4.1, 5.2. Without basic constraints a certificate is not a CA (RFC 5280 4.2.1.9)."""
    constraints = find(extensions, x509.BasicConstraints)
    if constraints is not None and constraints.value.ca:
        raise VerificationFailed("the leaf is a CA certificate: CA:TRUE", rule="leaf_is_ca")
    if find(extensions, x509.NameConstraints) is not None:
        raise VerificationFailed("the leaf has name constraints, as only a CA may", rule="leaf_name_constraints")


def _check_leaf_usage(extensions: x509.Extensions) -> None:
    """X509-SVID 4.3 and 4.4."""
    usage = find(extensions, x509.KeyUsage)
    if usage is None:
        raise VerificationFailed("the leaf states no key usage", rule="key_usage_missing")
    if usage.value.key_cert_sign or usage.value.crl_sign:
        raise VerificationFailed("the leaf's key may sign certificates or CRLs", rule="key_usage_signing")
    if not usage.value.digital_signature:
        raise VerificationFailed("the leaf's key usage lacks digitalSignature", rule="key_usage_digital_signature")
    if not usage.critical:
        raise VerificationFailed("the leaf's key usage is not critical", rule="key_usage_not_critical")
    purposes = find(extensions, x509.ExtendedKeyUsage)
    if purposes is not None and not set(purposes.value) >= _BOTH_SIDES:
        raise VerificationFailed(
            "the leaf's extended key usage lacks serverAuth or clientAuth", rule="extended_key_usage"
        )


def _check_is_authority(extensions: x509.Extensions, what: str) -> None:
    constraints, usage = find(extensions, x509.BasicConstraints), find(extensions, x509.KeyUsage)
    if constraints is None or not constraints.value.ca:
        raise VerificationFailed(f"{what} is not a CA certificate", rule="authority_not_ca")
    if not constraints.critical:  # RFC 5280 4.2.1.9
        raise VerificationFailed(f"the basic constraints of {what} are not critical", rule="authority_not_ca")
    if usage is None or not usage.value.key_cert_sign:
        raise VerificationFailed(f"{what} may not sign certificates: no keyCertSign", rule="authority_key_usage")


def _check_critical(extensions: x509.Extensions, known: Sequence[type[x509.ExtensionType]], what: str) -> None:
    known_oids = [kind.oid for kind in known]
    for extension in extensions:
        if extension.critical and extension.oid not in known_oids:
            raise VerificationFailed(
                f"{what} has the critical extension {extension.oid.dotted_string}, which is not understood here",
                rule="critical_extension",
            )


def _leaf_id(leaf: x509.Certificate, extensions: x509.Extensions) -> SpiffeID:
    """X509-SVID 2, 3.1 and 5.2: exactly one URI, whatever other names there are."""
    names = find(extensions, x509.SubjectAlternativeName)
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier) if names else []
    if names is None or not uris:
        raise VerificationFailed("the leaf has no URI SAN, so it has no SPIFFE ID", rule="uri_san_missing")
    if len(uris) > 1:
        raise VerificationFailed(f"the leaf has {len(uris)} URI SANs, one is allowed", rule="uri_san_several")
    if not leaf.subject.rdns and not names.critical:
        raise VerificationFailed(
            "the leaf's SAN is not critical although its subject is empty", rule="san_not_critical"
        )
    try:
        spiffe_id = SpiffeID.parse(uris[0])
    except InvalidSpiffeID as error:
        raise VerificationFailed(f"the leaf's URI SAN is not a SPIFFE ID: {error.message}", rule="spiffe_id") from error
    if not spiffe_id.path:
        raise VerificationFailed(f"the leaf's SPIFFE ID {spiffe_id} has no path", rule="spiffe_id_path")
    return spiffe_id
