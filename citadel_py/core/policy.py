"""Who may have what: the decision between an attested caller and what it wants.

Nothing here attests anybody; callers arrive attested. What a rule is stands in policy_rules.py, and
how a file is read in policy_file.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from citadel_py.core.csr import RequestedNames
from citadel_py.core.errors import CitadelError, InvalidCSR, PermissionDenied
from citadel_py.core.grants import (
    OWN_PATH,
    Caller,
    Grant,
    IPAddress,
    Method,
    TTLLimits,
    Wanted,
    check_dns_name,
)
from citadel_py.core.policy_rules import ANOTHER_CALLER, Case, Effect, Fit, Rule, Rules
from citadel_py.core.spiffe import SpiffeID, TrustDomain

__all__ = [
    "Caller", "Decision", "Grant", "IPAddress", "Method", "Policy", "TTLLimits", "Wanted", "check_dns_name",
]  # fmt: skip

NO_NAMES = RequestedNames()

_BY_DEFAULT = "no allow rule is about this caller: it may have its own identity and nothing else"
_TRUSTED = "whoever holds the authority's key may have everything: rules do not apply"
_ALWAYS = "no rule can change that"
_OWN = "identities of the service are for itself alone: rules do not apply"
_UNCOVERED = "rules are about this caller, and none of them covers all that it wants"


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, by which rule, and why. `rule` is None where no rule of a file decided."""

    outcome: Grant | CitadelError
    why: str
    rule: Rule | None = None

    @property
    def is_refusal(self) -> bool:
        return isinstance(self.outcome, CitadelError)

    @property
    def grant(self) -> Grant:
        """The grant. Raises the refusal where it is one."""
        if isinstance(self.outcome, CitadelError):
            raise self.outcome
        return self.outcome


@dataclass(frozen=True, slots=True)
class Policy:
    """What callers may have of one authority. Without rules a caller has its own identity and nothing else.

    With rules, a caller that at least one allow rule is about has what those rules give it, and
    nothing else; every other one still has its own identity. Whatever the rules say, a certificate
    is for a workload of this trust domain, and the identities under OWN_PATH are the service's own:
    its probe renews its certificate, and nobody else gets one of them. `relax_names` ignores names
    in a CSR that were not granted instead of refusing it, for agents that ask for more than they get.
    """

    trust_domain: TrustDomain
    limits: TTLLimits = field(default_factory=TTLLimits)
    relax_names: bool = False
    rules: Rules | None = None

    def decide(self, caller: Caller, wanted: Wanted, names: RequestedNames = NO_NAMES) -> Grant:
        """The grant of `judge`. Raises PermissionDenied, LifetimeRefused, BadInput or InvalidCSR."""
        return self.judge(caller, wanted, names).grant

    def judge(self, caller: Caller, wanted: Wanted, names: RequestedNames = NO_NAMES) -> Decision:
        """What the caller gets of what it wants, and of the DNS names that its CSR asks for.

        A refusal is an outcome like a grant. A trusted caller says what it wants: the names in a CSR
        that it was handed give it nothing.
        """
        spiffe_id = wanted.id or caller.id
        try:
            if spiffe_id is None:
                raise PermissionDenied(f"{caller.subject} has no identity of its own", rule="caller_without_identity")
            if caller.method.is_trusted:
                decision = self._for_trusted(spiffe_id, wanted)
            elif self._is_about_itself(caller, spiffe_id):
                decision = self._for_itself(caller, spiffe_id, wanted, names.dns)
            else:
                decision = self._for_others(caller, spiffe_id, wanted, names.dns)
            if not decision.is_refusal:
                self._check_id(spiffe_id)
        except CitadelError as error:
            return Decision(error, _ALWAYS)
        return decision

    def trace(self, caller: Caller, wanted: Wanted) -> Sequence[tuple[Rule, Fit]]:
        """Each rule that was tried, in its order, and how it came out; the last one may have decided."""
        target = wanted.id or caller.id
        if self.rules is None or caller.method.is_trusted or target is None or self._is_about_itself(caller, target):
            return ()
        return tuple(self.rules.trace(Case(caller, target, wanted.dns, wanted.ttl)))

    def check_names(self, names: RequestedNames, grant: Grant) -> None:
        """Raise InvalidCSR where a CSR asks for a name beyond the grant (an equal one is fine)."""
        if self.relax_names:
            return
        not_granted = (
            *(name for name in names.uris if name != str(grant.id)),
            *(name for name in names.dns if name not in grant.dns),
            *(name for name in names.others if name not in map(str, grant.ips)),
        )
        if not_granted:
            raise _csr_name_refused(not_granted[0], grant.id)

    def _check_id(self, spiffe_id: SpiffeID) -> None:
        """The last word on whatever was granted: a workload, and of this trust domain."""
        if spiffe_id.trust_domain != self.trust_domain:
            raise PermissionDenied(
                f"{spiffe_id} is not in the trust domain {self.trust_domain} of this authority",
                rule="foreign_trust_domain",
            )
        if not spiffe_id.path:
            raise PermissionDenied(
                f"{spiffe_id} has no path: it is an authority, no workload", rule="leaf_id_without_path"
            )

    def _for_trusted(self, spiffe_id: SpiffeID, wanted: Wanted) -> Decision:
        for name in wanted.dns:
            check_dns_name(name)
        return Decision(Grant(spiffe_id, self.limits.choose(wanted.ttl), wanted.dns, wanted.ips), _TRUSTED)

    def _is_about_itself(self, caller: Caller, spiffe_id: SpiffeID) -> bool:
        """Whether one of the service's own identities asks, or is asked for."""
        return spiffe_id.path.startswith(OWN_PATH) or (caller.id is not None and caller.id.path.startswith(OWN_PATH))

    def _for_itself(self, caller: Caller, spiffe_id: SpiffeID, wanted: Wanted, csr_dns: tuple[str, ...]) -> Decision:
        """The probe renews what it has, and that is all."""
        is_own = caller.is_probe and caller.id == spiffe_id and spiffe_id.trust_domain == self.trust_domain
        if not is_own or wanted.dns or wanted.ips or csr_dns:
            raise PermissionDenied(f"{caller.subject} may not have {spiffe_id}: {_OWN}", rule="reserved_identity")
        return Decision(Grant(spiffe_id, self.limits.choose(wanted.ttl)), _OWN)

    def _for_others(self, caller: Caller, spiffe_id: SpiffeID, wanted: Wanted, csr_dns: tuple[str, ...]) -> Decision:
        if wanted.ips:
            raise PermissionDenied(f"{caller.subject} may not have IP addresses", rule="names_not_granted")
        if self.rules is None:
            dns = wanted.dns if self.relax_names else (*wanted.dns, *csr_dns)
            return self._by_default(caller, spiffe_id, dns, wanted)
        case = Case(caller, spiffe_id, tuple(dict.fromkeys((*wanted.dns, *csr_dns))), wanted.ttl)
        decision = self._by_rules(self.rules, case, wanted)
        if self.relax_names and csr_dns and decision.is_refusal:
            return self._relaxed(self.rules, case, wanted)
        return decision

    def _by_default(self, caller: Caller, spiffe_id: SpiffeID, dns: tuple[str, ...], wanted: Wanted) -> Decision:
        if spiffe_id != caller.id:
            return Decision(_id_refused(caller, spiffe_id), _BY_DEFAULT)
        if dns:
            return Decision(_name_refused(dns[0], caller, spiffe_id, wanted), _BY_DEFAULT)
        refusal = self.limits.refusal(wanted.ttl)
        return Decision(refusal or Grant(spiffe_id, wanted.ttl or self.limits.default), _BY_DEFAULT)

    def _by_rules(self, rules: Rules, case: Case, wanted: Wanted) -> Decision:
        near: list[tuple[Rule, Fit]] = []
        for rule, fit in rules.about(case):
            if fit is Fit.DECIDES:
                return _decided_by(rule, case)
            if rule.effect is Effect.ALLOW and fit not in ANOTHER_CALLER:
                near.append((rule, fit))
        if near:
            return Decision(_nearest_refusal(near, case, wanted), _UNCOVERED)
        return self._by_default(case.caller, case.id, case.dns, wanted)

    def _relaxed(self, rules: Rules, case: Case, wanted: Wanted) -> Decision:
        """Without the names of the CSR that would be refused one by one; without any where that is not enough."""

        def decide(dns: tuple[str, ...]) -> Decision:
            return self._by_rules(rules, replace(case, dns=dns), wanted)

        decision = decide(tuple(name for name in case.dns if name in wanted.dns or not decide((name,)).is_refusal))
        return decide(wanted.dns) if decision.is_refusal else decision


def _decided_by(rule: Rule, case: Case) -> Decision:
    if rule.effect is Effect.ALLOW:
        return Decision(Grant(case.id, rule.limits.choose(case.ttl), case.dns), f"{rule} grants it", rule)
    names = f" with the DNS names {', '.join(case.dns)[:200]!a}" if case.dns else ""
    what = f"{case.id}{names}"
    refusal = PermissionDenied(f"{case.caller.subject} may not have {what}: {rule} denies it", rule="denied_by_policy")
    return Decision(refusal, f"{rule} denies it", rule)


def _nearest_refusal(near: Sequence[tuple[Rule, Fit]], case: Case, wanted: Wanted) -> CitadelError:
    """What is missing by the rules that come closest: the lifetime, else a name, else the identity."""
    limits = [rule.limits for rule, fit in near if fit is Fit.LIFETIME]
    refusal = max(limits, key=lambda each: each.maximum).refusal(wanted.ttl) if limits else None
    if refusal:
        return refusal
    naming = next((rule for rule, fit in near if fit is Fit.NAMES), None)
    if naming:
        return _name_refused(naming.names_not_granted(case)[0], case.caller, case.id, wanted)
    return _id_refused(case.caller, case.id)


def _name_refused(name: str, caller: Caller, spiffe_id: SpiffeID, wanted: Wanted) -> CitadelError:
    if name in wanted.dns:
        return PermissionDenied(f"{caller.subject} may not have the DNS name {name[:100]!a}", rule="names_not_granted")
    return _csr_name_refused(name, spiffe_id)


def _csr_name_refused(name: str, spiffe_id: SpiffeID) -> InvalidCSR:
    return InvalidCSR(
        f"the CSR asks for the name {name[:100]!a}, which this caller may not have",
        rule="csr_san_not_granted",
        hint=f"leave the subject alternative name out, or ask for {spiffe_id}",
    )


def _id_refused(caller: Caller, spiffe_id: SpiffeID) -> PermissionDenied:
    return PermissionDenied(f"{caller.subject} may not have {spiffe_id}", rule="identity_not_granted")
