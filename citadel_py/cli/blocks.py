"""Facts as blocks of text for a person. Says nothing that is not in the facts, and hides no certificate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import cast

from citadel_py.cli.describe import Facts
from citadel_py.cli.render import fields, heading, moment_with_words, relative
from citadel_py.cli.session import JSON


def block(facts: Facts, *, now: datetime) -> str:
    """One piece: a heading, and a line for each fact."""
    kind = str(facts["type"])
    match kind:
        case "certificate":
            return certificate_block(facts, now=now)
        case "csr":
            return heading("certificate signing request") + fields(_csr_rows(facts))
        case "private_key":
            return heading("private key") + fields(_key_rows(facts))
        case "public_key":
            return heading("public key") + fields({"key": _key(facts)})
        case "bundle":
            return heading("bundle") + fields(_bundle_rows(facts))
        case "unreadable":
            return heading("unreadable") + fields({"problem": _problem(facts["error"])})
        case _:
            return heading("PEM block", str(facts.get("label", "")))


def certificate_block(facts: Facts, *, now: datetime) -> str:
    """A certificate under its role: leaf, intermediate or root."""
    return heading(str(facts["role"]), "certificate") + fields(_certificate_rows(facts, now))


def _certificate_rows(facts: Facts, now: datetime) -> dict[str, str | Iterable[str]]:
    path_length = facts["path_length"]
    return {
        **_name_rows(facts),
        "subject": str(facts["subject"]) or "(empty)",
        "issuer": str(facts["issuer"]),
        "serial": str(facts["serial"]),
        "valid from": moment_with_words(_moment(facts["not_before"]), now),
        "valid to": moment_with_words(_moment(facts["not_after"]), now),
        "now": "" if facts["is_valid_now"] else _why_not_now(facts, now),
        "key": _key(facts),
        "signature": str(facts["signature_algorithm"]),
        "usage": ", ".join(map(str, (*_list(facts["key_usage"]), *_list(facts["extended_key_usage"])))),
        "path length": "" if path_length is None else str(path_length),
        "key id": str(facts["subject_key_id"] or ""),
        "authority id": str(facts["authority_key_id"] or ""),
        "sha256": str(facts["sha256"]),
        "SVID rules": _verdict(facts["svid"], "all kept") if facts["svid"] else "",
    }


def _csr_rows(facts: Facts) -> dict[str, str | Iterable[str]]:
    return {
        **_name_rows(facts),
        "subject": str(facts["subject"]) or "(empty)",
        "key": _key(facts),
        "signature": str(facts["signature_algorithm"]),
        "CSR policy": _verdict(facts["policy"], "would be accepted"),
    }


def _key_rows(facts: Facts) -> dict[str, str | Iterable[str]]:
    return {
        "key": _key(facts) if facts["key"] else "(encrypted: --passphrase-file shows its kind)",
        "encrypted": "yes" if facts["is_encrypted"] else "no",
        "file mode": str(facts.get("file_mode") or ""),
    }


def _bundle_rows(facts: Facts) -> dict[str, str | Iterable[str]]:
    return {
        "trust domain": str(facts["trust_domain"] or "(a bundle does not name it)"),
        "sequence": str(facts["sequence"]),
        "refresh hint": f"{facts['refresh_hint_seconds']} s" if facts["refresh_hint_seconds"] else "",
        "authorities": str(facts["authorities"]),
    }


def _name_rows(facts: Facts) -> dict[str, str | Iterable[str]]:
    rows = {"URI": "uris", "DNS": "dns", "IP": "ips", "other name": "other_names"}
    return {label: [str(name) for name in _list(facts[key])] for label, key in rows.items()}


def _why_not_now(facts: Facts, now: datetime) -> str:
    first, last = _moment(facts["not_before"]), _moment(facts["not_after"])
    return f"NOT YET VALID: begins {relative(first, now)}" if now < first else f"EXPIRED {relative(last, now)}"


def _key(facts: Facts) -> str:
    key = cast("Mapping[str, JSON]", facts["key"])
    return f"{key['kind']}, sha256 {key['public_key_sha256']}"


def _verdict(verdict: JSON, kept: str) -> str:
    return kept if cast("Mapping[str, JSON]", verdict)["ok"] else _problem(verdict)


def _problem(error: JSON) -> str:
    facts = cast("Mapping[str, JSON]", error)
    return f"{facts['message']} [rule {facts['rule']}]"


def _list(value: JSON) -> list[JSON]:
    return cast("list[JSON]", value)


def _moment(value: JSON) -> datetime:
    return datetime.fromisoformat(str(value))


def certificate_line(facts: Facts, *, now: datetime) -> str:
    """A certificate as one line under its role."""
    names = ", ".join(str(name) for name in _list(facts["uris"]))
    ends = moment_with_words(_moment(facts["not_after"]), now)
    return fields({f"{facts['role']!s:12}": f"{names}, serial {facts['serial']}, to {ends}"})
