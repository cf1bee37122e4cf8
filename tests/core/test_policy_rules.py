"""Who gets what by rules: the first that decides, what nothing grants, and what no rule can grant."""

from __future__ import annotations

import ipaddress
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.core.csr import RequestedNames
from citadel_py.core.errors import CitadelError, InvalidCSR
from citadel_py.core.patterns import parse_dns_pattern, parse_subject_pattern
from citadel_py.core.policy import Caller, Decision, Grant, Method, Policy, TTLLimits, Wanted
from citadel_py.core.policy_rules import Case, Effect, Fit, Rule, Rules, What, Who
from citadel_py.core.spiffe import TrustDomain
from tests.core.policies import ISSUER, TD, ask, id_of, jwt, mtls, policy_of
from tests.core.test_policy_patterns import patterns

WEB = mtls("/ns/shop/sa/web")
HOUR = timedelta(hours=1)
NAMES = 'who.id = "spiffe://example.org/ns/{ns}/sa/{sa}"\nwhat.dns = ["{sa}.{ns}.svc", "*.{sa}.{ns}.svc"]'
EVERYBODY = 'who.id = "spiffe://example.org/**"'


def refusal(decision: Decision) -> str:
    assert isinstance(decision.outcome, CitadelError)
    return decision.outcome.rule


# ------------------------------------------------------------------------------------------------ by default


@pytest.mark.parametrize("policy", [Policy(TD), policy_of(), policy_of('who.id = "spiffe://example.org/other"')])
def test_a_caller_that_no_rule_is_about_has_its_own_identity_and_nothing_else(policy: Policy) -> None:
    assert ask(policy, WEB).grant == Grant(WEB.id or id_of("/x"), timedelta(hours=24))
    assert refusal(ask(policy, WEB, wanted=Wanted(id_of("/ns/shop/sa/db")))) == "identity_not_granted"
    assert refusal(ask(policy, WEB, "web.shop.svc")) == "csr_san_not_granted"
    assert refusal(ask(policy, WEB, wanted=Wanted(dns=("web.shop.svc",)))) == "names_not_granted"
    assert refusal(ask(policy, WEB, wanted=Wanted(ttl=timedelta(days=91)))) == "lifetime_above_maximum"
    assert ask(policy, WEB).rule is None


@pytest.mark.parametrize("method", [Method.OFFLINE, Method.SELF])
def test_whoever_holds_the_authority_is_under_no_rule(method: Method) -> None:
    policy = policy_of('effect = "deny"\n' + EVERYBODY)
    grant = policy.decide(Caller(method, "operator"), Wanted(id_of("/web"), dns=("a.org",)))
    assert grant.dns == ("a.org",)
    assert policy.trace(Caller(method, "operator"), Wanted(id_of("/web"))) == ()


def test_names_in_a_csr_give_nothing_to_an_operator_who_did_not_ask_for_them() -> None:
    names = RequestedNames(dns=("a.org",))
    policy = policy_of(NAMES)
    grant = policy.decide(Caller(Method.OFFLINE, "operator"), Wanted(WEB.id), names)
    assert grant.dns == ()
    with pytest.raises(InvalidCSR):
        policy.check_names(names, grant)


# ------------------------------------------------------------------------------------------------ DNS names


def test_names_of_the_csr_that_a_rule_grants_are_granted_once_each() -> None:
    decision = ask(policy_of(NAMES), WEB, "web.shop.svc", "a.web.shop.svc", "web.shop.svc")
    assert decision.grant.dns == ("web.shop.svc", "a.web.shop.svc")
    assert str(decision.rule) == "rule 1 (r1)"
    assert decision.why == "rule 1 (r1) grants it"


@pytest.mark.parametrize(
    ("account", "name"),
    [
        ("web", "web.other.svc"),
        ("web", "db.shop.svc"),
        ("web", "a.b.web.shop.svc"),
        ("web", "web.shop.svc.evil.org"),
        ("web", "Web.shop.svc"),
        ("web", "web.shop.svc."),
        ("web", "*.web.shop.svc"),
        ("web", "-.web.shop.svc"),
        ("web", ".web.shop.svc"),
        ("web", ""),
        ("web", "a\n.web.shop.svc"),
        ("web", "10.0.0.1"),
        ("web", "spiffe://example.org/ns/shop/sa/web"),
        ("a.web", "a.web.shop.svc"),
        ("Web", "web.shop.svc"),
        ("Web", "Web.shop.svc"),
        ("w_b", "w_b.shop.svc"),
    ],
)
def test_other_names_are_refused_with_the_name(account: str, name: str) -> None:
    decision = ask(policy_of(NAMES), jwt("shop", account), "web.shop.svc" if account == "web" else name, name)
    assert refusal(decision) == "csr_san_not_granted"
    assert ascii(name) in str(decision.outcome)


def test_relaxed_names_leave_out_what_is_not_granted() -> None:
    policy = policy_of(EVERYBODY, NAMES, 'effect = "deny"\nwhat.dns = "*.bad.org"\n' + EVERYBODY, relax_names=True)
    assert ask(policy, WEB, "evil.org", "web.shop.svc", "x.bad.org").grant.dns == ("web.shop.svc",)
    assert ask(policy, WEB, "evil.org").grant.dns == ()
    assert ask(Policy(TD, relax_names=True), WEB, "evil.org").grant.dns == ()


def test_relaxed_names_that_only_different_rules_grant_are_left_out() -> None:
    policy = policy_of(EVERYBODY + '\nwhat.dns = "a.org"\n', EVERYBODY + '\nwhat.dns = "b.org"\n', relax_names=True)
    assert ask(policy, WEB, "a.org", "b.org").grant.dns == ()


def test_relaxing_names_never_relaxes_a_refusal_for_another_reason() -> None:
    policy = policy_of(NAMES, relax_names=True)
    assert refusal(ask(policy, WEB, "evil.org", wanted=Wanted(id_of("/other")))) == "identity_not_granted"


def test_no_rule_grants_ip_addresses() -> None:
    wanted = Wanted(ips=(ipaddress.ip_address("10.0.0.1"),))
    assert refusal(ask(policy_of(NAMES), WEB, wanted=wanted)) == "names_not_granted"


# ------------------------------------------------------------------------------------------------ identities


def test_other_identities_by_pattern_with_what_was_caught_from_the_caller() -> None:
    policy = policy_of('who.id = "spiffe://example.org/node/{ns}"\nwhat.id = "spiffe://example.org/ns/{ns}/sa/*"')
    node = mtls("/node/shop")
    assert ask(policy, node, wanted=Wanted(id_of("/ns/shop/sa/web"))).grant.id == id_of("/ns/shop/sa/web")
    assert refusal(ask(policy, node, wanted=Wanted(id_of("/ns/bank/sa/web")))) == "identity_not_granted"
    assert refusal(ask(policy, node)) == "identity_not_granted"  # its own is not in the list


def test_own_is_the_callers_identity_beside_others() -> None:
    policy = policy_of('who.method = "mtls"\nwhat.id = ["own", "spiffe://example.org/x"]')
    assert ask(policy, WEB).grant.id == WEB.id
    assert ask(policy, WEB, wanted=Wanted(id_of("/x"))).grant.id == id_of("/x")


@pytest.mark.parametrize("id", ["spiffe://other.org/web", "spiffe://example.org", "spiffe://example.org.evil/web"])
def test_a_rule_for_everything_gives_no_authority_and_no_other_trust_domain(id: str) -> None:
    policy = policy_of(EVERYBODY + '\nwhat.id = ["own", "spiffe://example.org/**"]')
    assert refusal(ask(policy, WEB, wanted=Wanted(id_of(id)))) == "identity_not_granted"


def test_even_rules_that_were_made_for_another_trust_domain_give_none_of_it() -> None:
    """Nothing makes such rules: the last check is there all the same."""
    rule = Rule(1, "wide", Effect.ALLOW, Who(), What(own_id=True), TTLLimits())
    foreign = mtls("spiffe://other.org/web")
    assert refusal(ask(Policy(TD, rules=Rules(TrustDomain("other.org"), [rule])), foreign)) == "foreign_trust_domain"


# ------------------------------------------------------------------------------------------------ callers


@pytest.mark.parametrize(
    ("who", "caller", "is_about"),
    [
        ('method = "mtls"', WEB, True),
        ('method = "jwt"', WEB, False),
        ('method = ["jwt", "mtls"]', WEB, True),
        (f'issuer = "{ISSUER}"', jwt("shop", "web"), True),
        (f'issuer = "{ISSUER}"', jwt("shop", "web", ISSUER + "/"), False),
        (f'issuer = "{ISSUER}"', WEB, False),
        ('subject = "system:serviceaccount:shop:*"', jwt("shop", "web"), True),
        ('subject = "system:serviceaccount:shop:*"', jwt("Shop", "web"), False),
        ('subject = "**"', jwt("shop", "web"), True),
        ('subject = "**"', WEB, False),
        ('subject = "**"', Caller(Method.JOIN_TOKEN, "join-token:ab", WEB.id), False),
        ('subject = ["x", "system:**"]', jwt("shop", "web"), True),
        ('id = ["spiffe://example.org/x", "spiffe://example.org/ns/**"]', WEB, True),
        ('id = "spiffe://example.org/**"', Caller(Method.JWT, "nobody", None, ISSUER), False),
        ('id = "spiffe://example.org/**"\nwho.method = "jwt"', WEB, False),
    ],
)
def test_a_rule_is_about_callers_that_fulfil_every_condition(who: str, caller: Caller, *, is_about: bool) -> None:
    decision = ask(policy_of(f'who.{who}\nwhat.id = "spiffe://example.org/x"'), caller, wanted=Wanted(id_of("/x")))
    assert isinstance(decision.outcome, Grant) is is_about


def test_captures_of_a_subject() -> None:
    policy = policy_of('who.subject = "system:serviceaccount:{ns}:{sa}"\nwhat.dns = "{sa}.{ns}"')
    assert ask(policy, jwt("shop", "web"), "web.shop").grant.dns == ("web.shop",)
    assert refusal(ask(policy, jwt("shop", "web"), "db.shop")) == "csr_san_not_granted"


# ------------------------------------------------------------------------------------------------ order and deny


def test_the_first_rule_that_covers_the_wish_decides_about_its_lifetime() -> None:
    policy = policy_of(EVERYBODY + '\nwhat.ttl = { default = "1h", maximum = "2h" }', NAMES)
    assert ask(policy, WEB).grant.ttl == HOUR
    assert ask(policy, WEB, wanted=Wanted(ttl=2 * HOUR)).grant.ttl == 2 * HOUR
    assert ask(policy, WEB, wanted=Wanted(ttl=3 * HOUR)).rule == (policy.rules and policy.rules.all[1])
    assert ask(policy, WEB, "web.shop.svc").grant.ttl == 24 * HOUR


def test_a_lifetime_that_no_rule_grants_is_refused_with_the_widest_limit() -> None:
    policy = policy_of(*(f'{EVERYBODY}\nwhat.ttl.maximum = "{hours}h"' for hours in (1, 3, 2)))
    decision = ask(policy, WEB, wanted=Wanted(ttl=4 * HOUR))
    assert refusal(decision) == "lifetime_above_maximum"
    assert "3h" in str(decision.outcome)


def test_a_caller_with_rules_has_what_they_give_and_not_the_default_on_top() -> None:
    policy = policy_of('who.id = "spiffe://example.org/ns/shop/**"\nwhat.ttl.maximum = "1h"')
    assert refusal(ask(policy, WEB, wanted=Wanted(ttl=2 * HOUR))) == "lifetime_above_maximum"
    assert ask(policy, mtls("/ns/bank/sa/x"), wanted=Wanted(ttl=2 * HOUR)).grant.ttl == 2 * HOUR


def test_a_deny_rule_denies_what_it_lists_to_everybody_and_leaves_the_default_alone() -> None:
    deny = f'name = "hands off"\neffect = "deny"\n{EVERYBODY}\nwhat.id = "spiffe://example.org/ns/kube-system/**"'
    policy = policy_of(deny, EVERYBODY + '\nwhat.id = ["own", "spiffe://example.org/**"]')
    decision = ask(policy, WEB, wanted=Wanted(id_of("/ns/kube-system/sa/x")))
    assert refusal(decision) == "denied_by_policy"
    assert "rule 1 (hands off) denies it" in str(decision.outcome)
    assert ask(policy, WEB, wanted=Wanted(id_of("/ns/shop/sa/x"))).rule
    assert ask(policy_of(deny), WEB).grant.id == WEB.id
    assert refusal(ask(policy_of(deny), mtls("/ns/kube-system/sa/x"))) == "denied_by_policy"


def test_a_deny_rule_decides_as_soon_as_one_name_is_listed() -> None:
    policy = policy_of(f'effect = "deny"\n{EVERYBODY}\nwhat.dns = "admin.*.svc"', EVERYBODY + '\nwhat.dns = "*.*.svc"')
    assert refusal(ask(policy, WEB, "web.shop.svc", "admin.shop.svc")) == "denied_by_policy"
    assert ask(policy, WEB, "web.shop.svc").grant.dns == ("web.shop.svc",)


def test_an_exception_stands_before_the_deny_rule() -> None:
    policy = policy_of('who.id = "spiffe://example.org/ns/shop/sa/web"', f'effect = "deny"\n{EVERYBODY}')
    assert ask(policy, WEB).grant.id == WEB.id
    assert refusal(ask(policy, mtls("/ns/shop/sa/db"))) == "denied_by_policy"


def test_own_in_a_deny_rule_leaves_others() -> None:
    policy = policy_of(
        f'effect = "deny"\n{EVERYBODY}\nwhat.id = "own"', EVERYBODY + '\nwhat.id = "spiffe://example.org/**"'
    )
    assert refusal(ask(policy, WEB)) == "denied_by_policy"
    assert ask(policy, WEB, wanted=Wanted(id_of("/x"))).grant.id == id_of("/x")


def test_a_trace_says_of_each_rule_why_it_did_not_decide() -> None:
    policy = policy_of(
        'who.method = "jwt"',
        'who.issuer = "x"',
        'who.subject = "x"',
        'who.id = "spiffe://example.org/x"',
        f'effect = "deny"\n{EVERYBODY}\nwhat.id = "spiffe://example.org/x"',
        EVERYBODY + '\nwhat.id = "spiffe://example.org/x"',
        EVERYBODY,
        NAMES + '\nwhat.ttl.maximum = "1h"',
        NAMES,
        NAMES + '\nwhat.ttl.minimum = "5m"',
    )
    trace = policy.trace(WEB, Wanted(dns=("web.shop.svc",), ttl=2 * HOUR))
    assert [fit for _, fit in trace] == [
        Fit.METHOD, Fit.ISSUER, Fit.SUBJECT, Fit.CALLER, Fit.UNTOUCHED, Fit.IDENTITY, Fit.NAMES, Fit.LIFETIME,
        Fit.DECIDES,
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ whatever rules say

SEGMENT = st.sampled_from(["ns", "sa", "shop", "web", "x"])
PATHS = st.lists(SEGMENT, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
LIMITS = st.sampled_from([TTLLimits(), TTLLimits(HOUR, HOUR, HOUR), TTLLimits(HOUR, HOUR / 2, 3 * HOUR)])
METHODS = st.sampled_from([frozenset[Method](), frozenset({Method.JWT})])
SUBJECTS = st.sampled_from([(), (parse_subject_pattern("system:**"),)])
ID_PATTERNS = st.lists(patterns(), max_size=2).map(tuple)
DNS_PATTERNS = st.sampled_from([(), *((parse_dns_pattern(text),) for text in ("*.org", "*.a.org", "{sa}.{ns}"))])
DNS = st.sampled_from(["web.shop", "a.org", "x.a.org", "*.org", "A.org", "", "10.0.0.1"])


@st.composite
def rule_sets(draw: st.DrawFn) -> Rules:
    def one(number: int) -> Rule:
        who = Who(draw(METHODS), subjects=draw(SUBJECTS), ids=draw(ID_PATTERNS))
        what = What(draw(st.booleans()), draw(ID_PATTERNS), draw(DNS_PATTERNS))
        return Rule(number, f"r{number}", draw(st.sampled_from(Effect)), who, what, draw(LIMITS))

    return Rules(TD, [one(number) for number in range(1, draw(st.integers(0, 4)) + 1)])


@st.composite
def requests(draw: st.DrawFn) -> tuple[Caller, Wanted, RequestedNames]:
    path = draw(PATHS)
    caller = draw(st.sampled_from([mtls(path), mtls("spiffe://other.org/web"), jwt("shop", "web")]))
    id = draw(st.none() | PATHS.map(id_of) | st.just(id_of("spiffe://other.org/web")) | st.just(TD.id))
    ttl = draw(st.none() | st.sampled_from([HOUR, 2 * HOUR, timedelta(days=91), timedelta(0)]))
    return caller, Wanted(id, ttl=ttl), RequestedNames(dns=tuple(draw(st.lists(DNS, max_size=3))))


@given(rules=rule_sets(), request=requests(), relax=st.booleans())
def test_whatever_the_rules_a_grant_is_a_workload_of_the_trust_domain_with_host_names_only(
    rules: Rules, request: tuple[Caller, Wanted, RequestedNames], *, relax: bool
) -> None:
    caller, wanted, names = request
    outcome = Policy(TD, relax_names=relax, rules=rules).judge(caller, wanted, names).outcome
    if isinstance(outcome, Grant):
        assert outcome.id == (wanted.id or caller.id)
        assert (outcome.id.trust_domain, bool(outcome.id.path)) == (TD, True)
        assert set(outcome.dns) <= set(names.dns)
        assert not {"*.org", "A.org", "", "10.0.0.1"} & set(outcome.dns)
        assert wanted.ttl in (None, outcome.ttl)
        assert outcome.ips == ()


@given(rule_sets(), requests())
def test_the_first_rule_in_the_file_that_decides_is_the_one_that_counts(
    rules: Rules, request: tuple[Caller, Wanted, RequestedNames]
) -> None:
    """Also: the index leaves out no rule that matters."""
    caller, wanted, names = request
    target = wanted.id or caller.id
    assert target is not None
    case = Case(caller, target, tuple(dict.fromkeys(names.dns)), wanted.ttl)
    first = next((rule for rule in rules.all if rule.fit(case) is Fit.DECIDES), None)
    decision = Policy(TD, rules=rules).judge(caller, wanted, names)
    if not isinstance(decision.outcome, CitadelError) or decision.rule:
        assert decision.rule == first
    else:
        assert first is None or target.trust_domain != TD or not target.path


@given(requests())
def test_without_rules_nobody_gets_more_than_its_own_identity(
    request: tuple[Caller, Wanted, RequestedNames],
) -> None:
    caller, wanted, names = request
    outcome = policy_of().judge(caller, wanted, names).outcome
    assert outcome == Policy(TD).judge(caller, wanted, names).outcome or isinstance(outcome, CitadelError)
    if isinstance(outcome, Grant):
        assert (outcome.id, outcome.dns) == (caller.id, ())
