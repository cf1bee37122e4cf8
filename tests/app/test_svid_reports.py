"""What is logged and counted of renewals, and how loudly."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
import structlog
from structlog.typing import EventDict

from citadel_py.app.svid_reports import SVIDReports
from citadel_py.core.errors import PermissionDenied, Unavailable
from citadel_py.core.ports import HeldSVID
from citadel_py.core.spiffe import SpiffeID
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.rotator.judgement import Urgency
from citadel_py.rotator.renewer import Loaded, NotSaved, RenewalFailed, Renewed
from tests.store.things import NOW, new_held, new_pki

AWAY = Unavailable("the authority is away", rule="ca_call_failed", hint="start it")


@pytest.fixture(scope="module")
def held() -> HeldSVID:
    return new_held(new_pki())


@pytest.fixture
def metrics() -> AgentMetrics:
    return AgentMetrics()


@pytest.fixture
def tell(metrics: AgentMetrics) -> SVIDReports:
    return SVIDReports(metrics)


@pytest.fixture
def log() -> Iterator[list[EventDict]]:
    with structlog.testing.capture_logs() as events:
        yield events


def failed(held: HeldSVID | None, urgency: Urgency, error: Unavailable | PermissionDenied = AWAY) -> RenewalFailed:
    id = new_held(new_pki()).svid.id
    return RenewalFailed(id, error, 3, NOW + timedelta(seconds=9), urgency, held)


def sample(metrics: AgentMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def lines(log: list[EventDict]) -> list[tuple[object, object]]:
    return [(line["event"], line["log_level"]) for line in log]


def test_a_renewal_is_told_with_its_serial_and_its_moments(
    tell: SVIDReports, held: HeldSVID, log: list[EventDict], metrics: AgentMetrics
) -> None:
    tell(Renewed(held, None))
    (line,) = log
    assert (line["event"], line["log_level"]) == ("svid.renewed", "info")
    assert line["serial"] == held.svid.serial
    assert line["renew_at"].startswith(f"{held.renew_at:%FT%T}")
    assert sample(metrics, "citadel_svid_renewals_total", result="renewed") == 1


@pytest.mark.parametrize(
    ("urgency", "level"), [(Urgency.CALM, "warning"), (Urgency.PRESSING, "error"), (Urgency.EXPIRED, "error")]
)
def test_a_failure_is_told_the_louder_the_less_life_is_left(
    tell: SVIDReports, held: HeldSVID, log: list[EventDict], urgency: Urgency, level: str
) -> None:
    tell(failed(held, urgency))
    assert (log[0]["event"], log[0]["log_level"]) == ("svid.renewal_failed", level)
    assert (log[0]["error"], log[0]["rule"], log[0]["hints"]) == (
        "the authority is away",
        "ca_call_failed",
        ["start it"],
    )
    assert log[0]["failures"] == 3


def test_an_svid_that_expired_is_told_once_until_there_is_a_new_one(
    tell: SVIDReports, held: HeldSVID, log: list[EventDict]
) -> None:
    for report in (failed(held, Urgency.EXPIRED), failed(held, Urgency.EXPIRED), Renewed(held, held)):
        tell(report)
    tell(failed(held, Urgency.EXPIRED))
    told = [line for line in lines(log) if line[0] == "svid.expired"]
    assert told == [("svid.expired", "critical")] * 2


def test_failing_before_there_ever_was_an_svid_is_no_expiry(tell: SVIDReports, log: list[EventDict]) -> None:
    tell(failed(None, Urgency.EXPIRED))
    assert lines(log) == [("svid.renewal_failed", "error")]


@pytest.mark.parametrize(("error", "result"), [(AWAY, "unavailable"), (PermissionDenied("no"), "refused")])
def test_failures_are_counted_by_what_can_help(
    tell: SVIDReports, metrics: AgentMetrics, error: Unavailable | PermissionDenied, result: str
) -> None:
    tell(failed(None, Urgency.EXPIRED, error))
    assert sample(metrics, "citadel_svid_renewals_total", result=result) == 1


def test_an_svid_from_before_a_restart_is_told(tell: SVIDReports, held: HeldSVID, log: list[EventDict]) -> None:
    tell(Loaded(held, is_valid=True))
    tell(Loaded(held, is_valid=False))
    assert lines(log) == [("svid.loaded", "info"), ("svid.loaded", "info"), ("svid.expired", "critical")]


def test_what_could_not_be_saved_is_told_with_whether_proxies_have_it(
    tell: SVIDReports, held: HeldSVID, log: list[EventDict]
) -> None:
    tell(NotSaved(held, Unavailable("no space", rule="file_not_written"), NOW, is_published=False))
    tell(NotSaved(held, Unavailable("no space", rule="file_not_written"), NOW, is_published=True))
    assert lines(log) == [("svid.renewal_failed", "error")] * 2
    assert [line["is_published"] for line in log] == [False, True]


def test_the_end_of_one_identity_is_told_whatever_was_told_of_another(
    tell: SVIDReports, held: HeldSVID, log: list[EventDict]
) -> None:
    pki, other_id = new_pki(), SpiffeID.parse("spiffe://example.org/other")
    for each in (held, new_held(pki, other_id), held):
        tell(failed(each, Urgency.EXPIRED))
    assert [line["spiffe_id"] for line in log if line["event"] == "svid.expired"] == [str(held.svid.id), str(other_id)]


def test_no_line_holds_a_key(tell: SVIDReports, held: HeldSVID, log: list[EventDict]) -> None:
    for report in (Renewed(held, held), Loaded(held, is_valid=False), failed(held, Urgency.EXPIRED)):
        tell(report)
    assert "PRIVATE" not in repr(log)
