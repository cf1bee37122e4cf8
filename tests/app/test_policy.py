"""`serve --policy`: rules from the first request on, followed by content, the last good ones win."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtensionOID

from citadel_py.app import serve as serve_module
from citadel_py.core.errors import InvalidConfiguration
from citadel_py.core.keys import KeyType, generate_key
from tests.app.serve_support import ID, Running, join_token, serving, settings_of, write_authority
from tests.ca.support import call, until

GRANTED = f'trust_domain = "example.org"\n[[rule]]\nname = "names"\nwho.id = "{ID}"\nwhat.dns = "one.machine"\n'
DENIED = f'trust_domain = "example.org"\n[[rule]]\nname = "no"\neffect = "deny"\nwho.id = "{ID}"\n'


@pytest.fixture(autouse=True)
def _logging_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_module, "configure", lambda *_: None)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    (tmp_path / "policy.toml").write_text(GRANTED)
    return tmp_path / "policy.toml"


@pytest.fixture
async def service(tmp_path: Path, policy: Path) -> AsyncIterator[Running]:
    write_authority(tmp_path / "D")
    async with serving(settings_of(tmp_path / "D", policy=policy)) as running:
        yield running


def csr_for(*names: str) -> str:
    key = generate_key(KeyType.P256)
    san = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    builder = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(san, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


async def names_granted(service: Running, *names: str) -> list[str]:
    """The DNS names in the certificate for a CSR that asks for these."""
    async with service.channel() as channel:
        reply = await call(channel, token=join_token(service.directory), csr=csr_for(*names))
    leaf = service.verified(reply).leaf
    found = leaf.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    assert isinstance(found, x509.SubjectAlternativeName)
    return found.get_values_for_type(x509.DNSName)


async def refusal(service: Running, *names: str) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await names_granted(service, *names)
    return caught.value.code(), caught.value.details() or ""


def events(service: Running, name: str) -> list[str]:
    return [str(line.get("error", "")) for line in service.events if line["event"] == name]


def put(policy: Path, text: str) -> None:
    """The new content at once, as an operator should: nobody reads half of it."""
    beside = policy.with_suffix(".new")
    beside.write_text(text)
    beside.replace(policy)


def remove(policy: Path) -> None:
    policy.unlink()


async def change(service: Running, policy: Path, text: str, event: str) -> None:
    """Replace the file, ask for a look, and wait until it was taken or rejected."""
    before = len(events(service, event))
    put(policy, text)
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: len(events(service, event)) > before)


async def test_a_dns_name_that_a_rule_grants_is_in_the_certificate_and_the_log_names_the_rule(service: Running) -> None:
    assert await names_granted(service, "one.machine") == ["one.machine"]
    (line,) = [line for line in service.events if line["event"] == "rpc.finished" and "serial" in line]
    assert line["decided_by"] == "rule 1 (names)"


async def test_a_dns_name_that_no_rule_grants_is_refused_by_name(service: Running) -> None:
    code, text = await refusal(service, "one.machine", "two.machine")
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "'two.machine'" in text


async def test_new_rules_hold_from_the_next_request_on(service: Running, policy: Path) -> None:
    await change(service, policy, DENIED, "policy.loaded")
    code, text = await refusal(service, "one.machine")
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "rule 1 (no) denies it" in text


@pytest.mark.parametrize("text", ["no TOML", 'trust_domain = "other.org"', GRANTED.replace("what", "waht")])
async def test_a_broken_file_changes_nothing_and_is_told_as_degraded(service: Running, policy: Path, text: str) -> None:
    await change(service, policy, text, "policy.rejected")
    assert str(policy) in events(service, "policy.rejected")[0]
    assert await names_granted(service, "one.machine") == ["one.machine"]
    status, page = await service.ready()
    assert status == 200
    assert f"[degraded] policy: {policy}: " in page
    assert page.endswith("\nok\n")

    await change(service, policy, GRANTED, "policy.loaded")
    assert "[ok] policy\n" in (await service.ready())[1]


async def test_a_file_that_went_away_denies_and_grants_as_before(service: Running, policy: Path) -> None:
    remove(policy)
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: bool(events(service, "policy.rejected")))
    assert await names_granted(service, "one.machine") == ["one.machine"]


def is_served_under_another_authority(service: Running) -> bool:
    """Whether the serving certificate was made anew after another authority than the first was activated."""
    lines = service.events
    activated = [(at, line["authority"]) for at, line in enumerate(lines) if line["event"] == "authority.activated"]
    new = [at for at, authority in activated if authority != activated[0][1]]
    return bool(new) and any(line["event"] == "serving_certificate.rotated" for line in lines[new[0] :])


async def test_rules_stay_when_the_authority_is_replaced(service: Running, policy: Path) -> None:
    await change(service, policy, DENIED, "policy.loaded")
    write_authority(service.directory, force=True)
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: is_served_under_another_authority(service))
    assert (await refusal(service))[0] is grpc.StatusCode.PERMISSION_DENIED


async def test_changes_are_noticed_without_a_signal_and_the_same_problem_is_told_once(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("citadel_py.app.policy.LOOK_EVERY", timedelta(milliseconds=5))
    write_authority(tmp_path / "D")
    async with serving(settings_of(tmp_path / "D", policy=policy)) as service:
        put(policy, "broken")
        await until(lambda: bool(events(service, "policy.rejected")))
        put(policy, "broken ")  # what is wrong is the same
        put(policy, DENIED)
        await until(lambda: len(events(service, "policy.loaded")) == 2)
        assert (await refusal(service))[0] is grpc.StatusCode.PERMISSION_DENIED
        assert len(set(events(service, "policy.rejected"))) == len(events(service, "policy.rejected"))


@pytest.mark.parametrize(("text", "rule"), [("broken", "policy_syntax"), (None, "file_missing")])
async def test_a_file_that_cannot_be_used_is_an_error_at_the_start(
    tmp_path: Path, policy: Path, text: str | None, rule: str
) -> None:
    write_authority(tmp_path / "D")
    remove(policy) if text is None else put(policy, text)
    with pytest.raises(InvalidConfiguration) as caught:
        await serve_module.serve(settings_of(tmp_path / "D", policy=policy))
    assert caught.value.rule == rule
    assert str(policy) in str(caught.value)
