"""The SPIFFE bundle format: authorities as a JWK set (SPIFFE Trust Domain and Bundle, section 4).

Encoding only: keys go in and out of base64url, nothing is signed or verified here.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from citadel_py.core.errors import InvalidBundle, InvalidCertificate
from citadel_py.core.pem import load_certificate

MAX_JSON_BYTES = 4 << 20  # a bundle map of many trust domains; one bundle is a few kilobytes

_USE = "x509-svid"
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}  # RFC 7518 6.2.1.1


def read_json(text: bytes) -> dict[str, Any]:
    """Read one JSON object. Raises InvalidBundle: `json_too_large`, `json_unreadable`, `json_duplicate_name`."""
    if len(text) > MAX_JSON_BYTES:
        raise InvalidBundle(f"{len(text)} bytes of JSON, at most {MAX_JSON_BYTES} allowed", rule="json_too_large")
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidBundle("the JSON is nested too deeply", rule="json_unreadable") from None
    except ValueError as error:
        raise InvalidBundle(f"not JSON: {str(error)[:200]!a}", rule="json_unreadable") from error
    if not isinstance(value, dict):
        raise InvalidBundle("the JSON text is not an object", rule="json_unreadable")
    return value


def write_json(value: Mapping[str, Any]) -> bytes:
    """Stable text: the same content gives the same bytes."""
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


def jwk(certificate: x509.Certificate) -> dict[str, Any]:
    """The entry of one authority: one x5c element and no `kid` (X509-SVID 6.1)."""
    der = certificate.public_bytes(Encoding.DER)
    return {**_key_parameters(certificate), "use": _USE, "x5c": [base64.b64encode(der).decode()]}


def read_authorities(keys: object) -> list[x509.Certificate]:
    """The X.509 authorities among the entries of `keys`, in their order.

    Entries of other uses and key types are ignored (4.1.3, 4.2). An entry that says it is an X.509
    authority and is broken makes the whole bundle invalid: leaving it out would shrink trust unseen.
    Raises InvalidBundle: `jwks_keys`, `jwk_broken`.
    """
    if not isinstance(keys, list) or not all(isinstance(entry, dict) for entry in keys):
        raise InvalidBundle("'keys' is not a list of objects", rule="jwks_keys")
    return [_authority(entry, f"keys[{index}]") for index, entry in enumerate(keys) if _is_x509_authority(entry, index)]


def _is_x509_authority(entry: Mapping[str, Any], index: int) -> bool:
    if entry.get("use") != _USE:
        return False
    if not isinstance(entry.get("kty"), str):
        raise _broken(f"keys[{index}]", "'kty' is missing or no string")
    return entry["kty"] in ("EC", "RSA")


def _authority(entry: Mapping[str, Any], where: str) -> x509.Certificate:
    """X509-SVID 6.1: exactly one certificate. Readers may skip others by 6.2; a mistake is likelier than a reason."""
    chain = entry.get("x5c")
    if not isinstance(chain, list) or len(chain) != 1 or not isinstance(chain[0], str):
        raise _broken(where, "'x5c' does not hold exactly one certificate")
    try:
        certificate = load_certificate(base64.b64decode(chain[0], validate=True))
    except (binascii.Error, ValueError) as error:
        raise _broken(where, "'x5c' is not base64") from error
    except InvalidCertificate as error:
        raise _broken(where, error.message) from error
    _check_same_key(entry, _key_parameters(certificate), where)
    return certificate


def _check_same_key(entry: Mapping[str, Any], expected: Mapping[str, str], where: str) -> None:
    for name in ("kty", "crv", "x", "y", "n", "e"):
        if name in entry and not _is_same(name, entry[name], expected.get(name)):
            raise _broken(where, f"'{name}' does not belong to the key of the certificate")


def _is_same(name: str, given: object, expected: str | None) -> bool:
    """Numbers are compared as numbers: some writers strip leading zeros, or keep the padding."""
    if expected is None or not isinstance(given, str):
        return False
    return given == expected if name in ("kty", "crv") else _number(given) == _number(expected)


def _number(text: str) -> int | None:
    try:
        octets = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        return None
    return int.from_bytes(octets, "big")


def _key_parameters(certificate: x509.Certificate) -> dict[str, str]:
    """RFC 7518 6.2.1 and 6.3.1. Empty for key types that cannot sign SVIDs; a Bundle never holds those."""
    match certificate.public_key():
        case ec.EllipticCurvePublicKey(curve=curve) as key if curve.name in _CURVES:
            numbers, size = key.public_numbers(), (curve.key_size + 7) // 8
            return {
                "kty": "EC",
                "crv": _CURVES[curve.name],
                "x": _base64url(numbers.x, size),
                "y": _base64url(numbers.y, size),
            }
        case rsa.RSAPublicKey() as key:
            modulus = key.public_numbers()
            return {"kty": "RSA", "n": _base64url(modulus.n), "e": _base64url(modulus.e)}
        case _:
            return {}


def _base64url(number: int, size: int = 0) -> str:
    octets = number.to_bytes(size or (number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    # RFC 8259 4 leaves repeated names open; two readers that take different ones would trust different keys
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidBundle(f"the name {name[:80]!a} stands twice in one object", rule="json_duplicate_name")
        found[name] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _broken(where: str, reason: str) -> InvalidBundle:
    return InvalidBundle(f"{where} of the bundle is broken: {reason}", rule="jwk_broken")
