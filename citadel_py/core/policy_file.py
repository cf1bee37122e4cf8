"""The policy file: TOML text becomes rules, or one error that names each rule that cannot be used.

It opens no file, and judges no rule but by itself and its limits: what rules do to each other stands
in policy_review.py.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from citadel_py.core.duration import format_duration, parse_duration
from citadel_py.core.errors import BadInput, InvalidConfiguration
from citadel_py.core.grants import Method, TTLLimits
from citadel_py.core.patterns import (
    IDPattern,
    Segments,
    parse_dns_pattern,
    parse_id_pattern,
    parse_subject_pattern,
)
from citadel_py.core.policy_rules import Effect, Rule, Rules, What, Who
from citadel_py.core.spiffe import TrustDomain

MAX_POLICY_BYTES = 1 << 20
OWN = "own"

_MAX_NAME = 100
_METHODS = tuple(method for method in Method if not method.is_trusted)

Value = TypeVar("Value")


def parse_policy(data: bytes, *, limits: TTLLimits, trust_domain: TrustDomain | None = None) -> Rules:
    """The rules of a file. `limits` are those of the service, and no rule goes beyond them.

    Raises InvalidConfiguration: for a file that is not TOML, or of another trust domain than the one
    that is given, and else with every rule that cannot be used.
    """
    top = _Table(_toml(data), "")
    top.check_keys(("trust_domain", "rule"))
    return _Reader(limits, _trust_domain(top, trust_domain)).read(top)


def _toml(data: bytes) -> Mapping[str, object]:
    if len(data) > MAX_POLICY_BYTES:
        raise InvalidConfiguration(f"more than {MAX_POLICY_BYTES} bytes", rule="policy_syntax")
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # of TOML and of UTF-8
        raise InvalidConfiguration(f"not TOML: {error}", rule="policy_syntax") from error


def _trust_domain(top: _Table, expected: TrustDomain | None) -> TrustDomain:
    hint = f'trust_domain = "{expected or "example.org"}"'
    text = top.text("trust_domain")
    if text is None:
        raise InvalidConfiguration("the file does not say for which trust domain", rule="policy_value", hint=hint)
    found = top.told("trust_domain", TrustDomain, text)
    if expected is not None and found != expected:
        raise InvalidConfiguration(
            f"a policy for {found}, and the authority is of {expected}", rule="policy_trust_domain", hint=hint
        )
    return found


@dataclass(frozen=True, slots=True)
class _Table:
    """One table of the file; `place` says which in errors."""

    values: Mapping[str, object]
    place: str

    def check_keys(self, known: Collection[str]) -> None:
        for key in self.values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(known)}"
                raise InvalidConfiguration(
                    f"{self.place}unknown key {key[:60]!a}", rule="policy_unknown_key", hint=hint
                )

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if not isinstance(value, str | None):
            raise self.wrong(key, "a text in quotes")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """One text or a list of them; empty only where the key is not there."""
        value = self.values.get(key, ())
        texts = (value,) if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(each, str) for each in texts):
            raise self.wrong(key, "a text in quotes or a list of them")
        if key in self.values and not texts:
            raise self.wrong(key, "at least one: an empty list would match nothing")
        return tuple(texts)

    def table(self, key: str) -> _Table:
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "a table")
        return _Table(value, f"{self.place}{key}: ")

    def told(self, key: str, read: Callable[[str], Value], text: str) -> Value:
        """What `read` makes of the text; its error says where it was."""
        try:
            return read(text)
        except BadInput as error:
            rule = error.rule if error.rule.startswith("policy_") else "policy_value"
            raise InvalidConfiguration(f"{self.place}{key}: {error.message}", rule=rule, hint=error.hints) from error

    def all_told(self, key: str, read: Callable[[str], Value]) -> tuple[Value, ...]:
        return tuple(self.told(key, read, text) for text in self.texts(key))

    def wrong(self, key: str, wanted: str) -> InvalidConfiguration:
        return InvalidConfiguration(f"{self.place}{key} is not {wanted}", rule="policy_value")


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the rules of one file."""

    limits: TTLLimits
    trust_domain: TrustDomain

    def read(self, top: _Table) -> Rules:
        tables = top.values.get("rule", [])
        if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
            raise InvalidConfiguration("rules are written as [[rule]]", rule="policy_value")
        rules, errors = [], []
        for number, table in enumerate(tables, 1):
            try:
                rules.append(self._rule(number, table))
            except InvalidConfiguration as error:
                errors.append(error)
        errors += _same_names(rules)
        if errors:
            hints = dict.fromkeys(hint for error in errors for hint in error.hints)
            raise InvalidConfiguration(
                "; ".join(error.message for error in errors), rule=errors[0].rule, hint=tuple(hints)
            )
        return Rules(self.trust_domain, rules)

    def _rule(self, number: int, values: Mapping[str, object]) -> Rule:
        name = _name_of(number, values)
        table = _Table(values, f"rule {number} ({name}): ")
        table.check_keys(("name", "effect", "who", "what"))
        effect = table.told("effect", _effect, table.text("effect") or Effect.ALLOW)
        who = self._who(table.table("who"))
        what = table.table("what")
        limits = self._limits(what, effect)
        return Rule(number, name, effect, who, self._what(what, effect, who), limits)

    def _who(self, table: _Table) -> Who:
        table.check_keys(("method", "issuer", "subject", "id"))
        if not table.values:
            raise InvalidConfiguration(
                f"{table.place}nobody is named",
                rule="policy_who",
                hint=f'who.id = "spiffe://{self.trust_domain}/**" is everybody with an identity',
            )
        who = Who(
            methods=frozenset(table.all_told("method", _method)),
            issuers=frozenset(table.texts("issuer")),
            subjects=table.all_told("subject", parse_subject_pattern),
            ids=table.all_told("id", self._id_pattern),
        )
        twice = _named_in(who.subjects) & _named_in(each.path for each in who.ids)
        if twice:
            raise InvalidConfiguration(
                f"{table.place}both subject and id have the capture {min(twice)}", rule="policy_capture"
            )
        return who

    def _what(self, table: _Table, effect: Effect, who: Who) -> What:
        table.check_keys(("id", "dns", "ttl"))
        ids = table.texts("id") or ((OWN,) if effect is Effect.ALLOW else ())
        what = What(
            own_id=OWN in ids,
            ids=tuple(table.told("id", self._id_pattern, text) for text in ids if text != OWN),
            dns=table.all_told("dns", parse_dns_pattern),
        )
        _check_captures(table, who, [("id", each.path) for each in what.ids] + [("dns", each) for each in what.dns])
        return what

    def _id_pattern(self, text: str) -> IDPattern:
        pattern = parse_id_pattern(text)
        if pattern.trust_domain != self.trust_domain:
            raise InvalidConfiguration(
                f"{text[:200]!a} is of another trust domain than {self.trust_domain}", rule="policy_trust_domain"
            )
        return pattern

    def _limits(self, what: _Table, effect: Effect) -> TTLLimits:
        """The service's limits, narrowed by what the rule says."""
        if effect is Effect.DENY and "ttl" in what.values:
            raise InvalidConfiguration(f"{what.place}a deny rule has no ttl", rule="policy_ttl")
        table = what.table("ttl")
        table.check_keys(("default", "minimum", "maximum"))
        given = {key: table.told(key, parse_duration, text) for key in table.values if (text := table.text(key))}
        maximum = given.get("maximum", self.limits.maximum)
        minimum = given.get("minimum", min(self.limits.minimum, maximum))
        default = given.get("default", max(minimum, min(self.limits.default, maximum)))
        self._check_within(table, minimum, maximum)
        try:
            return TTLLimits(default, minimum, maximum)
        except InvalidConfiguration as error:
            raise InvalidConfiguration(f"{table.place}{error.message}", rule="policy_ttl") from error

    def _check_within(self, table: _Table, minimum: timedelta, maximum: timedelta) -> None:
        if minimum < self.limits.minimum or maximum > self.limits.maximum:
            raise InvalidConfiguration(
                f"{table.place}from {format_duration(minimum)} to {format_duration(maximum)} is beyond the service's "
                f"own {format_duration(self.limits.minimum)} to {format_duration(self.limits.maximum)}",
                rule="policy_ttl",
                hint="min_ttl and max_ttl of [serve] hold for every certificate",
            )


def _name_of(number: int, values: Mapping[str, object]) -> str:
    name = values.get("name")
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > _MAX_NAME:
        raise InvalidConfiguration(
            f"rule {number}: it needs a name of 1 to {_MAX_NAME} printable characters",
            rule="policy_name",
            hint="the name is what logs and explanations call it",
        )
    return name


def _same_names(rules: Iterable[Rule]) -> list[InvalidConfiguration]:
    first: dict[str, Rule] = {}
    return [
        InvalidConfiguration(f"{rule}: {first[rule.name]} has the same name", rule="policy_name")
        for rule in rules
        if first.setdefault(rule.name, rule) is not rule
    ]


def _effect(text: str) -> Effect:
    return _one_of(Effect, text)


def _method(text: str) -> Method:
    return _one_of(_METHODS, text)


def _one_of(known: Iterable[Value], text: str) -> Value:
    """The member whose text it is. Raises InvalidConfiguration with all of them."""
    by_text = {str(each): each for each in known}
    if text not in by_text:
        raise InvalidConfiguration(f"{text[:60]!a} is none of {', '.join(by_text)}", rule="policy_value")
    return by_text[text]


def _named_in(patterns: Iterable[Segments]) -> frozenset[str]:
    return frozenset(name for each in patterns for name in each.names)


def _caught_by(patterns: Iterable[Segments]) -> frozenset[str]:
    """What is caught whichever of the patterns fits."""
    names = [each.names for each in patterns]
    return frozenset.intersection(*names) if names else frozenset()


def _check_captures(table: _Table, who: Who, used: Iterable[tuple[str, Segments]]) -> None:
    caught = _caught_by(who.subjects) | _caught_by(each.path for each in who.ids)
    for key, pattern in used:
        for name in sorted(pattern.names - caught):
            raise InvalidConfiguration(
                f"{table.place}{key}: nothing catches {{{name}}} of {str(pattern)[:200]!a}",
                rule="policy_capture",
                hint=f"every pattern of who.id, or every one of who.subject, needs {{{name}}}",
            )
