"""Pure decisions about SVIDs in hand: are they valid, when to renew them, how pressing is that, what may wait."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

from citadel_py.core.ports import HeldSVID, SignedReply
from citadel_py.core.renewal import RenewalPolicy

LEAST_PAUSE = timedelta(seconds=1)  # between two renewals, however short the lives that an authority gives
LATEST_ADVICE = 0.9  # of a life: an authority's advice to renew later than that is not taken
_PRESSING = 0.25  # of a life: renewal starts well before, so that something has been failing for a while
_LAST_PART = 0.1


class Urgency(StrEnum):
    """How much of an SVID's life is left."""

    CALM = "calm"
    PRESSING = "pressing"  # less than a quarter
    EXPIRED = "expired"  # nothing, or there never was an SVID


def is_valid(held: HeldSVID, now: datetime) -> bool:
    """Whether peers would take it at `now`."""
    return held.svid.not_before <= now < held.svid.not_after


def urgency(held: HeldSVID | None, now: datetime) -> Urgency:
    """How pressing the renewal of this SVID is."""
    if held is None or not is_valid(held, now):
        return Urgency.EXPIRED
    return Urgency.PRESSING if _part_left(held, now) < _PRESSING else Urgency.CALM


def renewal_moment(reply: SignedReply, policy: RenewalPolicy, *, now: datetime, uniform: float) -> datetime:
    """When to renew what was issued at `now`: as the authority advises within reason, else by one draw."""
    life = reply.svid.not_after - now
    earliest, latest = now + LEAST_PAUSE, now + life * LATEST_ADVICE
    if reply.renew_at is not None and earliest <= reply.renew_at <= latest:
        return reply.renew_at
    return max(policy.renew_at(now, reply.svid.not_after, uniform), earliest)


def may_wait_for_disk(published: HeldSVID | None, now: datetime) -> bool:
    """Whether the SVID that proxies have lasts long enough to hold back a new one that could not be saved.

    Saved before published is the rule, so that a restart finds what proxies have. But in the last
    tenth of a life, or with none at all, service counts for more.
    """
    return published is not None and is_valid(published, now) and _part_left(published, now) >= _LAST_PART


def _part_left(held: HeldSVID, now: datetime) -> float:
    return (held.svid.not_after - now) / (held.svid.not_after - held.issued_at)
