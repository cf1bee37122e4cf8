"""Keys and signatures that the CSR policy refuses, by rule, and those that it takes. One row breaks one rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, mldsa, padding, x448, x25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from citadel_py.core.csr import CsrPolicy, create_csr, parse_csr, parse_csr_pem
from citadel_py.core.keys import PrivateKey
from tests.core import hostile_csrs as make
from tests.core.hostile_csrs import (
    ECDSA_SHA256,
    ED25519,
    NULL,
    RSA_SHA256,
    Draft,
    Row,
    bit_string,
    ec_draft,
    ec_key,
    ec_spki,
    ecdsa,
    integer,
    named,
    octet_string,
    oid,
    pem,
    refused_rule,
    rsa_draft,
    rsa_key,
    rsa_spki,
    sequence,
    set_of,
    signed,
    tlv,
    with_subject,
)

EVERYTHING_ALLOWED = CsrPolicy(allow_ed25519=True, allow_p521=True)


def with_algorithm(draft: Draft, algorithm: bytes, sign: make.SignBytes | None = None) -> bytes:
    return replace(draft, algorithm=algorithm, sign=sign or draft.sign).der()


def pss_signature(algorithm: hashes.HashAlgorithm, mask: hashes.HashAlgorithm, salt: int) -> make.SignBytes:
    return lambda data: rsa_key().sign(data, padding.PSS(padding.MGF1(mask), salt), algorithm)


def pss_algorithm(mask: str, salt: int, *more: bytes) -> bytes:
    """Parameters with SHA-256, whatever the hash of the mask."""
    sha256 = sequence(oid("2.16.840.1.101.3.4.2.1"), NULL)
    masked = sequence(oid("1.2.840.113549.1.1.8"), sequence(oid(mask), NULL))
    return sequence(
        oid(make.RSASSA_PSS), sequence(tlv(0xA0, sha256), tlv(0xA1, masked), tlv(0xA2, integer(salt)), *more)
    )


SHA1, MD5 = hashes.SHA1(), hashes.MD5()  # noqa: S303 - to be refused
SHA256, SHA384 = "2.16.840.1.101.3.4.2.1", "2.16.840.1.101.3.4.2.2"


def ber_signature() -> bytes:
    info = ec_draft().info()
    r, s = decode_dss_signature(ecdsa(ec_key())(info))
    return signed(info, sequence(tlv(0x02, b"\0\0" + r.to_bytes(32)), integer(s)))


def by_another_key() -> bytes:
    other = ec.generate_private_key(ec.SECP256R1())
    return replace(ec_draft(), sign=ecdsa(other)).der()


def changed_after_signing() -> bytes:
    before = with_subject(set_of(named(tlv(0x0C, b"alice"))))
    return before.replace(b"alice", b"mallo")


SIGNATURES: list[Row] = [
    ("by another key", "csr_signature_invalid", by_another_key),
    ("changed after signing", "csr_signature_invalid", changed_after_signing),
    ("of zeros", "csr_signature_invalid", lambda: signed(ec_draft().info(), encode_dss_signature(0, 0))),
    ("of one byte", "csr_signature_invalid", lambda: signed(ec_draft().info(), b"\0")),
    ("ECDSA in BER", "csr_signature_invalid", ber_signature),
    ("ECDSA with a byte after", "csr_signature_invalid",
     lambda: replace(ec_draft(), sign=lambda data: ecdsa(ec_key())(data) + b"\0").der()),
    ("RSA with a zero before", "csr_signature_invalid",
     lambda: replace(rsa_draft(), sign=lambda data: b"\0" + make.pkcs1(rsa_key())(data)).der()),
    ("another hash than it says", "csr_signature_invalid",
     lambda: replace(ec_draft(), sign=ecdsa(ec_key(), hashes.SHA384())).der()),
    ("ECDSA with SHA-1", "csr_signature_algorithm",
     lambda: with_algorithm(ec_draft(), sequence(oid("1.2.840.10045.4.1")), ecdsa(ec_key(), SHA1))),
    ("ECDSA with SHA-224", "csr_signature_algorithm",
     lambda: with_algorithm(ec_draft(), sequence(oid("1.2.840.10045.4.3.1")), ecdsa(ec_key(), hashes.SHA224()))),
    ("RSA with SHA-1", "csr_signature_algorithm",
     lambda: with_algorithm(
         rsa_draft(), sequence(oid("1.2.840.113549.1.1.5"), NULL), make.pkcs1(rsa_key(), SHA1))),
    ("RSA with SHA-1 by its other name", "csr_signature_algorithm",
     lambda: with_algorithm(rsa_draft(), sequence(oid("1.3.14.3.2.29"), NULL), make.pkcs1(rsa_key(), SHA1))),
    ("RSA with MD5", "csr_signature_algorithm",
     lambda: with_algorithm(
         rsa_draft(), sequence(oid("1.2.840.113549.1.1.4"), NULL), make.pkcs1(rsa_key(), MD5))),
    ("RSA with MD2", "csr_signature_algorithm",
     lambda: with_algorithm(rsa_draft(), sequence(oid("1.2.840.113549.1.1.2"), NULL))),
    ("PSS with SHA-1 by default", "csr_signature_algorithm",
     lambda: with_algorithm(
         rsa_draft(), sequence(oid(make.RSASSA_PSS), sequence()), pss_signature(SHA1, SHA1, 20))),
    ("PSS without parameters", "csr_signature_algorithm",
     lambda: with_algorithm(rsa_draft(), sequence(oid(make.RSASSA_PSS)))),
    ("PSS with two hashes", "csr_signature_invalid",
     lambda: with_algorithm(
         rsa_draft(), pss_algorithm(SHA384, 32), pss_signature(hashes.SHA256(), hashes.SHA384(), 32))),
    ("PSS with another salt than it says", "csr_signature_invalid",
     lambda: with_algorithm(
         rsa_draft(), pss_algorithm(SHA256, 32), pss_signature(hashes.SHA256(), hashes.SHA256(), 20))),
    ("PSS with a salt longer than the key", "csr_signature_invalid",
     lambda: with_algorithm(rsa_draft(), pss_algorithm(SHA256, 30000))),
    ("PSS with another trailer", "csr_signature_algorithm",
     lambda: with_algorithm(
         rsa_draft(),
         pss_algorithm(SHA256, 32, tlv(0xA3, integer(2))),
         pss_signature(hashes.SHA256(), hashes.SHA256(), 32))),
    ("an ECDSA signature of an RSA key", "csr_signature_algorithm", lambda: with_algorithm(rsa_draft(), ECDSA_SHA256)),
    ("an RSA signature of an EC key", "csr_signature_algorithm", lambda: with_algorithm(ec_draft(), RSA_SHA256)),
    ("an Ed25519 signature of an EC key", "csr_signature_algorithm", lambda: with_algorithm(ec_draft(), ED25519)),
    ("an algorithm that nobody knows", "csr_signature_algorithm",
     lambda: with_algorithm(ec_draft(), sequence(oid("1.3.6.1.4.1.55555.1")))),
    ("a key's algorithm", "csr_signature_algorithm",
     lambda: with_algorithm(rsa_draft(), sequence(oid(make.RSA_ENCRYPTION), NULL))),
]  # fmt: skip


def with_spki(spki: bytes) -> bytes:
    """A request for that key, signed by another: for keys that are refused before their signature is looked at."""
    return replace(ec_draft(), spki=spki).der()


def by(key: ec.EllipticCurvePrivateKey) -> bytes:
    return Draft(spki=make.spki(key), sign=ecdsa(key)).der()


def raw_spki(public_key: x25519.X25519PublicKey | x448.X448PublicKey | mldsa.MLDSA65PublicKey) -> bytes:
    return public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def by_dsa() -> bytes:
    key = dsa.generate_private_key(1024)  # noqa: S505 - refused, whatever its size
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    algorithm = sequence(oid("2.16.840.1.101.3.4.3.2"))
    return Draft(spki=spki, sign=lambda data: key.sign(data, hashes.SHA256()), algorithm=algorithm).der()


def by_ed448() -> bytes:
    key = ed448.Ed448PrivateKey.generate()
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return Draft(spki=spki, sign=key.sign, algorithm=sequence(oid("1.3.101.113"))).der()


def point(form: serialization.PublicFormat = serialization.PublicFormat.UncompressedPoint) -> bytes:
    return ec_key().public_key().public_bytes(serialization.Encoding.X962, form)


def hybrid_point() -> bytes:
    """X9.62: 6 or 7 by the last bit of y, then both coordinates."""
    return bytes([6 + point()[-1] % 2]) + point()[1:]


def explicit_p256(*, with_seed: bool) -> bytes:
    """SEC 1 C.2: the parameters of P-256 (SEC 2 2.4.2) written out instead of named."""
    p = 2**256 - 2**224 + 2**192 + 2**96 - 1
    b = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
    generator = ec.derive_private_key(1, ec.SECP256R1()).public_key()
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    seed = bit_string(bytes.fromhex("c49d360886e704936a6678e1139d26b7819f7e90")) if with_seed else b""
    return sequence(
        integer(1),
        sequence(oid("1.2.840.10045.1.1"), integer(p)),
        sequence(octet_string((p - 3).to_bytes(32)), octet_string(b.to_bytes(32)), seed),
        octet_string(generator.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)),
        integer(order),
        integer(1),
    )


def pss_bound(parameters: bytes = b"") -> bytes:
    """A good RSA key and signature, under the name of a key for PSS only."""
    n = rsa_key().public_key().public_numbers().n
    spki = rsa_spki(n, algorithm=sequence(oid(make.RSASSA_PSS), parameters))
    return replace(rsa_draft(), spki=spki).der()


KEYS: list[Row] = [
    ("DSA", "key_unsupported", by_dsa),
    ("Ed448", "key_unsupported", by_ed448),
    ("X25519", "key_unsupported", lambda: with_spki(raw_spki(x25519.X25519PrivateKey.generate().public_key()))),
    ("X448", "key_unsupported", lambda: with_spki(raw_spki(x448.X448PrivateKey.generate().public_key()))),
    ("ML-DSA", "key_unsupported", lambda: with_spki(raw_spki(mldsa.MLDSA65PrivateKey.generate().public_key()))),
    ("a kind that nobody knows", "key_unsupported",
     lambda: with_spki(sequence(sequence(oid("1.2.3")), bit_string(b"a")))),
    ("EC by its name for key agreement", "key_unsupported",
     lambda: with_spki(sequence(sequence(oid("1.3.132.1.12"), oid(make.P256)), bit_string(point())))),
    ("RSA by its name for OAEP", "key_unsupported",
     lambda: with_spki(rsa_spki(5, algorithm=sequence(oid("1.2.840.113549.1.1.7"))))),
    ("a curve that nobody knows", "key_unsupported", lambda: with_spki(ec_spki(point(), oid("1.2.3.4")))),
    ("a curve given by its parameters, another one", "key_unsupported",
     lambda: with_spki(ec_spki(point(), explicit_p256(with_seed=False).replace(b"\x5a\xc6\x35", b"\x5a\xc6\x36")))),
    ("the curve of the issuer", "key_unsupported", lambda: with_spki(ec_spki(point(), NULL))),
    ("P-192", "key_curve", lambda: by(ec_key(ec.SECP192R1))),
    ("P-224", "key_curve", lambda: by(ec_key(ec.SECP224R1))),
    ("secp256k1", "key_curve", lambda: by(ec_key(ec.SECP256K1))),
    ("brainpoolP256r1", "key_curve", lambda: by(ec_key(ec.BrainpoolP256R1))),
    ("brainpoolP384r1", "key_curve", lambda: by(ec_key(ec.BrainpoolP384R1))),
    ("brainpoolP512r1", "key_curve", lambda: by(ec_key(ec.BrainpoolP512R1))),
    ("a point beside the curve", "key_malformed",
     lambda: with_spki(ec_spki(point()[:-1] + bytes([point()[-1] ^ 1])))),
    ("a point of another curve", "key_malformed", lambda: with_spki(ec_spki(point(), oid("1.3.132.0.34")))),
    ("a coordinate beyond the field", "key_malformed",
     lambda: with_spki(ec_spki(b"\x04" + b"\xff" * 32 + point()[33:]))),
    ("the point at infinity", "key_malformed", lambda: with_spki(ec_spki(b"\0"))),
    ("the point at infinity at length", "key_malformed", lambda: with_spki(ec_spki(b"\0" * 65))),
    ("the point 0, 0", "key_malformed", lambda: with_spki(ec_spki(b"\x04" + b"\0" * 64))),
    ("a point that is too short", "key_malformed", lambda: with_spki(ec_spki(point()[:-1]))),
    ("a point that is too long", "key_malformed", lambda: with_spki(ec_spki(point() + b"\0"))),
    ("no point", "key_malformed", lambda: with_spki(ec_spki(b""))),
    ("an Ed25519 key that is too short", "key_malformed",
     lambda: with_spki(sequence(ED25519, bit_string(b"\x01" * 31)))),
    ("an RSA key with a byte after", "key_malformed",
     lambda: with_spki(sequence(sequence(oid(make.RSA_ENCRYPTION), NULL), bit_string(rsa_numbers_der() + b"\0")))),
    ("an RSA key that is no sequence", "key_malformed",
     lambda: with_spki(sequence(sequence(oid(make.RSA_ENCRYPTION), NULL), bit_string(b"rsa")))),
    ("a compressed point", "key_not_canonical",
     lambda: with_spki(ec_spki(point(serialization.PublicFormat.CompressedPoint)))),
    ("a hybrid point", "key_not_canonical", lambda: with_spki(ec_spki(hybrid_point()))),
    ("P-256 by its parameters", "key_not_canonical",
     lambda: with_spki(ec_spki(point(), explicit_p256(with_seed=False)))),
    ("P-256 by its parameters and seed", "key_not_canonical",
     lambda: with_spki(ec_spki(point(), explicit_p256(with_seed=True)))),
    ("RSA without the NULL", "key_not_canonical",
     lambda: replace(rsa_draft(), spki=rsa_spki(
         rsa_key().public_key().public_numbers().n, algorithm=sequence(oid(make.RSA_ENCRYPTION)))).der()),
    ("bound to PSS", "key_rsa_pss", pss_bound),
    ("bound to PSS with SHA-256", "key_rsa_pss", lambda: pss_bound(pss_parameters())),
]  # fmt: skip


def rsa_numbers_der() -> bytes:
    numbers = rsa_key().public_key().public_numbers()
    return sequence(integer(numbers.n), integer(numbers.e))


def pss_parameters() -> bytes:
    parameters = pss_algorithm(SHA256, 32)
    return parameters[parameters.index(b"\x30", 2) :]


ALL = SIGNATURES + KEYS


@pytest.mark.parametrize(("rule", "request_bytes"), [pytest.param(row[1], row[2], id=row[0]) for row in ALL])
def test_a_key_or_signature_is_refused_by_the_rule_that_it_breaks(
    rule: str, request_bytes: Callable[[], bytes]
) -> None:
    data = request_bytes()
    assert refused_rule(lambda: parse_csr(data, EVERYTHING_ALLOWED)) == rule
    assert refused_rule(lambda: parse_csr_pem(pem(data), EVERYTHING_ALLOWED)) == rule


# The eight points of small order of edwards25519 (y, and the highest bit for the sign of x) ...
FIELD = 2**255 - 19
ORDER_EIGHT = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
SMALL_ORDER = [(1, 0), (FIELD - 1, 0), *((y, sign) for y in (0, ORDER_EIGHT, FIELD - ORDER_EIGHT) for sign in (0, 1))]
# ... and other ways to write some of them, which RFC 8032 5.1.3 forbids.
NOT_CANONICAL = [(1, 1), (FIELD - 1, 1), *((y, sign) for y in (FIELD, FIELD + 1) for sign in (0, 1))]


def forged(y: int, sign: int, number: int) -> bytes:
    """A request for a point of small order, signed without any private key: R is the point 1, S is 0.

    The signature verifies when the hash of the request is a multiple of the order of the point.
    """
    spki = sequence(ED25519, bit_string((y | sign << 255).to_bytes(32, "little")))
    subject = sequence(set_of(named(tlv(0x0C, str(number).encode()))))
    identity_and_zero = (1).to_bytes(64, "little")
    return Draft(spki=spki, sign=lambda _: identity_and_zero, subject=subject, algorithm=ED25519).der()


@pytest.mark.parametrize(("y", "sign"), SMALL_ORDER)
def test_an_ed25519_key_that_anyone_can_sign_for_is_refused(y: int, sign: int) -> None:
    tries = (forged(y, sign, number) for number in range(500))
    der = next(der for der in tries if x509.load_der_x509_csr(der).is_signature_valid)
    assert refused_rule(lambda: parse_csr(der, EVERYTHING_ALLOWED)) == "key_small_order"


@pytest.mark.parametrize(("y", "sign"), NOT_CANONICAL)
def test_an_ed25519_key_of_small_order_is_refused_in_every_way_to_write_it(y: int, sign: int) -> None:
    rule = refused_rule(lambda: parse_csr(forged(y, sign, 0), EVERYTHING_ALLOWED))
    assert rule in ("key_small_order", "key_not_canonical")


@pytest.mark.parametrize(
    ("key", "rule", "option"),
    [
        pytest.param(ed25519.Ed25519PrivateKey.generate(), "key_ed25519", CsrPolicy(allow_ed25519=True), id="Ed25519"),
        pytest.param(ec_key(ec.SECP521R1), "key_curve", CsrPolicy(allow_p521=True), id="P-521"),
    ],
)
def test_a_kind_of_key_behind_an_option_needs_the_option(key: PrivateKey, rule: str, option: CsrPolicy) -> None:
    pem_text = create_csr(key)
    assert refused_rule(lambda: parse_csr_pem(pem_text)) == rule
    assert parse_csr_pem(pem_text, option).public_key == key.public_key()


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(lambda: ec_key(ec.SECP256R1), id="P-256"),
        pytest.param(lambda: ec_key(ec.SECP384R1), id="P-384"),
        pytest.param(rsa_key, id="RSA-2048"),
        pytest.param(lambda: make.rsa_key_of(*make.prime_moduli()[:2]), id="RSA-4096"),
    ],
)
def test_the_common_kinds_of_keys_are_accepted(key: Callable[[], PrivateKey]) -> None:
    assert parse_csr_pem(create_csr(key())).public_key == key().public_key()


ACCEPTED: list[tuple[str, Callable[[], bytes]]] = [
    ("ECDSA with SHA-384",
     lambda: with_algorithm(ec_draft(), sequence(oid("1.2.840.10045.4.3.3")), ecdsa(ec_key(), hashes.SHA384()))),
    ("ECDSA with SHA-512",
     lambda: with_algorithm(ec_draft(), sequence(oid("1.2.840.10045.4.3.4")), ecdsa(ec_key(), hashes.SHA512()))),
    ("RSA with SHA-512",
     lambda: with_algorithm(
         rsa_draft(), sequence(oid("1.2.840.113549.1.1.13"), NULL), make.pkcs1(rsa_key(), hashes.SHA512()))),
    ("RSA without the NULL of RFC 4055", lambda: with_algorithm(rsa_draft(), sequence(oid("1.2.840.113549.1.1.11")))),
    ("PSS by a plain RSA key",
     lambda: with_algorithm(
         rsa_draft(), pss_algorithm(SHA256, 32), pss_signature(hashes.SHA256(), hashes.SHA256(), 32))),
    ("PSS with the longest salt",
     lambda: with_algorithm(
         rsa_draft(), pss_algorithm(SHA256, 222), pss_signature(hashes.SHA256(), hashes.SHA256(), 222))),
]  # fmt: skip


@pytest.mark.parametrize("der", [pytest.param(row[1], id=row[0]) for row in ACCEPTED])
def test_signatures_of_common_tools_are_accepted(der: Callable[[], bytes]) -> None:
    parse_csr(der())
