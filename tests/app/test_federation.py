"""Bundles of other trust domains from files: each by itself, the last good one wins."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from structlog.typing import EventDict

from citadel_py.app import federation as federation_module
from citadel_py.app.federation import Federation
from citadel_py.config import FederatedFile
from citadel_py.core.bundle import Bundle
from citadel_py.core.errors import InvalidConfiguration
from citadel_py.core.spiffe import TrustDomain
from tests.app.agent_support import running, settings_of
from tests.app.serve_support import write_authority
from tests.store.things import new_pki

FRIEND, OTHER = TrustDomain("friend.test"), TrustDomain("other.test")


@pytest.fixture
def log() -> Iterator[list[EventDict]]:
    with structlog.testing.capture_logs() as events:
        yield events


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name, for a Unix socket's path has few bytes."""
    with tempfile.TemporaryDirectory(prefix="citadel-") as path:
        yield Path(path)


class Scene:
    """Two trust domains whose bundles are in files."""

    def __init__(self, place: Path) -> None:
        self.files = (FederatedFile(FRIEND, place / "friend.pem"), FederatedFile(OTHER, place / "other.json"))
        self.changes = 0
        self.federation = Federation(self.files, self._count)
        self.friend, self.other = new_pki("friend.test").bundle, new_pki("other.test").bundle
        self.files[0].path.write_bytes(self.friend.to_pem())
        self.files[1].path.write_bytes(self.other.to_jwks())

    def _count(self) -> None:
        self.changes += 1


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def hashes(*bundles: Bundle) -> list[str]:
    return [bundle.content_hash for bundle in bundles]


async def test_bundles_are_read_as_pem_and_in_the_spiffe_format(scene: Scene) -> None:
    await scene.federation.load()
    assert hashes(*scene.federation.bundles) == hashes(scene.friend, scene.other)
    assert [bundle.trust_domain for bundle in scene.federation.bundles] == [FRIEND, OTHER]
    assert set(scene.federation.checks().values()) == {None}


async def test_only_another_content_is_a_change(scene: Scene) -> None:
    await scene.federation.load()
    scene.files[0].path.write_bytes(b"a comment\n" + scene.friend.to_pem())
    await scene.federation.load()
    assert scene.changes == 1
    renewed = new_pki("friend.test").bundle
    scene.files[0].path.write_bytes(renewed.to_pem())
    await scene.federation.load()
    assert scene.changes == 2
    assert hashes(*scene.federation.bundles) == hashes(renewed, scene.other)


@pytest.mark.parametrize("broken", [b"", b"no bundle", b"{}", None])
async def test_a_file_that_goes_bad_takes_nothing_away_and_is_told_once(
    scene: Scene, broken: bytes | None, log: list[EventDict]
) -> None:
    await scene.federation.load()
    if broken is None:
        scene.files[0].path.unlink()
    else:
        scene.files[0].path.write_bytes(broken)
    for _ in range(2):
        await scene.federation.load()
    assert hashes(*scene.federation.bundles) == hashes(scene.friend, scene.other)
    assert scene.changes == 1
    assert set(scene.federation.checks().values()) == {None}
    (line,) = [line for line in log if line["event"] == "federation.failed"]
    assert (line["trust_domain"], line["is_served"]) == ("friend.test", True)
    assert str(scene.files[0].path) in line["error"]


async def test_a_file_that_was_never_good_hurts_no_other_and_is_a_problem_until_it_is(scene: Scene) -> None:
    scene.files[0].path.unlink()
    await scene.federation.load()
    assert hashes(*scene.federation.bundles) == hashes(scene.other)
    checks = scene.federation.checks()
    assert checks["federated other.test"] is None
    assert str(scene.files[0].path) in (checks["federated friend.test"] or "")
    scene.files[0].path.write_bytes(scene.friend.to_pem())
    await scene.federation.load()
    assert set(scene.federation.checks().values()) == {None}


async def test_an_agent_serves_federated_bundles_and_what_becomes_of_them(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("citadel_py.app.agent.configure", lambda *_: None)
    monkeypatch.setattr(federation_module, "READ_EVERY", federation_module.READ_EVERY / 500)
    write_authority(place / "ca")
    file = place / "friend.pem"
    file.write_bytes(new_pki("friend.test").bundle.to_pem())
    settings = settings_of(place, ca_dir=place / "ca", federated=(FederatedFile(FRIEND, file),))
    async with running(settings) as agent:
        names = ("spiffe://friend.test", "ALL")
        before = await agent.secrets(*names)
        for name in names:
            assert before[name].validation_context.custom_validator_config.name == "envoy.tls.cert_validator.spiffe"
        file.write_bytes(new_pki("friend.test").bundle.to_pem())
        while not agent.told("bundle.changed")[1:]:
            await agent.ready()
        after = await agent.secrets(*names)
        assert all(before[name] != after[name] for name in names)


async def test_an_agent_may_serve_its_own_bundle_with_the_spiffe_validator(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("citadel_py.app.agent.configure", lambda *_: None)
    write_authority(place / "ca")
    async with running(settings_of(place, ca_dir=place / "ca", root_validator="spiffe")) as agent:
        context = (await agent.secrets("ROOTCA"))["ROOTCA"].validation_context
        assert context.custom_validator_config.name == "envoy.tls.cert_validator.spiffe"
        assert not context.HasField("trusted_ca")


def test_a_setting_names_trust_domain_and_file(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, ca_dir=tmp_path, federated="friend.test=a.pem, spiffe://other.test=b=c.pem")
    assert settings.federated == (FederatedFile(FRIEND, Path("a.pem")), FederatedFile(OTHER, Path("b=c.pem")))


@pytest.mark.parametrize(
    ("text", "rule"),
    [("friend.test", "federated_file"), ("friend.test=", "federated_file")],
)
def test_a_setting_without_a_file_is_refused(text: str, rule: str) -> None:
    with pytest.raises(InvalidConfiguration) as refused:
        FederatedFile.parse(text)
    assert refused.value.rule == rule


@pytest.mark.parametrize("text", ["example.org=own.pem", "friend.test=a.pem,friend.test=b.pem"])
def test_the_own_trust_domain_and_one_named_twice_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration) as refused:
        settings_of(tmp_path, ca_dir=tmp_path, federated=text)
    assert refused.value.rule == "settings_conflict"
