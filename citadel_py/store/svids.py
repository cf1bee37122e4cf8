"""An agent's SVIDs over a restart: one file per identity with key, chain, bundle and times together.

One file is replaced as a whole, so the parts always belong together. With a passphrase all of it is
encrypted. Whether an SVID is still of use (expired, due for renewal) is its reader's business.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from citadel_py.core.bundle import Bundle
from citadel_py.core.errors import (
    BadInput,
    CitadelError,
    InvalidConfiguration,
    InvalidKey,
    Unavailable,
    VerificationFailed,
)
from citadel_py.core.keys import load_private_key, private_key_pem, same_public_key
from citadel_py.core.pem import load_certificates
from citadel_py.core.ports import HeldSVID
from citadel_py.core.spiffe import SpiffeID, TrustDomain
from citadel_py.core.verify import check_leaf
from citadel_py.core.x509svid import X509SVID
from citadel_py.store.files import make_private_dir, not_written, read_private, remove_leftovers, write_atomic
from citadel_py.store.keys import PASSPHRASE_RULES
from citadel_py.store.sealing import Sealer

FORMAT = 1
SEALED_FORMAT = 2
_MAX_BYTES = 4 << 20  # a bundle of hundreds of authorities
_MAX_SET_ASIDE = 9
_HINTS = (
    "give the passphrase that it was encrypted with as state_passphrase_file",
    "or remove the state: every identity has to show anew who it is",
)


class SVIDFiles:
    """core.ports.SVIDStore: files of mode 0600 in a directory of mode 0700.

    `report` is told, in one line without secrets, of each file that was set aside.
    """

    def __init__(self, directory: Path, passphrase: bytes | None = None, *, report: Callable[[str], None]) -> None:
        """Make the directory if absent. Raises InvalidConfiguration, Unavailable."""
        make_private_dir(directory)
        remove_leftovers(directory, "*.json")
        self._directory = directory
        self._sealer = Sealer(passphrase) if passphrase is not None else None
        self._report = report
        self._last_bundle: tuple[TrustDomain, object, Bundle] | None = None

    def load(self, id: SpiffeID) -> HeldSVID | None:
        """The SVID that was saved last, also one that has expired; None where there is none.

        A file that is damaged, belongs to another identity, was readable by others or comes from a
        newer version is renamed to NAME.corrupt-N, reported, and counts as none. One that is not
        encrypted and should be is encrypted now, or when it is replaced. Raises InvalidKey where only
        the passphrase is wrong or missing, Unavailable where the file cannot be read.
        """
        path = self.path(id)
        try:
            value, is_sealed = self._opened(read_private(path, _MAX_BYTES), path, id)
            held = self._decode(value, id)
        except InvalidKey as error:
            if error.rule in PASSPHRASE_RULES:
                raise
            self._set_aside(path, error)
        except InvalidConfiguration as error:
            if error.rule == "file_missing":
                return None
            if error.rule == "file_not_readable":
                raise Unavailable(error.message, rule=error.rule, hint=error.hints) from error
            self._set_aside(path, error)
        except (BadInput, VerificationFailed) as error:
            self._set_aside(path, error)
        else:
            if self._sealer and not is_sealed:
                with suppress(Unavailable):  # the next renewal says so
                    self.save(held)
            return held
        return None

    def save(self, held: HeldSVID) -> None:
        """Replace what is kept for this identity, durably, or leave it as it was. Raises Unavailable."""
        try:
            make_private_dir(self._directory)  # somebody may have tidied it away
        except InvalidConfiguration as error:
            raise Unavailable(error.message, rule=error.rule, hint=error.hints) from error
        value = _encode(held)
        if self._sealer is None:
            data = _document(FORMAT, svid=value)
        else:
            data = _document(SEALED_FORMAT, sealed=self._sealer.seal(json.dumps(value).encode(), str(held.svid.id)))
        write_atomic(self.path(held.svid.id), data)

    def path(self, id: SpiffeID) -> Path:
        """The file of an identity: readable for a person, unique by the hash in it."""
        digest = hashlib.sha256(str(id).encode()).hexdigest()[:32]
        return self._directory / f"{id.path.strip('/').replace('/', '.')[:60]}-{digest}.json"

    def _opened(self, data: bytes, path: Path, id: SpiffeID) -> tuple[dict[str, Any], bool]:
        """What is in the file, and whether it was encrypted. Raises BadInput, InvalidKey."""
        document = _parsed(data)
        if document["version"] == FORMAT:
            return _content(document, "svid"), False
        box = _content(document, "sealed")
        if self._sealer is None:
            raise InvalidKey(f"{path} is encrypted", rule="key_passphrase_missing", hint=_HINTS)
        try:
            value: dict[str, Any] = json.loads(self._sealer.open(box, str(id)))
        except InvalidKey as error:
            raise InvalidKey(f"{path}: {error.message}", rule=error.rule, hint=_HINTS) from error
        return value, True

    def _decode(self, value: dict[str, Any], id: SpiffeID) -> HeldSVID:
        """Raises BadInput, VerificationFailed."""
        if value.get("spiffe_id") != str(id):
            raise BadInput(f"it does not belong to {id}", rule="svid_file_foreign")
        try:
            key = load_private_key(value["key"].encode())
            chain = load_certificates(value["chain"].encode())
            bundle = self._bundle(id.trust_domain, value["bundle"])
            issued_at, renew_at = _moment(value["issued_at"]), _moment(value["renew_at"])
        except InvalidKey as error:  # one with a passphrase of its own is none of ours
            raise BadInput(f"its key cannot be used: {error.message}", rule="svid_file_corrupt") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(
                f"a part of it is missing or of the wrong kind: {error}", rule="svid_file_corrupt"
            ) from error
        if check_leaf(chain[0]) != id:
            raise BadInput(f"its certificate does not belong to {id}", rule="svid_file_foreign")
        if not same_public_key(key.public_key(), chain[0].public_key()):  # type: ignore[arg-type]  # compared as bytes
            raise BadInput("its key does not belong to its certificate", rule="svid_key_mismatch")
        return HeldSVID(X509SVID(id, chain), key, bundle, issued_at, renew_at)

    def _bundle(self, trust_domain: TrustDomain, value: dict[str, Any]) -> Bundle:
        """All files of an agent have the same, most of the time: read once, and kept once."""
        last = self._last_bundle
        if last is None or last[:2] != (trust_domain, value):
            last = self._last_bundle = trust_domain, value, Bundle.from_object(trust_domain, value)
        return last[2]

    def _set_aside(self, path: Path, reason: CitadelError) -> None:
        try:
            aside = _free_name(path)
            path.replace(aside)
        except OSError as error:
            raise not_written(path, error) from error
        self._report(f"{path} was set aside as {aside.name}: {reason.message}")


def _free_name(path: Path) -> Path:
    """The first free NAME.corrupt-N. Their number is bounded: the last one is replaced."""
    names = [path.with_name(f"{path.name}.corrupt-{number}") for number in range(1, _MAX_SET_ASIDE + 1)]
    return next((name for name in names if not name.exists()), names[-1])


def _encode(held: HeldSVID) -> dict[str, Any]:
    return {
        "spiffe_id": str(held.svid.id),
        "key": private_key_pem(held.key).decode(),
        "chain": held.svid.chain_pem().decode(),
        "bundle": held.bundle.to_object(),
        "issued_at": held.issued_at.isoformat(),
        "renew_at": held.renew_at.isoformat(),
    }


def _document(version: int, **content: dict[str, Any]) -> bytes:
    """The file: the digest finds damage that would still parse, and damage that looks like a wrong passphrase."""
    ((_, value),) = content.items()
    return json.dumps({"version": version, "sha256": digest(value), **content}, indent=1).encode() + b"\n"


def _parsed(data: bytes) -> dict[str, Any]:
    """Raises BadInput."""
    try:
        document = json.loads(data)
        version = document["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput("it is not an SVID file", rule="svid_file_corrupt") from error
    if version not in (FORMAT, SEALED_FORMAT):
        raise BadInput(
            f"it has format {version!a}, and this version knows {FORMAT} and {SEALED_FORMAT}", rule="svid_file_version"
        )
    return dict(document)


def _content(document: dict[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    if not isinstance(value, dict) or document.get("sha256") != digest(value):
        raise BadInput("its content does not match its digest", rule="svid_file_corrupt")
    return value


def digest(value: dict[str, Any]) -> str:
    """What the file says in `sha256` about its content."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!a} has no time zone")
    return moment.astimezone(UTC)
