"""Bundles: what they hold, the two forms they travel in, and what readers ignore, refuse and keep apart."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.core.bundle import Bundle, BundleSet
from citadel_py.core.errors import InvalidBundle
from citadel_py.core.jwks import MAX_JSON_BYTES
from citadel_py.core.keys import KeyType, generate_key, private_key_pem
from citadel_py.core.pem import certificate_pem
from citadel_py.core.spiffe import TrustDomain
from tests.core.svid_factory import SKIP, Pki, constraints, der, edit_extensions, splice, usage

TD, OTHER = TrustDomain("example.org"), TrustDomain("other.org")
PKI = Pki()
ROOT = PKI.root.certificate
SECOND = PKI.authority("second", kind="p384").certificate
RSA = PKI.authority("rsa", kind="rsa2048").certificate
P521 = PKI.authority("p521", kind="p521").certificate
ED25519 = PKI.authority("ed25519", kind="ed25519").certificate


def entry(certificate: x509.Certificate = ROOT, **changes: Any) -> dict[str, Any]:
    """A bundle entry as another implementation would write it; None takes a parameter away."""
    base: dict[str, Any] = {"use": "x509-svid", "kty": "EC", "x5c": [base64.b64encode(der(certificate)).decode()]}
    return {name: value for name, value in {**base, **changes}.items() if value is not None}


def jwks(*entries: object, **parameters: Any) -> bytes:
    return json.dumps({"keys": list(entries), "spiffe_sequence": 7, **parameters}).encode()


def read(*entries: object, **parameters: Any) -> Bundle:
    return Bundle.from_jwks(TD, jwks(*entries, **parameters))


def refused_json(text: bytes) -> InvalidBundle:
    with pytest.raises(InvalidBundle) as caught:
        Bundle.from_jwks(TD, text)
    return caught.value


def base64url(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()


# ------------------------------------------------------------------------------------------ the value


def test_authorities_keep_their_order_and_duplicates_go() -> None:
    assert Bundle(TD, (SECOND, ROOT, SECOND)).authorities == (SECOND, ROOT)
    assert Bundle.from_pem(TD, certificate_pem(ROOT) * 2).authorities == (ROOT,)


@pytest.mark.parametrize(
    ("authorities", "rule"),
    [
        ((), "bundle_empty"),
        ((ROOT, PKI.leaf().certificate), "bundle_not_ca"),
        ((PKI.authority("a", constraints=SKIP).certificate,), "bundle_not_ca"),
        ((PKI.authority("a", constraints=constraints(ca=False)).certificate,), "bundle_not_ca"),
        ((PKI.authority("a", usage=usage("crl_sign")).certificate,), "bundle_not_ca"),
        ((ED25519,), "bundle_key_kind"),
        ((PKI.authority("k1", kind="k1").certificate,), "bundle_key_kind"),
    ],
)
def test_a_bundle_holds_at_least_one_authority_and_nothing_else(
    authorities: tuple[x509.Certificate, ...], rule: str
) -> None:
    with pytest.raises(InvalidBundle) as caught:
        Bundle(TD, authorities)
    assert caught.value.rule == rule


def test_a_root_without_key_usage_is_an_authority() -> None:
    plain = PKI.authority("plain", usage=SKIP, uris=()).certificate
    assert Bundle(TD, (plain,)).authorities == (plain,)


def test_the_content_hash_depends_on_the_authorities_alone() -> None:
    one = Bundle(TD, (ROOT, SECOND), sequence=1)
    assert one.content_hash == Bundle(TD, (SECOND, ROOT), 9, timedelta(hours=1)).content_hash
    assert one.content_hash != Bundle(TD, (ROOT,)).content_hash
    assert len(bytes.fromhex(one.content_hash)) == 32


def test_the_sequence_grows_when_the_content_changes_and_only_then() -> None:
    one = Bundle(TD, (ROOT,), 4, timedelta(minutes=5))
    two = one.with_authorities([ROOT, SECOND])
    assert (two.sequence, two.refresh_hint, two.authorities) == (5, timedelta(minutes=5), (ROOT, SECOND))
    assert two.with_authorities([SECOND, ROOT, ROOT]) is two
    assert two.with_authorities([ROOT]).sequence == 6
    with pytest.raises(InvalidBundle):
        one.with_authorities([])


@pytest.mark.parametrize("sequence", [-1, 1 << 63])
def test_a_sequence_fits_into_64_bits(sequence: int) -> None:
    with pytest.raises(InvalidBundle) as caught:
        Bundle(TD, (ROOT,), sequence)
    assert caught.value.rule == "bundle_sequence"


@pytest.mark.parametrize("hint", [timedelta(0), timedelta(seconds=-1), timedelta(days=3651)])
def test_a_refresh_hint_is_between_a_second_and_ten_years(hint: timedelta) -> None:
    with pytest.raises(InvalidBundle) as caught:
        Bundle(TD, (ROOT,), 1, hint)
    assert caught.value.rule == "bundle_refresh_hint"


def test_a_certificate_that_fails_only_when_it_is_read_does_not_get_into_a_bundle() -> None:
    twice = splice(ROOT, PKI.root, edit_extensions(lambda extensions: extensions.append(extensions[0])))
    with pytest.raises(InvalidBundle) as caught:
        Bundle(TD, (ROOT, twice))
    assert caught.value.rule == "certificate_unreadable"


# ------------------------------------------------------------------------------------------ PEM


def test_pem_is_read_whatever_surrounds_it_and_written_canonically() -> None:
    text = b"old root\r\n" + certificate_pem(ROOT).replace(b"\n", b"\r\n") + b"\n\n# new\n" + certificate_pem(SECOND)
    bundle = Bundle.from_pem(TD, text, sequence=3)
    assert (bundle.authorities, bundle.sequence) == ((ROOT, SECOND), 3)
    assert bundle.to_pem() == certificate_pem(ROOT) + certificate_pem(SECOND)


@pytest.mark.parametrize(
    ("pem", "rule"),
    [
        (b"", "certificates_missing"),
        (certificate_pem(ROOT) + certificate_pem(SECOND)[:99], "certificate_damaged"),
        (certificate_pem(ROOT) + private_key_pem(generate_key(KeyType.P256)), "private_key_in_certificates"),
        (certificate_pem(PKI.leaf().certificate), "bundle_not_ca"),
    ],
)
def test_pem_that_holds_something_else_is_an_invalid_bundle(pem: bytes, rule: str) -> None:
    with pytest.raises(InvalidBundle) as caught:
        Bundle.from_pem(TD, pem)
    assert caught.value.rule == rule


# ------------------------------------------------------------------------------------------ JWKS


def test_the_bundle_format_is_written_as_the_standard_says() -> None:
    bundle = Bundle(TD, (ROOT, RSA), 12, timedelta(minutes=5))
    document = json.loads(bundle.to_jwks())
    assert (document["spiffe_sequence"], document["spiffe_refresh_hint"]) == (12, 300)
    point, modulus = ROOT.public_key(), RSA.public_key()
    assert isinstance(point, ec.EllipticCurvePublicKey)
    assert isinstance(modulus, rsa.RSAPublicKey)
    numbers = point.public_numbers()
    x, y = (base64.urlsafe_b64encode(each.to_bytes(32, "big")).rstrip(b"=").decode() for each in (numbers.x, numbers.y))
    assert document["keys"] == [
        entry(ROOT, crv="P-256", x=x, y=y),
        entry(RSA, kty="RSA", n=base64url(modulus.public_numbers().n), e="AQAB"),
    ]


def test_what_is_written_is_read_again() -> None:
    bundle = Bundle(TD, (ROOT, SECOND, RSA, P521), 12, timedelta(seconds=1))
    assert Bundle.from_jwks(TD, bundle.to_jwks()) == bundle
    assert Bundle.from_jwks(TD, bundle.to_jwks()).to_jwks() == bundle.to_jwks()
    assert "spiffe_refresh_hint" not in json.loads(Bundle(TD, (ROOT,)).to_jwks())


@given(st.integers(0, (1 << 63) - 1), st.none() | st.integers(1, 10 * 365 * 86400))
def test_numbers_survive_the_bundle_format(sequence: int, hint_s: int | None) -> None:
    bundle = Bundle(TD, (ROOT,), sequence, None if hint_s is None else timedelta(seconds=hint_s))
    assert Bundle.from_jwks(TD, bundle.to_jwks()) == bundle


def test_a_bundle_without_numbers_is_read() -> None:
    bundle = Bundle.from_jwks(TD, json.dumps({"keys": [entry()]}).encode())
    assert (bundle.sequence, bundle.refresh_hint) == (0, None)
    assert read(entry(), spiffe_refresh_hint=0).refresh_hint is None


@pytest.mark.parametrize(
    "other",
    [
        entry(use="jwt-svid", kid="a", x5c=None),
        entry(use="something-new"),
        entry(use=None),
        entry(use="X509-SVID"),
        entry(use=["x509-svid"]),
        entry(kty="something-new", x5c=None),
        entry(ED25519, kty="OKP"),
        {},
    ],
)
def test_entries_of_other_uses_and_key_types_are_ignored(other: object) -> None:
    assert read(other, entry()).authorities == (ROOT,)
    assert refused_json(jwks(other)).rule == "bundle_empty"


def test_parameters_that_are_not_known_are_ignored() -> None:
    assert read(entry(kid="not for us", alg="ES256"), another=[1, {"a": None}]).authorities == (ROOT,)


def test_numbers_with_padding_or_leading_zeros_are_the_same_numbers() -> None:
    modulus = RSA.public_key()
    assert isinstance(modulus, rsa.RSAPublicKey)
    padded = base64.urlsafe_b64encode(b"\0" + modulus.public_numbers().n.to_bytes(256, "big")).decode()
    assert read(entry(RSA, kty="RSA", n=padded, e="AAEAAQ==")).authorities == (RSA,)


X5C = entry()["x5c"][0]
OTHER_X5C = entry(SECOND)["x5c"][0]
BROKEN: dict[str, object] = {
    "no kty": entry(kty=None),
    "kty that is no string": entry(kty=5),
    "the wrong kty": entry(kty="RSA"),
    "a kty of another kind of key": entry(ED25519),
    "no x5c": entry(x5c=None),
    "an empty x5c": entry(x5c=[]),
    "two certificates": entry(x5c=[X5C, OTHER_X5C]),
    "one certificate twice": entry(x5c=[X5C, X5C]),
    "x5c that is no list": entry(x5c=X5C),
    "x5c of a number": entry(x5c=[5]),
    "x5c that is no base64": entry(x5c=["?"]),
    "x5c with a newline": entry(x5c=[X5C[:64] + "\n" + X5C[64:]]),
    "x5c in base64url": entry(x5c=[base64.urlsafe_b64encode(b"\xff" * 99).decode()]),
    "x5c that is not ASCII": entry(x5c=["\u00e9" + X5C]),
    "x5c of PEM": entry(x5c=[certificate_pem(ROOT).decode()]),
    "x5c cut off": entry(x5c=[X5C[:100]]),
    "x5c with bytes behind": entry(x5c=[base64.b64encode(der(ROOT) + b"\0").decode()]),
    "the key of another certificate": entry(crv="P-256", x=base64url(5)),
    "the wrong curve": entry(crv="P-384"),
    "RSA parameters on an EC key": entry(n="AQAB"),
    "a parameter that is no number": entry(x="?"),
    "a parameter that is no string": entry(x=5),
    "a parameter that is null": {**entry(), "y": None},
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_an_authority_that_is_broken_is_not_left_out_but_refuses_the_bundle(broken: object) -> None:
    assert refused_json(jwks(entry(SECOND), broken)).rule == "jwk_broken"


def test_a_certificate_that_is_no_authority_refuses_the_bundle() -> None:
    assert refused_json(jwks(entry(), entry(PKI.leaf().certificate))).rule == "bundle_not_ca"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (b"", "json_unreadable"),
        (b"{", "json_unreadable"),
        (b"[]", "json_unreadable"),
        (b"null", "json_unreadable"),
        (b"{} {}", "json_unreadable"),
        (b'{"keys": [], "spiffe_sequence": NaN}', "json_unreadable"),
        (b'{"keys": [], "a": "\xff"}', "json_unreadable"),
        (json.dumps({"keys": []}).encode("utf-16"), "json_unreadable"),
        (b"\xef\xbb\xbf" + jwks(entry()), "json_unreadable"),
        (b'{"keys":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "json_unreadable"),
        (b'{"a":' * 100_000, "json_unreadable"),
        (b'{"spiffe_sequence": ' + b"1" * 5000 + b"}", "json_unreadable"),
        (b" " * MAX_JSON_BYTES + jwks(entry()), "json_too_large"),
        (b'{"keys": [], "keys": []}', "json_duplicate_name"),
        (b'{"keys": [{"use": "jwt-svid", "use": "x509-svid"}]}', "json_duplicate_name"),
        (b"{}", "jwks_keys"),
        (b'{"keys": {}}', "jwks_keys"),
        (b'{"keys": null}', "jwks_keys"),
        (b'{"keys": ["a"]}', "jwks_keys"),
        (b'{"keys": []}', "bundle_empty"),
        (jwks(entry(), spiffe_sequence=-1), "jwks_number"),
        (jwks(entry(), spiffe_sequence=1 << 63), "jwks_number"),
        (jwks(entry(), spiffe_sequence="7"), "jwks_number"),
        (jwks(entry(), spiffe_sequence=7.0), "jwks_number"),
        (jwks(entry(), spiffe_sequence=True), "jwks_number"),
        (jwks(entry(), spiffe_refresh_hint=-1), "jwks_number"),
        (jwks(entry(), spiffe_refresh_hint=10**12), "jwks_number"),
    ],
    ids=str,
)
def test_text_that_is_no_bundle_is_refused(text: bytes, rule: str) -> None:
    assert refused_json(text).rule == rule


# ------------------------------------------------------------------------------------------ sets


def test_bundles_of_different_trust_domains_stay_apart() -> None:
    ours, theirs = Bundle(TD, (ROOT,)), Bundle(OTHER, (SECOND,), 3)
    bundles = BundleSet((ours, theirs))
    assert (bundles.get(TD), bundles.get(OTHER), bundles.get(TrustDomain("a.org"))) == (ours, theirs, None)
    assert (len(bundles), list(bundles)) == (2, [ours, theirs])
    assert BundleSet.from_json(bundles.to_json()) == bundles
    assert len(BundleSet.from_json(BundleSet().to_json())) == 0


def test_one_trust_domain_has_one_bundle() -> None:
    with pytest.raises(InvalidBundle) as caught:
        BundleSet((Bundle(TD, (ROOT,)), Bundle(TD, (SECOND,))))
    assert caught.value.rule == "bundle_duplicate"
    bundle = jwks(entry()).decode()
    twice = f'{{"trust_domains": {{"example.org": {bundle}, "example.org": {bundle}}}}}'
    with pytest.raises(InvalidBundle) as caught:
        BundleSet.from_json(twice.encode())
    assert caught.value.rule == "json_duplicate_name"


@pytest.mark.parametrize(
    ("document", "rule"),
    [
        ({}, "bundle_map"),
        ({"trust_domains": []}, "bundle_map"),
        ({"trust_domains": {"example.org": []}}, "bundle_map"),
        ({"trust_domains": {"Example.org": {"keys": [entry()]}}}, "trust_domain_characters"),
        ({"trust_domains": {"spiffe://example.org": {"keys": [entry()]}}}, "trust_domain_characters"),
        ({"trust_domains": {"": {"keys": [entry()]}}}, "trust_domain_characters"),
        ({"trust_domains": {"example.org": {"keys": [entry()]}, "other.org": {"keys": []}}}, "bundle_empty"),
    ],
)
def test_a_map_with_one_broken_bundle_is_refused_as_a_whole(document: object, rule: str) -> None:
    with pytest.raises(InvalidBundle) as caught:
        BundleSet.from_json(json.dumps(document).encode())
    assert caught.value.rule == rule
