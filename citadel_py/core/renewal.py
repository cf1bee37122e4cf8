"""When to renew and when to try again: pure functions of moments and one uniform draw."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from citadel_py.core.errors import InvalidConfiguration


@dataclass(frozen=True, slots=True)
class RenewalPolicy:
    """The window, as fractions of the time between issue and expiry, in which renewal starts.

    A wide window keeps a fleet that started together from renewing together; it ends well before
    expiry so that an authority that is away for a third of a lifetime is not noticed.
    """

    earliest: float = 0.5
    latest: float = 0.66

    def __post_init__(self) -> None:
        if not 0 < self.earliest <= self.latest < 1:
            raise InvalidConfiguration(
                f"renewal window {self.earliest}..{self.latest} is not inside 0..1", rule="renewal_window"
            )

    def renew_at(self, issued_at: datetime, not_after: datetime, uniform: float) -> datetime:
        """The moment to renew. `uniform` in [0, 1) is drawn once per certificate and kept with it."""
        fraction = self.earliest + (self.latest - self.earliest) * uniform
        return issued_at + (not_after - issued_at) * fraction


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delay with full jitter, bounded by what is left of the certificate's life."""

    initial: timedelta = timedelta(seconds=1)
    maximum: timedelta = timedelta(minutes=5)
    tries_before_expiry: int = 10

    def retry_at(
        self,
        now: datetime,
        failures: int,
        not_after: datetime | None,
        uniform: float,
        *,
        asked: timedelta | None = None,
    ) -> datetime:
        """The moment of the next attempt after `failures` (>= 1) failed ones in a row.

        While a certificate is still valid the delay is at most a tenth of its remaining life, so
        that there are always several more attempts; it is never shorter than half of `initial`. Who
        `asked` to wait longer is obeyed within the same bounds.
        """
        longest = self.maximum
        if not_after is not None and not_after > now:
            longest = min(longest, (not_after - now) / self.tries_before_expiry)
        ceiling = min(self.initial * float(2 ** min(failures - 1, 30)), longest)
        delay = max(ceiling * (0.5 + uniform / 2), self.initial / 2)
        return now + (max(delay, min(asked, longest)) if asked else delay)
