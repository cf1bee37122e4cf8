"""Rules: who may have what, tried in the order in which they stand. The first that decides, decides.

An allow rule decides when it covers all of a wish: the identity, every DNS name and the lifetime. A
deny rule decides as soon as it lists any part of it. What becomes of a caller about whom no rule
says anything is not known here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from citadel_py.core.grants import Caller, Method, TTLLimits, is_dns_name
from citadel_py.core.patterns import Captures, IDPattern, Segments, segments_of
from citadel_py.core.spiffe import SpiffeID, TrustDomain

# Callers that nobody vouches for by a subject: theirs is a name of our own making.
_WITHOUT_SUBJECT = frozenset({Method.MTLS, Method.JOIN_TOKEN})


class Effect(StrEnum):
    """What a rule is for."""

    ALLOW = "allow"
    DENY = "deny"


class Fit(StrEnum):
    """How a rule and a case go together, in words that follow on the name of the rule."""

    METHOD = "is about callers that are attested in another way"
    ISSUER = "is about the tokens of another issuer"
    SUBJECT = "is about other subjects of tokens"
    CALLER = "is about callers with another identity"
    UNTOUCHED = "denies nothing of this"
    IDENTITY = "does not grant this identity"
    NAMES = "does not grant all of these DNS names"
    LIFETIME = "does not grant this lifetime"
    DECIDES = "decides"


ANOTHER_CALLER = frozenset({Fit.METHOD, Fit.ISSUER, Fit.SUBJECT, Fit.CALLER})


@dataclass(frozen=True, slots=True)
class Case:
    """One caller and one wish, taken apart once for all rules."""

    caller: Caller
    id: SpiffeID
    dns: tuple[str, ...] = ()
    ttl: timedelta | None = None
    caller_path: Sequence[str] = field(init=False, repr=False)
    subject: Sequence[str] = field(init=False, repr=False)
    path: Sequence[str] = field(init=False, repr=False)
    labels: tuple[Sequence[str], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        caller = self.caller
        has_subject = caller.method not in _WITHOUT_SUBJECT
        object.__setattr__(self, "caller_path", segments_of(caller.id) if caller.id else ())
        object.__setattr__(self, "subject", caller.subject.split(":") if has_subject else ())
        object.__setattr__(self, "path", segments_of(self.id))
        object.__setattr__(self, "labels", tuple(name.split(".") if is_dns_name(name) else () for name in self.dns))


@dataclass(frozen=True, slots=True)
class Who:
    """The callers that a rule is about: every condition holds; an empty one always does."""

    methods: frozenset[Method] = frozenset()
    issuers: frozenset[str] = frozenset()
    subjects: tuple[Segments, ...] = ()
    ids: tuple[IDPattern, ...] = ()

    def fit(self, case: Case) -> tuple[Fit, Captures]:
        """`Fit.DECIDES` and what was caught where the case's caller is one of them."""
        caller = case.caller
        if self.methods and caller.method not in self.methods:
            return Fit.METHOD, {}
        if self.issuers and caller.issuer not in self.issuers:
            return Fit.ISSUER, {}
        caught: Captures = {}
        if self.subjects:
            subject = next((each for each in self.subjects if each.fits(case.subject)), None)
            if subject is None:
                return Fit.SUBJECT, {}
            caught = subject.catch(case.subject)
        if self.ids:
            found = next((each for each in self.ids if _is_one(each, caller.id, case.caller_path)), None)
            if found is None:
                return Fit.CALLER, {}
            caught = {**caught, **found.path.catch(case.caller_path)}
        return Fit.DECIDES, caught


@dataclass(frozen=True, slots=True)
class What:
    """Identities and DNS names, with captures that stand for what was caught from the caller."""

    own_id: bool = False
    ids: tuple[IDPattern, ...] = ()
    dns: tuple[Segments, ...] = ()

    def has_id(self, case: Case, caught: Captures) -> bool:
        return (self.own_id and case.id == case.caller.id) or any(
            each.trust_domain == case.id.trust_domain and each.path.admits(case.path, caught) for each in self.ids
        )

    def has_name(self, labels: Sequence[str], caught: Captures) -> bool:
        """Whether this is a DNS name of it. `labels` is empty for what is no DNS name, and nobody's."""
        return any(each.admits(labels, caught) for each in self.dns)

    @property
    def is_everything(self) -> bool:
        """Of a deny rule that lists nothing: everything."""
        return not (self.own_id or self.ids or self.dns)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `number` counts from 1 in the order of the file; `limits` is its range of lifetimes."""

    number: int
    name: str
    effect: Effect
    who: Who
    what: What
    limits: TTLLimits

    def fit(self, case: Case) -> Fit:
        """Whether this rule decides the case, and if not, why not."""
        fit, caught = self.who.fit(case)
        if fit is not Fit.DECIDES:
            return fit
        return self._denies(case, caught) if self.effect is Effect.DENY else self._allows(case, caught)

    def names_not_granted(self, case: Case) -> Sequence[str]:
        """The DNS names of a case that this rule does not grant to its caller."""
        _, caught = self.who.fit(case)
        named = zip(case.dns, case.labels, strict=True)
        return [name for name, labels in named if not self.what.has_name(labels, caught)]

    def _allows(self, case: Case, caught: Captures) -> Fit:
        if not self.what.has_id(case, caught):
            return Fit.IDENTITY
        if not all(self.what.has_name(labels, caught) for labels in case.labels):
            return Fit.NAMES
        return Fit.DECIDES if self.limits.allows(case.ttl) else Fit.LIFETIME

    def _denies(self, case: Case, caught: Captures) -> Fit:
        what = self.what
        if what.is_everything or what.has_id(case, caught):
            return Fit.DECIDES
        return Fit.DECIDES if any(what.has_name(labels, caught) for labels in case.labels) else Fit.UNTOUCHED

    def __str__(self) -> str:
        return f"rule {self.number} ({self.name})"


class Rules:
    """The rules of one policy file, found by what their callers' IDs or subjects begin with."""

    def __init__(self, trust_domain: TrustDomain, rules: Iterable[Rule] = ()) -> None:
        self.trust_domain = trust_domain
        self.all = tuple(rules)
        self._by_path, self._by_subject = _Prefixes(), _Prefixes()
        for at, rule in enumerate(self.all):
            if rule.who.subjects and not rule.who.ids:
                self._by_subject.add(at, (each.prefix for each in rule.who.subjects))
            else:
                self._by_path.add(at, [each.path.prefix for each in rule.who.ids] or [()])

    def about(self, case: Case) -> Iterator[tuple[Rule, Fit]]:
        """The rules that can be about this caller, up to the first that decides."""
        found = [*self._by_path.find(case.caller_path), *self._by_subject.find(case.subject)]
        for at in sorted(found):
            rule = self.all[at]
            fit = rule.fit(case)
            yield rule, fit
            if fit is Fit.DECIDES:
                return

    def trace(self, case: Case) -> Iterator[tuple[Rule, Fit]]:
        """Every rule in its order up to the first that decides: the long way, for people."""
        for rule in self.all:
            fit = rule.fit(case)
            yield rule, fit
            if fit is Fit.DECIDES:
                return


class _Prefixes:
    """Positions of rules by the literal segments that their pattern begins with."""

    def __init__(self) -> None:
        self._at: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self._lengths: tuple[int, ...] = ()

    def add(self, at: int, prefixes: Iterable[tuple[str, ...]]) -> None:
        for prefix in set(prefixes):
            self._at[prefix].append(at)
        self._lengths = tuple(sorted(set(map(len, self._at))))

    def find(self, segments: Sequence[str]) -> set[int]:
        """Those whose prefix the segments begin with."""
        found: set[int] = set()
        for length in self._lengths:
            found.update(self._at.get(tuple(segments[:length]), ()))
        return found


def _is_one(pattern: IDPattern, id: SpiffeID | None, path: Sequence[str]) -> bool:
    return id is not None and id.trust_domain == pattern.trust_domain and pattern.path.fits(path)
