"""SPIFFE IDs and trust domains as values: parsed once, immutable (SPIFFE-ID, sections 2.1 to 2.4)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from citadel_py.core.errors import InvalidSpiffeID

SCHEME = "spiffe://"
MAX_ID_BYTES = 2048  # SPIFFE-ID 2.3
MAX_TRUST_DOMAIN_BYTES = 255  # SPIFFE-ID 2.3

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, order=True)
class TrustDomain:
    """Name of the authority that IDs live under, such as `example.org`.

    Raises InvalidSpiffeID for anything but 1 to 255 characters of `[a-z0-9._-]`.
    """

    name: str

    def __post_init__(self) -> None:
        if not _TRUST_DOMAIN.fullmatch(self.name):
            raise InvalidSpiffeID(
                f"invalid trust domain {_shown(self.name)}: it needs one or more of a-z, 0-9, '.', '_', '-'",
                rule="trust_domain_characters",
            )
        if len(self.name) > MAX_TRUST_DOMAIN_BYTES:
            raise InvalidSpiffeID(
                f"trust domain of {len(self.name)} bytes, at most {MAX_TRUST_DOMAIN_BYTES} allowed",
                rule="trust_domain_length",
            )

    @classmethod
    def parse(cls, text: str) -> TrustDomain:
        """Read `example.org`, or the trust domain of a whole SPIFFE ID."""
        if "://" in text or ":/" in text:
            return SpiffeID.parse(text).trust_domain
        return cls(text)

    @property
    def has_empty_label(self) -> bool:
        """Legal, but Go cannot parse it in a certificate: an authority must not have one."""
        return "" in self.name.split(".")

    @property
    def id(self) -> SpiffeID:
        """The ID of the trust domain itself, which its authorities carry."""
        return SpiffeID(self, "")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, order=True)
class SpiffeID:
    """`spiffe://<trust domain><path>`; `path` is empty (an authority) or `/segment[/segment...]`.

    Raises InvalidSpiffeID; `rule` says which of the grammar's rules was broken.
    """

    trust_domain: TrustDomain
    path: str

    def __post_init__(self) -> None:
        if self.path:
            _check_path(self.path)
        length = len(SCHEME) + len(self.trust_domain.name) + len(self.path)
        if length > MAX_ID_BYTES:
            raise InvalidSpiffeID(
                f"SPIFFE ID of {length} bytes, at most {MAX_ID_BYTES} allowed", rule="spiffe_id_length"
            )

    @classmethod
    def parse(cls, text: str) -> SpiffeID:
        """Read a SPIFFE ID; the form is exact, nothing is normalised."""
        if not text.startswith(SCHEME):
            raise InvalidSpiffeID(f"{_shown(text)} does not start with '{SCHEME}'", rule="spiffe_id_scheme")
        name, slash, path = text[len(SCHEME) :].partition("/")
        if not name:
            raise InvalidSpiffeID(f"{_shown(text)} has no trust domain", rule="trust_domain_missing")
        return cls(TrustDomain(name), slash + path)

    @classmethod
    def mesh(cls, trust_domain: TrustDomain, namespace: str, service_account: str) -> SpiffeID:
        """The mesh form: `spiffe://td/ns/<namespace>/sa/<service account>`."""
        for segment in (namespace, service_account):
            _check_segment(segment)
        return cls(trust_domain, f"/ns/{namespace}/sa/{service_account}")

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain.name}{self.path}"


def _check_path(path: str) -> None:
    if not path.startswith("/"):
        raise InvalidSpiffeID(f"path {_shown(path)} does not start with '/'", rule="path_leading_slash")
    if path.endswith("/"):
        raise InvalidSpiffeID(f"path {_shown(path)} ends with '/'", rule="path_trailing_slash")
    for segment in path[1:].split("/"):
        _check_segment(segment)


def _check_segment(segment: str) -> None:
    if not segment:
        raise InvalidSpiffeID("path has an empty segment", rule="path_empty_segment")
    if segment in (".", ".."):
        raise InvalidSpiffeID(f"path has the segment '{segment}'", rule="path_dot_segment")
    if not _SEGMENT.fullmatch(segment):
        raise InvalidSpiffeID(
            f"path segment {_shown(segment)} holds more than A-Z, a-z, 0-9, '.', '_', '-'", rule="path_characters"
        )


def _shown(text: str) -> str:
    """The value for a message: escaped, so that it cannot forge log lines, and bounded."""
    return ascii(text if len(text) <= 80 else text[:80] + "...")
