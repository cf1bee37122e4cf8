"""What Envoy's own documents say about its identity: what it presents, what it holds, and what is wrong.

Pure functions of what envoy_admin.py has read and of `now`. `/certs` is the truth about what is served;
`/config_dump` shows a refused secret as if it were in use, so it is asked for configuration and kinds
of secrets only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction
from typing import Any, Final

from citadel_py.agent.envoy_admin import Admin, Json
from citadel_py.agent.envoy_proxy import NOBODY

SOON: Final = Fraction(1, 4)  # of a life: agents renew when more than a third is left

_STATE = re.compile(r"^sds\.(.+)\.(update_rejected|control_plane\.connected_state)$")
_REASONS = "the agent's log has the reason under sds.nacked"
_GUARD = (
    "give it a combined_validation_context with match_typed_subject_alt_names, as `citadel-py envoy bootstrap` does"
)


@dataclass(frozen=True, slots=True)
class Presented:
    """A certificate that Envoy shows to its peers."""

    ids: tuple[str, ...]
    serial: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class HeldSecret:
    """A secret in Envoy's configuration. `kind` is certificate, trust, other, or none where it has no type."""

    name: str
    kind: str
    version: str
    has_arrived: bool
    names_peers: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and what to do."""

    rule: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Findings:
    """All of it."""

    presented: tuple[Presented, ...]
    secrets: tuple[HeldSecret, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class _Context:
    """A TLS context of the configuration, and where it stands."""

    owner: str
    tls: Json
    is_server: bool
    demands_certificate: bool

    @property
    def common(self) -> Json:
        return _object(self.tls.get("common_tls_context"))

    @property
    def static_trust(self) -> Json:
        """The part of the validation context that does not come from elsewhere."""
        combined = _object(self.common.get("combined_validation_context"))
        return _object(combined.get("default_validation_context") or self.common.get("validation_context"))

    @property
    def trust_source(self) -> Json:
        """Where the other part comes from."""
        combined = _object(self.common.get("combined_validation_context"))
        name = "validation_context_sds_secret_config"
        return _object(combined.get(name) or self.common.get(name))


def examine(admin: Admin, now: datetime) -> Findings:
    """What there is and what is wrong. Unknown shapes are passed over: Envoys differ."""
    presented = tuple(_presented(admin.certs))
    secrets = tuple(replace(each, version=_accepted_version(admin, each)) for each in _secrets(admin.config))
    contexts = list(_contexts(admin.config))
    problems = (
        *_state_problems(admin),
        *(problem for each in presented for problem in _end_problems(each, now)),
        *(problem for each in contexts for problem in _context_problems(each, secrets)),
        *_missing_problems(secrets),
        *([] if contexts else [_NO_TLS]),
    )
    return Findings(presented, secrets, tuple(dict.fromkeys(problems)))


_NO_TLS = Problem(
    rule="envoy_without_tls", message="no listener or cluster of this Envoy uses TLS", hint="see docs/how-to/envoy.md"
)


# ------------------------------------------------------------------------------------------- what there is


def _presented(certs: Json) -> Iterator[Presented]:
    seen = set()
    for context in _objects(certs.get("certificates")):
        for leaf in _objects(context.get("cert_chain"))[:1]:
            found = _certificate(leaf)
            if found and found not in seen:
                seen.add(found)
                yield found


def _certificate(leaf: Json) -> Presented | None:
    try:
        begin, end = (datetime.fromisoformat(str(leaf[name])) for name in ("valid_from", "expiration_time"))
        serial = f"{int(str(leaf['serial_number']), 16):x}"
    except (KeyError, ValueError):
        return None
    if begin.tzinfo is None or end.tzinfo is None:
        return None
    ids = tuple(str(each["uri"]) for each in _objects(leaf.get("subject_alt_names")) if "uri" in each)
    return Presented(ids, serial, begin, end)


def _secrets(config: Json) -> Iterator[HeldSecret]:
    for part in _parts(config, "SecretsConfigDump"):
        for group in ("static_secrets", "dynamic_active_secrets", "dynamic_warming_secrets"):
            for each in _objects(part.get(group)):
                kind = _kind(_object(each.get("secret")))
                version = str(each.get("version_info", ""))
                peers = bool(_matchers(_object(_object(each.get("secret")).get("validation_context"))))
                yield HeldSecret(str(each.get("name", "")), kind, version, "warming" not in group, peers)


def _accepted_version(admin: Admin, secret: HeldSecret) -> str:
    """The dump has the version of a refused secret; the statistics have that of the one in use."""
    return admin.texts.get(f"sds.{secret.name.replace('://', '_')}.version_text") or secret.version


def _kind(secret: Json) -> str:
    if "tls_certificate" in secret:
        return "certificate"
    if "validation_context" in secret:
        context = _object(secret["validation_context"])
        return "trust" if context.get("trusted_ca") or context.get("custom_validator_config") else "none"
    return "other" if set(secret) - {"@type", "name"} else "none"


def _contexts(config: Json) -> Iterator[_Context]:
    for kind, word in (("ListenersConfigDump", "listener"), ("ClustersConfigDump", "cluster")):
        for part in _parts(config, kind):
            yield from _contexts_in(part, word, "")


def _contexts_in(value: object, word: str, owner: str) -> Iterator[_Context]:
    """The owner is the outermost thing with an address or endpoints, which is a listener or a cluster."""
    if isinstance(value, list):
        for each in value:
            yield from _contexts_in(each, word, owner)
    if not isinstance(value, dict):
        return
    if not owner and isinstance(value.get("name"), str) and str(value.get("@type", "")).endswith(word.capitalize()):
        owner = f"{word} {value['name']}"
    if "common_tls_context" in value:
        is_server = str(value.get("@type", "")).endswith("DownstreamTlsContext")
        yield _Context(owner or word, value, is_server, bool(value.get("require_client_certificate")))
    for each in value.values():
        yield from _contexts_in(each, word, owner)


# ------------------------------------------------------------------------------------------ what is wrong


def _state_problems(admin: Admin) -> Iterator[Problem]:
    if not admin.is_ready:
        yield Problem(
            rule="envoy_not_ready",
            message="Envoy is not ready: it opens no listener before its secrets have come, or have not come for 15 s",
            hint="see what else is wrong here, and sds.withheld in the agent's log",
        )
    for name, value in admin.stats.items():
        if name == "control_plane.connected_state" and not value:
            yield _disconnected("its secrets")
        if (found := _STATE.match(name)) is None:
            continue
        secret, state = found.groups()
        if state == "update_rejected" and value:
            yield Problem(
                rule="envoy_rejected_update", message=f"Envoy has rejected {_times(value)} of {secret}", hint=_REASONS
            )
        if state == "control_plane.connected_state" and not value:
            yield _disconnected(secret)


def _times(count: int) -> str:
    return "an update" if count == 1 else f"{count} updates"


def _disconnected(what: str) -> Problem:
    return Problem(
        rule="envoy_sds_disconnected",
        message=f"Envoy has no stream for {what}: what it holds grows old",
        hint="see that the agent runs, and that Envoy's user may connect to its socket",
    )


def _end_problems(leaf: Presented, now: datetime) -> Iterator[Problem]:
    who = f"the certificate of {', '.join(leaf.ids) or 'nobody'} (serial {leaf.serial})"
    hint = "see svid.renewal_failed in the agent's log"
    left, life = leaf.not_after - now, leaf.not_after - leaf.not_before
    if now >= leaf.not_after:
        yield Problem(rule="envoy_leaf_expired", message=f"{who} has expired: peers refuse it", hint=hint)
    elif now < leaf.not_before:
        yield Problem(
            rule="envoy_leaf_not_yet_valid",
            message=f"{who} is not valid yet: peers refuse it",
            hint="compare the clocks",
        )
    elif left * SOON.denominator < life * SOON.numerator:
        yield Problem(rule="envoy_leaf_ends_soon", message=f"{who} has less than a quarter of its life left", hint=hint)


def _context_problems(context: _Context, secrets: tuple[HeldSecret, ...]) -> Iterator[Problem]:
    source, static = context.trust_source, context.static_trust
    verifies = bool(static.get("trusted_ca") or static.get("custom_validator_config"))
    if not source and not verifies:
        if context.demands_certificate or not context.is_server:
            yield _verifies_nobody(context.owner, "it has nothing to verify peers with")
        return
    if context.is_server and not context.demands_certificate:
        yield Problem(
            rule="envoy_client_certificate_optional",
            message=f"{context.owner} also admits peers without a certificate",
            hint="set require_client_certificate",
        )
    if guard := _matchers(static):
        yield from _peer_problems(context.owner, guard, source, secrets)
    if not source or guard or static.get("custom_validator_config"):
        return
    message = f"{context.owner} has no static guard: an empty secret from SDS would make it verify nobody"
    yield Problem(rule="envoy_without_guard", message=message, hint=_GUARD)
    for secret in secrets:
        if secret.has_arrived and secret.name == source.get("name") and secret.kind != "trust" and not verifies:
            yield _verifies_nobody(context.owner, f"its secret {secret.name} holds no trust")


def _peer_problems(owner: str, guard: list[Json], source: Json, secrets: tuple[HeldSecret, ...]) -> Iterator[Problem]:
    """The lists of a guard and of SDS add up: each matcher of either admits."""
    is_by_agent = guard == [{"san_type": "URI", "matcher": {"exact": NOBODY}}]
    for secret in secrets:
        if secret.name != source.get("name") or not secret.has_arrived or secret.names_peers == is_by_agent:
            continue
        if is_by_agent:
            yield Problem(
                rule="envoy_peers_missing",
                message=f"{owner} admits nobody: it leaves its peers to the agent, and {secret.name} names none",
                hint="give the agent's socket `peers`, or this proxy --peer or --trust-domain",
            )
        else:
            yield Problem(
                rule="envoy_peers_add_up",
                message=f"{owner} admits the peers of its own guard, and those of {secret.name} too",
                hint="let one of them name the peers: `citadel-py envoy bootstrap --peers-from-agent`",
            )


def _verifies_nobody(owner: str, why: str) -> Problem:
    return Problem(rule="envoy_verifies_nobody", message=f"{owner} accepts any peer: {why}", hint=_GUARD)


def _missing_problems(secrets: tuple[HeldSecret, ...]) -> Iterator[Problem]:
    for secret in secrets:
        if not secret.has_arrived:
            yield Problem(
                rule="envoy_secret_missing",
                message=f"the secret {secret.name} has not come",
                hint="sds.withheld in the agent's log says why, and which node asked",
            )


# ------------------------------------------------------------------------------------------------- pieces


def _parts(config: Json, kind: str) -> Iterator[Json]:
    return (each for each in _objects(config.get("configs")) if str(each.get("@type", "")).endswith(kind))


def _matchers(context: Json) -> list[Json]:
    return _objects(context.get("match_typed_subject_alt_names"))


def _objects(value: object) -> list[Json]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _object(value: Any) -> Json:  # noqa: ANN401 - whatever JSON holds
    return dict(value) if isinstance(value, Mapping) else {}
