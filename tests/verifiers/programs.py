"""What others think of our certificates: one function per verifier, each of which gives a verdict and its words.

None of them falls back to the system's roots. A verifier that is not here skips the test, which CI counts as failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509 import verification

from _go import go_program


class Purpose(StrEnum):
    CLIENT = "client"
    SERVER = "server"


@dataclass(frozen=True)
class Verdict:
    accepted: bool
    text: str


Verifier = Callable[[Path, Path, Purpose], Verdict]
"""(file with the roots, file with leaf and intermediates, purpose) -> verdict."""


def verify_with_openssl(root: Path, chain: Path, purpose: Purpose) -> Verdict:
    strict = ("-x509_strict", "-purpose", f"ssl{purpose}")
    only_ours = ("-no-CAfile", "-no-CApath", "-no-CAstore", "-CAfile", root)
    return _run([_tool("openssl"), "verify", *strict, *only_ours, "-untrusted", chain, chain])


def verify_with_gnutls(root: Path, chain: Path, purpose: Purpose) -> Verdict:
    usage = {Purpose.SERVER: "1.3.6.1.5.5.7.3.1", Purpose.CLIENT: "1.3.6.1.5.5.7.3.2"}[purpose]
    return _run(
        [_tool("certtool"), "--verify", f"--verify-purpose={usage}", "--load-ca-certificate", root, "--infile", chain]
    )


def verify_with_go(root: Path, chain: Path, purpose: Purpose) -> Verdict:
    program = go_program("verify")
    if not program:
        pytest.skip("the Go programs are not built: scripts/test does that")
    return _run([program, "-root", root, "-chain", chain, "-purpose", purpose])


def verify_with_pyca(root: Path, chain: Path, purpose: Purpose) -> Verdict:
    """As a server only where the leaf has a DNS name: pyca looks for a peer's name and knows no URI."""
    leaf, *intermediates = x509.load_pem_x509_certificates(chain.read_bytes())
    store = verification.Store(x509.load_pem_x509_certificates(root.read_bytes()))
    policy = verification.PolicyBuilder().store(store)
    try:
        if purpose is Purpose.CLIENT:
            policy.build_client_verifier().verify(leaf, intermediates)
        else:
            policy.build_server_verifier(x509.DNSName(dns_names(leaf)[0])).verify(leaf, intermediates)
    except verification.VerificationError as error:
        return Verdict(accepted=False, text=str(error))
    return Verdict(accepted=True, text="")


VERIFIERS: dict[str, Verifier] = {
    "openssl": verify_with_openssl,
    "gnutls": verify_with_gnutls,
    "go": verify_with_go,
    "pyca": verify_with_pyca,
}


def purposes(verifier: str, chain: Path) -> Sequence[Purpose]:
    """Those of both that this verifier can judge for this leaf."""
    leaf = x509.load_pem_x509_certificate(chain.read_bytes())
    return list(Purpose) if verifier != "pyca" or dns_names(leaf) else [Purpose.CLIENT]


def dns_names(leaf: x509.Certificate) -> list[str]:
    return leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)


def _run(command: Sequence[str | Path]) -> Verdict:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    return Verdict(accepted=done.returncode == 0, text=done.stdout + done.stderr)


def _tool(name: str) -> str:
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found
