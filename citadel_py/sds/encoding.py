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
from citadel_py._proto.envoy.type.matcher.v3 import string_pb2
from citadel_py.core.context_options import CrlCheck, PeerMatcher
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
        case TrustSecret():
            message.validation_context.CopyFrom(_context(secret))
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


def _context(secret: TrustSecret) -> common_pb2.CertificateValidationContext:
    is_spiffe = secret.options.use_spiffe_validator
    context = _spiffe_context(secret) if is_spiffe else _plain_context(secret)
    context.match_typed_subject_alt_names.extend(map(_matcher, secret.options.peers))
    return context


def _plain_context(secret: TrustSecret) -> common_pb2.CertificateValidationContext:
    (bundle,) = secret.bundles
    context = common_pb2.CertificateValidationContext(trusted_ca=_inline(bundle.to_pem()))
    if crl := secret.crl_pem(bundle.trust_domain):
        context.crl.CopyFrom(_inline(crl))
        context.only_verify_leaf_cert_crl = secret.options.crl is CrlCheck.LEAF
    return context


def _spiffe_context(secret: TrustSecret) -> common_pb2.CertificateValidationContext:
    """This validator ignores `crl`, and takes revocation lists among a trust domain's authorities."""
    config = tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig()
    for bundle in secret.bundles:
        pem = bundle.to_pem() + secret.crl_pem(bundle.trust_domain)
        config.trust_domains.add(name=bundle.trust_domain.name, trust_bundle=_inline(pem))
    extension = extension_pb2.TypedExtensionConfig(name=SPIFFE_VALIDATOR)
    extension.typed_config.Pack(config, deterministic=True)
    return common_pb2.CertificateValidationContext(custom_validator_config=extension)


def _matcher(peer: PeerMatcher) -> common_pb2.SubjectAltNameMatcher:
    """Of URIs: the SPIFFE validator passes over all others, and a list of those alone would admit everybody."""
    value = (
        string_pb2.StringMatcher(prefix=peer.value) if peer.is_prefix else string_pb2.StringMatcher(exact=peer.value)
    )
    return common_pb2.SubjectAltNameMatcher(san_type=common_pb2.SubjectAltNameMatcher.URI, matcher=value)


def _inline(data: bytes) -> base_pb2.DataSource:
    return base_pb2.DataSource(inline_bytes=data)
