"""Follows X.509-SVIDs with py-spiffe, as any program of a mesh does, and verifies each; as tests/verifiers/go/workload.

It runs in the environment of requirements/spiffe.txt. One line of JSON per update on stdout, what goes wrong on
stderr. The socket is $SPIFFE_ENDPOINT_SOCKET.

    python py_spiffe_client.py COUNT
"""

from __future__ import annotations

import json
import queue
import sys

from cryptography.x509 import Certificate
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from spiffe import WorkloadApiClient, X509Source  # type: ignore[import-not-found]  # not in this environment

LIMIT_S = 60.0


def main(count: int) -> None:
    updates: queue.Queue[object] = queue.Queue()
    client = WorkloadApiClient()
    following = client.stream_x509_contexts(updates.put, lambda error: sys.stderr.write(f"{error}\n"))
    for _ in range(count):
        tell(seen(updates.get(timeout=LIMIT_S)))
    following.cancel()
    with X509Source(timeout_in_seconds=LIMIT_S) as source:
        bundle = source.get_bundle_for_trust_domain(source.get_x509_context().default_svid.spiffe_id.trust_domain)
    only_bundles = client.fetch_x509_bundles(timeout=LIMIT_S).bundles
    assert bundle in only_bundles, only_bundles
    tell({"bundles": sorted(each.trust_domain.name for each in only_bundles), "jwt": refusal(client)})
    client.close()


def seen(context: object) -> dict[str, object]:
    svid, bundles = context.default_svid, context.x509_bundle_set  # type: ignore[attr-defined]  # an X509Context
    roots = bundles.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain).x509_authorities
    return {
        "spiffe_id": str(svid.spiffe_id),
        "serial": f"{svid.leaf.serial_number:x}",
        "verified": verified(svid.cert_chain, list(roots)),
        "bundles": sorted(bundle.trust_domain.name for bundle in bundles.bundles),
    }


def verified(chain: list[Certificate], roots: list[Certificate]) -> str:
    """Who that is, or why not. py-spiffe leaves the path to its users."""
    leaf, *intermediates = chain
    try:
        peer = PolicyBuilder().store(Store(roots)).build_client_verifier().verify(leaf, intermediates)
    except VerificationError as error:
        return str(error)
    return str(peer.subjects[0].value) if peer.subjects else "nobody"


def refusal(client: WorkloadApiClient) -> str:
    try:
        client.fetch_jwt_svid({"peer"}, timeout=LIMIT_S)
    except Exception as error:  # noqa: BLE001 - of the library; its text is looked at
        return "Unimplemented" if "JWT-SVIDs are not served here" in str(error) else repr(error)
    return "OK"


def tell(what: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
