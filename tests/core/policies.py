"""Policies for tests: TOML text, and callers to try it on."""

from __future__ import annotations

from citadel_py.core.csr import RequestedNames
from citadel_py.core.policy import Caller, Decision, Method, Policy, TTLLimits, Wanted
from citadel_py.core.policy_file import parse_policy
from citadel_py.core.policy_rules import Rules
from citadel_py.core.spiffe import SpiffeID, TrustDomain

TD = TrustDomain("example.org")
ISSUER = "https://issuer.example"


def rules_of(*rules: str, limits: TTLLimits | None = None) -> Rules:
    """Rules from the bodies of `[[rule]]`; those without a name get one."""
    named = (rule if "name =" in rule else f'name = "r{at}"\n{rule}' for at, rule in enumerate(rules, 1))
    text = f'trust_domain = "{TD}"\n' + "".join(f"[[rule]]\n{rule}\n" for rule in named)
    return parse_policy(text.encode(), limits=limits or TTLLimits())


def policy_of(*rules: str, relax_names: bool = False) -> Policy:
    return Policy(TD, relax_names=relax_names, rules=rules_of(*rules))


def id_of(path: str) -> SpiffeID:
    return SpiffeID.parse(path if "://" in path else f"spiffe://{TD}{path}")


def mtls(path: str) -> Caller:
    return Caller(Method.MTLS, str(id_of(path)), id_of(path))


def jwt(namespace: str, account: str, issuer: str = ISSUER) -> Caller:
    subject = f"system:serviceaccount:{namespace}:{account}"
    return Caller(Method.JWT, subject, SpiffeID.mesh(TD, namespace, account), issuer)


def ask(policy: Policy, caller: Caller, *dns: str, wanted: Wanted | None = None) -> Decision:
    """What the service decides on a CSR with these DNS names."""
    return policy.judge(caller, wanted or Wanted(), RequestedNames(dns=dns))
