"""Hardened Envoy configurations for proxies that take their certificates from an agent over SDS.

Pure functions from values to the JSON form of a bootstrap: nothing is written, started or looked up
here. What is fixed, and why:

- The trust that SDS delivers is combined with a static matcher of peer names. Envoy takes an empty or
  mistyped validation context as 'verify nobody'; beside the matcher it rejects such an update instead.
- No session is resumed: a resumed one is not verified again, so it could outlive the certificate.
- Connections have an age: nothing that SDS pushes reaches those that are established.
- A lost agent is noticed by pings and asked again within seconds.
- An agent on another machine is asked by mTLS only, and only if it is the one that was named.
- The admin interface, and the listener that takes plain requests, are on loopback only.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias

from citadel_py.agent.envoy_proxy import NOBODY, ClientProxy, Peers, Proxy, RemoteAgent, ServerProxy
from citadel_py.config import Address
from citadel_py.core.spiffe import SpiffeID, TrustDomain

Json: TypeAlias = dict[str, Any]

ADMIN_HOST: Final = "127.0.0.1"
LISTENER: Final = "inbound"
CERTIFICATE_FILE, TRUST_FILE = "sds-certificate.json", "sds-trust.json"
CLIENT_CERTIFICATE, CLIENT_TRUST = "sds_certificate", "sds_trust"  # in those files
SDS_CLUSTER, UPSTREAM_CLUSTER, APPLICATION_CLUSTER = "sds", "upstream", "application"

# An Envoy client's own default ends at TLS 1.2.
_TLS_VERSIONS = {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"}
_FETCH_TIMEOUT = timedelta(seconds=15)  # until then no listener of this Envoy opens
_RETRY = {"base_interval": "0.5s", "max_interval": "5s"}  # Envoy's default lets half a minute pass
_KEEPALIVE = {"interval": "10s", "timeout": "5s"}
_HANDSHAKE_TIMEOUT = timedelta(seconds=10)
_CONNECT_TIMEOUT = timedelta(seconds=1)


def server_bootstrap(proxy: ServerProxy) -> Json:
    """The bootstrap of an Envoy that demands a client certificate."""
    clusters = [_sds_cluster(proxy)]
    if proxy.application:
        clusters.append(_cluster(APPLICATION_CLUSTER, proxy.application))
    return _bootstrap(proxy, _listener(proxy, _server_manager(proxy), _server_tls(proxy)), clusters)


def client_bootstrap(proxy: ClientProxy) -> Json:
    """The bootstrap of an Envoy that presents a certificate and accepts one server identity."""
    upstream = _cluster(UPSTREAM_CLUSTER, proxy.upstream)
    upstream |= {"transport_socket": _client_tls(proxy), **_http_options(_upstream_options(proxy))}
    listener = _listener(proxy, _manager(proxy, {"route": {"cluster": UPSTREAM_CLUSTER}}))
    return _bootstrap(proxy, listener, [_sds_cluster(proxy), upstream])


def certificate_file(directory: Path) -> Json:
    """What Envoy reads as `sds-certificate.json`, for a directory with what `agent --out` keeps there.

    Envoy watches the directory for renames, by which those files are replaced as a set. It wants a file for
    each secret.
    """
    certificate = {"certificate_chain": _file(directory, "tls.crt"), "private_key": _file(directory, "tls.key")}
    return _secret_file(CLIENT_CERTIFICATE, directory, "tls_certificate", certificate)


def trust_file(directory: Path) -> Json:
    """The same as `sds-trust.json`: what the agent is verified with."""
    return _secret_file(CLIENT_TRUST, directory, "validation_context", {"trusted_ca": _file(directory, "ca.crt")})


def _secret_file(name: str, directory: Path, kind: str, secret: Json) -> Json:
    watched = {"watched_directory": {"path": str(directory)}}
    type_url = _type("transport_sockets.tls.v3.Secret")
    return {"resources": [{"@type": type_url, "name": name, kind: {**secret, **watched}}]}


def _file(directory: Path, name: str) -> Json:
    return {"filename": str(directory / name)}


def to_json(bootstrap: Json) -> str:
    """As `envoy -c` reads it, for people to read too; ends in a newline."""
    return json.dumps(bootstrap, indent=2) + "\n"


# ------------------------------------------------------------------------------------------- bootstrap


def _bootstrap(proxy: Proxy, listener: Json, clusters: list[Json]) -> Json:
    return {
        "node": {"id": proxy.node, "cluster": proxy.cluster},
        "admin": {"address": _socket_address(Address(ADMIN_HOST, proxy.admin_port))},
        "static_resources": {"listeners": [listener], "clusters": clusters},
    }


def _listener(proxy: Proxy, manager: Json, tls: Json | None = None) -> Json:
    chain: Json = {"filters": [_typed("envoy.filters.network.http_connection_manager", manager)]}
    if tls:
        chain |= {"transport_socket": tls, "transport_socket_connect_timeout": _seconds(_HANDSHAKE_TIMEOUT)}
    return {"name": LISTENER, "address": _socket_address(proxy.listen), "filter_chains": [chain]}


def _cluster(name: str, address: Address) -> Json:
    return _cluster_at(name, _socket_address(address), "STATIC" if _is_ip(address.host) else "STRICT_DNS")


def _sds_cluster(proxy: Proxy) -> Json:
    options = {"explicit_http_config": {"http2_protocol_options": {"connection_keepalive": _KEEPALIVE}}}
    if isinstance(proxy.sds, RemoteAgent):
        return _cluster(SDS_CLUSTER, proxy.sds.address) | _http_options(options) | _remote_tls(proxy.sds)
    return _cluster_at(SDS_CLUSTER, {"pipe": {"path": str(proxy.sds)}}, "STATIC") | _http_options(options)


def _cluster_at(name: str, address: Json, discovery: str) -> Json:
    return {
        "name": name,
        "type": discovery,
        "connect_timeout": _seconds(_CONNECT_TIMEOUT),
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


# ------------------------------------------------------------------------------------------------ HTTP


def _manager(proxy: Proxy, action: Json, options: Json | None = None) -> Json:
    """An HTTP connection manager that does the same with every request."""
    route = {"match": {"prefix": "/"}, **action, "response_headers_to_add": _headers(proxy.response_headers)}
    return {
        "@type": _type("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": LISTENER,
        "http_filters": [_typed("envoy.filters.http.router", {"@type": _type("filters.http.router.v3.Router")})],
        "route_config": {"virtual_hosts": [{"name": LISTENER, "domains": ["*"], "routes": [route]}]},
        **(options or {}),
    }


def _server_manager(proxy: ServerProxy) -> Json:
    by_itself = {"direct_response": {"status": 200, "body": {"inline_string": "ok\n"}}}
    action = {"route": {"cluster": APPLICATION_CLUSTER}} if proxy.application else by_itself
    options = {
        "common_http_protocol_options": {"max_connection_duration": _seconds(proxy.max_connection_duration)},
        # The application reads who the peer is from x-forwarded-client-cert; what the peer sent there is dropped.
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": {"uri": True},
    }
    return _manager(proxy, action, options)


def _upstream_options(proxy: ClientProxy) -> Json:
    common: Json = {"max_connection_duration": _seconds(proxy.max_connection_duration)}
    if proxy.max_requests_per_connection:
        common["max_requests_per_connection"] = proxy.max_requests_per_connection
    # By ALPN: HTTP/2 with a server that has it.
    return {"common_http_protocol_options": common, "auto_config": {}}


def _http_options(options: Json) -> Json:
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {"typed_extension_protocol_options": {name: {"@type": f"type.googleapis.com/{name}", **options}}}


def _headers(headers: Mapping[str, str]) -> list[Json]:
    """Headers that replace what the other side sent under their names."""
    action = "OVERWRITE_IF_EXISTS_OR_ADD"
    return [{"header": {"key": name, "value": value}, "append_action": action} for name, value in headers.items()]


# ------------------------------------------------------------------------------------------------- TLS


def _server_tls(proxy: ServerProxy) -> Json:
    return _transport_socket(
        "DownstreamTlsContext",
        {
            "require_client_certificate": True,
            "disable_stateless_session_resumption": True,
            "disable_stateful_session_resumption": True,
            "common_tls_context": {**_tls_context(proxy, _admission(proxy)), "alpn_protocols": ["h2", "http/1.1"]},
        },
    )


def _client_tls(proxy: ClientProxy) -> Json:
    context = _tls_context(proxy, _exactly(() if proxy.peer is Peers.BY_AGENT else (proxy.peer,)))
    return _transport_socket("UpstreamTlsContext", {"max_session_keys": 0, "common_tls_context": context})


def _remote_tls(agent: RemoteAgent) -> Json:
    """TLS to the agent, both ways, with what is in files, which Envoy reads anew when they change."""
    context = {
        "tls_params": _TLS_VERSIONS,
        "tls_certificate_sds_secret_configs": [_secret_in(agent.credentials / CERTIFICATE_FILE, CLIENT_CERTIFICATE)],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": _exactly([agent.id])},
            "validation_context_sds_secret_config": _secret_in(agent.credentials / TRUST_FILE, CLIENT_TRUST),
        },
    }
    tls = _transport_socket("UpstreamTlsContext", {"max_session_keys": 0, "common_tls_context": context})
    return {"transport_socket": tls}


def _secret_in(file: Path, name: str) -> Json:
    source = {"path_config_source": {"path": str(file)}, "resource_api_version": "V3"}
    return {"name": name, "sds_config": source}


def _tls_context(proxy: Proxy, guard: list[Json]) -> Json:
    """Own certificate and trust by SDS; `guard` stands whatever SDS says."""
    return {
        "tls_params": _TLS_VERSIONS,
        "tls_certificate_sds_secret_configs": [_secret(proxy, proxy.certificate)],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": guard},
            "validation_context_sds_secret_config": _secret(proxy, proxy.bundle),
        },
    }


def _admission(proxy: ServerProxy) -> list[Json]:
    if isinstance(proxy.admitted, TrustDomain):
        # With the slash: without it spiffe://example.org.evil/ matches too.
        return [_uri("prefix", f"{proxy.admitted.id}/")]
    return _exactly(() if proxy.admitted is Peers.BY_AGENT else proxy.admitted)


def _exactly(ids: Iterable[SpiffeID]) -> list[Json]:
    """Matchers of these IDs, or one of nobody: an empty list would be no guard."""
    return [_uri("exact", str(id)) for id in ids] or [_uri("exact", NOBODY)]


def _uri(match: str, value: str) -> Json:
    return {"san_type": "URI", "matcher": {match: value}}


def _secret(proxy: Proxy, name: str) -> Json:
    """Where to get a secret. Equal for all of them: Envoy opens one stream per name and differing source."""
    grpc = {"cluster_name": SDS_CLUSTER, "retry_policy": {"retry_back_off": _RETRY}}
    source = {
        "api_type": "DELTA_GRPC" if proxy.is_delta else "GRPC",
        "transport_api_version": "V3",
        "set_node_on_first_message_only": True,  # a node is 61 KB, and would come with every ACK
        "grpc_services": [{"envoy_grpc": grpc}],
    }
    config = {
        "resource_api_version": "V3",
        "initial_fetch_timeout": _seconds(_FETCH_TIMEOUT),
        "api_config_source": source,
    }
    return {"name": name, "sds_config": config}


def _transport_socket(context: str, options: Json) -> Json:
    return _typed("envoy.transport_sockets.tls", {"@type": _type(f"transport_sockets.tls.v3.{context}"), **options})


# ---------------------------------------------------------------------------------------------- pieces


def _typed(name: str, config: Json) -> Json:
    return {"name": name, "typed_config": config}


def _type(name: str) -> str:
    return f"type.googleapis.com/envoy.extensions.{name}"


def _seconds(duration: timedelta) -> str:
    """A duration in protobuf's JSON form."""
    return f"{duration.total_seconds():f}".rstrip("0").rstrip(".") + "s"


def _socket_address(address: Address) -> Json:
    """With `::` for an empty host, which takes IPv4 too."""
    everywhere = {} if address.host else {"ipv4_compat": True}
    return {"socket_address": {"address": address.host or "::", "port_value": address.port, **everywhere}}


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
