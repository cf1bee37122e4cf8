"""Settings of the certificate service."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from citadel_py.config.base import Settings, conflict
from citadel_py.config.values import AddressSetting, DurationSetting, NamesSetting, WorkersSetting
from citadel_py.core.admission import IDENTITY, OVERALL, AdmissionLimits
from citadel_py.core.policy import TTLLimits
from citadel_py.core.rates import Rate
from citadel_py.core.renewal import RenewalPolicy


class ServeSettings(Settings):
    """Settings of `citadel-py serve`."""

    section = "serve"

    dir: Path
    listen: AddressSetting
    listen_mtls: AddressSetting | None = None
    admin: AddressSetting
    workers: WorkersSetting = 1
    server_name: NamesSetting = ()
    passphrase_file: Path | None = None
    ledger: str | None = None
    jwt_issuer: str | None = None
    jwt_jwks: str | None = None
    jwt_audience: str = "istio-ca"
    clock_skew: DurationSetting = timedelta(seconds=10)
    default_ttl: DurationSetting = timedelta(hours=24)
    min_ttl: DurationSetting = timedelta(minutes=1)
    max_ttl: DurationSetting = timedelta(days=90)
    ttl_spread: float = Field(default=0.1, ge=0, le=0.5)
    renew_earliest: float = 0.5
    renew_latest: float = 0.66
    issue_rate: int = OVERALL.count
    caller_rate: int = 500
    identity_limit: int = IDENTITY.count
    identity_window: DurationSetting = IDENTITY.window
    policy: Path | None = None
    probe_every: DurationSetting = timedelta(seconds=30)
    trust_clock: bool = False
    relax_names: bool = False
    allow_ed25519: bool = False

    @property
    def ttl_limits(self) -> TTLLimits:
        return TTLLimits(self.default_ttl, self.min_ttl, self.max_ttl)

    @property
    def renewal(self) -> RenewalPolicy:
        """The window in which clients are asked to renew."""
        return RenewalPolicy(self.renew_earliest, self.renew_latest)

    @property
    def admission(self) -> AdmissionLimits:
        """What one caller may ask for at once is what it may have in twenty seconds."""
        return AdmissionLimits(
            overall=Rate(self.issue_rate, timedelta(seconds=1)),
            caller=Rate(self.caller_rate * 20, timedelta(seconds=20)),
            identity=Rate(self.identity_limit, self.identity_window),
        )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        _ = self.ttl_limits, self.renewal, self.admission
        if (self.jwt_issuer is None) != (self.jwt_jwks is None):
            raise conflict("jwt_issuer and jwt_jwks belong together: whose tokens, and the keys that verify them")
        return self
