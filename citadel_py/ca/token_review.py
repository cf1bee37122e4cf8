"""Callers whose token only the cluster's API server can tell: the last resort among the authenticators.

A review costs a call to a server that everybody in the cluster needs. So tokens that can be verified
here never come this far, what was reviewed is remembered for a short time, and at most a few reviews
are open at once. How the API server is asked is not known here: that is behind TokenReviewer.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias

from citadel_py.ca.authn import Attested, CallCredentials
from citadel_py.ca.cache import BoundedCache
from citadel_py.ca.jwt_authn import service_account_id
from citadel_py.core.duration import format_duration
from citadel_py.core.errors import Unauthenticated, Unavailable
from citadel_py.core.join_token import claims_to_be_join_token
from citadel_py.core.policy import Caller, Method
from citadel_py.core.ports import Now
from citadel_py.core.spiffe import TrustDomain

_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")  # RFC 7519 3.1, signed
_MAX_SHOWN = 300

Verdict: TypeAlias = Caller | Unauthenticated | Unavailable


@dataclass(frozen=True, slots=True)
class Review:
    """What the API server says of a token: the `status` of a TokenReview (authentication.k8s.io/v1).

    `audiences` are those of the token that were asked about; `error` is why it could not be
    authenticated. `extra` may have the pod and the node that a token is bound to.
    """

    authenticated: bool
    username: str = ""
    audiences: tuple[str, ...] = ()
    extra: Mapping[str, Sequence[str]] = field(default_factory=dict)
    error: str = ""


class TokenReviewer(Protocol):
    """Asks the API server about tokens."""

    async def review(self, token: str, audiences: Sequence[str]) -> Review:
        """What the API server says. Raises Unavailable where it does not answer, or not with a review.

        A token that is not good is an answer, and no error. It never logs or keeps the token.
        """
        ...


@dataclass(frozen=True, slots=True)
class ReviewRules:
    """What a token must be, and the bounds of asking.

    `form` is what a token must look like to be worth a question. `open_at_once` reviews are under
    way at most; those beyond wait for their turn, and all for no longer than `deadline`. A good
    token is remembered for `good_for`, a bad one for `bad_for`: that is how long a token that was
    taken back goes on to work, and how soon one that was bad by mistake works.
    """

    audience: str
    trust_domain: TrustDomain
    form: re.Pattern[str] = _JWT
    open_at_once: int = 8
    waiting: int = 256
    deadline: timedelta = timedelta(seconds=5)
    good_for: timedelta = timedelta(seconds=30)
    bad_for: timedelta = timedelta(seconds=5)
    cached: int = 10_000


class TokenReviewAuthenticator:
    """Has tokens reviewed. Verdicts are remembered by the SHA-256 of the token, never with it.

    Where the reviewer fails nobody is refused: the caller is asked to come again (Unavailable).
    """

    def __init__(self, rules: ReviewRules, reviewer: TokenReviewer, *, now: Now) -> None:
        self._rules = rules
        self._reviewer = reviewer
        self._now = now
        # One cache for each, so that a flood of bad tokens does not push the good ones out.
        self._good: BoundedCache[bytes, Verdict] = BoundedCache(rules.cached)
        self._bad: BoundedCache[bytes, Verdict] = BoundedCache(rules.cached)
        self._open: dict[bytes, asyncio.Task[Verdict]] = {}
        self._turns = asyncio.Semaphore(rules.open_at_once)

    async def attest(self, credentials: CallCredentials, *, now: datetime) -> Attested | None:
        """See Authenticator."""
        token = credentials.bearer
        if token is None or claims_to_be_join_token(token) or not self._rules.form.fullmatch(token):
            return None
        digest = hashlib.sha256(token.encode()).digest()
        verdict = self._good.get(digest, now=now) or self._bad.get(digest, now=now)
        verdict = verdict or await self._shared_review(token, digest)
        if isinstance(verdict, Caller):
            return Attested(verdict)
        raise type(verdict)(verdict.message, rule=verdict.rule)  # a traceback belongs to one call

    async def _shared_review(self, token: str, digest: bytes) -> Verdict:
        """One review for all calls that show the same token meanwhile; it goes on when one of them goes away."""
        review = self._open.get(digest)
        if review is None:
            if len(self._open) >= self._rules.waiting:
                raise Unavailable(f"{len(self._open)} tokens are being reviewed already", rule="too_many_reviews")
            review = self._open[digest] = asyncio.create_task(self._review(token, digest))
        return await asyncio.shield(review)

    async def _review(self, token: str, digest: bytes) -> Verdict:
        try:
            verdict = await self._verdict(token)
        finally:
            del self._open[digest]
        if isinstance(verdict, Caller):
            self._good.put(digest, verdict, ends_at=self._now() + self._rules.good_for)
        elif isinstance(verdict, Unauthenticated):
            self._bad.put(digest, verdict, ends_at=self._now() + self._rules.bad_for)
        return verdict

    async def _verdict(self, token: str) -> Verdict:
        try:
            async with asyncio.timeout(self._rules.deadline.total_seconds()), self._turns:
                review = await self._reviewer.review(token, (self._rules.audience,))
            return _caller(review, self._rules)
        except (Unauthenticated, Unavailable) as error:
            return error
        except TimeoutError:
            deadline = format_duration(self._rules.deadline)
            return Unavailable(f"the token was not reviewed within {deadline}", rule="token_review_timeout")


def _caller(review: Review, rules: ReviewRules) -> Caller:
    """Whom a review is about. Raises Unauthenticated."""
    if not review.authenticated:
        raise _refused(f"it is not good: {review.error[:_MAX_SHOWN]!a}", "token_review_refused")
    if rules.audience not in review.audiences:  # a server that ignores audiences says none
        told = ", ".join(review.audiences)[:_MAX_SHOWN]
        raise _refused(f"it is for {told!a}, not for {rules.audience!a}", "token_review_audience")
    return Caller(Method.TOKEN_REVIEW, review.username, service_account_id(review.username, rules.trust_domain))


def _refused(why: str, rule: str) -> Unauthenticated:
    return Unauthenticated(f"token review: {why}", rule=rule)
