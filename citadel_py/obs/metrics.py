"""The metrics of a process, declared in one place and without globals: each process makes one object.

Names are `citadel_*` with base units; what expires is told as a moment, not as a countdown. No label
holds a SPIFFE ID or anything else that a client chooses. Each one is in docs/reference/metrics.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from citadel_py import __version__

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)

# Else each counter and histogram has a second, unwanted sample.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library forgot its type


class Metrics:
    """What every process that serves RPCs tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.build = Gauge(
            "citadel_build_info", "Always 1; the label says what runs.", ["version"], registry=self.registry
        )
        self.build.labels(version=__version__).set(1)
        self.check_ok = Gauge(
            "citadel_check_ok", "1 for each check of health that is well, 0 for each that is not.", ["check"],
            registry=self.registry,
        )  # fmt: skip
        self.rpc_duration = Histogram(
            "citadel_rpc_duration_seconds",
            "Time from the start of an RPC to its end; for streams, how long they were open.",
            ["method", "code"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.rpc_in_flight = Gauge(
            "citadel_rpc_in_flight", "RPCs and streams that are open now.", ["method"], registry=self.registry
        )
        self.rpc_refusals = Counter(
            "citadel_rpc_refusals_total",
            "RPCs that ended in one of our own errors, by its rule.",
            ["method", "reason"],
            registry=self.registry,
        )

    def tell_checks(self, checks: Mapping[str, str | None]) -> None:
        """What was found by these checks; others are forgotten."""
        self.check_ok.clear()
        for name, problem in checks.items():
            self.check_ok.labels(name).set(problem is None)

    def exposition(self) -> bytes:
        """All of them in the Prometheus text format; its content type is CONTENT_TYPE."""
        return generate_latest(self.registry)

    def _moment(self, name: str, text: str) -> Gauge:
        """A point in time as Unix seconds; NaN until it is known, so that no alert takes it for 1970."""
        gauge = Gauge(name, text, registry=self.registry)
        gauge.set(math.nan)
        return gauge


class CAMetrics(Metrics):
    """What `serve` tells on top."""

    def __init__(self) -> None:
        super().__init__()
        self.authority_not_after = Gauge(
            "citadel_authority_not_after_timestamp_seconds",
            "When each certificate of the signing chain ends.",
            ["kind", "authority"],  # root or intermediate; the hex authority id
            registry=self.registry,
        )
        self.serving_certificate_not_after = self._moment(
            "citadel_serving_certificate_not_after_timestamp_seconds", "When the certificate of our own listeners ends."
        )
        self.certificates_issued = Counter(
            "citadel_certificates_issued_total", "Certificates handed out, by how the caller was attested.", ["method"],
            registry=self.registry,
        )  # fmt: skip
        self.admission_waiting = Gauge(
            "citadel_admission_waiting", "Requests that wait for their turn.", registry=self.registry
        )
        self.admission_in_works = Gauge(
            "citadel_admission_in_works", "Requests that are being signed or recorded.", registry=self.registry
        )
        self.admission_wait = Histogram(
            "citadel_admission_wait_seconds",
            "How long requests waited for their turn.",
            ["priority"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.admission_refusals = Counter(
            "citadel_admission_refusals_total", "Requests that were told to come back later, by rule.", ["reason"],
            registry=self.registry,
        )  # fmt: skip
        self.policy_reloads = Counter(
            "citadel_policy_reloads_total", "Readings of a policy file that had changed, by result.", ["result"],
            registry=self.registry,
        )  # fmt: skip
        self.crl_next_update = self._moment(
            "citadel_crl_next_update_timestamp_seconds", "When the first of the served revocation lists ends."
        )
        self.trust_streams = Gauge(
            "citadel_trust_streams", "Trust streams of agents that are open now.", registry=self.registry
        )
        self.trust_news = Counter("citadel_trust_news_total", "Messages sent on trust streams.", registry=self.registry)
        self.trust_proxies = Gauge(
            "citadel_trust_proxies",
            "Proxies and agents that report what they trust: current, behind, rejected or gone.",
            ["state"],
            registry=self.registry,
        )
        self.trust_oldest_sequence = Gauge(
            "citadel_trust_oldest_acknowledged_sequence",
            "The lowest bundle sequence that one of those who are here acknowledged last.",
            registry=self.registry,
        )
        self.probes = Counter(
            "citadel_probes_total", "The service's requests to itself by result: issued or failed.", ["result"],
            registry=self.registry,
        )  # fmt: skip
        self.probe_succeeded = self._moment(
            "citadel_probe_succeeded_timestamp_seconds", "When the service last got a certificate from itself."
        )
        self.clock_jumps = Counter(
            "citadel_clock_jumps_total", "Jumps of the wall clock, by direction: forward or back.", ["direction"],
            registry=self.registry,
        )  # fmt: skip
        self.clock_behind = Gauge(
            "citadel_clock_behind_seconds",
            "By how much the wall clock is behind the newest moment that the ledger or this process has seen.",
            registry=self.registry,
        )
        self.ledger_signed = self._moment(
            "citadel_ledger_signed_timestamp_seconds",
            "When the end of this process's chain in the ledger was last signed, or found to be signed already.",
        )
        self.ledger_entries = Counter(
            "citadel_ledger_entries_total", "Rows that this process made durable in the ledger.", registry=self.registry
        )
        self.ledger_commit_duration = Histogram(
            "citadel_ledger_commit_duration_seconds",
            "Time of one durable commit.",
            buckets=_SECONDS,
            registry=self.registry,
        )


class WorkersMetrics(Metrics):
    """What the supervisor of several workers tells beside their own."""

    def __init__(self) -> None:
        super().__init__()
        self.workers = Gauge("citadel_workers", "Workers that are ready to issue now.", registry=self.registry)
        self.worker_restarts = Counter(
            "citadel_worker_restarts_total", "Workers that ended unasked and were replaced.", registry=self.registry
        )
        self.worker_reloads = Counter(
            "citadel_worker_reloads_total",
            "Changed files that all workers took over together, or none did, by part and result.",
            ["part", "result"],
            registry=self.registry,
        )


class AgentMetrics(Metrics):
    """What `agent` tells on top."""

    def __init__(self) -> None:
        super().__init__()
        self.svid_not_after = self._moment(
            "citadel_svid_not_after_timestamp_seconds", "When the held SVID that ends first ends."
        )
        self.svid_renew_at = self._moment(
            "citadel_svid_renew_at_timestamp_seconds", "When the next renewal or attempt is due."
        )
        self.svids = Gauge(
            "citadel_svids",
            "Identities by how pressing their renewal is: calm, pressing, or expired, which is to have none, too.",
            ["urgency"],
            registry=self.registry,
        )
        self.svid_renewals = Counter(
            "citadel_svid_renewals_total", "Renewals by result: renewed, unavailable or refused.", ["result"],
            registry=self.registry,
        )  # fmt: skip
        self.trust_connected = Gauge(
            "citadel_trust_connected", "1 while the trust stream to the CA is open, else 0.", registry=self.registry
        )
        self.trust_received = Counter(
            "citadel_trust_received_total", "News of the CA by result: taken or refused.", ["result"],
            registry=self.registry,
        )  # fmt: skip
        self.trust_sequence = Gauge(
            "citadel_trust_sequence",
            "The sequence of the bundle that came over the trust stream.",
            registry=self.registry,
        )
        self.sds_streams = Gauge("citadel_sds_streams", "SDS streams that are open now.", registry=self.registry)
        self.sds_pushes = Counter("citadel_sds_pushes_total", "Responses sent to proxies.", registry=self.registry)
        self.sds_acks = Counter("citadel_sds_acks_total", "Pushes that a proxy acknowledged.", registry=self.registry)
        self.sds_nacks = Counter("citadel_sds_nacks_total", "Pushes that a proxy rejected.", registry=self.registry)
        self.workload_streams = Gauge(
            "citadel_workload_streams", "Streams of the Workload API that are open now.", registry=self.registry
        )
        self.workload_pushes = Counter(
            "citadel_workload_pushes_total", "Responses sent on streams of the Workload API.", registry=self.registry
        )
        self.output_writes = Counter(
            "citadel_output_writes_total", "Changes of the files in --out by result: written or failed.", ["result"],
            registry=self.registry,
        )  # fmt: skip
        self.hook_runs = Counter(
            "citadel_hook_runs_total", "Runs of hooks by kind (exec, signal) and result (ok, failed).",
            ["hook", "result"], registry=self.registry,
        )  # fmt: skip
