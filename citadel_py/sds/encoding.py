"""Secrets and responses as bytes of Envoy's v3 API, each encoded once and shared by all streams.

`Secret` of the core has no empty or typeless form, so nothing here can make one: Envoy would take it
as 'verify nothing'.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from google.protobuf.any_pb2 import Any

from citadel_py import __version__
from citadel_py._proto.envoy.config.core.v3 import base_pb2, extension_pb2
from citadel_py._proto.envoy.extensions.transport_sockets.tls.v3 import (
    common_pb2,
    secret_pb2,
    tls_spiffe_validator_config_pb2,
)
from citadel_py._proto.envoy.service.discovery.v3 import discovery_pb2
from citadel_py.core.bundle import Bundle
from citadel_py.core.secrets import CertificateSecret, Secret, TrustSecret

SECRET_TYPE_URL = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 - the name of a type
SPIFFE_VALIDATOR = "envoy.tls.cert_validator.spiffe"

_CONTROL_PLANE = base_pb2.ControlPlane(identifier=f"citadel-py {__version__}")


@dataclass(frozen=True, slots=True)
class Resource:
    """A secret as SDS sends it. Two are equal when name and version are: the version is a hash of the content."""

    name: str
    version: str
    packed: Any = field(repr=False, compare=False)


def encode_secret(secret: Secret) -> Resource:
    """The secret as a resource; everything in it is inline."""
    message = secret_pb2.Secret(name=secret.name)
    match secret:
        case CertificateSecret():
            message.tls_certificate.CopyFrom(_certificate(secret))
        case TrustSecret(use_spiffe_validator=True):
            message.validation_context.CopyFrom(_spiffe_context(secret.bundles))
        case TrustSecret():
            message.validation_context.CopyFrom(_context(secret.bundles[0]))
    packed = Any()
    packed.Pack(message, deterministic=True)
    return Resource(secret.name, secret.version, packed)


def encode_response(version: str, resources: Iterable[Resource]) -> bytes:
    """A serialized DiscoveryResponse without its nonce, which is what differs between streams."""
    response = discovery_pb2.DiscoveryResponse(
        version_info=version,
        resources=[resource.packed for resource in resources],
        type_url=SECRET_TYPE_URL,
        control_plane=_CONTROL_PLANE,
    )
    return response.SerializeToString()


def encode_delta_response(version: str, resources: Iterable[Resource], removed: Iterable[str]) -> bytes:
    """A serialized DeltaDiscoveryResponse without its nonce."""
    response = discovery_pb2.DeltaDiscoveryResponse(
        system_version_info=version,
        resources=[
            discovery_pb2.Resource(name=resource.name, version=resource.version, resource=resource.packed)
            for resource in resources
        ],
        removed_resources=removed,
        type_url=SECRET_TYPE_URL,
        control_plane=_CONTROL_PLANE,
    )
    return response.SerializeToString()


def with_nonce(response: bytes, nonce: str) -> bytes:
    """The response with its nonce: serialized messages of one type merge by concatenation."""
    return response + discovery_pb2.DiscoveryResponse(nonce=nonce).SerializeToString()


def with_delta_nonce(response: bytes, nonce: str) -> bytes:
    """The same for a DeltaDiscoveryResponse."""
    return response + discovery_pb2.DeltaDiscoveryResponse(nonce=nonce).SerializeToString()


def _certificate(secret: CertificateSecret) -> common_pb2.TlsCertificate:
    return common_pb2.TlsCertificate(certificate_chain=_inline(secret.chain_pem), private_key=_inline(secret.key_pem))


def _context(bundle: Bundle) -> common_pb2.CertificateValidationContext:
    return common_pb2.CertificateValidationContext(trusted_ca=_inline(bundle.to_pem()))


def _spiffe_context(bundles: Iterable[Bundle]) -> common_pb2.CertificateValidationContext:
    config = tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig()
    for bundle in bundles:
        config.trust_domains.add(name=bundle.trust_domain.name, trust_bundle=_inline(bundle.to_pem()))
    extension = extension_pb2.TypedExtensionConfig(name=SPIFFE_VALIDATOR)
    extension.typed_config.Pack(config, deterministic=True)
    return common_pb2.CertificateValidationContext(custom_validator_config=extension)


def _inline(data: bytes) -> base_pb2.DataSource:
    return base_pb2.DataSource(inline_bytes=data)
