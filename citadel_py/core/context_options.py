"""What validation contexts ask of peers beyond a chain to the bundle: who they are, and that nobody revoked them.

Values only. How they are written for Envoy is sds/encoding.py's; which revocation lists are usable is crl.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from citadel_py.core.errors import InvalidConfiguration
from citadel_py.core.spiffe import SpiffeID

_BELOW = "/**"


@dataclass(frozen=True, slots=True, order=True)
class PeerMatcher:
    """Admits one ID, or all IDs below one: below that of a trust domain these are all of its workloads."""

    id: SpiffeID
    is_prefix: bool = False

    def __post_init__(self) -> None:
        if not self.is_prefix and not self.id.path:
            raise _no_matcher(str(self.id), "it is the ID of an authority, which no peer has")

    @classmethod
    def parse(cls, text: str) -> Self:
        """`spiffe://td/path`, `spiffe://td/path/**` or `spiffe://td/**`. Raises BadInput."""
        base = text.removesuffix(_BELOW)
        if "*" in base:
            raise _no_matcher(text, "Envoy compares whole IDs or their beginnings, so ** may stand at the end only")
        return cls(SpiffeID.parse(base), is_prefix=base != text)

    @property
    def value(self) -> str:
        """What IDs are compared with. A prefix ends with a slash: `spiffe://td` begins `spiffe://td.evil/` too."""
        return f"{self.id}/" if self.is_prefix else str(self.id)

    def __str__(self) -> str:
        return f"{self.id}{_BELOW if self.is_prefix else ''}"


class CrlCheck(StrEnum):
    """Which certificates of a peer's chain are looked up in revocation lists.

    Who turns it on wants no context without lists: there is none before they come, and Envoy refuses
    every peer when those it has have ended.
    """

    OFF = "off"
    LEAF = "leaf"
    PATH = "path"


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """Options of the validation contexts of one socket.

    No `peers` means that the bundle alone decides. Raises InvalidConfiguration (`crl_leaf_unsupported`):
    Envoy's SPIFFE validator ignores `only_verify_leaf_cert_crl`, and would refuse everybody.
    """

    use_spiffe_validator: bool = False
    peers: tuple[PeerMatcher, ...] = ()
    crl: CrlCheck = CrlCheck.OFF

    def __post_init__(self) -> None:
        if self.use_spiffe_validator and self.crl is CrlCheck.LEAF:
            raise InvalidConfiguration(
                "Envoy's SPIFFE validator cannot check leaves alone for revocation",
                rule="crl_leaf_unsupported",
                hint="take the plain validator, or have the whole path checked",
            )


def _no_matcher(text: str, why: str) -> InvalidConfiguration:
    return InvalidConfiguration(
        f"{text[:200]!a} does not say which peers to admit: {why}",
        rule="peer_matcher",
        hint="write spiffe://example.org/shop for one, spiffe://example.org/ns/shop/** for all below",
    )
