"""The trust stream as an agent has it: what it keeps, by which certificate it calls, and whom hints concern."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest
import structlog
from structlog.typing import EventDict

from citadel_py.agent.ca_client import CAAddress, CAClient
from citadel_py.app import trust_following
from citadel_py.app.agent_trust import AgentTrust
from citadel_py.app.federation import Federation
from citadel_py.app.runtime import utcnow
from citadel_py.app.trust_following import TRUST, TrustFollowing, agent_name
from citadel_py.app.trust_reports import TrustReports
from citadel_py.core.bundle import Bundle
from citadel_py.core.crl import build_crl
from citadel_py.core.ports import HeldSVID
from citadel_py.core.spiffe import SpiffeID
from citadel_py.core.trust import RenewalHint, Trust
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.sds.evidence import Evidence
from citadel_py.store.trust import TrustFile
from tests.app.agent_support import WEB, settings_of
from tests.ca.support import HOUR, TD, make_authority, make_engine, mint, until

NOW = utcnow().replace(microsecond=0)
ENGINE = make_engine(NOW)
BUNDLE = ENGINE.issuer.bundle


def held_svid(*, ttl: timedelta = HOUR) -> HeldSVID:
    made = mint(ENGINE, WEB.path, now=NOW, ttl=ttl)
    return HeldSVID(made.svid, made.key, BUNDLE, issued_at=NOW, renew_at=NOW)


@dataclass
class Node:
    """What an agent has when it begins to follow."""

    place: Path
    held: HeldSVID | None = None
    hurried: list[SpiffeID] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.place.joinpath("state").mkdir(exist_ok=True)
        source = self.source = CAClient(
            CAAddress("localhost", 1, "localhost:2"), read_roots=BUNDLE.to_pem, read_token=None, now=utcnow
        )
        settings = settings_of(self.place, ca="localhost:1", ca_bundle=self.place / "ca.crt")
        self.following = TrustFollowing(
            settings,
            source,
            TrustReports(Evidence(lambda: 0.0)),
            held=lambda _id: self.held,
            take=lambda _trust: None,
            hurry=self.hurried.append,
            metrics=AgentMetrics(),
        )

    @property
    def file(self) -> TrustFile:
        return TrustFile(self.place / "state" / TRUST)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def log() -> Iterator[list[EventDict]]:
    with structlog.testing.capture_logs() as events:
        yield events


async def test_what_was_kept_is_there_without_lists_that_have_ended(node: Node) -> None:
    root, signer = make_authority(NOW)
    crls = tuple(build_crl(each, [], number=1, now=NOW - HOUR, next_update=NOW) for each in (root, signer))
    trust = Trust(Bundle(TD, (root.certificate,), 3), crls, (signer.certificate,))
    node.file.save(trust, NOW)

    assert await node.following.load() == (replace(trust, crls=()), NOW)


async def test_before_anything_was_kept_there_is_nothing(node: Node) -> None:
    assert await node.following.load() is None


async def test_a_damaged_file_is_told_and_counts_as_none(node: Node, log: list[EventDict]) -> None:
    (node.place / "state" / TRUST).write_text("{}")
    (node.place / "state" / TRUST).chmod(0o600)

    assert await node.following.load() is None
    assert [each["rule"] for each in log if each["event"] == "trust.refused"] == ["trust_file_corrupt"]


async def test_without_a_certificate_there_is_no_door(node: Node) -> None:
    assert await node.following.door(is_doubtful=False) is None


async def test_the_door_is_verified_by_what_is_trusted_now(node: Node) -> None:
    root, _ = make_authority(NOW)
    node.held = held_svid()
    node.file.save(Trust(BUNDLE.with_authorities((*BUNDLE.authorities, root.certificate))), NOW)
    await node.following.load()

    door = await node.following.door(is_doubtful=False)

    assert door is not None
    assert door.address == "localhost:2"
    assert door.chain == node.held.svid.chain_pem()
    assert door.roots.count(b"BEGIN CERTIFICATE") == 2


async def test_a_hint_renews_whom_it_concerns_at_once(node: Node) -> None:
    node.held = held_svid()
    node.following.obey(RenewalHint(1, frozenset({"ab"})))
    node.following.obey(RenewalHint(2, frozenset({node.held.svid.serial})))
    node.following.obey(RenewalHint(3, authority_id=node.held.svid.authority_id))
    await until(lambda: len(node.hurried) == 2)

    assert node.hurried == [WEB, WEB]


async def test_a_hint_with_time_is_spread_and_forgotten_by_who_renewed_meanwhile(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust_following, "uniform", lambda: 0.5)
    for number, within in enumerate((timedelta(milliseconds=40), timedelta(milliseconds=80))):
        node.held = held_svid()
        hint = RenewalHint(number, frozenset({node.held.svid.serial}), renew_before=utcnow() + within)
        node.following.obey(hint)
    assert node.hurried == []
    await until(lambda: bool(node.hurried))

    assert node.hurried == [WEB]  # by the second alone, whose moment came after that of the first


def test_agents_of_one_machine_have_names_of_their_own(tmp_path: Path) -> None:
    one, other = agent_name(tmp_path / "one"), agent_name(tmp_path / "other")

    assert one != other
    assert one == agent_name(tmp_path / "one")
    assert len(agent_name(tmp_path / ("é" * 200)).encode()) <= 128


# --- what is trusted where both certificates and the stream bring it


def learned(*, is_told: bool) -> AgentTrust:
    """After a certificate came with another bundle than the stream did before."""
    root, _ = make_authority(NOW)
    trust = AgentTrust(Federation((), lambda: None), utcnow)
    trust.is_live = True
    trust.replace(Trust(BUNDLE.with_authorities((*BUNDLE.authorities, root.certificate))))
    trust.learn([held_svid()], is_told=is_told)
    return trust


@pytest.mark.parametrize("is_told", [True, False])
def test_a_certificate_brings_no_older_bundle_while_changes_are_told(*, is_told: bool) -> None:
    current = learned(is_told=is_told).current

    assert current is not None
    assert len(current.own.bundle.authorities) == (2 if is_told else 1)


def test_a_certificate_brings_the_bundle_that_it_needs() -> None:
    root, _ = make_authority(NOW)
    trust = AgentTrust(Federation((), lambda: None), utcnow)
    trust.is_live = True
    trust.replace(Trust(Bundle(TD, (root.certificate,), 9)))

    assert trust.learn([held_svid()], is_told=True)


@pytest.mark.parametrize("is_later", [True, False])
def test_of_what_was_kept_the_later_one_counts(*, is_later: bool) -> None:
    root, _ = make_authority(NOW)
    trust = AgentTrust(Federation((), lambda: None), utcnow)
    trust.learn([held_svid()])
    kept = Trust(Bundle(TD, (root.certificate, *BUNDLE.authorities), 2))

    assert trust.restore(kept, NOW + HOUR if is_later else NOW - HOUR) == is_later
