"""Answers of proxies are about versions of secrets; reports are about the trust that those were made of."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from citadel_py.app import trust_reports
from citadel_py.app.trust_reports import TrustReports
from citadel_py.core.bundle import Bundle
from citadel_py.core.secrets import CertificateSecret, TrustSecret
from citadel_py.core.trust import ProxyReport, Trust
from citadel_py.sds.evidence import Evidence, ProxyState
from tests.ca.support import TD, Clock, make_authority, until

ROOT, _ = make_authority(Clock().now())
OTHER, _ = make_authority(Clock().now())
OLD = Trust(Bundle(TD, (ROOT.certificate,), 1))
NEW = Trust(Bundle(TD, (ROOT.certificate, OTHER.certificate), 2))
STATE = ProxyState("unix:sds.sock", "envoy-1", "", "ROOTCA")


def secret(trust: Trust, name: str = "ROOTCA") -> TrustSecret:
    return TrustSecret(name, (trust.bundle,))


@dataclass(eq=False)
class Streams:
    """What proxies have now."""

    all: list[ProxyState] = field(default_factory=list)

    def states(self) -> Iterator[ProxyState]:
        return iter(self.all)


@pytest.fixture
def streams() -> Streams:
    return Streams()


@pytest.fixture
def reports(streams: Streams) -> Iterator[TrustReports]:
    evidence = Evidence(lambda: 0.0)
    with evidence.follow(streams):
        yield TrustReports(evidence)


def only(reports: TrustReports) -> ProxyReport:
    (report,) = reports.reports()
    return report


def test_an_acknowledged_secret_is_the_trust_that_it_was_made_of(reports: TrustReports, streams: Streams) -> None:
    reports.served([secret(OLD)], OLD)
    reports.served([secret(NEW)], NEW)
    streams.all = [replace(STATE, acknowledged=secret(OLD).version)]

    assert only(reports) == ProxyReport("unix:sds.sock envoy-1", "ROOTCA", OLD.version)


def test_a_rejected_one_is_told_by_a_code_and_never_by_words(reports: TrustReports, streams: Streams) -> None:
    reports.served([secret(OLD)], OLD)
    reports.served([secret(NEW)], NEW)
    streams.all = [replace(STATE, acknowledged=secret(OLD).version, rejected=secret(NEW).version)]

    report = only(reports)
    assert (report.acknowledged, report.rejected) == (OLD.version, NEW.version)
    assert (report.reason, report.rejections) == ("rejected_by_proxy", 1)


def test_what_did_not_change_by_another_trust_is_of_that_one_too(reports: TrustReports, streams: Streams) -> None:
    reports.served([secret(OLD)], OLD)
    streams.all = [replace(STATE, acknowledged=secret(OLD).version)]
    later = Trust(replace(OLD.bundle, sequence=9))
    reports.served([secret(later)], later)

    assert only(reports).acknowledged == later.version


def test_a_version_that_nobody_here_made_counts_as_none(reports: TrustReports, streams: Streams) -> None:
    reports.served([secret(OLD)], OLD)
    streams.all = [replace(STATE, acknowledged="of an earlier run")]

    assert only(reports).acknowledged is None


def test_certificates_are_not_reported(reports: TrustReports, streams: Streams) -> None:
    certificate = CertificateSecret("default", b"chain", b"key")
    reports.served([certificate, secret(OLD)], OLD)
    streams.all = [replace(STATE, resource="default", acknowledged=certificate.version)]

    assert list(reports.reports()) == []


def test_who_has_proven_an_id_is_called_by_it_too(reports: TrustReports, streams: Streams) -> None:
    reports.served([secret(OLD)], OLD)
    streams.all = [replace(STATE, peer="spiffe://example.org/gate", streams=0)]

    report = only(reports)
    assert report.proxy == "unix:sds.sock spiffe://example.org/gate envoy-1"
    assert report.streams == 0


def test_old_versions_are_forgotten(reports: TrustReports, streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_reports, "MAX_VERSIONS", 2)
    for name in ("one", "two", "ROOTCA"):
        reports.served([secret(OLD, name)], OLD)
    streams.all = [replace(STATE, resource="one", acknowledged=secret(OLD, "one").version)]

    assert only(reports).acknowledged is None


async def test_changes_are_told(reports: TrustReports) -> None:
    told: list[None] = []
    running = asyncio.create_task(reports.run(lambda: told.append(None)))
    await asyncio.sleep(0)
    reports.evidence.changed()
    await until(lambda: len(told) == 1)
    reports.served([secret(OLD)], OLD)
    await until(lambda: len(told) == 2)
    running.cancel()
