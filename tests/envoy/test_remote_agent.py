"""An agent on another machine: the proxy's own files are renewed while Envoy runs."""

from __future__ import annotations

import json
from pathlib import Path

from citadel_py.agent.envoy_bootstrap import CERTIFICATE_FILE, TRUST_FILE, certificate_file, trust_file
from citadel_py.agent.envoy_proxy import RemoteAgent
from citadel_py.core.keys import private_key_pem
from citadel_py.core.ports import HeldSVID
from citadel_py.store.file_set import FileSet, open_file_set
from demo_parts.children import Children
from demo_parts.envoys import EnvoyStarter
from tests.envoy.conftest import ServeTCP
from tests.envoy.support import SERVER, Signer, start_server

MODES = {"tls.crt": 0o644, "tls.key": 0o600, "ca.crt": 0o644}


def write(files: FileSet, held: HeldSVID) -> None:
    """As `agent --out` does."""
    pems = held.svid.chain_pem(), private_key_pem(held.key), held.bundle.to_pem()
    files.replace(dict(zip(MODES, pems, strict=True)))


async def test_envoy_shows_the_agent_a_renewed_certificate_without_a_restart(
    each_envoys: EnvoyStarter, serve_tcp: ServeTCP, signer: Signer, children: Children, place: Path
) -> None:
    _, agent = await serve_tcp(signer.mint(SERVER))
    first, renewed = signer.mint(SERVER), signer.mint(SERVER)
    with open_file_set(place / "tls", MODES) as files:
        write(files, first)
        (place / CERTIFICATE_FILE).write_text(json.dumps(certificate_file(place / "tls")))
        (place / TRUST_FILE).write_text(json.dumps(trust_file(place / "tls")))
        envoy, _ = await start_server(each_envoys, RemoteAgent(agent.address, agent.id, place))
        assert first.svid.serial in await envoy.serials()
        write(files, renewed)

        async def shows_it() -> bool:
            return renewed.svid.serial in await envoy.serials()

        await children.until(shows_it, "the renewed certificate is in use", within_s=20)
    assert first.svid.serial not in await envoy.serials()
