"""What verifies, what else decides, and what a refusal tells. What is refused: test_verify_refused.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID as Purpose
from hypothesis import given, settings
from hypothesis import strategies as st

from citadel_py.core.bundle import Bundle, BundleSet
from citadel_py.core.errors import InvalidCertificate, VerificationFailed
from citadel_py.core.pem import load_certificate
from citadel_py.core.spiffe import SpiffeID, TrustDomain
from citadel_py.core.verify import check_leaf, verify_in, verify_svid
from tests.core.svid_factory import (
    HOUR,
    NOW,
    SHA1_ECDSA,
    SKIP,
    Entity,
    Pki,
    constraints,
    name,
    names,
    permits,
    purposes,
    splice,
    unknown,
    usage,
)

Presented: TypeAlias = tuple[Sequence[x509.Certificate], Bundle]
TD = TrustDomain("example.org")
ID = SpiffeID(TD, "/ns/a/sa/b")
OLD: dict[str, Any] = {"not_before": NOW - 9 * HOUR, "not_after": NOW - HOUR}
PKI = Pki()
TABLE: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "spiffe-ids.json").read_text(encoding="utf-8"))


def leaf(**changes: Any) -> Presented:
    return PKI.chain(**changes), PKI.bundle


def under(root: Entity, *, direct: bool = False) -> Presented:
    """A leaf below a root that somebody else made."""
    return PKI.chain(root if direct else PKI.authority("below", root, length=0)), root.bundle


def bundle(*entities: Entity) -> Bundle:
    return Bundle(TD, tuple(each.certificate for each in entities))


def made_by_hand(*, critical: bool = True) -> Entity:
    """A root as people make it on a command line: no key usage, no key identifiers, no SPIFFE ID."""
    return PKI.authority("by hand", uris=(), usage=SKIP, ski=SKIP, constraints=constraints(ca=True, critical=critical))


def signed_with_sha1() -> Entity:
    root = PKI.authority("old")
    return Entity(splice(root.certificate, root, lambda fields: fields.__setitem__(2, SHA1_ECDSA)), root.key)


def renewed_root(*, slot: str = "root") -> Presented:
    """The bundle holds an expired root of the same name in front: of the same key, or of another."""
    return PKI.chain(), bundle(PKI.authority("root", slot=slot, **OLD), PKI.root)


def cross_signed() -> Presented:
    """A new root, signed by the old one that is all the verifier knows yet."""
    old, new = PKI.authority("old", length=2), PKI.authority("new")
    crossed = PKI.authority("new", old, slot="new", length=1)
    return PKI.chain(PKI.authority("below", new, length=0), crossed), old.bundle


def three_levels() -> Presented:
    root = PKI.authority("top", length=2)
    upper = PKI.authority("upper", root, length=1)
    return PKI.chain(PKI.authority("lower", upper, length=0), upper), root.bundle


SHUFFLED = three_levels()
ACCEPTED: dict[str, Callable[[], Presented]] = {
    "the profile that we issue": leaf,
    "a leaf that the root signed": lambda: (PKI.chain(PKI.root)[:1], PKI.bundle),
    "two intermediates": three_levels,
    "intermediates in another order": lambda: ([SHUFFLED[0][0], *SHUFFLED[0][:0:-1]], SHUFFLED[1]),
    "the root presented too": lambda: ([*PKI.chain(), PKI.root.certificate], PKI.bundle),
    "an intermediate presented twice": lambda: (PKI.chain(PKI.intermediate, PKI.intermediate), PKI.bundle),
    "other certificates presented too": lambda: (
        PKI.chain(PKI.intermediate, PKI.authority("else"), PKI.leaf(), PKI.authority("dead", **OLD)),
        PKI.bundle,
    ),
    "an intermediate in the bundle": lambda: (PKI.chain()[:1], bundle(PKI.intermediate)),
    # leaves
    "DNS names and addresses": lambda: leaf(
        names=names(
            str(ID),
            others=[x509.DNSName("*.a.example"), x509.IPAddress(ip_address("10.0.0.1")), x509.RFC822Name("a@b.c")],
        )
    ),
    "a subject": lambda: leaf(subject=name("a"), names=names(str(ID), critical=False)),
    "a subject beside a critical SAN": lambda: leaf(subject=name("a")),
    "no purposes": lambda: leaf(purposes=SKIP),
    "critical purposes": lambda: leaf(purposes=purposes(Purpose.SERVER_AUTH, Purpose.CLIENT_AUTH, critical=True)),
    "a further purpose": lambda: leaf(
        purposes=purposes(Purpose.CLIENT_AUTH, Purpose.CODE_SIGNING, Purpose.SERVER_AUTH)
    ),
    "no basic constraints": lambda: leaf(constraints=SKIP),
    "no authority key identifier": lambda: leaf(aki=SKIP),
    "an unknown extension": lambda: leaf(other=unknown(critical=False)),
    "key agreement": lambda: leaf(usage=usage("digital_signature", "key_agreement")),
    "an RSA key": lambda: leaf(kind="rsa2048", usage=usage("digital_signature", "key_encipherment")),
    "a P-521 key": lambda: leaf(kind="p521"),
    "an Ed25519 key": lambda: leaf(kind="ed25519"),
    "a longest ID": lambda: leaf(uris=["spiffe://example.org/" + "a" * 2027]),
    # times: both ends are included, fractions of a second do not count (RFC 5280 4.1.2.5)
    "the first second": lambda: leaf(not_before=NOW),
    "the last second": lambda: leaf(not_after=NOW),
    # authorities
    "a P-384 authority": lambda: under(PKI.authority("r384", kind="p384")),
    "an RSA authority": lambda: under(PKI.authority("rsa", kind="rsa2048")),
    "an intermediate without an ID": lambda: (
        PKI.chain(PKI.authority("plain", PKI.root, length=0, uris=())),
        PKI.bundle,
    ),
    "an intermediate for any purpose": lambda: (
        PKI.chain(PKI.authority("any", PKI.root, purposes=purposes(Purpose.ANY_EXTENDED_KEY_USAGE))),
        PKI.bundle,
    ),
    "name constraints that are met": lambda: (
        PKI.chain(
            PKI.authority("nc", PKI.root, nc=permits(x509.DNSName("a.example"))),
            names=names(str(ID), others=[x509.DNSName("b.a.example")]),
        ),
        PKI.bundle,
    ),
    "a root made by hand": lambda: under(made_by_hand()),
    "a root made by hand signs the leaf": lambda: under(made_by_hand(), direct=True),
    "a root whose constraints are not critical": lambda: under(made_by_hand(critical=False)),
    "a root that signed itself with SHA-1": lambda: under(signed_with_sha1()),
    "a root of another trust domain, above an intermediate of ours": lambda: under(
        PKI.authority("far", uris=["spiffe://far.org"])
    ),
    "a renewed root, the expired one in front": renewed_root,
    "a new root of the same name, the old one in front": lambda: renewed_root(slot="earlier"),
    "a new root that the old one signed": cross_signed,
}


@pytest.mark.parametrize("make", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepted(make: Callable[[], Presented]) -> None:
    chain, authorities = make()
    svid = verify_svid(chain, authorities, now=NOW + timedelta(microseconds=999_999))
    assert svid.leaf == chain[0]
    assert svid.id == check_leaf(chain[0])
    assert not set(svid.chain) & set(authorities.authorities)


def test_the_chain_of_the_svid_is_the_path_without_the_root_and_without_what_else_was_presented() -> None:
    chain = PKI.chain(PKI.authority("else"), PKI.intermediate, PKI.root)
    chain[0] = PKI.leaf().certificate
    svid = verify_svid(chain, PKI.bundle, now=NOW)
    assert svid.chain == (chain[0], PKI.intermediate.certificate)
    assert svid.chain_pem() == b"".join(each.public_bytes(Encoding.PEM) for each in svid.chain)
    assert (
        svid.authority_id == x509.SubjectKeyIdentifier.from_public_key(PKI.intermediate.key.public_key()).digest.hex()
    )
    assert (svid.not_before, svid.not_after) == (NOW - HOUR, NOW + HOUR)
    assert int(svid.serial, 16) == chain[0].serial_number
    nameless = PKI.chain(aki=SKIP)
    assert verify_svid(nameless, PKI.bundle, now=NOW).authority_id == ""


ROOTS: dict[str, tuple[str, Callable[[], Entity]]] = {
    "expired": ("authority_expired", lambda: PKI.authority("r", **OLD)),
    "not yet valid": ("authority_not_yet_valid", lambda: PKI.authority("r", not_before=NOW + HOUR)),
    "RSA of 1024 bits": ("key_strength", lambda: PKI.authority("weak", kind="rsa1024")),
    "path length 0": ("path_length", lambda: PKI.authority("r", length=0)),
    "an unknown critical extension": ("critical_extension", lambda: PKI.authority("r", other=unknown(critical=True))),
    "for servers only": ("authority_extended_key_usage", lambda: PKI.authority("r", p=purposes(Purpose.SERVER_AUTH))),
    "for clients only": ("authority_extended_key_usage", lambda: PKI.authority("r", p=purposes(Purpose.CLIENT_AUTH))),
    "an ID with a path": ("authority_spiffe_id", lambda: PKI.authority("r", uris=["spiffe://example.org/ca"])),
    "URI constraints": (
        "name_constraints",
        lambda: PKI.authority("r", nc=permits(x509.UniformResourceIdentifier("example.org"))),
    ),
}


@pytest.mark.parametrize(("rule", "root"), ROOTS.values(), ids=ROOTS.keys())
def test_a_root_in_the_bundle_is_held_to_the_rules_too(rule: str, root: Callable[[], Entity]) -> None:
    with pytest.raises(VerificationFailed) as caught:
        verify_svid(*under(root()), now=NOW)
    assert caught.value.rule == rule


@pytest.mark.parametrize("direct", [True, False])
def test_a_root_of_another_trust_domain_does_not_speak_for_ours(direct: bool) -> None:  # noqa: FBT001 - a parameter
    far = PKI.authority("far", uris=["spiffe://far.org"])
    signer = far if direct else PKI.authority("nameless", far, uris=())
    with pytest.raises(VerificationFailed) as caught:
        verify_svid(PKI.chain(signer), far.bundle, now=NOW)
    assert caught.value.rule == "authority_trust_domain"


def test_the_library_too_refuses_a_signer_that_is_no_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("citadel_py.core.verify.check_intermediate", lambda *_: None)
    with pytest.raises(VerificationFailed) as caught:
        verify_svid(PKI.chain(PKI.leaf(subject=name("leaf")), PKI.intermediate), PKI.bundle, now=NOW)
    assert caught.value.rule == "authority_not_ca"


def test_only_the_bundle_of_the_leafs_own_trust_domain_is_asked() -> None:
    mine, theirs = (
        PKI.bundle,
        Bundle(TrustDomain("far.org"), (PKI.authority("far", uris=["spiffe://far.org"]).certificate,)),
    )
    bundles = BundleSet((theirs, mine))
    assert verify_in(PKI.chain(), bundles, now=NOW).id == ID
    with pytest.raises(VerificationFailed) as caught:  # ours claims to be theirs
        verify_in(PKI.chain(PKI.authority("i", PKI.root, uris=()), uris=["spiffe://far.org/a"]), bundles, now=NOW)
    assert caught.value.rule == "unknown_authority"
    with pytest.raises(VerificationFailed) as caught:
        verify_in(PKI.chain(), BundleSet((theirs,)), now=NOW)
    assert caught.value.rule == "trust_domain_unknown"
    with pytest.raises(VerificationFailed) as caught:
        verify_in([], bundles, now=NOW)
    assert caught.value.rule == "chain_empty"


def test_the_id_that_was_expected_is_required() -> None:
    assert verify_svid(PKI.chain(), PKI.bundle, now=NOW, expected=ID).id == ID
    with pytest.raises(VerificationFailed, match="expected was spiffe://example") as caught:
        verify_svid(PKI.chain(), PKI.bundle, now=NOW, expected=SpiffeID(TD, "/ns/a/sa/c"))
    assert caught.value.rule == "unexpected_id"


def test_the_time_is_an_instant_whatever_its_zone_and_never_a_naive_one() -> None:
    chain = PKI.chain(not_before=NOW, not_after=NOW)
    assert verify_svid(chain, PKI.bundle, now=NOW.astimezone(timezone(timedelta(hours=-9)))).id == ID
    with pytest.raises(ValueError, match="aware"):
        verify_svid(chain, PKI.bundle, now=datetime(2026, 11, 20, 13, 2))  # noqa: DTZ001 - that it is naive is the point


@pytest.mark.parametrize(
    "case", [case for case in TABLE["valid"] + TABLE["invalid"] + TABLE["divergent"] if case["id"].isascii()]
)
def test_a_leaf_carries_any_valid_id_with_a_path_and_no_other(case: dict[str, str]) -> None:
    leaf = PKI.leaf(uris=[case["id"]]).certificate
    if case.get("path"):
        assert str(check_leaf(leaf)) == case["id"]
        return
    with pytest.raises(VerificationFailed) as caught:
        check_leaf(leaf)
    assert caught.value.rule == ("spiffe_id_path" if "path" in case else "spiffe_id")


def reason(chain: Sequence[x509.Certificate], *, now: datetime = NOW) -> VerificationFailed:
    with pytest.raises(VerificationFailed) as caught:
        verify_svid(chain, PKI.bundle, now=now)
    return caught.value


def test_the_reason_says_when_it_expired_and_how_long_ago() -> None:
    expired = PKI.chain(not_after=datetime(2026, 11, 20, 10, 0, 0, tzinfo=UTC), not_before=NOW - 9 * HOUR)
    assert reason(expired).message == "leaf expired 2026-11-20T10:00:00Z, 3h2m ago"
    early = PKI.chain(not_before=NOW + timedelta(seconds=90), not_after=NOW + HOUR)
    assert reason(early).message == "leaf is not valid before 2026-11-20T13:03:30Z, in 1m30s"
    assert "clock" in reason(early).hints[0]


def test_the_reason_names_the_authority_at_fault() -> None:
    dead = PKI.chain(PKI.authority("left alone", PKI.root, length=0, **OLD))
    assert reason(dead).message == "intermediate 'CN=left alone' expired 2026-11-20T12:02:00Z, 1h ago"


def test_the_reason_for_a_missing_intermediate_names_it_and_says_what_to_do() -> None:
    error = reason(PKI.chain()[:1])
    key_id = x509.SubjectKeyIdentifier.from_public_key(PKI.intermediate.key.public_key()).digest.hex()
    assert f"'CN=intermediate' (key id {key_id})" in error.message
    assert error.hints[0] == "if it is an intermediate: present it along with the leaf"


def test_a_reason_cannot_forge_a_log_line() -> None:
    liar = PKI.authority("x\n2026-11-20 level=info svid accepted", length=0)
    for chain in (PKI.chain(liar), PKI.chain(liar)[:1], PKI.chain(uris=["spiffe://example.org/a\nlevel=info"])):
        error = reason(chain)
        assert error.message.isprintable()
        assert error.message.isascii()


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_byte_of_a_certificate_can_be_changed(data: st.DataObject) -> None:
    good = GOOD[data.draw(st.sampled_from([0, 1]))]
    position = data.draw(st.integers(0, len(good) - 1))
    changed = bytearray(good)
    changed[position] ^= data.draw(st.integers(1, 255))
    chain = [bytes(changed) if der == good else der for der in GOOD]
    with pytest.raises((VerificationFailed, InvalidCertificate)):
        verify_svid([load_certificate(der) for der in chain], PKI.bundle, now=NOW)


GOOD = [each.public_bytes(Encoding.DER) for each in PKI.chain()]
