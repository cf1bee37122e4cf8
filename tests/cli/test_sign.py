"""`sign`: a CSR in, a chain on stdout; what is refused leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from citadel_py.core.bundle import Bundle
from citadel_py.core.pem import load_certificates
from citadel_py.core.spiffe import SpiffeID, TrustDomain
from citadel_py.core.verify import verify_svid
from tests.cli.support import NOW, Outcome, cli, openssl, serials_in_ledger

WEB = "spiffe://example.org/web"


def sign(ca: Path, csr: object, *more: object, id: str = WEB, stdin: bytes = b"") -> Outcome:
    return cli("sign", csr, "--id", id, "--dir", ca, *more, stdin=stdin)


def test_the_chain_on_stdout_is_for_the_key_of_the_csr_and_in_the_ledger(ca: Path, csr: Path) -> None:
    outcome = sign(ca, csr)
    assert (outcome.code, outcome.err) == (0, "")
    bundle = Bundle.from_pem(TrustDomain("example.org"), (ca / "ca.crt").read_bytes())
    svid = verify_svid(load_certificates(outcome.raw), bundle, now=NOW, expected=SpiffeID.parse(WEB))
    assert serials_in_ledger(ca) == [svid.serial]
    in_certificate = openssl("x509", "-noout", "-pubkey", stdin=outcome.raw)
    assert in_certificate == openssl("pkey", "-in", csr.with_suffix(".key"), "-pubout")


def test_the_chain_ends_in_exactly_one_newline(ca: Path, csr: Path) -> None:
    out = sign(ca, csr).out
    assert out.endswith("-----END CERTIFICATE-----\n")
    assert "\n\n" not in out


@pytest.mark.parametrize("form", ["pem", "der"])
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_pem_and_der_from_file_and_stdin(ca: Path, csr: Path, form: str, source: str) -> None:
    converted = csr.with_suffix(f".{form}")
    openssl("req", "-in", csr, "-outform", form, "-out", converted)
    outcome = sign(ca, converted) if source == "file" else sign(ca, "-", stdin=converted.read_bytes())
    assert (outcome.code, len(load_certificates(outcome.raw))) == (0, 2)


def refused_csrs(tmp_path: Path, csr: Path) -> dict[str, tuple[bytes, str]]:
    """Name -> (CSR, part of the rule)."""
    weak = openssl("req", "-new", "-newkey", "rsa:1024", "-nodes", "-keyout", tmp_path / "k", "-subj", "/")
    key = csr.with_suffix(".key")
    other = openssl("req", "-new", "-key", key, "-subj", "/", "-addext", "subjectAltName=URI:spiffe://example.org/db")
    authority = openssl("req", "-new", "-key", key, "-subj", "/", "-addext", "basicConstraints=critical,CA:TRUE")
    good = csr.read_text()
    return {
        "short RSA": (weak.encode(), "rsa"),
        "another name": (other.encode(), "csr_san_not_granted"),
        "wants to be a CA": (authority.encode(), "csr_requests_ca"),
        "two requests": ((good + good).encode(), "csr"),
        "with its key": ((good + key.read_text()).encode(), "csr"),
        "empty": (b"", "csr"),
        "noise": (b"hello", "csr"),
    }


REFUSED = ("short RSA", "another name", "wants to be a CA", "two requests", "with its key", "empty", "noise")


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_csr_leaves_no_output_and_no_ledger_row(ca: Path, csr: Path, tmp_path: Path, name: str) -> None:
    data, rule = refused_csrs(tmp_path, csr)[name]
    outcome = sign(ca, "-", stdin=data)
    assert (outcome.code, outcome.raw) == (3, b"")
    assert outcome.rule is not None
    assert rule in outcome.rule
    assert serials_in_ledger(ca) == []


def test_a_foreign_id_is_denied(ca: Path, csr: Path) -> None:
    outcome = sign(ca, csr, id="spiffe://other.org/web")
    assert (outcome.code, outcome.rule, outcome.raw) == (5, "foreign_trust_domain", b"")
    assert serials_in_ledger(ca) == []


def test_csr_and_passphrase_cannot_both_come_from_stdin(ca: Path) -> None:
    outcome = sign(ca, "-", "--passphrase-file", "-", stdin=b"x")
    assert outcome.code in (2, 3)
    assert serials_in_ledger(ca) == []


def test_without_a_ledger_nothing_is_handed_out(ca: Path, csr: Path) -> None:
    (ca / "ledger.db").unlink(missing_ok=True)
    (ca / "ledger.db").mkdir()
    outcome = sign(ca, csr)
    assert (outcome.code, outcome.raw) == (4, b"")


def test_json_answer_holds_the_chain(ca: Path, csr: Path) -> None:
    document = sign(ca, csr, "--json").json
    assert len(load_certificates(document["chain_pem"].encode())) == 2
    assert document["id"] == WEB
