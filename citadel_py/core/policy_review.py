"""What is wrong with rules as a whole although each of them can be used: those that never come to decide.

A finding is certain. The other way round it is not: what rules hide only together is not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from citadel_py.core.patterns import IDPattern, Segments
from citadel_py.core.policy_rules import Effect, Rule, Rules, Who


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that does not do what it says, and `by`, the rule before it that is why."""

    subject: Rule
    by: Rule
    message: str
    rule: str


def review(rules: Rules) -> tuple[Finding, ...]:
    """At most one finding for each rule. The time grows with the square of their number: a second for 1,000."""
    found = []
    for at, later in enumerate(rules.all):
        findings = (_compare(earlier, later) for earlier in rules.all[:at] if _who_covers(earlier.who, later.who))
        found += [each for each in findings if each][:1]
    return tuple(found)


def _compare(earlier: Rule, later: Rule) -> Finding | None:
    """What the earlier one leaves to the later one, whose callers are callers of both."""
    match earlier.effect, later.effect:
        case Effect.DENY, Effect.ALLOW:
            is_hidden = earlier.what.is_everything or _has_ids_of(earlier, later)
        case Effect.DENY, Effect.DENY:
            is_hidden = earlier.what.is_everything or _has_all_of(earlier, later)
        case Effect.ALLOW, Effect.ALLOW:
            is_hidden = _has_all_of(earlier, later) and _has_lifetimes_of(earlier, later)
        case _:
            message = f"{later} denies what {earlier} has granted to the same callers already: put it first"
            is_late = _has_all_of(earlier, later)
            return Finding(later, earlier, message, rule="policy_deny_too_late") if is_late else None
    message = f"{later} is never reached: {earlier} decides everything that it could"
    return Finding(later, earlier, message, rule="policy_unreachable_rule") if is_hidden else None


def _has_all_of(earlier: Rule, later: Rule) -> bool:
    """Whether the earlier rule lists every identity and DNS name that the later one does."""
    are_same = earlier.who == later.who
    names = (_is_covered(each, earlier.what.dns, are_same=are_same) for each in later.what.dns)
    return not later.what.is_everything and _has_ids_of(earlier, later) and all(names)


def _has_ids_of(earlier: Rule, later: Rule) -> bool:
    own = later.who.ids if later.what.own_id and not earlier.what.own_id else ()
    if later.what.own_id and not earlier.what.own_id and not own:
        return False  # their own identity can be any
    return all(_has_id(earlier, each, are_same=earlier.who == later.who) for each in (*later.what.ids, *own))


def _has_id(earlier: Rule, pattern: IDPattern, *, are_same: bool) -> bool:
    paths = [each.path for each in earlier.what.ids if each.trust_domain == pattern.trust_domain]
    return _is_covered(pattern.path, paths, are_same=are_same)


def _is_covered(pattern: Segments, by: Sequence[Segments], *, are_same: bool) -> bool:
    """Captures of two rules mean the same only where both have the same callers."""
    return any(each.covers(pattern, are_bound=True) for each in by if are_same or not each.names)


def _has_lifetimes_of(earlier: Rule, later: Rule) -> bool:
    return earlier.limits.minimum <= later.limits.minimum and later.limits.maximum <= earlier.limits.maximum


def _who_covers(wide: Who, narrow: Who) -> bool:
    """Whether every caller of `narrow` is one of `wide`."""
    return (
        (not wide.methods or (bool(narrow.methods) and narrow.methods <= wide.methods))
        and (not wide.issuers or (bool(narrow.issuers) and narrow.issuers <= wide.issuers))
        and (not wide.subjects or _cover(wide.subjects, narrow.subjects))
        and (not wide.ids or _cover([each.path for each in wide.ids], [each.path for each in narrow.ids]))
    )


def _cover(wide: Sequence[Segments], narrow: Sequence[Segments]) -> bool:
    return bool(narrow) and all(any(each.covers(pattern) for each in wide) for pattern in narrow)
