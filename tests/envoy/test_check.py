"""`envoy bootstrap` and `check` on real Envoys: what the one prints works, and the other sees what is really so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from citadel_py.core.keys import KeyType, generate_key, private_key_pem
from citadel_py.core.secrets import CertificateSecret
from demo_parts.children import Children
from demo_parts.envoys import Envoy, EnvoyStarter
from tests.cli.support import Outcome, cli
from tests.envoy.conftest import ServeSDS
from tests.envoy.support import CLIENT, SERVER, CarelessServer, Signer, is_admitted, tls_client
from tests.envoy.test_hardened_bootstraps import certificate, empty, typeless
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
