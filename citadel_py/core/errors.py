"""One tree of errors. The class says who can act on it; `reason` is the stable name of the rule.

Edges (CLI, gRPC) translate classes to exit codes and status codes by one table each.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta


class CitadelError(Exception):
    """Base of all errors of this program.

    `message` says what happened, with the value, in lower case. `rule` is the stable snake_case
    name of the rule that was broken, `hints` are lines that a person can act on.
    """

    code = "internal"

    def __init__(self, message: str, *, rule: str | None = None, hint: str | Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.rule = rule or self.code
        self.hints: tuple[str, ...] = (hint,) if isinstance(hint, str) else tuple(hint)

    @property
    def reason(self) -> str:
        """The rule as `google.rpc.ErrorInfo.reason` wants it: UPPER_SNAKE_CASE."""
        return self.rule.upper()


class BadInput(CitadelError):
    """What was handed in breaks a rule; the same input will fail again."""

    code = "bad_input"


class InvalidSpiffeID(BadInput):
    """Not a SPIFFE ID or trust domain name (SPIFFE-ID section 2)."""

    code = "invalid_spiffe_id"


class InvalidCSR(BadInput):
    """A certificate signing request that is refused; `rule` names why."""

    code = "invalid_csr"


class InvalidKey(BadInput):
    """A private or public key that cannot be used."""

    code = "invalid_key"


class InvalidCertificate(BadInput):
    """A certificate file or certificate that cannot be read."""

    code = "invalid_certificate"


class InvalidBundle(BadInput):
    """A trust bundle that cannot be read, or holds what a bundle must not hold."""

    code = "invalid_bundle"


class InvalidCRL(BadInput):
    """A certificate revocation list that cannot be read."""

    code = "invalid_crl"


class InvalidConfiguration(BadInput):
    """A setting, file or directory that cannot work."""

    code = "invalid_configuration"


class LifetimeRefused(BadInput):
    """A lifetime outside the allowed range."""

    code = "lifetime_refused"


class VerificationFailed(CitadelError):
    """The answer is no: a chain does not verify; `rule` names why."""

    code = "verification_failed"


class Denied(CitadelError):
    """Base of refusals that depend on who asks."""

    code = "denied"


class Unauthenticated(Denied):
    """Nobody that we know. The message is for the log only; callers get one opaque text."""

    code = "unauthenticated"


class PermissionDenied(Denied):
    """A known caller asks for what it may not have."""

    code = "permission_denied"


class Unavailable(CitadelError):
    """Cannot be done now; retrying later can help, not before `retry_after` where that is known."""

    code = "unavailable"

    def __init__(
        self,
        message: str,
        *,
        rule: str | None = None,
        hint: str | Sequence[str] = (),
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(message, rule=rule, hint=hint)
        self.retry_after = retry_after


class NotReady(Unavailable):
    """No usable authority at the moment."""

    code = "not_ready"


class LedgerUnavailable(Unavailable):
    """The ledger cannot record; what cannot be recorded is not issued."""

    code = "ledger_unavailable"


class LimitReached(Unavailable):
    """A caller has asked for more than its share; everybody else is served."""

    code = "limit_reached"
