"""Templates: leaves that are filled in, because building each from nothing costs twice as much CPU.

A template is cut out of a leaf that the library's builder has made: what its own fields hold is taken
out, and the rest stands for every leaf of the same issuer whose fields are as long. It is used only
after it has given, byte for byte, what the builder made of another leaf. No ASN.1 is written here:
lengths do not change, and the signed whole is encoded by the library.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, NamedTuple, TypeAlias

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.serialization import Encoding

from citadel_py.core.grants import Grant
from citadel_py.core.profile import SERIAL_BYTES, Validity

MAX_TEMPLATES = 256  # of one issuer: clients choose how long their IDs are

_LAST_YEAR_OF_UTC_TIME = 2049  # RFC 5280 4.1.2.5
_URI_TAG = b"\x86"  # RFC 5280 4.2.1.6: [6] IMPLICIT

Shape: TypeAlias = tuple[int, int]


@asn1.sequence
class _ToBeSigned:  # RFC 5280 4.1, without the unique identifiers, which the profile does not have
    version: asn1.TLV
    serial: asn1.TLV
    algorithm: asn1.TLV
    issuer: asn1.TLV
    validity: asn1.TLV
    subject: asn1.TLV
    spki: asn1.TLV
    extensions: Annotated[list[asn1.TLV], asn1.Explicit(3)]


@asn1.sequence
class _CriticalExtension:  # RFC 5280 4.1
    type: asn1.TLV
    critical: bool
    value: bytes


@asn1.sequence
class _OneName:  # RFC 5280 4.2.1.6
    name: asn1.TLV


@asn1.sequence
class _Certificate:  # RFC 5280 4.1
    to_be_signed: asn1.TLV
    algorithm: asn1.TLV
    signature: asn1.BitString


class LeafFields(NamedTuple):
    """What a leaf has for itself, each field as it stands in DER and in the order in which it stands there.

    The subject key identifier is not among them: it follows from the key.
    """

    serial: bytes
    not_before: bytes
    not_after: bytes
    spki: bytes
    uri: bytes

    @classmethod
    def of(cls, spki: bytes, grant: Grant, validity: Validity, *, serial: int) -> LeafFields | None:
        """None for a leaf that only the builder makes: with other names than its ID, or fields of other lengths."""
        if grant.dns or grant.ips or not grant.id.path:
            return None
        # with the highest bit but one set, which is how serial numbers are made, they are all equally long
        if serial >> (SERIAL_BYTES * 8 - 2) != 1 or validity.not_after.year > _LAST_YEAR_OF_UTC_TIME:
            return None
        return cls(
            serial.to_bytes(SERIAL_BYTES),
            _utc_time(validity.not_before),
            _utc_time(validity.not_after),
            spki,
            str(grant.id).encode("ascii"),
        )

    @property
    def shape(self) -> Shape:
        """The lengths that differ; those of serial numbers and times do not."""
        return len(self.spki), len(self.uri)


@dataclass(frozen=True, slots=True)
class Template:
    """The leaves of one issuer, one kind of key and one length of the ID, without their fields."""

    parts: tuple[bytes, ...]  # before the serial, between the fields, and after the ID
    key_prefix: bytes  # of the SPKI: the algorithm, and whatever else comes before the key's own bits
    algorithm: asn1.TLV  # of the signature
    is_proven: bool = False

    @classmethod
    def cut(cls, fields: LeafFields, leaf: x509.Certificate) -> Template | None:
        """From a leaf with these fields, made by the builder; None where one of them is not there exactly once."""
        key_id = leaf.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        key_at = next((at for at in range(len(fields.spki)) if _sha1(fields.spki[at:]) == key_id), None)
        parts = _split(leaf.tbs_certificate_bytes, (*fields[:-1], key_id, fields.uri))
        if key_at is None or parts is None:
            return None
        algorithm = asn1.decode_der(_Certificate, leaf.public_bytes(Encoding.DER)).algorithm
        return cls(parts, fields.spki[:key_at], algorithm)

    def is_for(self, fields: LeafFields) -> bool:
        """Whether the key of these fields, which have the template's shape, is of its kind."""
        return fields.spki.startswith(self.key_prefix)

    def fill(self, fields: LeafFields) -> bytes:
        """The TBSCertificate with these fields, for which this template is."""
        key_id = _sha1(fields.spki[len(self.key_prefix) :])  # RFC 5280 4.2.1.2, method 1
        serial, not_before, not_after, spki, uri = fields
        a, b, c, d, e, f, g = self.parts
        return b"".join((a, serial, b, not_before, c, not_after, d, spki, e, key_id, f, uri, g))

    def seal(self, to_be_signed: bytes, signature: bytes) -> bytes:
        """The certificate, DER."""
        return asn1.encode_der(
            _Certificate(
                to_be_signed=asn1.decode_der(asn1.TLV, to_be_signed),
                algorithm=self.algorithm,
                signature=asn1.BitString(signature, 0),
            )
        )


class Templates:
    """The templates of one issuer, learned from what its builder makes. Those unused for longest are dropped."""

    def __init__(self) -> None:
        self._by_shape: dict[Shape, Template] = {}

    def find(self, fields: LeafFields) -> Template | None:
        """The proven template for these fields."""
        template = self._by_shape.pop(fields.shape, None)
        if template is None:
            return None
        self._by_shape[fields.shape] = template  # now the last to be dropped
        return template if template.is_proven and template.is_for(fields) else None

    def learn(self, fields: LeafFields, leaf: x509.Certificate) -> None:
        """Take in a leaf with these fields, made by the builder: as a new template, or as the proof of one."""
        template = self._by_shape.get(fields.shape)
        if template is not None and template.fill(fields) == leaf.tbs_certificate_bytes:
            template = replace(template, is_proven=True)
        else:
            template = Template.cut(fields, leaf)
        if template is not None:
            self._by_shape[fields.shape] = template
        while len(self._by_shape) > MAX_TEMPLATES:
            self._by_shape.pop(next(iter(self._by_shape)))


def reads_as(to_be_signed: bytes, fields: LeafFields) -> bool:
    """Whether the library finds the number, the key and the one name of these fields in a leaf's TBSCertificate."""
    try:
        found = asn1.decode_der(_ToBeSigned, to_be_signed)
        name = asn1.decode_der(_OneName, found.extensions[-1].parse(_CriticalExtension).value).name
    except ValueError:
        return False
    is_right_name = name.tag_bytes == _URI_TAG and name.data == fields.uri
    return is_right_name and found.serial.data == fields.serial and asn1.encode_der(found.spki) == fields.spki


def _split(whole: bytes, values: tuple[bytes, ...]) -> tuple[bytes, ...] | None:
    """What is around the values, which must all be there once and in this order."""
    parts, rest = [], whole
    for value in values:
        before, found, rest = rest.partition(value)
        if not found or whole.find(value) != whole.rfind(value):
            return None
        parts.append(before)
    return (*parts, rest)


def _utc_time(moment: datetime) -> bytes:
    """`260304050607Z`, of an aware moment in UTC (RFC 5280 4.1.2.5.1)."""
    return b"%02d%02d%02d%02d%02d%02dZ" % (
        moment.year % 100, moment.month, moment.day, moment.hour, moment.minute, moment.second,
    )  # fmt: skip


def _sha1(data: bytes) -> bytes:
    return hashlib.sha1(data, usedforsecurity=False).digest()
