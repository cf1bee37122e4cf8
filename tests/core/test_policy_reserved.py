"""The service's own identities: for itself alone, whatever rules say."""

from __future__ import annotations

from datetime import timedelta

import pytest

from citadel_py.core.csr import RequestedNames
from citadel_py.core.errors import LifetimeRefused, PermissionDenied
from citadel_py.core.grants import PROBE_PATH
from citadel_py.core.policy import Caller, Grant, Method, Policy, TTLLimits, Wanted
from tests.core.policies import TD, id_of, mtls, policy_of

PROBE = id_of(PROBE_PATH)
EVERYTHING = 'who.id = "spiffe://example.org/**"\nwhat.id = "spiffe://example.org/**"\nwhat.dns = ["*.example.org"]'
NOTHING = f'effect = "deny"\n{EVERYTHING}'
POLICIES = [Policy(TD), policy_of(EVERYTHING), policy_of(NOTHING), Policy(TD, relax_names=True)]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_probe_renews_its_own_whatever_the_file_says(policy: Policy) -> None:
    ttl = TTLLimits().minimum
    decision = policy.judge(mtls(PROBE_PATH), Wanted(ttl=ttl))
    assert decision.grant == Grant(PROBE, ttl)
    assert decision.rule is None


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("caller", "wanted"),
    [
        (mtls("/ns/shop/sa/web"), Wanted(PROBE)),
        (mtls("/ns/shop/sa/web"), Wanted(id_of("/citadel-py/ca"))),
        (mtls("/citadel-py/ca"), Wanted()),
        (mtls(PROBE_PATH), Wanted(id_of("/ns/shop/sa/web"))),
        (mtls(PROBE_PATH), Wanted(dns=("a.example.org",))),
        (mtls(f"spiffe://other.org{PROBE_PATH}"), Wanted()),
        (Caller(Method.JWT, "jwt:somebody", PROBE, issuer="https://issuer.example"), Wanted()),
        (Caller(Method.JOIN_TOKEN, "join-token:0123", PROBE), Wanted()),
    ],
)
def test_nobody_else_gets_an_identity_of_the_service_and_the_probe_no_other(
    policy: Policy, caller: Caller, wanted: Wanted
) -> None:
    with pytest.raises(PermissionDenied) as caught:
        policy.decide(caller, wanted)
    assert caught.value.rule == "reserved_identity"


@pytest.mark.parametrize("policy", POLICIES)
def test_the_probe_gets_no_names_that_its_csr_asks_for(policy: Policy) -> None:
    with pytest.raises(PermissionDenied):
        policy.decide(mtls(PROBE_PATH), Wanted(), RequestedNames(dns=("a.example.org",)))


def test_the_probe_keeps_to_the_lifetimes_of_the_service() -> None:
    with pytest.raises(LifetimeRefused):
        Policy(TD).decide(mtls(PROBE_PATH), Wanted(ttl=timedelta(days=365)))


def test_names_that_only_begin_alike_are_ordinary() -> None:
    assert Policy(TD).decide(mtls("/citadel-python/web"), Wanted()).id == id_of("/citadel-python/web")


def test_no_rule_is_tried_for_the_probe() -> None:
    assert policy_of(EVERYTHING).trace(mtls(PROBE_PATH), Wanted()) == ()
