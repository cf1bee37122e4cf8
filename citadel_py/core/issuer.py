"""The object that signs with the active authority. One immutable snapshot: key, chain and bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from citadel_py.core import profile
from citadel_py.core.bundle import Bundle
from citadel_py.core.duration import format_duration
from citadel_py.core.errors import CitadelError, InvalidConfiguration, NotReady
from citadel_py.core.keys import (
    KeyType,
    PublicKey,
    generate_key,
    public_key_der,
    same_public_key,
    signer_of,
    signing_hash,
)
from citadel_py.core.policy import Grant, TTLLimits
from citadel_py.core.profile import Authority, Validity
from citadel_py.core.spiffe import SpiffeID, TrustDomain
from citadel_py.core.template import LeafFields, Template, Templates, reads_as
from citadel_py.core.verify import check_leaf, verify_svid
from citadel_py.core.x509svid import X509SVID


@dataclass(frozen=True, slots=True)
class Issuer:
    """The active authority, the intermediates up to but without the root, and the bundle.

    `intermediates` starts with the authority's own certificate (it is empty only where a root
    signs by itself). A leaf and its chain always come from one Issuer, so that they belong
    together. Use `activated` to build one: it proves that the parts fit.
    """

    authority: Authority
    intermediates: tuple[x509.Certificate, ...]
    bundle: Bundle
    root: x509.Certificate
    backdate: timedelta = profile.DEFAULT_BACKDATE
    common_name: bool = False
    _name: x509.Name = field(init=False, repr=False)
    _key_id: x509.AuthorityKeyIdentifier = field(init=False, repr=False)
    _limits: Validity = field(init=False, repr=False)
    _sign: Callable[[bytes], bytes] = field(init=False, repr=False, compare=False)
    _templates: Templates = field(init=False, repr=False, compare=False, default_factory=Templates)

    def __post_init__(self) -> None:
        chain = (*self.intermediates, self.root)
        object.__setattr__(self, "_name", self.authority.certificate.subject)
        object.__setattr__(self, "_key_id", profile.authority_key_identifier(self.authority.certificate))
        object.__setattr__(self, "_sign", signer_of(self.authority.key))
        starts = max(each.not_valid_before_utc for each in chain)
        object.__setattr__(self, "_limits", Validity(starts, min(each.not_valid_after_utc for each in chain)))

    @classmethod
    def activated(
        cls,
        authority: Authority,
        intermediates: tuple[x509.Certificate, ...],
        bundle: Bundle,
        *,
        now: datetime,
        serial: int,
    ) -> Issuer:
        """An issuer that has signed and verified probes at `now`, numbered from `serial`.

        Raises InvalidConfiguration where key, certificate, chain and bundle do not belong together
        or an authority outlives its parent, NotReady where one of them has expired.
        """
        if not same_public_key(authority.key.public_key(), authority.certificate.public_key()):  # type: ignore[arg-type]  # compared as bytes
            raise InvalidConfiguration(
                "the authority's key does not belong to its certificate", rule="authority_key_mismatch"
            )
        root = _root_of(intermediates[-1] if intermediates else authority.certificate, bundle)
        _check_lifetimes((*intermediates, root))
        issuer = cls(authority, intermediates, bundle, root)
        issuer._check_is_valid(now)
        issuer._sign_probes(now, serial)
        return issuer

    @property
    def trust_domain(self) -> TrustDomain:
        return self.bundle.trust_domain

    @property
    def not_before(self) -> datetime:
        """The moment at which the last certificate of the chain begins, and issuing with it."""
        return self._limits.not_before

    @property
    def not_after(self) -> datetime:
        """The moment at which the first certificate of the chain ends, and issuing with it."""
        return self._limits.not_after

    def issue(
        self, public_key: PublicKey, grant: Grant, *, now: datetime, serial: int, spki: bytes | None = None
    ) -> X509SVID:
        """Sign a leaf: never valid beyond any certificate above it. Raises NotReady after expiry.

        `spki` is `public_key_der(public_key)`, for a caller that has it at hand.
        """
        self._check_is_valid(now)
        validity = self._validity(grant.ttl, now)
        fields = LeafFields.of(spki or public_key_der(public_key), grant, validity, serial=serial)
        if fields is None:
            return self._build(public_key, grant, validity, serial)
        template = self._templates.find(fields)
        if template is not None:
            return self._fill(template, fields, grant.id)
        svid = self._build(public_key, grant, validity, serial)
        self._templates.learn(fields, svid.leaf)
        return svid

    def check_ttl_fits(self, limits: TTLLimits, *, now: datetime) -> None:
        """Raise InvalidConfiguration where the default lifetime is longer than the authority has left."""
        left = self.not_after - now
        if limits.default > left:
            raise InvalidConfiguration(
                f"the default leaf lifetime of {format_duration(limits.default)} is longer than the "
                f"{format_duration(left)} that the authority has left",
                rule="ttl_beyond_authority",
                hint="renew the authority, or choose a shorter default lifetime",
            )

    def _build(self, public_key: PublicKey, grant: Grant, validity: Validity, serial: int) -> X509SVID:
        """By the library's builder, checked by all rules."""
        builder = profile.leaf_builder(
            public_key,
            grant,
            validity,
            serial=serial,
            issuer=self._name,
            issuer_key_id=self._key_id,
            common_name=self.common_name,
        )
        leaf = builder.sign(self.authority.key, signing_hash(self.authority.key))
        if check_leaf(leaf) != grant.id:
            raise _not_as_meant(grant.id)
        return X509SVID(grant.id, (leaf, *self.intermediates))

    def _fill(self, template: Template, fields: LeafFields, id: SpiffeID) -> X509SVID:
        """By a template, which was cut from a leaf that all rules had passed, and gave another one again.

        What the rules are about stands in the template and cannot come out otherwise, but for the strength of
        an RSA key, which the rules for CSRs judge. What varies is read back before it is signed, at a tenth of
        the cost of one certificate: checking all rules again, on the signed leaf, would be a third, and the
        signature was proven when the issuer was activated.
        """
        to_be_signed = template.fill(fields)
        if not reads_as(to_be_signed, fields):
            raise _not_as_meant(id)
        der = template.seal(to_be_signed, self._sign(to_be_signed))
        return X509SVID(id, (x509.load_der_x509_certificate(der), *self.intermediates), der)

    def _validity(self, ttl: timedelta, now: datetime) -> Validity:
        moment = now.astimezone(UTC).replace(microsecond=0)
        return Validity(max(moment - self.backdate, self._limits.not_before), min(moment + ttl, self._limits.not_after))

    def _check_is_valid(self, now: datetime) -> None:
        if not self._limits.not_before <= now < self._limits.not_after:
            raise NotReady(
                f"the authority {self.authority.id} is valid from {self._limits.not_before:%FT%TZ} "
                f"to {self._limits.not_after:%FT%TZ}, not at {now:%FT%TZ}",
                rule="authority_not_valid_now",
            )

    def _sign_probes(self, now: datetime, serial: int) -> None:
        """Three, each for a new key that nobody keeps: for the third a template is cut, proven, and used."""
        probe = SpiffeID(self.trust_domain, "/citadel-py/probe")
        for number in range(serial, serial + 3):
            public_key = generate_key(KeyType.P256).public_key()
            svid = self.issue(public_key, Grant(probe, timedelta(minutes=1)), now=now, serial=number)
            try:
                verify_svid(svid.chain, self.bundle, now=now, expected=probe)
            except CitadelError as error:
                raise InvalidConfiguration(
                    f"what this authority signs would not verify against the bundle: {error}", rule="authority_unusable"
                ) from error


def _not_as_meant(id: SpiffeID) -> CitadelError:
    return CitadelError(f"the certificate made for {id} says something else", rule="self_check_failed")


def _root_of(top: x509.Certificate, bundle: Bundle) -> x509.Certificate:
    """The bundle's authority that signed the top of the chain, or is it."""
    for root in bundle.authorities:
        if root == top or _is_signed_by(top, root):
            return root
    raise InvalidConfiguration(
        f"no authority in the bundle signed {top.subject.rfc4514_string()!r}", rule="authority_not_in_bundle"
    )


def _is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_lifetimes(chain: tuple[x509.Certificate, ...]) -> None:
    for child, parent in pairwise(chain):
        if child.not_valid_after_utc > parent.not_valid_after_utc:
            raise InvalidConfiguration(
                f"the authority {child.subject.rfc4514_string()!r} outlives its parent",
                rule="authority_outlives_parent",
            )
