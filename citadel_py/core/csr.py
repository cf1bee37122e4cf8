"""Certificate signing requests: read, judged by the whole CSR policy, and made.

Of a request only its public key is believed, and only after the request's own signature verifies.
What else it asks for is either harmless, or a reason to refuse: nothing is dropped in silence.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, PublicKeyAlgorithmOID

from citadel_py.core import rsa_strength
from citadel_py.core.csr_shape import UNREADABLE, CanonicalCSR, read_der, read_pem
from citadel_py.core.errors import InvalidCSR
from citadel_py.core.keys import PrivateKey, PublicKey, public_key_der, signing_hash
from citadel_py.core.spiffe import SpiffeID

_CURVES = ("secp256r1", "secp384r1")
_MIN_DIGEST_BYTES = 32  # of the self-signature's hash: shuts out MD5, SHA-1 and SHA-224

_LEAF_EXTENDED_USAGES = frozenset({ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH})
_TEXT_NAMES = (x509.UniformResourceIdentifier, x509.DNSName, x509.RFC822Name)
_BEYOND_ANY_LEAF = (
    "content_commitment",
    "data_encipherment",
    "key_agreement",  # without it the library refuses encipher_only and decipher_only
    "key_cert_sign",
    "crl_sign",
)

# Edwards25519, RFC 8032 5.1: -x^2 + y^2 = 1 - (121665/121666) x^2 y^2 modulo p
_ED25519_PRIME = 2**255 - 19
_ED25519_SIGN_BIT = 1 << 255


@dataclass(frozen=True, slots=True)
class CsrPolicy:
    """Kinds of keys that are accepted beyond P-256, P-384 and RSA. Both fail in Envoy or in rustls."""

    allow_ed25519: bool = False
    allow_p521: bool = False


@dataclass(frozen=True, slots=True)
class RequestedNames:
    """The subject alternative names that a request asks for; none of them is granted by being here.

    `others` holds IP addresses as they are, and every other kind with its name before it, such as
    `email:a@example.org`, so that it is never taken for a URI, DNS name or address.
    """

    uris: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """A key whose owner has signed with it, and the names that it would like."""

    public_key: PublicKey
    names: RequestedNames
    spki: bytes = field(default=b"", repr=False, compare=False)  # the key's DER, written by the library where not given

    def __post_init__(self) -> None:
        if not self.spki:
            object.__setattr__(self, "spki", public_key_der(self.public_key))


_DEFAULT_POLICY = CsrPolicy()


def _beginning(curve: ec.EllipticCurve) -> tuple[int, bytes]:
    """How long the DER of a public key on this curve is, and what it begins with when the point is uncompressed."""
    spki = public_key_der(ec.derive_private_key(1, curve).public_key())
    return len(spki), spki[: -2 * ((curve.key_size + 7) // 8)]


_UNCOMPRESSED = dict(map(_beginning, (ec.SECP256R1(), ec.SECP384R1())))


def parse_csr_pem(pem: bytes, policy: CsrPolicy = _DEFAULT_POLICY) -> SigningRequest:
    """Read and judge one request in PEM.

    Raises InvalidCSR and nothing else; `rule` is one of those of `csr_shape.read_pem` and
    `rsa_strength`, or: `key_unsupported`, `key_curve`, `key_ed25519`, `key_small_order`, `key_rsa_pss`,
    `key_malformed`, `key_not_canonical`; `csr_signature_algorithm`, `csr_signature_invalid`;
    `csr_critical_extension`, `csr_requests_ca`, `csr_key_usage`, `csr_extended_key_usage`,
    `csr_san_not_ascii`.
    Takes about 110 us for P-256, of which 75 load the key and verify the signature, and 2 ms for RSA-2048
    (see `rsa_strength.check_not_prime`).
    """
    return _judge(read_pem(pem), policy)


def parse_csr(data: bytes, policy: CsrPolicy = _DEFAULT_POLICY) -> SigningRequest:
    """The same for PEM or DER, whichever it is."""
    # DER begins with "0" for SEQUENCE and, from 128 bytes on, a byte that ASCII does not have; what names
    # the request holds must not matter, so a PEM label within is no proof of the contrary.
    is_der = data[:1] == b"0" and (data[1:2] >= b"\x80" or b"-----BEGIN " not in data)
    return _judge(read_der(data) if is_der else read_pem(data), policy)


def create_csr(key: PrivateKey, id: SpiffeID | None = None) -> bytes:
    """A request in PEM, with an empty subject and, when an ID is given, that as its one name."""
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    if id is not None:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(id))])
        builder = builder.add_extension(names, critical=True)  # RFC 5280 4.2.1.6: the subject is empty
    return builder.sign(key, signing_hash(key)).public_bytes(serialization.Encoding.PEM)


def _judge(csr: CanonicalCSR, policy: CsrPolicy) -> SigningRequest:
    key = _read_key(csr)
    _check_kind(csr, key, policy)
    spki = csr.spki()
    if not _is_canonical(spki, key):
        raise InvalidCSR(
            "the public key is not in the form that a certificate carries",
            rule="key_not_canonical",
            hint="write the key with a named curve, an uncompressed point, and algorithm parameters as in RFC 3279",
        )
    _check_signature(csr, key)
    if isinstance(key, rsa.RSAPublicKey):
        rsa_strength.check_not_prime(key.public_numbers().n)
    return SigningRequest(key, _requested_names(csr, key), spki)


def _read_key(csr: CanonicalCSR) -> PublicKey:
    """The key of the request, as the library reads it."""
    try:
        key = csr.request.public_key()
    except UnsupportedAlgorithm as error:
        raise _unsupported(csr.key_algorithm().dotted_string) from error
    except UNREADABLE as error:
        if csr.key_algorithm() == PublicKeyAlgorithmOID.RSAES_PKCS1_v1_5:
            rsa_strength.check_modulus(*csr.rsa_numbers())  # the library refuses some of these, and does not say why
        raise InvalidCSR("the public key cannot be read, or is no point of its curve", rule="key_malformed") from error
    if not isinstance(key, PublicKey):
        raise _unsupported(type(key).__name__)
    return key


def _unsupported(kind: str) -> InvalidCSR:
    return InvalidCSR(
        f"a public key of the kind {kind} cannot be certified",
        rule="key_unsupported",
        hint="use P-256, P-384, or RSA of 2048 to 4096 bits",
    )


def _check_kind(csr: CanonicalCSR, key: PublicKey, policy: CsrPolicy) -> None:
    match key:
        case ec.EllipticCurvePublicKey():
            allowed = (*_CURVES, "secp521r1") if policy.allow_p521 else _CURVES
            if key.curve.name not in allowed:
                raise InvalidCSR(f"an EC key on {key.curve.name}, not on P-256 or P-384", rule="key_curve")
        case ed25519.Ed25519PublicKey():
            if not policy.allow_ed25519:
                raise InvalidCSR("an Ed25519 key: Envoy refuses its certificates", rule="key_ed25519")
            _check_ed25519_point(key.public_bytes_raw())
        case rsa.RSAPublicKey():
            if csr.key_algorithm() == PublicKeyAlgorithmOID.RSASSA_PSS:  # the library reads both kinds alike
                raise InvalidCSR(
                    "a key that is bound to RSASSA-PSS: TLS stacks cannot use it",
                    rule="key_rsa_pss",
                    hint="make a plain RSA key (rsaEncryption); signing the request itself with PSS is fine",
                )
            rsa_strength.check_modulus(*csr.rsa_numbers())


def _check_ed25519_point(encoded: bytes) -> None:
    """Refuse the eight points of small order in every encoding: anyone can sign for such a key.

    Their `y` is 1 (order 1), -1 (order 2), 0 (order 4), or has a double with y = 0 (order 8), which by
    the addition law means x^2 = -y^2; put into the equation of the curve that is 2 y^2 + d y^4 = 1.
    """
    y = int.from_bytes(encoded, "little") % _ED25519_SIGN_BIT
    if y >= _ED25519_PRIME:  # RFC 8032 5.1.3
        raise InvalidCSR("an Ed25519 key that is not in canonical form", rule="key_not_canonical")
    of_order_eight = (2 * 121666 * y**2 - 121665 * y**4 - 121666) % _ED25519_PRIME == 0
    if of_order_eight or y in (0, 1, _ED25519_PRIME - 1):
        raise InvalidCSR("an Ed25519 key that is a point of small order", rule="key_small_order")


def _is_canonical(spki: bytes, key: PublicKey) -> bool:
    """Whether these are the bytes that a certificate carries for the key that the library has read from them.

    Of an EC key all that can vary is the form, which shows at the beginning: the library has read the
    point, and there is one way to write it without compression. That spares writing the key anew.
    """
    beginning = _UNCOMPRESSED.get(len(spki))
    return (beginning is not None and spki.startswith(beginning)) or spki == public_key_der(key)


def _check_signature(csr: CanonicalCSR, key: PublicKey) -> None:
    try:
        _verify(csr, key)
    except (InvalidSignature, *UNREADABLE) as error:
        raise InvalidCSR(
            "the request's signature does not verify with the key in it", rule="csr_signature_invalid"
        ) from error


def _verify(csr: CanonicalCSR, key: PublicKey) -> None:
    """Verify by the family of the key: the request only chooses the hash, and RSA's padding."""
    request = csr.request
    signed = request.tbs_certrequest_bytes  # re-encoded by the library; equal, for the request is canonical
    digest, parameters = _signature_algorithm(csr)
    match key, parameters:
        case ec.EllipticCurvePublicKey(), ec.ECDSA():
            key.verify(request.signature, signed, parameters)
        case rsa.RSAPublicKey(), padding.PKCS1v15() if digest:
            key.verify(request.signature, signed, parameters, digest)
        case rsa.RSAPublicKey(), padding.PSS() if digest:
            one_hash = padding.PSS(padding.MGF1(digest), csr.pss_salt_length())
            key.verify(request.signature, signed, one_hash, digest)
        case ed25519.Ed25519PublicKey(), None if digest is None:
            key.verify(request.signature, signed)
        case _:
            raise InvalidCSR("the signature is of another kind than the key", rule="csr_signature_algorithm")


def _signature_algorithm(
    csr: CanonicalCSR,
) -> tuple[hashes.HashAlgorithm | None, ec.ECDSA | padding.PKCS1v15 | padding.PSS | None]:
    try:
        digest = csr.request.signature_hash_algorithm
        parameters = csr.request.signature_algorithm_parameters
    except UNREADABLE as error:
        raise InvalidCSR("the signature's algorithm is not supported", rule="csr_signature_algorithm") from error
    if digest is not None and digest.digest_size < _MIN_DIGEST_BYTES:
        raise InvalidCSR(
            f"a signature over {digest.name}", rule="csr_signature_algorithm", hint="sign with SHA-256 or longer"
        )
    return digest, parameters


def _requested_names(csr: CanonicalCSR, key: PublicKey) -> RequestedNames:
    """Judge the extensions one by one; those that are neither understood nor critical are ignored."""
    names = RequestedNames()
    for extension in csr.extensions():
        oid, value = extension.oid, extension.value
        if oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME:
            names = _names(value)
        elif oid == ExtensionOID.BASIC_CONSTRAINTS:
            _check_constraints(value)
        elif oid == ExtensionOID.KEY_USAGE:
            _check_usage(value, key)
        elif oid == ExtensionOID.EXTENDED_KEY_USAGE:
            _check_extended_usages(value)
        elif extension.critical:
            raise InvalidCSR(
                f"the critical extension {oid.dotted_string} is not issued here", rule="csr_critical_extension"
            )
    return names


def _check_constraints(constraints: x509.BasicConstraints) -> None:
    if constraints.ca:
        raise InvalidCSR("the request asks for a CA certificate", rule="csr_requests_ca")


def _check_usage(usage: x509.KeyUsage, key: PublicKey) -> None:
    """Refuse what the leaf profile does not hold: digitalSignature, and keyEncipherment for RSA only.

    The agents of Istio, ztunnel and this program ask for no usage at all.
    """
    beyond = _BEYOND_ANY_LEAF if isinstance(key, rsa.RSAPublicKey) else (*_BEYOND_ANY_LEAF, "key_encipherment")
    for name in beyond:
        if getattr(usage, name):
            raise InvalidCSR(
                f"the request asks for the key usage {name}, which no workload's certificate with such a key has",
                rule="csr_key_usage",
                hint="leave the key usage out, or ask for digitalSignature",
            )


def _check_extended_usages(usages: x509.ExtendedKeyUsage) -> None:
    for usage in usages:
        if usage not in _LEAF_EXTENDED_USAGES:
            raise InvalidCSR(
                f"the request asks for the extended key usage {usage.dotted_string}",
                rule="csr_extended_key_usage",
                hint="leave it out, or ask for serverAuth and clientAuth",
            )


def _names(wanted: x509.SubjectAlternativeName) -> RequestedNames:
    uris, dns, others = [], [], []
    for name in wanted:
        kind = type(name)  # of the library, none of which is derived from another
        # RFC 5280 4.2.1.6: an IA5String. The library reads UTF-8 in it.
        if kind in _TEXT_NAMES and not name.value.isascii():
            raise InvalidCSR(f"the name {name.value[:100]!a} is not ASCII", rule="csr_san_not_ascii")
        if kind is x509.UniformResourceIdentifier:
            uris.append(name.value)
        elif kind is x509.DNSName:
            dns.append(name.value)
        else:
            others.append(_text(name))
    return RequestedNames(tuple(uris), tuple(dns), tuple(others))


def _text(name: x509.GeneralName) -> str:
    match name:
        case x509.IPAddress():
            return str(name.value)
        case x509.RFC822Name():
            return f"email:{name.value}"
        case x509.RegisteredID():
            return f"registered ID:{name.value.dotted_string}"
        case x509.OtherName():
            return f"other name:{name.type_id.dotted_string}"
        case _:
            return f"directory name:{name.value.rfc4514_string()}"
