"""The directory of an authority: keys, certificates and the bundle, made as a set and read as a set.

    D/bundle.json              the bundle in the SPIFFE format, with its sequence; written last: the
                               directory is complete if and only if it is there
    D/ca.crt                   the same bundle as PEM
    D/root/tls.crt, tls.key    no key here when the root is offline or was imported
    D/intermediate/tls.crt     from the signing intermediate upwards, without the root
    D/intermediate/tls.key
    D/crl.pem                  optional: what is revoked, by every authority of the chain; never
                               part of the set, so that a bad one keeps nobody from issuing
    D/ledger.db                the ledger's own: never touched here
    D/init.unfinished          there while the set is being made

Whether what it holds is usable now (times, signatures) is decided by core.issuer, not here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from citadel_py.core.bundle import Bundle
from citadel_py.core.crl import MAX_CRL_BYTES
from citadel_py.core.errors import CitadelError, InvalidConfiguration, VerificationFailed
from citadel_py.core.keys import PrivateKey, private_key_pem, same_public_key
from citadel_py.core.pem import MAX_PEM_BYTES, certificate_pem, load_certificates
from citadel_py.core.profile import Authority
from citadel_py.core.spiffe import TrustDomain
from citadel_py.core.svid_rules import spiffe_id_of_authority
from citadel_py.store.files import (
    PUBLIC_FILE,
    exists,
    lock_file,
    make_private_dir,
    not_written,
    read_bounded,
    remove_leftovers,
    sync_directory,
    write_atomic,
)
from citadel_py.store.keys import read_key

BUNDLE_PEM = Path("ca.crt")
BUNDLE_JSON = Path("bundle.json")
CRLS = Path("crl.pem")
LEDGER = Path("ledger.db")  # made and written by the ledger, not here
ROOT = Path("root")
INTERMEDIATE = Path("intermediate")
CERTIFICATE, KEY = "tls.crt", "tls.key"
_MARK = Path("init.unfinished")
_NEEDED = (BUNDLE_PEM, BUNDLE_JSON, INTERMEDIATE / CERTIFICATE, INTERMEDIATE / KEY)
_MAX_BYTES = MAX_PEM_BYTES


@dataclass(frozen=True, slots=True)
class AuthoritySet:
    """What it takes to issue: the signing intermediate with its key, its chain, and the bundle."""

    trust_domain: TrustDomain
    authority: Authority
    intermediates: tuple[x509.Certificate, ...]
    bundle: Bundle


def create(
    directory: Path,
    *,
    root: Authority | x509.Certificate,
    intermediate: Authority,
    bundle: Bundle,
    passphrase: bytes | None,
    root_directory: Path | None = None,
    force: bool = False,
) -> None:
    """Write a new authority. After a crash at any point the set is complete, or `create` can be run again.

    The root's key, if there is one, goes to `root_directory` where that is given, else into the
    directory. Keys are encrypted when there is a passphrase. Raises InvalidConfiguration
    (`authority_exists`, `authority_damaged`, `root_key_exists`) rather than overwrite a key that may
    be in use, unless forced; Unavailable where it cannot write or another `create` is at work.
    """
    make_private_dir(directory)
    with lock_file(directory):
        if not force:
            check_vacant(directory, root_directory)
        _begin(directory, root_directory)
        root_certificate, root_key = (root.certificate, root.key) if isinstance(root, Authority) else (root, None)
        _write_pair(directory / ROOT, root_certificate, None if root_directory else root_key, passphrase)
        if root_directory is not None:
            _write_pair(root_directory, root_certificate, root_key, passphrase)
        _write_pair(directory / INTERMEDIATE, intermediate.certificate, intermediate.key, passphrase)
        write_atomic(directory / BUNDLE_PEM, bundle.to_pem(), mode=PUBLIC_FILE)
        write_atomic(directory / BUNDLE_JSON, bundle.to_jwks(), mode=PUBLIC_FILE)
        _remove(directory / _MARK)


def check_vacant(directory: Path, root_directory: Path | None = None) -> None:
    """Raise InvalidConfiguration unless a new authority may be written without overwriting a key in use."""
    if exists(directory / BUNDLE_JSON):
        raise InvalidConfiguration(
            f"{directory} holds an authority already", rule="authority_exists", hint="choose another directory"
        )
    if not exists(directory / _MARK) and any(_keys(directory)):
        raise InvalidConfiguration(
            f"{directory} holds keys of an authority whose {BUNDLE_JSON} is missing",
            rule="authority_damaged",
            hint=(f"restore {directory / BUNDLE_JSON} from a backup", "or choose another directory"),
        )
    if root_directory is not None and exists(root_directory / KEY) and not _is_leftover(directory, root_directory):
        raise InvalidConfiguration(
            f"{root_directory} holds a key already",
            rule="root_key_exists",
            hint="choose another directory for the root",
        )


def load(directory: Path, *, passphrase: bytes | None) -> AuthoritySet:
    """Read the set. Raises InvalidConfiguration, InvalidKey, InvalidCertificate, InvalidBundle; Unavailable.

    Rules of its own: `authority_missing`, `authority_unfinished`, `authority_damaged` (which names
    the file), `authority_key_mismatch`, `bundle_files_differ`, `trust_domain_mismatch`.
    """
    _check_complete(directory)
    intermediates = load_certificates(_read(directory / INTERMEDIATE / CERTIFICATE))
    trust_domain = _trust_domain(intermediates[0], directory / INTERMEDIATE / CERTIFICATE)
    bundle = _read_bundle(directory, trust_domain)
    key = read_key(directory / INTERMEDIATE / KEY, passphrase=passphrase)
    if not same_public_key(key.public_key(), intermediates[0].public_key()):  # type: ignore[arg-type]  # compared as bytes
        raise InvalidConfiguration(
            f"{directory / INTERMEDIATE / KEY} does not belong to the certificate beside it",
            rule="authority_key_mismatch",
            hint="restore both from the same backup",
        )
    return AuthoritySet(trust_domain, Authority(intermediates[0], key), intermediates, bundle)


def certificates(directory: Path) -> tuple[x509.Certificate, ...]:
    """The intermediates and the bundle's authorities; no key is opened or needed. Raises as `load`."""
    if not exists(directory / BUNDLE_JSON):
        _check_complete(directory)
    path = directory / INTERMEDIATE / CERTIFICATE
    intermediates = load_certificates(_read(path))
    return (*intermediates, *_read_bundle(directory, _trust_domain(intermediates[0], path)).authorities)


def read_crls(directory: Path) -> bytes | None:
    """The revocation lists as they stand there; None where there is no such file. Raises as `read_bounded`."""
    path = directory / CRLS
    return read_bounded(path, MAX_CRL_BYTES) if exists(path) else None


def content_fingerprint(directory: Path) -> str:
    """Hash of all that `load` reads, to notice a change by content. A missing file counts as a content."""
    digest = hashlib.sha256()
    for name in _NEEDED:
        try:
            content = read_bounded(directory / name, _MAX_BYTES)
            digest.update(b"%d:" % len(content) + content)
        except CitadelError as error:
            digest.update(error.rule.encode())
    return digest.hexdigest()


def _begin(directory: Path, root_directory: Path | None) -> None:
    """Mark the set as unfinished, then take away what an earlier attempt, or a forced one, leaves behind."""
    remove_leftovers(directory, str(_MARK), older_than=timedelta(0))
    write_atomic(directory / _MARK, b"citadel-py init did not finish: run it again\n")
    for path in (BUNDLE_JSON, BUNDLE_PEM):
        _remove(directory / path)
        remove_leftovers(directory, str(path), older_than=timedelta(0))
    # The copy of the root's certificate in `directory` proves whose leftover the key outside is: it goes last.
    for place in filter(None, (root_directory, directory / ROOT, directory / INTERMEDIATE)):
        for name in (KEY, CERTIFICATE):
            _remove(place / name)
            remove_leftovers(place, name, older_than=timedelta(0))


def _write_pair(place: Path, certificate: x509.Certificate, key: PrivateKey | None, passphrase: bytes | None) -> None:
    make_private_dir(place)
    write_atomic(place / CERTIFICATE, certificate_pem(certificate), mode=PUBLIC_FILE)
    if key is not None:
        write_atomic(place / KEY, private_key_pem(key, passphrase))


def _remove(path: Path) -> None:
    try:
        path.unlink()
        sync_directory(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise not_written(path, error) from error


def _keys(directory: Path) -> Iterator[Path]:
    return (directory / place / KEY for place in (ROOT, INTERMEDIATE) if exists(directory / place / KEY))


def _is_leftover(directory: Path, root_directory: Path) -> bool:
    """True where the key comes from an attempt for this very directory that did not finish."""
    pair = (directory / ROOT / CERTIFICATE, root_directory / CERTIFICATE)
    if not all(exists(path) for path in (directory / _MARK, *pair)):
        return False
    return _read(pair[0]) == _read(pair[1])


def _check_complete(directory: Path) -> None:
    missing = [name for name in _NEEDED if not exists(directory / name)]
    if not missing:
        return
    init = f"citadel-py init --dir {directory} --trust-domain NAME"
    if BUNDLE_JSON in missing and exists(directory / _MARK):
        raise InvalidConfiguration(
            f"the authority in {directory} was never finished", rule="authority_unfinished", hint=f"run again: {init}"
        )
    if len(missing) == len(_NEEDED):
        raise InvalidConfiguration(f"no authority in {directory}", rule="authority_missing", hint=f"make one: {init}")
    raise InvalidConfiguration(
        f"{directory / missing[0]} is missing", rule="authority_damaged", hint="restore the file from a backup"
    )


def _read(path: Path) -> bytes:
    return read_bounded(path, _MAX_BYTES)


def _trust_domain(certificate: x509.Certificate, path: Path) -> TrustDomain:
    trust_domain = _named_trust_domain(certificate, path)
    if trust_domain is None:
        raise InvalidConfiguration(f"{path} names no trust domain", rule="trust_domain_mismatch")
    return trust_domain


def _named_trust_domain(certificate: x509.Certificate, path: Path) -> TrustDomain | None:
    try:
        named = spiffe_id_of_authority(certificate, f"an authority in {path}")
    except VerificationFailed as error:
        raise InvalidConfiguration(error.message, rule=error.rule) from error
    return named.trust_domain if named else None


def _read_bundle(directory: Path, trust_domain: TrustDomain) -> Bundle:
    bundle = Bundle.from_jwks(trust_domain, _read(directory / BUNDLE_JSON))
    for authority in bundle.authorities:
        if _named_trust_domain(authority, directory / BUNDLE_JSON) not in (None, trust_domain):
            raise InvalidConfiguration(
                f"{directory / BUNDLE_JSON} holds an authority of another trust domain than {trust_domain}",
                rule="trust_domain_mismatch",
            )
    if Bundle.from_pem(trust_domain, _read(directory / BUNDLE_PEM)).content_hash != bundle.content_hash:
        raise InvalidConfiguration(
            f"{directory / BUNDLE_PEM} and {BUNDLE_JSON} beside it hold different authorities",
            rule="bundle_files_differ",
            hint=f"{BUNDLE_JSON} is the one that counts: write {BUNDLE_PEM} anew from it",
        )
    return bundle
