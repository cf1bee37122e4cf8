"""Facts as blocks of text for a person. Says nothing that is not in the facts, and hides no certificate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from citadel_py.cli.describe import Facts
from citadel_py.cli.render import Row, fields, heading, moment_with_words, relative


def block(facts: Facts, *, now: datetime) -> str:
    """One piece: a heading, and a line for each fact."""
    kind = facts["type"]
    if kind == "certificate":
        return certificate_block(facts, now=now)
    if kind not in _HEADINGS:
        return heading("PEM block", facts.get("label", ""))
    title, rows = _HEADINGS[kind]
    return heading(title) + fields(rows(facts))


def certificate_block(facts: Facts, *, now: datetime) -> str:
    """A certificate under its role: leaf, intermediate or root."""
    return heading(facts["role"], "certificate") + fields(_certificate_rows(facts, now))


def certificate_row(facts: Facts, *, now: datetime) -> Row:
    """A certificate in one line under its role."""
    ends = moment_with_words(_moment(facts["not_after"]), now)
    return facts["role"], f"{', '.join(facts['uris'])}, serial {facts['serial']}, to {ends}"


def _certificate_rows(facts: Facts, now: datetime) -> list[Row]:
    path_length = facts["path_length"]
    return [
        *_name_rows(facts),
        ("subject", facts["subject"] or "(empty)"),
        ("issuer", facts["issuer"]),
        ("serial", facts["serial"]),
        ("valid from", moment_with_words(_moment(facts["not_before"]), now)),
        ("valid to", moment_with_words(_moment(facts["not_after"]), now)),
        ("now", "" if facts["is_valid_now"] else _why_not_now(facts, now)),
        ("key", _key(facts)),
        ("signature", facts["signature_algorithm"]),
        ("usage", ", ".join((*facts["key_usage"], *facts["extended_key_usage"]))),
        ("path length", "" if path_length is None else str(path_length)),
        ("key id", facts["subject_key_id"] or ""),
        ("authority id", facts["authority_key_id"] or ""),
        ("sha256", facts["sha256"]),
        ("SVID rules", _verdict(facts["svid"], "all kept") if facts["svid"] else ""),
    ]


def _csr_rows(facts: Facts) -> list[Row]:
    return [
        *_name_rows(facts),
        ("subject", facts["subject"] or "(empty)"),
        ("key", _key(facts)),
        ("signature", facts["signature_algorithm"]),
        ("CSR policy", _verdict(facts["policy"], "would be accepted")),
    ]


def _key_rows(facts: Facts) -> list[Row]:
    return [
        ("key", _key(facts) if facts["key"] else "(encrypted: --passphrase-file shows its kind)"),
        ("encrypted", "yes" if facts["is_encrypted"] else "no"),
        ("file mode", facts.get("file_mode") or ""),
    ]


def _bundle_rows(facts: Facts) -> list[Row]:
    return [
        ("trust domain", facts["trust_domain"] or "(a bundle does not name it)"),
        ("sequence", str(facts["sequence"])),
        ("refresh hint", f"{facts['refresh_hint_seconds']} s" if facts["refresh_hint_seconds"] else ""),
        ("authorities", str(facts["authorities"])),
    ]


def _name_rows(facts: Facts) -> list[Row]:
    rows = {"URI": "uris", "DNS": "dns", "IP": "ips", "other name": "other_names"}
    return [(label, facts[key]) for label, key in rows.items()]


def _why_not_now(facts: Facts, now: datetime) -> str:
    first, last = _moment(facts["not_before"]), _moment(facts["not_after"])
    return f"NOT YET VALID: begins {relative(first, now)}" if now < first else f"EXPIRED {relative(last, now)}"


def _key(facts: Facts) -> str:
    return f"{facts['key']['kind']}, sha256 {facts['key']['public_key_sha256']}"


def _verdict(verdict: Facts, kept: str) -> str:
    return kept if verdict["ok"] else _problem(verdict)


def _problem(error: Facts) -> str:
    return f"{error['message']} [rule {error['rule']}]"


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


_HEADINGS: Mapping[str, tuple[str, Callable[[Facts], list[Row]]]] = {
    "csr": ("certificate signing request", _csr_rows),
    "private_key": ("private key", _key_rows),
    "public_key": ("public key", lambda facts: [("key", _key(facts))]),
    "bundle": ("bundle", _bundle_rows),
    "unreadable": ("unreadable", lambda facts: [("problem", _problem(facts["error"]))]),
}
