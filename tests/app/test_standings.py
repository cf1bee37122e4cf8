"""How each identity stands: readiness, counts and the status document, of one and of thousands."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta

import pytest

from citadel_py.app.standings import Standings
from citadel_py.core.errors import CitadelError, PermissionDenied, Unavailable
from citadel_py.core.ports import HeldSVID
from citadel_py.core.spiffe import SpiffeID
from citadel_py.core.x509svid import X509SVID
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.rotator.judgement import Urgency
from citadel_py.rotator.renewer import Loaded, NotSaved, RenewalFailed, Renewed
from tests.store.things import NOW, Pki, new_held, new_pki

HOUR = timedelta(hours=1)
AWAY = Unavailable("the CA is away", rule="ca_call_failed")
DENIED = PermissionDenied("you may not", rule="identity_not_granted")
IDS = [SpiffeID.parse(f"spiffe://example.org/{number}") for number in range(5)]


class World:
    def __init__(self, ids: list[SpiffeID], now: datetime = NOW) -> None:
        self.now = now
        self.metrics = AgentMetrics()
        sockets = {id: [f"unix:/run/{number}.sock"] for number, id in enumerate(ids)}
        self.standings = Standings(ids, sockets, self.metrics, lambda: self.now)

    def renewed(self, *held: HeldSVID) -> None:
        for each in held:
            self.standings(Renewed(each, None))

    def failed(self, id: SpiffeID, error: CitadelError, failures: int = 1) -> None:
        retry_at = self.now + timedelta(seconds=9)
        self.standings(RenewalFailed(id, error, failures, retry_at, Urgency.CALM, None))

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    def counts(self) -> dict[str, float | None]:
        return {str(level): self.sample("citadel_svids", urgency=level) for level in Urgency}

    def of(self, id: SpiffeID) -> dict[str, object]:
        document = json.loads(json.dumps(self.standings.document()))
        assert document["version"] == 1
        (found,) = [each for each in document["identities"] if each["spiffe_id"] == str(id)]
        assert isinstance(found, dict)
        return found


@pytest.fixture(scope="module")
def pki() -> Pki:
    return new_pki()


@pytest.fixture
def world() -> World:
    return World(IDS)


# --- of one


def test_of_the_only_identity_its_own_problem_is_told(pki: Pki) -> None:
    world = World(IDS[:1])
    assert world.standings.problem() == "there is none yet"
    held = new_held(pki, IDS[0])
    world.renewed(held)
    assert world.standings.problem() is None
    world.now = held.svid.not_after
    assert world.standings.problem() == f"it ended at {held.svid.not_after:%FT%TZ}"
    world.now = held.svid.not_before - HOUR
    assert str(world.standings.problem()).endswith("was the clock set back?")


def test_the_only_identity_that_is_refused_is_no_ready_agent() -> None:
    world = World(IDS[:1])
    world.failed(IDS[0], DENIED)
    assert world.standings.problem() == "there is none yet: you may not"
    assert world.standings.degraded() is None


# --- of several


def test_who_has_nothing_yet_takes_readiness_away(world: World, pki: Pki) -> None:
    world.renewed(*(new_held(pki, id) for id in IDS[1:]))
    assert world.standings.problem() == f"1 of 5 have no valid certificate: {IDS[0]}: there is none yet"
    world.failed(IDS[0], AWAY)
    assert world.standings.problem() is not None


def test_who_is_refused_degrades_an_agent_that_serves_others(world: World, pki: Pki) -> None:
    world.renewed(*(new_held(pki, id) for id in IDS[1:]))
    world.failed(IDS[0], DENIED)
    assert world.standings.problem() is None
    assert world.standings.degraded() == f"1 of 5 have no valid certificate: {IDS[0]}: there is none yet: you may not"
    world.renewed(new_held(pki, IDS[0]))
    assert world.standings.degraded() is None


def test_an_agent_whose_every_identity_is_refused_is_not_ready(world: World) -> None:
    for id in IDS:
        world.failed(id, DENIED)
    assert world.standings.degraded() is None
    told = world.standings.problem()
    assert told is not None
    assert told.startswith("5 of 5 have no valid certificate: ")
    assert str(IDS[2]) in told
    assert str(IDS[3]) not in told, "a line has an end, however many they are"
    assert told.endswith("; ...")


def test_metrics_count_by_urgency_and_tell_the_first_end(world: World, pki: Pki) -> None:
    assert world.counts() == {"calm": 0, "pressing": 0, "expired": 5}
    short, long = new_held(pki, IDS[0], ttl=HOUR), new_held(pki, IDS[1], ttl=10 * HOUR)
    world.renewed(short, long)
    assert world.counts() == {"calm": 2, "pressing": 0, "expired": 3}
    assert world.sample("citadel_svid_not_after_timestamp_seconds") == short.svid.not_after.timestamp()
    world.now = NOW + 0.9 * HOUR
    assert world.counts() == {"calm": 1, "pressing": 1, "expired": 3}
    world.now = NOW + 2 * HOUR
    assert world.counts() == {"calm": 1, "pressing": 0, "expired": 4}


# --- the document


def test_the_document_tells_of_each_what_it_holds_and_what_went_wrong(world: World, pki: Pki) -> None:
    held = new_held(pki, IDS[0])
    world.standings(Loaded(held, is_valid=True))
    world.failed(IDS[0], AWAY, failures=3)
    assert world.of(IDS[0]) == {
        "spiffe_id": str(IDS[0]),
        "sockets": ["unix:/run/0.sock"],
        "urgency": "calm",
        "serial": held.svid.serial,
        "not_after": held.svid.not_after.isoformat(timespec="seconds"),
        "renew_at": (NOW + timedelta(seconds=9)).isoformat(timespec="seconds"),
        "failures": 3,
        "last_error": {"rule": "ca_call_failed", "message": "the CA is away"},
    }
    world.renewed(held)
    after = world.of(IDS[0])
    assert (after["failures"], after["last_error"]) == (0, None)
    assert after["renew_at"] == held.renew_at.isoformat(timespec="seconds")


def test_the_most_pressing_stand_first(world: World, pki: Pki) -> None:
    world.renewed(*(new_held(pki, id, ttl=HOUR * (5 - number)) for number, id in enumerate(IDS[:3])))
    document = json.loads(json.dumps(world.standings.document()))
    listed = [each["spiffe_id"] for each in document["identities"]]
    assert listed == [str(IDS[number]) for number in (3, 4, 2, 1, 0)]


def test_what_is_not_saved_is_a_failure_whether_proxies_have_it_or_not(world: World, pki: Pki) -> None:
    full = Unavailable("no space", rule="file_not_written")
    held = new_held(pki, IDS[0])
    world.standings(NotSaved(held, full, NOW, is_published=False))
    assert (world.of(IDS[0])["serial"], world.of(IDS[0])["failures"]) == (None, 1)
    world.standings(NotSaved(held, full, NOW, is_published=True))
    assert (world.of(IDS[0])["serial"], world.of(IDS[0])["failures"]) == (held.svid.serial, 2)


def test_nothing_secret_is_told(world: World, pki: Pki) -> None:
    world.renewed(new_held(pki, IDS[0]))
    world.failed(IDS[1], Unavailable("it says -----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----"))
    text = json.dumps(world.standings.document())
    assert "MIGH" not in text
    assert "BEGIN CERTIFICATE" not in text


def test_ten_thousand_are_counted_and_told_in_a_moment(pki: Pki) -> None:
    ids = [SpiffeID.parse(f"spiffe://example.org/many/{number}") for number in range(10_000)]
    world, held = World(ids), new_held(pki)
    world.renewed(
        *(HeldSVID(X509SVID(id, held.svid.chain), held.key, held.bundle, held.issued_at, held.renew_at) for id in ids)
    )
    begin = time.process_time()
    assert world.counts()["calm"] == 10_000
    assert world.standings.problem() is None
    assert len(json.dumps(world.standings.document())) < 10_000 * 500
    assert time.process_time() - begin < 2.0
