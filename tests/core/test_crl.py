"""Revocation lists: read strictly, served for the whole path or not at all."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.core.crl import (
    CRL,
    MAX_CRL_BYTES,
    MAX_CRLS,
    MAX_REVOKED,
    Revoked,
    build_crl,
    check_crls,
    crls_pem,
    ends_at,
    load_crls,
    load_der_crls,
    revoked_in,
)
from citadel_py.core.errors import InvalidCRL
from citadel_py.core.keys import KeyType, generate_key
from citadel_py.core.profile import Authority
from tests.core.conftest import NOW, Pki, PkiMaker

WEEK = timedelta(days=7)


def crl_of(authority: Authority, *serials: int, number: int = 1, now: datetime = NOW, lasts: timedelta = WEEK) -> CRL:
    revoked = [Revoked(serial, now) for serial in serials]
    return build_crl(authority, revoked, number=number, now=now, next_update=now + lasts)


def both(pki: Pki, *, number: int = 1) -> tuple[CRL, CRL]:
    return crl_of(pki.root, number=number), crl_of(pki.intermediate, 7, number=number)


def authorities(pki: Pki) -> tuple[x509.Certificate, ...]:
    return pki.root.certificate, pki.intermediate.certificate


def unusual(authority: Authority, *extensions: tuple[x509.ExtensionType, bool], algorithm: hashes.HashAlgorithm) -> CRL:
    """A CRL that we would not make."""
    builder = x509.CertificateRevocationListBuilder(authority.certificate.subject, NOW, NOW + WEEK)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(authority.key, algorithm)  # type: ignore[arg-type]  # none of them is Ed25519


def test_what_is_written_can_be_read_again(pki: Pki) -> None:
    crls = both(pki)

    assert load_crls(crls_pem(crls)) == crls
    assert load_crls(b"a comment\r\n" + crls_pem(crls).replace(b"\n", b"\r\n")) == crls
    assert load_der_crls(crl.public_bytes(Encoding.DER) for crl in crls) == crls


def test_nothing_in_der_is_no_list_at_all() -> None:
    assert load_der_crls(()) == ()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda _pem: b"", "crls_missing"),
        (lambda pem: b"x" * (MAX_CRL_BYTES + 1) + pem, "crls_too_large"),
        (lambda pem: pem * (MAX_CRLS + 1), "crls_too_many"),
        (lambda pem: pem.replace(b"X509 CRL", b"CERTIFICATE"), "not_a_crl"),
        (lambda pem: pem + b"-----BEGIN PRIVATE KEY-----\n", "not_a_crl"),
        (lambda pem: pem.replace(b"-----END X509 CRL-----\n", b""), "crl_damaged"),
        (lambda pem: pem + pem[: len(pem) // 2], "crl_damaged"),
        (lambda pem: pem + pem.replace(b"-----BEGIN", b"----BEGIN"), "crl_damaged"),
        (lambda pem: pem.replace(b"\nMII", b"\nMIM"), "crl_unreadable"),
    ],
    ids=["empty", "long", "many", "certificate", "key", "no_end", "half", "dash", "der"],
)
def test_text_that_is_no_list_is_refused_by_its_rule(pki: Pki, change: object, rule: str) -> None:
    pem = crls_pem([crl_of(pki.root, *range(1, 40))])

    with pytest.raises(InvalidCRL) as caught:
        load_crls(change(pem))  # type: ignore[operator]  # one of the functions above
    assert caught.value.rule == rule


def test_too_many_entries_are_refused(pki: Pki) -> None:
    crl = crl_of(pki.root, *range(1, MAX_REVOKED + 2))

    with pytest.raises(InvalidCRL) as caught:
        load_der_crls([crl.public_bytes(Encoding.DER)])
    assert caught.value.rule in ("crls_too_many", "crls_too_large")


@given(st.binary(max_size=300), st.integers(0, 299))
def test_bytes_are_a_list_or_an_error_of_ours(noise: bytes, cut: int) -> None:
    pem = b"-----BEGIN X509 CRL-----\n" + noise + b"\n-----END X509 CRL-----\n"
    for text in (noise, pem, pem[:cut]):
        with pytest.raises(InvalidCRL):
            load_crls(text)
    with pytest.raises(InvalidCRL):
        load_der_crls([noise])


def test_lists_of_the_whole_path_are_usable(pki: Pki) -> None:
    crls = both(pki)

    check = check_crls(crls, authorities(pki), now=NOW)

    assert (check.usable, check.problems) == (crls, ())


def test_without_a_list_nothing_is_wrong(pki: Pki) -> None:
    check = check_crls((), authorities(pki), now=NOW)

    assert (check.usable, check.problems) == ((), ())


def test_a_path_with_a_gap_has_none(pki: Pki) -> None:
    check = check_crls([crl_of(pki.intermediate)], authorities(pki), now=NOW)

    assert check.usable == ()
    assert "root CA" in check.problems[0]
    assert "has no usable CRL" in check.problems[0]


def test_an_authority_that_has_ended_needs_none(pki: Pki, make_pki: PkiMaker) -> None:
    ended = make_pki(root_lifetime=timedelta(days=400), start=NOW - timedelta(days=401))

    check = check_crls(both(pki), (*authorities(pki), ended.root.certificate), now=NOW)

    assert len(check.usable) == 2


def test_of_two_lists_of_one_authority_the_newest_counts(pki: Pki) -> None:
    newest = both(pki, number=5)

    check = check_crls((*newest, *both(pki, number=4)), authorities(pki), now=NOW)

    assert check.usable == newest


def test_a_number_that_goes_back_is_refused(pki: Pki) -> None:
    check = check_crls(both(pki, number=4), authorities(pki), now=NOW, before=both(pki, number=5))

    assert check.usable == ()
    assert "number 4, which is lower than 5" in check.problems[0]


def test_a_bad_list_beside_good_ones_is_left_out_and_told(pki: Pki, make_pki: PkiMaker) -> None:
    stranger = crl_of(make_pki().root)

    check = check_crls((*both(pki), stranger), authorities(pki), now=NOW)

    assert len(check.usable) == 2
    assert "is of no authority that is known here" in check.problems[0]


@pytest.mark.parametrize(
    ("moment", "problem"),
    [
        (NOW - timedelta(hours=1), "begins only at"),
        (NOW + WEEK, "ended at"),
    ],
)
def test_a_list_counts_within_its_time_only(pki: Pki, moment: datetime, problem: str) -> None:
    check = check_crls([crl_of(pki.root)], [pki.root.certificate], now=moment)

    expected = () if moment > NOW else check.usable  # before NOW the root itself has not begun
    assert check.usable == expected
    assert problem in check.problems[0]


def test_verifiers_whose_clock_is_behind_take_a_new_list(pki: Pki) -> None:
    assert crl_of(pki.root).last_update_utc == NOW - timedelta(minutes=2)


def test_a_list_by_another_key_of_the_same_name_is_refused(pki: Pki) -> None:
    imposter = Authority(pki.root.certificate, generate_key(KeyType.P256))

    check = check_crls([crl_of(imposter)], [pki.root.certificate], now=NOW)

    assert "is not signed by that authority" in check.problems[0]


def test_lists_that_verifiers_would_not_understand_are_refused(pki: Pki) -> None:
    number = (x509.CRLNumber(1), False)
    key_id = (crl_of(pki.root).extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value, False)
    partial = x509.IssuingDistributionPoint(
        full_name=None, relative_name=None, only_contains_user_certs=True, only_contains_ca_certs=False,
        only_some_reasons=None, indirect_crl=False, only_contains_attribute_certs=False,
    )  # fmt: skip
    sha256 = hashes.SHA256()
    problems = {
        "has no number": unusual(pki.root, key_id, algorithm=sha256),
        "known here": unusual(pki.root, number, algorithm=sha256),
        "critical extension": unusual(pki.root, number, key_id, (partial, True), algorithm=sha256),
        "is not signed by": unusual(pki.root, number, key_id, algorithm=hashes.SHA3_256()),
    }
    for problem, crl in problems.items():
        check = check_crls([crl], [pki.root.certificate], now=NOW)

        assert check.usable == ()
        assert problem in check.problems[0]


def test_the_first_one_that_ends_tells_when_all_do(pki: Pki) -> None:
    assert ends_at([crl_of(pki.root), crl_of(pki.intermediate, lasts=timedelta(hours=1))]) == NOW + timedelta(hours=1)
    assert ends_at([]) is None


def test_a_certificate_is_revoked_by_a_list_of_its_own_issuer_only(pki: Pki) -> None:
    serial = pki.intermediate.certificate.serial_number
    chain = [pki.intermediate.certificate]

    assert revoked_in(chain, [crl_of(pki.root, serial)]) == pki.intermediate.certificate
    assert revoked_in(chain, [crl_of(pki.root, serial + 1), crl_of(pki.intermediate, serial)]) is None


def test_an_entry_of_another_issuers_certificate_is_refused(pki: Pki) -> None:
    issuer = x509.CertificateIssuer([x509.DirectoryName(pki.intermediate.certificate.subject)])
    entry = x509.RevokedCertificateBuilder(7, NOW).add_extension(issuer, critical=True).build()
    builder = x509.CertificateRevocationListBuilder(pki.root.certificate.subject, NOW, NOW + WEEK, [], [entry])

    with pytest.raises(InvalidCRL) as caught:
        load_crls(crls_pem([builder.sign(pki.root.key, hashes.SHA256())]))
    assert caught.value.rule == "crl_entry_critical"
