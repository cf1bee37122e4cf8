"""`envoy bootstrap` and `check` on real Envoys: what the one prints works, and the other sees what is really so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from citadel_py.core.context_options import ContextOptions, PeerMatcher
from citadel_py.core.keys import KeyType, generate_key, private_key_pem
from citadel_py.core.secrets import CertificateSecret
from citadel_py.sds.names import secrets_of
from demo_parts.children import Children
from demo_parts.envoys import Envoy, EnvoyStarter
from tests.cli.support import Outcome, cli
from tests.envoy.conftest import ServeSDS, ServeTCP
from tests.envoy.support import CLIENT, SERVER, CarelessServer, Signer, is_admitted, start_server, tls_client
from tests.envoy.test_hardened_bootstraps import certificate, empty, status, typeless
from tests.envoy.test_secrets import total_is

NAMES = ("--listen", "127.0.0.1:0", "--admin-port", "0")


def printed(*arguments: object) -> dict[str, Any]:
    outcome = cli("envoy", "bootstrap", *arguments)
    assert outcome.code == 0, outcome.err
    bootstrap: dict[str, Any] = outcome.json
    return bootstrap


def server_of(sds: Path, *more: str) -> dict[str, Any]:
    return printed("--server", "--sds", f"unix:{sds}", "--trust-domain", "example.org", *NAMES, *more)


async def check(envoy: Envoy, *more: str, now: datetime | None = None) -> Outcome:
    address = envoy.admin.removeprefix("http://")
    return await asyncio.to_thread(cli, "check", "--envoy", address, *more, now=now or datetime.now(UTC))


def rules(outcome: Outcome) -> list[str]:
    return [problem["rule"] for problem in outcome.json["problems"]]


@pytest.mark.parametrize("more", [(), ("--delta",), ("--id", str(SERVER), "--bundle", "ALL")])
async def test_a_printed_server_works_and_nothing_is_wrong_with_it(
    more: tuple[str, ...], each_envoys: EnvoyStarter, serve_sds: ServeSDS, signer: Signer, place: Path
) -> None:
    held = signer.mint(SERVER)
    _, sds = await serve_sds(held)
    envoy = await each_envoys.start("server", server_of(sds, *more))
    port = await envoy.port("inbound")
    assert await is_admitted(port, tls_client(place, signer.mint(CLIENT)))
    assert not await is_admitted(port, tls_client(place))
    outcome = await check(envoy, "--json")
    assert (outcome.code, outcome.json["problems"], outcome.json["is_well"]) == (0, [], True)
    (leaf,) = outcome.json["presented"]
    assert (leaf["ids"], int(leaf["serial"], 16)) == ([str(SERVER)], held.svid.leaf.serial_number)
    assert leaf["not_after"] == f"{held.svid.not_after:%FT%TZ}"
    assert {each["kind"] for each in outcome.json["secrets"]} == {"certificate", "trust"}
    text = await check(envoy)
    assert text.code == 0
    assert str(SERVER) in text.out


async def test_a_printed_server_of_an_agent_on_another_machine_works_and_nothing_is_wrong_with_it(
    each_envoys: EnvoyStarter, serve_tcp: ServeTCP, signer: Signer, place: Path
) -> None:
    _, agent = await serve_tcp(signer.mint(SERVER))
    for part in ("certificate", "trust"):
        outcome = cli("envoy", "credentials", part, agent.credentials)
        (agent.credentials / f"sds-{part}.json").write_text(outcome.out)
    options = ("--sds", str(agent.address), "--sds-id", str(agent.id), "--sds-credentials", agent.credentials)
    bootstrap = printed("--server", *options, "--trust-domain", "example.org", *NAMES)
    envoy = await each_envoys.start("server", bootstrap)
    assert await is_admitted(await envoy.port("inbound"), tls_client(place, signer.mint(CLIENT)))
    assert (await check(envoy, "--json")).json["problems"] == []


async def test_an_agent_on_another_machine_that_is_not_the_one_that_was_named_is_told_nothing(
    each_envoys: EnvoyStarter, serve_tcp: ServeTCP, signer: Signer, children: Children
) -> None:
    _, agent = await serve_tcp(signer.mint(SERVER))
    options = ("--sds", str(agent.address), "--sds-id", str(CLIENT), "--sds-credentials", agent.credentials)
    envoy = await each_envoys.launch("server", printed("--server", *options, "--trust-domain", "example.org", *NAMES))
    refused = r"^cluster\.sds\.ssl\.fail_verify_san$"
    await children.until(lambda: some(envoy, refused), "the agent is refused", within_s=20)
    assert await envoy.total(r"^sds\.(default|ROOTCA)\.update_success$") == 0


async def some(envoy: Envoy, pattern: str) -> bool:
    return await envoy.total(pattern) > 0


async def test_a_client_speaks_with_the_peers_that_its_agent_names(
    each_envoys: EnvoyStarter, serve_sds: ServeSDS, signer: Signer, http: aiohttp.ClientSession
) -> None:
    _, server_sds = await serve_sds(signer.mint(SERVER))
    held = signer.mint(CLIENT)
    hub, sds = await serve_sds(held)
    hub.replace(secrets_of(held, options=ContextOptions(peers=(PeerMatcher(SERVER),))))
    _, port = await start_server(each_envoys, server_sds)
    options = ("--sds", f"unix:{sds}", "--upstream", f"127.0.0.1:{port}", "--peers-from-agent")
    envoy = await each_envoys.start("client", printed("--client", *options, *NAMES))
    url = f"http://127.0.0.1:{await envoy.port('inbound')}/"
    assert await status(http, url) == 200
    assert rules(await check(envoy, "--json")) == []


@pytest.mark.parametrize(
    ("guard", "peers", "rule"),
    [
        (("--peers-from-agent",), (), "envoy_peers_missing"),
        (("--trust-domain", "example.org"), (PeerMatcher(CLIENT),), "envoy_peers_add_up"),
    ],
)
async def test_peers_that_are_named_by_nobody_or_by_both_sides_are_found(
    guard: tuple[str, ...], peers: tuple[PeerMatcher, ...], rule: str, each_envoys: EnvoyStarter, serve_sds: ServeSDS,
    signer: Signer,
) -> None:  # fmt: skip
    held = signer.mint(SERVER)
    hub, sds = await serve_sds(held)
    hub.replace(secrets_of(held, options=ContextOptions(peers=peers)))
    envoy = await each_envoys.start("server", printed("--server", "--sds", f"unix:{sds}", *guard, *NAMES))
    outcome = await check(envoy, "--json")
    assert (outcome.code, rules(outcome)) == (1, [rule])


@pytest.mark.parametrize("side", ["--server", "--client"])
async def test_envoy_finds_no_fault_in_what_is_printed(side: str, each_envoy: Path, place: Path) -> None:
    peer = ("--peer", str(SERVER), *(["--upstream", "web.example.org:8443"] if side == "--client" else []))
    file = place / "bootstrap.json"
    file.write_text(json.dumps(printed(side, "--sds", "unix:/run/x.sock", *peer)))
    process = await asyncio.create_subprocess_exec(
        each_envoy, "--mode", "validate", "-c", file, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


async def test_a_rejected_update_is_found_and_what_is_held_is_the_good_one(
    each_envoys: EnvoyStarter, serve_sds: ServeSDS, signer: Signer, children: Children
) -> None:
    hub, sds = await serve_sds(signer.mint(SERVER))
    envoy = await each_envoys.start("server", server_of(sds))
    good = hub.snapshot["default"].version
    key = private_key_pem(generate_key(KeyType.P256))
    hub.replace([CertificateSecret("default", signer.mint(SERVER).svid.chain_pem(), key)])
    rejected = r"^sds\.default\.update_rejected$"
    await children.until(lambda: total_is(envoy, rejected, 1), "it is rejected", within_s=20)
    outcome = await check(envoy, "--json")
    assert (outcome.code, rules(outcome)) == (1, ["envoy_rejected_update"])
    assert {each["name"]: each["secret_version"] for each in outcome.json["secrets"]}["default"] == good


async def test_an_envoy_that_waits_for_a_secret_says_for_which(
    each_envoys: EnvoyStarter, serve_sds: ServeSDS, signer: Signer, children: Children
) -> None:
    _, sds = await serve_sds(signer.mint(SERVER))
    envoy = await each_envoys.launch("server", server_of(sds, "--id", str(CLIENT)))
    arrived = r"^sds\.ROOTCA\.update_success$"
    await children.until(lambda: total_is(envoy, arrived, 1), "the bundle is there", within_s=20)
    outcome = await check(envoy, "--json")
    assert (outcome.code, rules(outcome)) == (1, ["envoy_not_ready", "envoy_secret_missing"])
    assert str(CLIENT) in outcome.json["problems"][1]["message"]


async def test_an_envoy_without_its_agent_and_with_an_old_certificate_is_found(
    each_envoys: EnvoyStarter, serve_sds: ServeSDS, signer: Signer, children: Children
) -> None:
    held = signer.mint(SERVER)
    hub, sds = await serve_sds(held)
    envoy = await each_envoys.start("server", server_of(sds))
    hub.close()
    connected = r"^sds\..*\.control_plane\.connected_state$"
    await children.until(lambda: total_is(envoy, connected, 0), "the streams are gone", within_s=20)
    outcome = await check(envoy, "--json", now=held.svid.not_after)
    assert outcome.code == 1
    assert {"envoy_leaf_expired", "envoy_sds_disconnected"} == set(rules(outcome))


@pytest.mark.parametrize("bad_trust", [empty, typeless, certificate])
async def test_an_envoy_without_the_guard_that_verifies_nobody_is_found(
    bad_trust: Any, each_envoys: EnvoyStarter, careless: tuple[CarelessServer, Path], signer: Signer, place: Path
) -> None:
    sds, path = careless
    held = signer.mint(SERVER)
    unguarded = without_guard(server_of(path))
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(each_envoys.start("server", unguarded))
        group.create_task(sds.push(certificate(held, "default")))
        group.create_task(sds.push(bad_trust(held)))
    envoy = starting.result()
    assert await is_admitted(await envoy.port("inbound"), tls_client(place, Signer().mint(CLIENT)))
    outcome = await check(envoy, "--json")
    assert (outcome.code, rules(outcome)) == (1, ["envoy_without_guard", "envoy_verifies_nobody"])


def without_guard(value: Any) -> Any:
    """The bootstrap with the trust of SDS alone."""
    if isinstance(value, list):
        return [without_guard(each) for each in value]
    if not isinstance(value, Mapping):
        return value
    changed = {name: without_guard(each) for name, each in value.items()}
    if combined := changed.pop("combined_validation_context", None):
        changed["validation_context_sds_secret_config"] = combined["validation_context_sds_secret_config"]
    return changed
