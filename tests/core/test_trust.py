"""Trust as a value: what may take the place of what, and what is told of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.core.bundle import Bundle
from citadel_py.core.crl import build_crl
from citadel_py.core.errors import VerificationFailed
from citadel_py.core.profile import Authority
from citadel_py.core.spiffe import TrustDomain
from citadel_py.core.trust import RenewalHint, Trust, check_succession
from tests.core.conftest import NOW, Pki, PkiMaker

HOUR = timedelta(hours=1)


def with_crls(pki: Pki, *, number: int = 1) -> Trust:
    def crl(authority: Authority) -> object:
        return build_crl(authority, [], number=number, now=NOW, next_update=NOW + HOUR)

    crls = (crl(pki.root), crl(pki.intermediate))
    return Trust(pki.bundle, crls, (pki.intermediate.certificate,))  # type: ignore[arg-type]  # they are CRLs


def test_the_version_follows_the_content(pki: Pki, make_pki: PkiMaker) -> None:
    plain, listed = Trust(pki.bundle), with_crls(pki)

    assert plain.version.bundle_hash == listed.version.bundle_hash
    assert plain.version.crl_hash == ""
    assert listed.version.crl_hash
    assert replace(listed, crls=listed.crls[::-1]).version == listed.version
    assert Trust(make_pki().bundle).version != plain.version


def test_good_lists_are_kept_until_the_first_of_them_ends(pki: Pki) -> None:
    trust = with_crls(pki)

    assert trust.at(NOW) == (trust, ())
    assert trust.crls_end_at == NOW + HOUR
    later, problems = trust.at(NOW + HOUR)
    assert later.crls == ()
    assert later.bundle == trust.bundle
    assert problems


def test_a_list_of_an_authority_that_nobody_here_signed_spoils_only_the_lists(pki: Pki, make_pki: PkiMaker) -> None:
    foreign = make_pki()
    trust = replace(with_crls(pki), intermediates=(foreign.intermediate.certificate,))

    held, problems = trust.at(NOW)

    assert len(held.crls) == 1  # the root's own: no path that is known here lacks one
    assert "known here" in problems[0]


def test_lists_do_not_go_back(pki: Pki) -> None:
    held, problems = with_crls(pki, number=1).at(NOW, before=with_crls(pki, number=2))

    assert held.crls == ()
    assert "lower than 2" in problems[0]


def test_a_bundle_with_a_higher_sequence_or_the_same_content_may_follow(pki: Pki, make_pki: PkiMaker) -> None:
    other = make_pki().bundle

    check_succession(replace(other, sequence=2), pki.bundle)
    check_succession(replace(pki.bundle, sequence=0), pki.bundle)


@pytest.mark.parametrize("sequence", [0, 1])
def test_other_authorities_without_a_higher_sequence_may_not(pki: Pki, make_pki: PkiMaker, sequence: int) -> None:
    with pytest.raises(VerificationFailed) as caught:
        check_succession(replace(make_pki().bundle, sequence=sequence), pki.bundle)
    assert caught.value.rule == "trust_sequence_back"


def test_another_trust_domains_bundle_may_not(pki: Pki) -> None:
    with pytest.raises(VerificationFailed) as caught:
        check_succession(Bundle(TrustDomain("other.org"), pki.bundle.authorities, 9), pki.bundle)
    assert caught.value.rule == "trust_domain_mismatch"


def test_a_hint_concerns_its_serials_and_its_authority() -> None:
    hint = RenewalHint(1, frozenset({"ab"}), "cd")

    assert hint.concerns("ab", "")
    assert hint.concerns("ff", "cd")
    assert not hint.concerns("ff", "")
    assert not RenewalHint(1).concerns("", "")


@given(st.floats(0, 1, exclude_max=True), st.integers(-3600, 3600))
def test_hinted_moments_are_between_now_and_the_end(uniform: float, seconds: int) -> None:
    end = NOW + timedelta(seconds=seconds)

    moment = RenewalHint(1, renew_before=end).moment(NOW, uniform)

    assert NOW <= moment <= max(NOW, end)
    assert RenewalHint(1).moment(NOW, uniform) == NOW
