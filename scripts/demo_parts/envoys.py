"""Real Envoys: started from a bootstrap, ready when this returns, and asked what they really do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from demo_parts.children import Child, Children

_READY_S = 30.0  # Envoy itself waits up to 15 s for its secrets


@dataclass(frozen=True)
class Envoy:
    """A running Envoy. What it tells comes from its admin interface at `admin` (`http://127.0.0.1:PORT`)."""

    child: Child
    admin: str
    http: aiohttp.ClientSession

    async def port(self, listener: str) -> int:
        """Where a listener is bound."""
        for status in (await self.json("/listeners?format=json"))["listener_statuses"]:
            if status["name"] == listener:
                return int(status["local_address"]["socket_address"]["port_value"])
        raise LookupError(f"{self.child.name} has no listener {listener!r}")

    async def certificates(self) -> list[dict[str, Any]]:
        """What is in use in each TLS context: `ca_cert` and `cert_chain`, with `serial_number` and so on."""
        return list((await self.json("/certs"))["certificates"])

    async def serials(self) -> set[str]:
        """Serial numbers of the leaves that it presents, in lower-case hex without leading zeros."""
        chains = [context["cert_chain"] for context in await self.certificates()]
        return {serial(chain[0]["serial_number"]) for chain in chains if chain}

    async def stats(self, pattern: str) -> dict[str, int]:
        """Counters and gauges whose names match a regular expression."""
        stats = (await self.json("/stats", {"format": "json", "filter": pattern}))["stats"]
        return {stat["name"]: stat["value"] for stat in stats if "value" in stat}

    async def total(self, pattern: str) -> int:
        """The sum of those."""
        return sum((await self.stats(pattern)).values())

    async def json(self, path: str, query: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401 - Envoy's own shapes
        async with self.http.get(self.admin + path, params=query) as response:
            response.raise_for_status()
            return await response.json(content_type=None)

    async def is_ready(self) -> bool:
        """Whether it has started its listeners."""
        try:
            async with self.http.get(self.admin + "/ready") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False


@dataclass(frozen=True)
class EnvoyStarter:
    """Starts Envoys of one binary among `children`."""

    binary: Path
    children: Children
    http: aiohttp.ClientSession

    async def start(self, name: str, bootstrap: Mapping[str, Any]) -> Envoy:
        """Start one, and wait until it is ready. Raises ChildDied or Failure."""
        envoy = await self.launch(name, bootstrap)
        await self.children.until(envoy.is_ready, f"{name} is ready", within_s=_READY_S)
        return envoy

    async def launch(self, name: str, bootstrap: Mapping[str, Any]) -> Envoy:
        """As start, as soon as its admin interface answers: it may still be waiting for its secrets."""
        place = self.children.directory / name.replace(" ", "-")
        config, address = place.with_suffix(".json"), place.with_suffix(".admin")
        config.write_text(json.dumps(bootstrap, indent=2))
        child = await self.children.start(name, _command(self.binary, config, address))
        await self.children.until(_is_written(address), f"{name} tells its admin address", within_s=_READY_S)
        return Envoy(child, f"http://{address.read_text()}", self.http)


def serial(text: str) -> str:
    """A serial number as this project writes it; Envoy pads to whole bytes."""
    return f"{int(text, 16):x}"


def _command(binary: Path, config: Path, admin_address: Path) -> list[str | Path]:
    fixed = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "warning")
    return [binary, "--config-path", config, "--admin-address-path", admin_address, *fixed]


def _is_written(path: Path) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return await asyncio.to_thread(lambda: path.exists() and path.stat().st_size > 0)

    return check
