"""What a running Envoy says about itself on its admin address. It reads, in bounded sizes, and changes nothing."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import urlencode

from citadel_py.config import Address
from citadel_py.core.errors import InvalidConfiguration, Unavailable

Json: TypeAlias = dict[str, Any]

TIMEOUT_S: Final = 10.0  # of each question
MAX_BYTES: Final = 64 << 20  # of each answer: a dump holds every listener and cluster

_STATS = urlencode({"format": "json", "filter": r"^(sds\..*|control_plane\.connected_state)$"})


@dataclass(frozen=True, slots=True)
class Admin:
    """Envoy's own documents, as parsed JSON of its own shape."""

    is_ready: bool
    certs: Json
    config: Json
    stats: Mapping[str, int]
    texts: Mapping[str, str]  # of stats that are words


def read_admin(address: Address) -> Admin:
    """Ask Envoy. Raises Unavailable (`envoy_unreachable`), InvalidConfiguration (`not_envoy_admin`)."""
    status, _ = _get(address, "/ready")
    stats = _document(address, f"/stats?{_STATS}").get("stats")
    found = [each for each in stats if isinstance(each, dict)] if isinstance(stats, list) else []
    values = {str(each["name"]): each["value"] for each in found if "name" in each and "value" in each}
    return Admin(
        is_ready=status == http.HTTPStatus.OK,
        certs=_document(address, "/certs"),
        config=_document(address, "/config_dump"),
        stats={name: value for name, value in values.items() if isinstance(value, int)},
        texts={name: value for name, value in values.items() if isinstance(value, str)},
    )


def _document(address: Address, path: str) -> Json:
    status, body = _get(address, path)
    if status != http.HTTPStatus.OK:
        raise _not_envoy(address, f"it answers {path.partition('?')[0]} with {status}")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _not_envoy(address, f"its {path.partition('?')[0]} is no JSON") from error
    if not isinstance(document, dict):
        raise _not_envoy(address, f"its {path.partition('?')[0]} is no JSON object")
    return document


def _get(address: Address, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address.host or "127.0.0.1", address.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        with connection.getresponse() as response:
            body = response.read(MAX_BYTES + 1)
    except OSError as error:
        raise Unavailable(
            f"no Envoy answers at {address}: {(error.strerror or type(error).__name__).lower()}",
            rule="envoy_unreachable",
            hint="--envoy is the address of the admin interface: `admin` in Envoy's bootstrap",
        ) from error
    except http.client.HTTPException as error:
        raise _not_envoy(address, "it does not speak HTTP") from error
    finally:
        connection.close()
    if len(body) > MAX_BYTES:
        raise _not_envoy(address, f"its {path.partition('?')[0]} has more than {MAX_BYTES} bytes")
    return response.status, body


def _not_envoy(address: Address, why: str) -> InvalidConfiguration:
    return InvalidConfiguration(f"{address} is not the admin address of an Envoy: {why}", rule="not_envoy_admin")
