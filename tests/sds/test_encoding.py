"""What Envoy reads in the bytes that leave."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from citadel_py._proto.envoy.extensions.transport_sockets.tls.v3.common_pb2 import SubjectAltNameMatcher
from citadel_py._proto.envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret as Message
from citadel_py._proto.envoy.extensions.transport_sockets.tls.v3.tls_spiffe_validator_config_pb2 import (
    SPIFFECertValidatorConfig,
)
from citadel_py._proto.envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse
from citadel_py.core.bundle import Bundle
from citadel_py.core.context_options import ContextOptions, CrlCheck, PeerMatcher
from citadel_py.core.crl import CRL, build_crl
from citadel_py.core.secrets import CertificateSecret, Secret, TrustSecret
from citadel_py.sds.encoding import SECRET_TYPE_URL, encode_response, encode_secret, with_nonce
from tests.store.things import NOW, new_pki


@pytest.fixture
def crl() -> CRL:
    """Of no authority here: whose it is, does not matter to how it is written."""
    pki = new_pki()
    return build_crl(pki.root, [], number=1, now=NOW, next_update=NOW + timedelta(days=1))


def read(secret: Secret) -> Message:
    message = Message()
    packed = encode_secret(secret).packed
    assert packed.type_url == SECRET_TYPE_URL
    assert packed.Unpack(message)
    return message


def test_a_certificate_is_sent_inline_with_its_key() -> None:
    message = read(CertificateSecret("default", b"chain", b"key"))
    assert message.name == "default"
    assert message.tls_certificate.certificate_chain.inline_bytes == b"chain"
    assert message.tls_certificate.private_key.inline_bytes == b"key"


def test_one_bundle_is_sent_as_trusted_authorities(make_bundle: Callable[[str], Bundle]) -> None:
    bundle = make_bundle("td.test")
    context = read(TrustSecret("ROOTCA", (bundle,))).validation_context
    assert context.trusted_ca.inline_bytes == bundle.to_pem()
    assert not context.HasField("custom_validator_config")


def test_bundles_of_several_trust_domains_are_sent_apart(make_bundle: Callable[[str], Bundle]) -> None:
    bundles = (make_bundle("td.test"), make_bundle("other.test"))
    context = read(TrustSecret("ALL", bundles, ContextOptions(use_spiffe_validator=True))).validation_context
    config = SPIFFECertValidatorConfig()
    assert context.custom_validator_config.name == "envoy.tls.cert_validator.spiffe"
    assert context.custom_validator_config.typed_config.Unpack(config)
    found = {each.name: each.trust_bundle.inline_bytes for each in config.trust_domains}
    assert found == {bundle.trust_domain.name: bundle.to_pem() for bundle in bundles}


@pytest.mark.parametrize("check", [CrlCheck.LEAF, CrlCheck.PATH])
def test_revocation_lists_go_beside_the_authorities_of_the_plain_validator(
    check: CrlCheck, make_bundle: Callable[[str], Bundle], crl: CRL
) -> None:
    bundle = make_bundle("td.test")
    secret = TrustSecret("ROOTCA", (bundle,), ContextOptions(crl=check), {bundle.trust_domain: (crl, crl)})
    context = read(secret).validation_context
    assert context.crl.inline_bytes == 2 * crl.public_bytes(Encoding.PEM)
    assert context.only_verify_leaf_cert_crl == (check is CrlCheck.LEAF)
    assert context.trusted_ca.inline_bytes == bundle.to_pem()


def test_revocation_lists_go_among_the_authorities_of_the_spiffe_validator(
    make_bundle: Callable[[str], Bundle], crl: CRL
) -> None:
    """Which ignores those that are beside them."""
    own, other = make_bundle("td.test"), make_bundle("other.test")
    options = ContextOptions(use_spiffe_validator=True, crl=CrlCheck.PATH)
    context = read(TrustSecret("ALL", (own, other), options, {own.trust_domain: (crl,)})).validation_context
    config = SPIFFECertValidatorConfig()
    assert context.custom_validator_config.typed_config.Unpack(config)
    found = {each.name: each.trust_bundle.inline_bytes for each in config.trust_domains}
    assert found == {"td.test": own.to_pem() + crl.public_bytes(Encoding.PEM), "other.test": other.to_pem()}
    assert not context.HasField("crl")


def test_peers_are_compared_by_their_uri(make_bundle: Callable[[str], Bundle]) -> None:
    peers = tuple(map(PeerMatcher.parse, ("spiffe://td.test/a", "spiffe://td.test/b/**")))
    context = read(TrustSecret("ROOTCA", (make_bundle("td.test"),), ContextOptions(peers=peers))).validation_context
    matchers = context.match_typed_subject_alt_names
    assert {each.san_type for each in matchers} == {SubjectAltNameMatcher.URI}
    assert [each.matcher.exact for each in matchers] == ["spiffe://td.test/a", ""]
    assert [each.matcher.prefix for each in matchers] == ["", "spiffe://td.test/b/"]


def test_a_key_does_not_show_in_the_representation_of_a_resource() -> None:
    assert "s3cret" not in repr(encode_secret(CertificateSecret("default", b"chain", b"s3cret")))


def test_a_response_holds_version_type_resources_and_nonce() -> None:
    resource = encode_secret(CertificateSecret("default", b"chain", b"key"))
    response = DiscoveryResponse.FromString(with_nonce(encode_response("v1", [resource]), "n1"))
    assert (response.version_info, response.nonce, response.type_url) == ("v1", "n1", SECRET_TYPE_URL)
    assert list(response.resources) == [resource.packed]
    assert response.control_plane.identifier.startswith("citadel-py ")
