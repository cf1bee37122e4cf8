from __future__ import annotations

import ipaddress
from datetime import timedelta

import pytest

from citadel_py.core.csr import RequestedNames
from citadel_py.core.errors import BadInput, InvalidConfiguration, InvalidCSR, LifetimeRefused, PermissionDenied
from citadel_py.core.policy import Caller, Grant, Method, Policy, TTLLimits, Wanted
from citadel_py.core.spiffe import SpiffeID, TrustDomain

TD = TrustDomain("example.org")
WEB = SpiffeID.mesh(TD, "shop", "web")
DATABASE = SpiffeID.mesh(TD, "shop", "db")
WEB_CALLER = Caller(Method.JWT, "jwt:issuer/web", WEB)
OPERATOR = Caller(Method.OFFLINE, "offline:root@host")
NO_NAMES = RequestedNames((), (), ())


def test_a_workload_gets_its_own_identity_and_the_default_lifetime() -> None:
    assert Policy(TD).decide(WEB_CALLER, Wanted()) == Grant(WEB, timedelta(hours=24))


def test_a_workload_may_name_its_own_identity() -> None:
    assert Policy(TD).decide(WEB_CALLER, Wanted(WEB)).id == WEB


@pytest.mark.parametrize(
    ("caller", "wanted", "rule"),
    [
        (WEB_CALLER, Wanted(DATABASE), "identity_not_granted"),
        (WEB_CALLER, Wanted(dns=("web.example.org",)), "names_not_granted"),
        (WEB_CALLER, Wanted(ips=(ipaddress.ip_address("10.0.0.1"),)), "names_not_granted"),
        (OPERATOR, Wanted(), "caller_without_identity"),
        (OPERATOR, Wanted(SpiffeID.parse("spiffe://other.org/web")), "foreign_trust_domain"),
        (Caller(Method.MTLS, "mtls", SpiffeID.parse("spiffe://other.org/web")), Wanted(), "foreign_trust_domain"),
        (OPERATOR, Wanted(TD.id), "leaf_id_without_path"),
    ],
)
def test_what_was_not_granted_is_denied_by_name_of_the_rule(caller: Caller, wanted: Wanted, rule: str) -> None:
    with pytest.raises(PermissionDenied) as caught:
        Policy(TD).decide(caller, wanted)
    assert caught.value.rule == rule


def test_the_offline_operator_may_have_any_identity_of_the_trust_domain_and_dns_names() -> None:
    grant = Policy(TD).decide(OPERATOR, Wanted(DATABASE, dns=("db.shop.svc",), ttl=timedelta(hours=1)))
    assert grant == Grant(DATABASE, timedelta(hours=1), ("db.shop.svc",))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "*.example.org",
        "Web.example.org",
        "a..b",
        "-a.org",
        "a_b.org",
        "a.org.",
        "é.org",
        "a" * 64,
        "a." * 127 + "ab",
    ],
)
def test_a_dns_name_must_be_a_lower_case_host_name(name: str) -> None:
    with pytest.raises(BadInput) as caught:
        Policy(TD).decide(OPERATOR, Wanted(WEB, dns=(name,)))
    assert caught.value.rule == "invalid_dns_name"


def test_a_lifetime_above_the_maximum_is_refused_with_both_numbers() -> None:
    with pytest.raises(LifetimeRefused, match=r"91d \(7862400 s\).*90d \(7776000 s\)") as caught:
        TTLLimits().choose(timedelta(days=91))
    assert caught.value.rule == "lifetime_above_maximum"


def test_a_lifetime_below_the_minimum_is_refused_with_both_numbers() -> None:
    with pytest.raises(LifetimeRefused, match=r"59s \(59 s\).*1m \(60 s\)") as caught:
        TTLLimits().choose(timedelta(seconds=59))
    assert caught.value.rule == "lifetime_below_minimum"


@pytest.mark.parametrize("hours", [(0, 1, 2), (2, 1, 3), (1, 3, 2)])
def test_limits_that_cannot_work_are_an_error_at_start(hours: tuple[int, int, int]) -> None:
    minimum, default, maximum = (timedelta(hours=each) for each in hours)
    with pytest.raises(InvalidConfiguration) as caught:
        TTLLimits(default, minimum, maximum)
    assert caught.value.rule == "ttl_limits_order"


@pytest.mark.parametrize(
    "names",
    [NO_NAMES, RequestedNames((str(WEB),), (), ()), RequestedNames((str(WEB),), ("web.shop.svc",), ("10.0.0.1",))],
)
def test_a_csr_may_name_nothing_or_what_was_granted(names: RequestedNames) -> None:
    grant = Grant(WEB, timedelta(hours=1), ("web.shop.svc",), (ipaddress.ip_address("10.0.0.1"),))
    Policy(TD).check_names(names, grant)


@pytest.mark.parametrize(
    "names",
    [
        RequestedNames((str(DATABASE),), (), ()),
        RequestedNames((str(WEB), str(DATABASE)), (), ()),
        RequestedNames((), ("web.shop.svc",), ()),
        RequestedNames((), (), ("10.0.0.1",)),
        RequestedNames((), (str(WEB),), ()),  # a DNS name that reads like the ID is not the ID
    ],
)
def test_a_csr_that_names_more_is_refused_unless_relaxed(names: RequestedNames) -> None:
    grant = Grant(WEB, timedelta(hours=1))
    with pytest.raises(InvalidCSR) as caught:
        Policy(TD).check_names(names, grant)
    assert caught.value.rule == "csr_san_not_granted"
    Policy(TD, relax_names=True).check_names(names, grant)
