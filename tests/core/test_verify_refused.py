"""SVIDs that must be refused, each for its own reason: about ninety ways to be wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from ipaddress import ip_network
from typing import Any, TypeAlias

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID as Purpose

from citadel_py.core.errors import VerificationFailed
from citadel_py.core.verify import check_leaf, verify_svid
from tests.core.svid_factory import (
    HOUR,
    NOW,
    SHA1_ECDSA,
    SKIP,
    Entity,
    Pki,
    children,
    constraints,
    der,
    edit_extensions,
    excludes,
    name,
    names,
    permits,
    purposes,
    splice,
    tlv,
    unknown,
    usage,
)

Chain: TypeAlias = Sequence[x509.Certificate]
ID = "spiffe://example.org/ns/a/sa/b"
OLD = {"not_before": NOW - 9 * HOUR, "not_after": NOW - HOUR}
EARLY = {"not_before": NOW + HOUR, "not_after": NOW + 9 * HOUR}
SHA384_ECDSA = bytes.fromhex("300a06082a8648ce3d040303")
UNREADABLE_NAME = tlv(0x30, tlv(0x31, tlv(0x30, b"\x06\x03\x55\x04\x03", tlv(0x0C, b"\xff"))))  # not UTF-8
PKI = Pki()


def leaf(**changes: object) -> Chain:
    return PKI.chain(**changes)


def uri(*uris: str) -> Chain:
    return PKI.chain(uris=uris)


def raw_uri(value: bytes) -> Chain:
    """A leaf whose SAN holds these bytes as its URI, unseen by the library's builder."""
    extension = tlv(0x30, tlv(0x06, b"\x55\x1d\x11"), b"\x01\x01\xff", tlv(0x04, tlv(0x30, tlv(0x86, value))))
    return PKI.spliced(edit_extensions(lambda extensions: extensions.append(extension)), names=SKIP)


def raw_extension(oid: bytes, value: bytes, **changes: object) -> Chain:
    extension = tlv(0x30, tlv(0x06, oid), b"\x01\x01\xff", tlv(0x04, value))
    return PKI.spliced(edit_extensions(lambda extensions: extensions.append(extension)), **changes)


def field(index: int, value: bytes) -> Chain:
    def edit(fields: list[bytes]) -> None:
        fields[index] = value

    return PKI.spliced(edit)


def through(**changes: Any) -> Chain:
    """A leaf below an intermediate that is changed."""
    return PKI.chain(PKI.authority("changed", PKI.root, **{"length": 0, **changes}))


def twice(extensions: list[bytes]) -> None:
    extensions.append(extensions[0])


def without_version_and_extensions(fields: list[bytes]) -> None:
    del fields[0], fields[-1]


def pss_key(fields: list[bytes]) -> None:
    algorithm = tlv(0x30, tlv(0x06, bytes.fromhex("2a864886f70d01010a")))
    fields[6] = tlv(0x30, algorithm, children(fields[6])[1])


def old_style_times(fields: list[bytes]) -> None:
    fields[4] = tlv(0x30, tlv(0x18, b"20260101000000Z"), tlv(0x18, b"20270101000000Z"))


def sha1(fields: list[bytes]) -> None:
    fields[2] = SHA1_ECDSA


def two_lines() -> tuple[Entity, Entity]:
    """An intermediate that may not have another below it, and another below it."""
    upper = PKI.authority("upper", PKI.root, length=0)
    return PKI.authority("lower", upper, length=0), upper


def name_only(common_name: str) -> x509.Certificate:
    return PKI.authority(common_name, slot="x").certificate


def version_1_authority() -> Entity:
    changed = PKI.authority("changed", PKI.root)
    return Entity(splice(changed.certificate, PKI.root, without_version_and_extensions), changed.key)


def with_other_signature() -> Chain:
    one, other = leaf()[0], leaf()[0]
    tbs, algorithm, _ = children(der(one))
    return [
        x509.load_der_x509_certificate(tlv(0x30, tbs, algorithm, children(der(other))[2])),
        PKI.intermediate.certificate,
    ]


def circle() -> Chain:
    one, other = PKI.authority("one"), PKI.authority("other")
    return PKI.chain(PKI.authority("one", other, length=None), PKI.authority("other", one, length=None))


LEAVES: dict[str, tuple[str, Callable[[], Chain]]] = {
    # the SPIFFE ID: X509-SVID 2, 3.1
    "no SAN": ("uri_san_missing", lambda: leaf(names=SKIP, subject=name("a"))),
    "only a DNS name": ("uri_san_missing", lambda: leaf(names=names(others=[x509.DNSName("a.example")]))),
    "the ID only in the common name": ("uri_san_missing", lambda: leaf(names=SKIP, subject=name(ID))),
    "two IDs": ("uri_san_several", lambda: uri(ID, ID + "c")),
    "one ID twice": ("uri_san_several", lambda: uri(ID, ID)),
    "an ID and a web address": ("uri_san_several", lambda: uri(ID, "https://example.org/")),
    "a web address and an ID": ("uri_san_several", lambda: uri("https://example.org/", ID)),
    "IDs of two trust domains": ("uri_san_several", lambda: uri(ID, "spiffe://other.org/a")),
    "a web address": ("spiffe_id", lambda: uri("https://example.org/ns/a/sa/b")),
    "no path": ("spiffe_id_path", lambda: uri("spiffe://example.org")),
    "a path that is a slash": ("spiffe_id", lambda: uri("spiffe://example.org/")),
    "a slash at the end": ("spiffe_id", lambda: uri(ID + "/")),
    "an empty segment": ("spiffe_id", lambda: uri("spiffe://example.org//b")),
    "a dot segment": ("spiffe_id", lambda: uri("spiffe://example.org/a/../b")),
    "an upper-case trust domain": ("spiffe_id", lambda: uri("spiffe://EXAMPLE.org/a")),
    "an upper-case scheme": ("spiffe_id", lambda: uri("SPIFFE://example.org/a")),
    "a port": ("spiffe_id", lambda: uri("spiffe://example.org:443/a")),
    "user info": ("spiffe_id", lambda: uri("spiffe://me@example.org/a")),
    "a query": ("spiffe_id", lambda: uri(ID + "?a=b")),
    "a fragment": ("spiffe_id", lambda: uri(ID + "#a")),
    "percent-encoding": ("spiffe_id", lambda: uri("spiffe://example.org/%61")),
    "a newline at the end": ("spiffe_id", lambda: uri(ID + "\n")),
    "more than 2048 bytes": ("spiffe_id", lambda: uri(ID + "b" * 2048)),
    "an empty URI": ("spiffe_id", lambda: uri("")),
    "a NUL in the ID": ("spiffe_id", lambda: raw_uri(ID.encode() + b"\0.evil")),
    "an ID that is not ASCII": ("spiffe_id", lambda: raw_uri(b"spiffe://example.org/\xc3\xa9")),
    "a SAN that is not critical beside an empty subject": (
        "san_not_critical",
        lambda: leaf(names=names(ID, critical=False)),
    ),
    "another trust domain": ("trust_domain_mismatch", lambda: uri("spiffe://other.org/ns/a/sa/b")),
    "a trust domain below": ("trust_domain_mismatch", lambda: uri("spiffe://a.example.org/ns/a/sa/b")),
    "a trust domain that only begins alike": ("trust_domain_mismatch", lambda: uri("spiffe://example.org.evil/a")),
    # what it may do: X509-SVID 4
    "a CA": ("leaf_is_ca", lambda: leaf(constraints=constraints(ca=True))),
    "a CA that may sign": ("leaf_is_ca", lambda: leaf(constraints=constraints(ca=True), usage=usage("key_cert_sign"))),
    "keyCertSign": ("key_usage_signing", lambda: leaf(usage=usage("digital_signature", "key_cert_sign"))),
    "cRLSign": ("key_usage_signing", lambda: leaf(usage=usage("digital_signature", "crl_sign"))),
    "no digitalSignature": ("key_usage_digital_signature", lambda: leaf(usage=usage("key_encipherment"))),
    "no key usage": ("key_usage_missing", lambda: leaf(usage=SKIP)),
    "key usage that is not critical": (
        "key_usage_not_critical",
        lambda: leaf(usage=usage("digital_signature", critical=False)),
    ),
    "serverAuth only": ("extended_key_usage", lambda: leaf(purposes=purposes(Purpose.SERVER_AUTH))),
    "clientAuth only": ("extended_key_usage", lambda: leaf(purposes=purposes(Purpose.CLIENT_AUTH))),
    "any purpose": ("extended_key_usage", lambda: leaf(purposes=purposes(Purpose.ANY_EXTENDED_KEY_USAGE))),
    "code signing": ("extended_key_usage", lambda: leaf(purposes=purposes(Purpose.CODE_SIGNING))),
    "name constraints": ("leaf_name_constraints", lambda: leaf(nc=permits(x509.DNSName("a.example")))),
    "an unknown critical extension": ("critical_extension", lambda: leaf(other=unknown(critical=True))),
    "a precertificate": ("critical_extension", lambda: leaf(poison=(x509.PrecertPoison(), True))),
    "critical policies": (
        "critical_extension",
        lambda: leaf(policy=(x509.CertificatePolicies([x509.PolicyInformation(Purpose.SERVER_AUTH, None)]), True)),
    ),
    "a critical key identifier": (
        "critical_extension",
        lambda: leaf(ski=(x509.SubjectKeyIdentifier(b"12345678"), True)),
    ),
    # keys
    "RSA of 1024 bits": ("key_strength", lambda: leaf(kind="rsa1024")),
    "RSA with exponent 3": ("key_strength", lambda: leaf(kind="rsa2048e3")),
    "an RSA-PSS key": ("key_kind", lambda: PKI.spliced(pss_key, kind="rsa2048")),
    "a key on secp256k1": ("key_kind", lambda: leaf(kind="k1")),
    "a point that is not on its curve": (
        "certificate_unreadable",
        lambda: PKI.spliced(lambda fields: fields.__setitem__(6, fields[6][:-8] + bytes(8))),
    ),
    # form: RFC 5280 4.1, 4.2
    "version 1": ("version", lambda: PKI.spliced(without_version_and_extensions, subject=name("a"))),
    "serial number 0": ("serial_number", lambda: field(1, b"\x02\x01\x00")),
    "a negative serial number": ("serial_number", lambda: field(1, b"\x02\x01\xff")),
    "a serial number of 21 octets": ("serial_number", lambda: field(1, tlv(0x02, b"\x01" * 21))),
    "an empty issuer": ("issuer_missing", lambda: field(3, b"\x30\x00")),
    "GeneralizedTime before 2050": ("path_invalid", lambda: PKI.spliced(old_style_times)),
    "two signature algorithms": ("signature_invalid", lambda: field(2, SHA384_ECDSA)),
    "a subject that cannot be read": ("certificate_unreadable", lambda: field(5, UNREADABLE_NAME)),
    "an extension twice": ("certificate_unreadable", lambda: PKI.spliced(edit_extensions(twice))),
    "an x400 address": (
        "certificate_unreadable",
        lambda: raw_extension(b"\x55\x1d\x11", b"\x30\x02\xa3\x00", names=SKIP),
    ),
    "a path length on a leaf": (
        "certificate_unreadable",
        lambda: raw_extension(b"\x55\x1d\x13", b"\x30\x03\x02\x01\x00", constraints=SKIP),
    ),
    "bytes behind an extension": (
        "certificate_unreadable",
        lambda: raw_extension(b"\x55\x1d\x0f", b"\x03\x02\x07\x80\x00", usage=SKIP),
    ),
    "an empty list of purposes": (
        "certificate_unreadable",
        lambda: raw_extension(b"\x55\x1d\x25", b"\x30\x00", purposes=SKIP),
    ),
}

PATHS: dict[str, tuple[str, Callable[[], Chain]]] = {
    # times
    "expired": ("leaf_expired", lambda: leaf(**OLD)),
    "expired a second ago": ("leaf_expired", lambda: leaf(not_after=NOW - timedelta(seconds=1))),
    "not yet valid": ("leaf_not_yet_valid", lambda: leaf(**EARLY)),
    "an intermediate that has expired": ("authority_expired", lambda: through(**OLD)),
    "an intermediate that is not yet valid": ("authority_not_yet_valid", lambda: through(**EARLY)),
    # who signed
    "no intermediate": ("issuer_missing", lambda: leaf()[:1]),
    "the wrong intermediate": ("issuer_missing", lambda: [leaf()[0], PKI.authority("else", PKI.root).certificate]),
    "signed by itself": (
        "issuer_missing",
        lambda: [PKI.leaf(Entity(name_only("b"), PKI.leaf().key), subject=name("b")).certificate],
    ),
    "another root": ("issuer_missing", lambda: PKI.chain(PKI.authority("stranger"))[:1]),
    "another root, presented": ("unknown_authority", lambda: PKI.chain(PKI.authority("stranger"))),
    "another root without key usage, presented": (
        "unknown_authority",
        lambda: PKI.chain(PKI.authority("stranger", usage=SKIP)),
    ),
    "an intermediate of another root": (
        "unknown_authority",
        lambda: PKI.chain(PKI.authority("between", PKI.authority("stranger"), length=0)),
    ),
    "a root of the same name and another key": (
        "signature_invalid",
        lambda: PKI.chain(PKI.authority("between", PKI.authority("root", slot="forged"), length=0)),
    ),
    "a root of the same name, presented": (
        "signature_invalid",
        lambda: PKI.chain(PKI.authority("root", slot="forged")),
    ),
    "an intermediate of the same name and another key": (
        "signature_invalid",
        lambda: [
            PKI.leaf(PKI.authority("intermediate", PKI.root, slot="forged")).certificate,
            PKI.intermediate.certificate,
        ],
    ),
    "a changed signature": ("signature_invalid", with_other_signature),
    "SHA-1": ("signature_algorithm", lambda: PKI.spliced(sha1)),
    "an intermediate signed with SHA-1": (
        "signature_algorithm",
        lambda: PKI.chain(Entity(splice(PKI.intermediate.certificate, PKI.root, sha1), PKI.intermediate.key)),
    ),
    "two intermediates that sign each other": ("unknown_authority", circle),
    # who may sign
    "signed by a leaf": ("authority_not_ca", lambda: PKI.chain(PKI.leaf(subject=name("leaf")), PKI.intermediate)),
    "an intermediate that is no CA": ("authority_not_ca", lambda: through(constraints=constraints(ca=False))),
    "an intermediate without basic constraints": ("authority_not_ca", lambda: through(constraints=SKIP)),
    "basic constraints that are not critical": (
        "authority_not_ca",
        lambda: through(constraints=constraints(ca=True, critical=False)),
    ),
    "an intermediate without keyCertSign": ("authority_key_usage", lambda: through(usage=usage("crl_sign"))),
    "an intermediate without key usage": ("authority_key_usage", lambda: through(usage=SKIP)),
    "one intermediate too many": ("path_length", lambda: PKI.chain(*two_lines())),
    "an intermediate with an unknown critical extension": (
        "critical_extension",
        lambda: through(other=unknown(critical=True)),
    ),
    "an intermediate of another trust domain": ("authority_trust_domain", lambda: through(uris=["spiffe://other.org"])),
    "an intermediate whose ID has a path": ("authority_spiffe_id", lambda: through(uris=["spiffe://example.org/ca"])),
    "an intermediate whose ID is none": ("authority_spiffe_id", lambda: through(uris=["spiffe://EXAMPLE.org"])),
    "an intermediate with two IDs": (
        "authority_spiffe_id",
        lambda: through(uris=["spiffe://example.org", "spiffe://other.org"]),
    ),
    "an intermediate for servers only": (
        "authority_extended_key_usage",
        lambda: through(purposes=purposes(Purpose.SERVER_AUTH)),
    ),
    "an intermediate for clients only": (
        "authority_extended_key_usage",
        lambda: through(purposes=purposes(Purpose.CLIENT_AUTH)),
    ),
    "an intermediate with RSA of 1024 bits": ("key_strength", lambda: through(kind="rsa1024")),
    "an intermediate with an Ed25519 key": ("signature_algorithm", lambda: through(kind="ed25519")),
    "an intermediate of version 1": ("version", lambda: PKI.chain(version_1_authority())),
    # name constraints: RFC 5280 4.2.1.10
    "URI constraints, met": (
        "name_constraints",
        lambda: through(nc=permits(x509.UniformResourceIdentifier("example.org"))),
    ),
    "directory name constraints": ("name_constraints", lambda: through(nc=permits(x509.DirectoryName(name("a"))))),
    "a DNS name that is not permitted": (
        "name_constraints",
        lambda: PKI.chain(
            PKI.authority("changed", PKI.root, nc=permits(x509.DNSName("good.example"))),
            names=names(ID, others=[x509.DNSName("bad.example")]),
        ),
    ),
    "an address that is excluded": (
        "name_constraints",
        lambda: PKI.chain(
            PKI.authority("changed", PKI.root, nc=excludes(x509.IPAddress(ip_network("10.0.0.0/8")))),
            names=names(ID, others=[x509.IPAddress(ip_network("10.1.2.3/32").network_address)]),
        ),
    ),
    # what was presented
    "nothing": ("chain_empty", list),
    "the intermediate first": ("leaf_is_ca", lambda: leaf()[::-1]),
    "the root alone": ("leaf_is_ca", lambda: [PKI.root.certificate]),
    "eleven certificates": ("chain_too_long", lambda: [*leaf(), *leaf()] * 2 + [*leaf()] + [PKI.root.certificate]),
    "a chain of too many bytes": (
        "chain_too_large",
        lambda: through(other=unknown(critical=False, size=70_000)),
    ),
}


@pytest.mark.parametrize(("rule", "make"), (LEAVES | PATHS).values(), ids=(LEAVES | PATHS).keys())
def test_refused_under_its_rule(rule: str, make: Callable[[], Chain]) -> None:
    chain = make()
    with pytest.raises(VerificationFailed) as caught:
        verify_svid(chain, PKI.bundle, now=NOW)
    assert caught.value.rule == rule, caught.value.message


NEEDS_THE_PATH = {"signature_invalid", "trust_domain_mismatch", "path_invalid", "issuer_missing"}


@pytest.mark.parametrize(("rule", "make"), LEAVES.values(), ids=LEAVES.keys())
def test_the_leaf_by_itself_is_refused_for_all_that_is_wrong_with_it_alone(
    rule: str, make: Callable[[], Chain]
) -> None:
    leaf = make()[0]
    if rule in NEEDS_THE_PATH:
        check_leaf(leaf)
        return
    with pytest.raises(VerificationFailed) as caught:
        check_leaf(leaf)
    assert caught.value.rule == rule
