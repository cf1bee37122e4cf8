"""The policy file: what is read, what is refused and where, and what rules do to each other."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.core.errors import InvalidConfiguration
from citadel_py.core.policy import Method, TTLLimits
from citadel_py.core.policy_file import MAX_POLICY_BYTES, parse_policy
from citadel_py.core.policy_review import review
from citadel_py.core.policy_rules import Effect, Rules
from citadel_py.core.spiffe import TrustDomain
from tests.core.policies import TD, rules_of
from tests.core.test_policy_patterns import patterns

ALL = 'who.id = "spiffe://example.org/**"\n'
SHOP = 'who.id = "spiffe://example.org/ns/shop/**"\n'
PER_NS = 'who.id = "spiffe://example.org/ns/{ns}/sa/{sa}"\n'
HOUR = timedelta(hours=1)


def refused(text: str | bytes, **changes: TTLLimits | TrustDomain) -> InvalidConfiguration:
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(InvalidConfiguration) as caught:
        parse_policy(data, limits=TTLLimits(), **changes)  # type: ignore[arg-type]  # as named
    return caught.value


def rule_refused(body: str) -> InvalidConfiguration:
    return refused(f'trust_domain = "example.org"\n[[rule]]\n{body}')


def test_a_whole_rule_is_read() -> None:
    (rule,) = rules_of(
        """\
        name = "build"
        effect = "allow"
        who = { method = ["jwt"], issuer = "i", subject = "a:{b}", id = ["spiffe://example.org/{c}"] }
        what.id = ["own", "spiffe://example.org/ci/{c}"]
        what.dns = "{b}.org"
        what.ttl = { default = "1h", maximum = "2h" }
        """
    ).all
    assert (rule.number, rule.name, rule.effect, str(rule)) == (1, "build", Effect.ALLOW, "rule 1 (build)")
    assert (set(rule.who.methods), set(rule.who.issuers)) == ({Method.JWT}, {"i"})
    assert [str(each) for each in (*rule.who.subjects, *rule.who.ids)] == ["a:{b}", "spiffe://example.org/{c}"]
    assert rule.what.own_id
    assert [str(each) for each in (*rule.what.ids, *rule.what.dns)] == ["spiffe://example.org/ci/{c}", "{b}.org"]
    assert rule.limits == TTLLimits(HOUR, timedelta(minutes=1), 2 * HOUR)


def test_an_allow_rule_that_says_no_more_gives_the_own_identity() -> None:
    (rule,) = rules_of(ALL).all
    assert (rule.effect, rule.what.own_id, rule.limits) == (Effect.ALLOW, True, TTLLimits())


def test_a_file_without_rules_is_the_default() -> None:
    assert rules_of().all == ()


@pytest.mark.parametrize(
    ("ttl", "limits"),
    [
        ("{}", TTLLimits(3 * HOUR, HOUR, 5 * HOUR)),
        ('{ maximum = "2h" }', TTLLimits(2 * HOUR, HOUR, 2 * HOUR)),
        ('{ minimum = "4h" }', TTLLimits(4 * HOUR, 4 * HOUR, 5 * HOUR)),
        ('{ default = "2h" }', TTLLimits(2 * HOUR, HOUR, 5 * HOUR)),
    ],
)
def test_what_a_rule_does_not_say_about_lifetimes_is_the_services(ttl: str, limits: TTLLimits) -> None:
    (rule,) = rules_of(f"{ALL}what.ttl = {ttl}", limits=TTLLimits(3 * HOUR, HOUR, 5 * HOUR)).all
    assert rule.limits == limits


@pytest.mark.parametrize(
    "ttl",
    [
        'maximum = "91d"',
        'minimum = "59s"',
        'minimum = "2h"\nwhat.ttl.maximum = "1h"',
        'default = "2h"\nwhat.ttl.maximum = "1h"',
        'default = "1h"\nwhat.ttl.minimum = "2h"',
        'maximum = "0s"',
    ],
)
def test_lifetimes_out_of_order_or_beyond_the_services_are_refused(ttl: str) -> None:
    error = rule_refused(f'name = "r"\n{ALL}what.ttl.{ttl}')
    assert error.rule == "policy_ttl"
    assert error.message.startswith("rule 1 (r): what: ttl: ")


@pytest.mark.parametrize(
    ("text", "rule", "message"),
    [
        (b"\xff", "policy_syntax", "not TOML"),
        ("x", "policy_syntax", "not TOML"),
        ("a = " + "[" * 100_000, "policy_syntax", "not TOML"),
        (b"#" * (MAX_POLICY_BYTES + 1), "policy_syntax", "more than 1048576 bytes"),
        ("", "policy_value", "does not say for which trust domain"),
        ("trust_domain = 1", "policy_value", "trust_domain is not a text"),
        ('trust_domain = "*"', "policy_value", "trust_domain: invalid trust domain"),
        ('trust_domain = "example.org"\nrule = "x"', "policy_value", "rules are written as [[rule]]"),
        ('trust_domain = "example.org"\nrules = []', "policy_unknown_key", "unknown key 'rules'"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_file_that_is_no_policy_is_refused(text: str | bytes, rule: str, message: str) -> None:
    error = refused(text)
    assert (error.rule, message in error.message) == (rule, True)


@pytest.mark.parametrize(
    ("body", "rule", "message"),
    [
        (ALL, "policy_name", "rule 1: it needs a name"),
        ('name = ""\n' + ALL, "policy_name", "rule 1: it needs a name"),
        ('name = "a\\nb"\n' + ALL, "policy_name", "rule 1: it needs a name"),
        ('name = "r"', "policy_who", "rule 1 (r): who: nobody is named"),
        ('name = "r"\nwho = "all"', "policy_value", "rule 1 (r): who is not a table"),
        ('name = "r"\nwho.id = []', "policy_value", "rule 1 (r): who: id is not at least one"),
        ('name = "r"\nwho.id = [1]', "policy_value", "rule 1 (r): who: id is not a text"),
        ('name = "r"\nwho.method = "offline"', "policy_value", "'offline' is none of mtls, jwt, join_token"),
        ('name = "r"\neffect = "permit"\n' + ALL, "policy_value", "'permit' is none of allow, deny"),
        ('name = "r"\nefect = "deny"\n' + ALL, "policy_unknown_key", "unknown key 'efect'"),
        ('name = "r"\nwho.ids = "x"', "policy_unknown_key", "rule 1 (r): who: unknown key 'ids'"),
        (f'name = "r"\n{ALL}what.ip = "x"', "policy_unknown_key", "what: unknown key 'ip'"),
        (f'name = "r"\n{ALL}what.ttl.max = "1h"', "policy_unknown_key", "what: ttl: unknown key 'max'"),
        (f'name = "r"\n{ALL}what.ttl.maximum = 60', "policy_value", "maximum is not a text"),
        (f'name = "r"\n{ALL}what.ttl.maximum = "1x"', "policy_value", "maximum: '1x' is not a duration"),
        (f'name = "r"\neffect = "deny"\n{ALL}what.ttl.maximum = "1h"', "policy_ttl", "a deny rule has no ttl"),
        ('name = "r"\nwho.id = "spiffe://other.org/**"', "policy_trust_domain", "of another trust domain than"),
        ('name = "r"\nwho.id = "spiffe://*/**"', "policy_trust_domain", "could match another trust domain"),
        (f'name = "r"\n{ALL}what.id = "spiffe://other.org/x"', "policy_trust_domain", "of another trust domain"),
        (f'name = "r"\n{ALL}what.id = "Own"', "policy_pattern", "does not start with"),
        (f'name = "r"\n{ALL}what.dns = "*"', "policy_pattern", "the last label"),
        (f'name = "r"\n{ALL}what.dns = "{{ns}}.svc"', "policy_capture", "nothing catches {ns}"),
        ('name = "r"\nwho.id = ["spiffe://example.org/{a}", "spiffe://example.org/x"]\nwhat.dns = "{a}.org"',
         "policy_capture", "nothing catches {a}"),
        ('name = "r"\nwho = { subject = "{a}", id = "spiffe://example.org/{a}" }', "policy_capture", "both subject"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_used_is_told_with_its_place(body: str, rule: str, message: str) -> None:
    error = rule_refused(body)
    assert (error.rule, message in error.message) == (rule, True), error.message


def test_captures_of_the_same_name_never_come_from_subject_and_id_at_once() -> None:
    """Also where only one of several patterns has it: which value would count?"""
    body = 'who = { subject = ["{a}", "x:y"], id = ["spiffe://example.org/{a}", "spiffe://example.org/x/y"] }'
    assert rule_refused(f'name = "r"\n{body}').rule == "policy_capture"


def test_every_rule_that_cannot_be_used_is_told() -> None:
    error = refused(f'trust_domain = "example.org"\n[[rule]]\n{ALL}\n[[rule]]\nname = "b"\n[[rule]]\nname = "c"\n{ALL}')
    assert "rule 1: it needs a name" in error.message
    assert "rule 2 (b): who: nobody is named" in error.message
    assert "rule 3" not in error.message
    assert len(error.hints) == 2


def test_a_name_belongs_to_one_rule() -> None:
    error = refused(f'trust_domain = "example.org"\n[[rule]]\nname = "a"\n{ALL}\n[[rule]]\nname = "a"\n{SHOP}')
    assert (error.rule, error.message) == ("policy_name", "rule 2 (a): rule 1 (a) has the same name")


def test_the_nearest_key_is_suggested() -> None:
    assert rule_refused(f'name = "r"\nefect = "deny"\n{ALL}').hints == ("did you mean effect?",)


def test_a_file_for_another_trust_domain_than_the_authoritys_is_refused() -> None:
    error = refused('trust_domain = "example.org"', trust_domain=TrustDomain("other.org"))
    assert error.rule == "policy_trust_domain"


@given(st.lists(patterns(), min_size=1, max_size=4, unique=True))
def test_patterns_come_out_of_a_file_as_they_went_in(ids: list[object]) -> None:
    listed = ", ".join(f'"{each}"' for each in ids)
    rules = rules_of(f"who.id = [{listed}]")
    assert list(rules.all[0].who.ids) == ids


@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=8) | st.booleans(), max_size=3))
def test_unexpected_keys_and_values_are_always_bad_configuration(values: dict[str, object]) -> None:
    import json

    body = "".join(f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in values.items())
    assert rule_refused(body).rule.startswith("policy_")


# ------------------------------------------------------------------------------------------------ review


def found(rules: Rules) -> list[tuple[str, int, int]]:
    return [(each.rule, each.by.number, each.subject.number) for each in review(rules)]


HIDDEN = "policy_unreachable_rule"


@pytest.mark.parametrize(
    "rules",
    [
        (ALL, SHOP),
        (ALL, SHOP + 'who.method = "mtls"'),
        (ALL + 'what.id = "spiffe://example.org/**"', SHOP),
        (ALL + 'what.ttl.maximum = "2h"', SHOP + 'what.ttl.maximum = "1h"'),
        (ALL + 'what.dns = "*.*.svc"', PER_NS + 'what.dns = "{sa}.{ns}.svc"'),
        (PER_NS + 'what.dns = "{sa}.{ns}.svc"', PER_NS + 'what.dns = "{sa}.{ns}.svc"'),
        ('effect = "deny"\n' + ALL, SHOP),
        ('effect = "deny"\n' + ALL, 'effect = "deny"\n' + SHOP),
        ('effect = "deny"\nwhat.id = "own"\n' + ALL, SHOP + 'what.dns = "a.org"'),
        ('effect = "deny"\nwhat.dns = "*.org"\n' + ALL, 'effect = "deny"\nwhat.dns = "a.org"\n' + SHOP),
        ('who.subject = "system:**"', 'who.subject = "system:serviceaccount:*:*"'),
        ('who.issuer = ["a", "b"]', 'who.issuer = "a"'),
    ],
)
def test_a_rule_behind_one_that_decides_everything_is_unreachable(rules: tuple[str, str]) -> None:
    assert found(rules_of(*rules)) == [(HIDDEN, 1, 2)]


@pytest.mark.parametrize(
    "rules",
    [
        (SHOP, ALL),
        (ALL + 'who.method = "mtls"', SHOP),
        ('who.issuer = "a"', ALL),
        ('who.subject = "system:**"', ALL),
        (ALL + 'what.id = "spiffe://example.org/x"', SHOP),
        (ALL, 'who.method = "mtls"\nwhat.id = "spiffe://example.org/x"'),
        (ALL + 'what.id = "spiffe://example.org/ns/**"', ALL),
        (ALL, SHOP + 'what.dns = "a.org"'),
        (ALL + 'what.ttl.maximum = "1h"', SHOP),
        (PER_NS + 'what.dns = "{sa}.{ns}"', 'who.id = "spiffe://example.org/ns/{sa}/sa/{ns}"\nwhat.dns = "{sa}.{ns}"'),
        ('effect = "deny"\nwhat.dns = "a.org"\n' + ALL, SHOP + 'what.dns = "a.org"'),
        ('effect = "deny"\nwhat.id = "own"\n' + ALL, 'effect = "deny"\n' + SHOP),
        ('effect = "deny"\nwhat.id = "own"\n' + ALL, 'effect = "deny"\nwhat.id = "own"\nwhat.dns = "a.org"\n' + SHOP),
        (SHOP, 'effect = "deny"\n' + ALL),
        (SHOP, 'effect = "deny"\nwhat.id = "own"\n' + ALL),
        (ALL, 'effect = "deny"\n' + SHOP),
    ],
)  # fmt: skip
def test_a_rule_that_can_decide_something_is_not_reported(rules: tuple[str, str]) -> None:
    assert found(rules_of(*rules)) == []


def test_a_denial_after_the_grant_is_reported() -> None:
    rules = rules_of(
        ALL + 'what.id = "spiffe://example.org/**"',
        'effect = "deny"\nwhat.id = "spiffe://example.org/ns/x/**"\n' + SHOP,
    )
    assert found(rules) == [("policy_deny_too_late", 1, 2)]


def test_the_file_knows_its_trust_domain() -> None:
    assert rules_of().trust_domain == TD
