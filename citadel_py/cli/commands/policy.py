"""`policy`: is a policy file usable, and which of its rules decides a case. The same core as the service's decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click

from citadel_py.cli import frame, options, params
from citadel_py.cli.exits import Exit
from citadel_py.cli.session import Session
from citadel_py.core.errors import BadInput, CitadelError
from citadel_py.core.spiffe import SpiffeID, TrustDomain

if TYPE_CHECKING:
    from citadel_py.cli.describe import Facts
    from citadel_py.cli.render import Row
    from citadel_py.core.grants import Caller, TTLLimits, Wanted
    from citadel_py.core.policy import Decision
    from citadel_py.core.policy_review import Finding
    from citadel_py.core.policy_rules import Fit, Rule, Rules

    Tried: TypeAlias = Sequence[tuple[Rule, Fit]]

Function = TypeVar("Function", bound=Callable[..., Any])

_METHODS = ("mtls", "jwt", "join_token")

_LIMITS = (
    click.option(
        "--min-ttl", type=params.DURATION, default="1m", show_default=True, help="Shortest lifetime of the service."
    ),
    click.option(
        "--default-ttl", type=params.DURATION, default="24h", show_default=True, help="Its default lifetime."
    ),
    click.option("--max-ttl", type=params.DURATION, default="90d", show_default=True, help="Its longest lifetime."),
    click.option(
        "--dir", "directory", metavar="D", type=click.Path(path_type=Path), envvar=options.DIRECTORY_VARIABLE,
        show_envvar=True, help="Directory of the authority, which says the trust domain.",
    ),
)  # fmt: skip


def _of_the_service(function: Function) -> Function:
    """Options that say what the service is like that the policy is for."""
    for option in reversed(_LIMITS):
        function = option(function)
    return function


@frame.family(
    "policy",
    examples=[
        "citadel-py policy check policy.toml",
        """\
citadel-py policy explain spiffe://example.org/ns/shop/sa/web spiffe://example.org/ns/shop/sa/web \\
    --policy policy.toml --dns web.shop.svc""",
    ],
)
def command() -> None:
    """Check a policy file, or explain what it decides."""


@frame.command(
    "check",
    examples=["citadel-py policy check policy.toml", "citadel-py policy check policy.toml --dir /srv/ca --json"],
    codes=[Exit.UNAVAILABLE],
    meanings={
        Exit.DONE: "every rule can be used and can come to decide",
        Exit.NO: "a rule does not do what it says; stdout names it",
        Exit.BAD_INPUT: "serve would refuse the file",
    },
)
@click.argument("file", type=options.FILE)
@_of_the_service
@options.as_json
@click.pass_obj
def check(session: Session, /, *, file: str, directory: Path | None, as_json: bool, **ttls: timedelta) -> int:
    """Check the rules in FILE (- is stdin).

    Each of them by itself, and what they leave to each other.
    """
    from citadel_py.core.policy_review import review

    try:
        rules = _read_rules(session, file, flag="FILE", limits=_limits(**ttls), trust_domain=_trust_domain(directory))
    except BadInput as error:
        if as_json:
            session.answer_json(_check_document(None, (), error))
        raise
    findings = review(rules)
    if as_json:
        session.answer_json(_check_document(rules, findings, None))
    else:
        session.answer(_check_text(file, rules, findings))
    return Exit.NO if findings else Exit.DONE


@frame.command(
    "explain",
    examples=[
        "citadel-py policy explain spiffe://example.org/web spiffe://example.org/web --policy policy.toml --ttl 1h",
        """\
citadel-py policy explain spiffe://example.org/ns/ci/sa/build spiffe://example.org/ns/shop/sa/web \\
    --policy policy.toml --issuer https://issuer.example --subject system:serviceaccount:ci:build""",
    ],
    codes=[Exit.UNAVAILABLE],
    meanings={Exit.DONE: "it would be granted", Exit.NO: "it would be refused"},
)
@click.argument("caller", type=params.SPIFFE_ID)
@click.argument("id", type=params.SPIFFE_ID)
@click.option("--policy", "file", metavar="FILE", type=options.FILE, help="The rules; without: own identity only.")
@options.dns
@click.option("--ttl", type=params.DURATION, help="The lifetime that is asked for.")
@click.option(
    "--method", type=click.Choice(_METHODS), help="How the caller is attested.  [default: mtls; jwt with a subject]"
)
@click.option("--issuer", metavar="ISS", help="Who issued the caller's token.")
@click.option("--subject", metavar="SUB", help="The subject of the caller's token.")
@_of_the_service
@options.as_json
@click.pass_obj
def explain(
    session: Session, /, *, caller: SpiffeID, id: SpiffeID, file: str | None, dns: tuple[str, ...],
    ttl: timedelta | None, method: str | None, issuer: str | None, subject: str | None, directory: Path | None,
    as_json: bool, **ttls: timedelta,
) -> int:  # fmt: skip
    """Explain which rule decides a case, and why.

    May CALLER, a SPIFFE ID, have a certificate for ID? Nothing is asked of a service, and nothing
    is issued.
    """
    from citadel_py.core.csr import RequestedNames
    from citadel_py.core.policy import Policy, Wanted

    asking = _caller(caller, method, issuer, subject)
    limits, trust_domain = _limits(**ttls), _trust_domain(directory)
    rules = _read_rules(session, file, flag="--policy", limits=limits, trust_domain=trust_domain) if file else None
    policy = Policy((rules.trust_domain if rules else trust_domain) or caller.trust_domain, limits, rules=rules)
    wanted = Wanted(id, ttl=ttl)
    decision = policy.judge(asking, wanted, RequestedNames(dns=dns))  # the service gets DNS names in CSRs
    tried = policy.trace(asking, Wanted(id, dns, ttl=ttl))
    if as_json:
        session.answer_json(_explained_document(asking, wanted, decision, tried))
    else:
        session.answer(_explained_text(asking, wanted, decision, tried))
    return Exit.NO if decision.is_refusal else Exit.DONE


command.add_command(check)
command.add_command(explain)


def _caller(id: SpiffeID, method: str | None, issuer: str | None, subject: str | None) -> Caller:
    """The caller as an authenticator would have made it. Raises UsageError."""
    from citadel_py.core.grants import Caller, Method

    has_token = issuer is not None or subject is not None
    if has_token and method not in (None, Method.JWT):
        raise click.UsageError(f"--issuer and --subject are of callers with a token, not of --method {method}")
    found = Method(method) if method else Method.JWT if has_token else Method.MTLS
    return Caller(found, subject if subject is not None else str(id), id, issuer)


def _limits(*, min_ttl: timedelta, default_ttl: timedelta, max_ttl: timedelta) -> TTLLimits:
    from citadel_py.core.grants import TTLLimits

    return TTLLimits(default_ttl, min_ttl, max_ttl)


def _trust_domain(directory: Path | None) -> TrustDomain | None:
    if directory is None:
        return None
    from citadel_py.cli.authority import read_bundle

    return read_bundle(directory).trust_domain


def _read_rules(
    session: Session, file: str, *, flag: str, limits: TTLLimits, trust_domain: TrustDomain | None
) -> Rules:
    from citadel_py.cli.inputs import naming, read_input
    from citadel_py.core.policy_file import parse_policy

    data = read_input(session, file, flag=flag)
    with naming(file):
        return parse_policy(data, limits=limits, trust_domain=trust_domain)


def _rule_facts(rule: Rule | None) -> Facts | None:
    return {"number": rule.number, "name": rule.name} if rule else None


def _check_document(rules: Rules | None, findings: tuple[Finding, ...], error: BadInput | None) -> Facts:
    from citadel_py.cli.describe import error_facts

    return {
        "is_valid": rules is not None,
        "trust_domain": str(rules.trust_domain) if rules else None,
        "rules": [_rule_facts(rule) for rule in rules.all] if rules else [],
        "findings": [
            {
                "rule": each.rule,
                "message": each.message,
                "subject": _rule_facts(each.subject),
                "by": _rule_facts(each.by),
            }
            for each in findings
        ],
        "error": error_facts(error) if error else None,
    }


def _check_text(file: str, rules: Rules, findings: tuple[Finding, ...]) -> str:
    from citadel_py.cli.render import fields, heading

    problems = [f"{each.message} [rule {each.rule}]" for each in findings]
    rows: list[Row] = [("trust domain", str(rules.trust_domain)), ("rules", str(len(rules.all))), ("problem", problems)]
    return heading("problems in" if findings else "usable", file) + fields(rows)


def _explained_document(caller: Caller, wanted: Wanted, decision: Decision, tried: Tried) -> Facts:
    from citadel_py.cli.describe import error_facts

    outcome = decision.outcome
    error, grant = (outcome, None) if isinstance(outcome, CitadelError) else (None, outcome)
    return {
        "is_granted": grant is not None,
        "decided_by": _rule_facts(decision.rule),
        "why": decision.why,
        "caller": str(caller.id),
        "id": str(wanted.id),
        "dns": list(grant.dns) if grant else [],
        "ttl_seconds": int(grant.ttl.total_seconds()) if grant else None,
        "error": error_facts(error) if error else None,
        "tried": [{"number": rule.number, "name": rule.name, "outcome": fit.value} for rule, fit in tried],
    }


def _explained_text(caller: Caller, wanted: Wanted, decision: Decision, tried: Tried) -> str:
    from citadel_py.cli.render import fields, heading
    from citadel_py.core.duration import format_duration

    outcome = decision.outcome
    rows: list[Row] = [("to", str(caller.id)), ("why", decision.why)]
    if isinstance(outcome, CitadelError):
        rows.append(("refusal", f"{outcome.message} [rule {outcome.rule}]"))
    else:
        rows += [("DNS", outcome.dns), ("lifetime", format_duration(outcome.ttl))]
    passed = [f"{rule} {fit.value}" for rule, fit in tried if rule is not decision.rule]
    title = "refused" if decision.is_refusal else "granted"
    return heading(title, str(wanted.id)) + fields([*rows, ("passed", passed)])
