"""Patterns of a policy: SPIFFE IDs, DNS names and token subjects, compared segment by segment.

A pattern's segment is a literal, `*` (any one segment), `{name}` (any one segment, remembered) or, as
the last one, `**` (one or more segments). All of them stand for whole segments, so that no value can
reach across a separator: what `{name}` has caught is compared with a whole segment as well, never
pasted into text. Comparison is exact: letters have their case, and nothing is decoded or normalised.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from citadel_py.core.errors import InvalidConfiguration, InvalidSpiffeID
from citadel_py.core.grants import is_dns_label
from citadel_py.core.spiffe import SCHEME, SpiffeID, TrustDomain

ANY = "*"
MANY = "**"
MAX_PATTERN_CHARACTERS = 2048

Captures: TypeAlias = Mapping[str, str]

_CAPTURE = re.compile(r"\{([a-z][a-z0-9_]{0,31})\}")


@dataclass(frozen=True, slots=True)
class Segments:
    """A pattern of segments: `parts` as written, and what stands between them."""

    parts: tuple[str, ...]
    separator: str
    is_open: bool = field(init=False, repr=False)
    literals: tuple[tuple[int, str], ...] = field(init=False, repr=False)
    captures: tuple[tuple[int, str], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        fixed = self.parts[:-1] if self.parts[-1] == MANY else self.parts
        catching = tuple((at, found[1]) for at, part in enumerate(fixed) if (found := _CAPTURE.fullmatch(part)))
        others = {at for at, _ in catching} | {at for at, part in enumerate(fixed) if part == ANY}
        object.__setattr__(self, "is_open", len(fixed) < len(self.parts))
        object.__setattr__(self, "captures", catching)
        object.__setattr__(self, "literals", tuple((at, each) for at, each in enumerate(fixed) if at not in others))

    @property
    def names(self) -> frozenset[str]:
        """The names of its captures."""
        return frozenset(name for _, name in self.captures)

    @property
    def prefix(self) -> tuple[str, ...]:
        """The literals that it begins with."""
        return tuple(text for count, (at, text) in enumerate(self.literals) if at == count)

    def fits(self, segments: Sequence[str]) -> bool:
        """Whether the segments match, whatever the captures are. An empty segment is matched by nothing."""
        count, needed = len(segments), len(self.parts)
        if (count < needed) if self.is_open else (count != needed):
            return False
        for at, text in self.literals:
            if segments[at] != text:
                return False
        return "" not in segments

    def catch(self, segments: Sequence[str]) -> Captures:
        """What the captures of a pattern that fits have caught."""
        return {name: segments[at] for at, name in self.captures}

    def admits(self, segments: Sequence[str], caught: Captures) -> bool:
        """Whether the segments match with each capture standing for what was caught before."""
        return self.fits(segments) and all(segments[at] == caught.get(name) for at, name in self.captures)

    def covers(self, other: Segments, *, are_bound: bool = False) -> bool:
        """Whether it matches everything that `other` does. Where captures are bound, each covers itself alone."""
        needed, has = len(self.parts), len(other.parts)
        if (has < needed) if self.is_open else (has != needed or other.is_open):
            return False
        pairs = zip(self.parts, other.parts, strict=False)
        return all(part in (each, ANY, MANY) or (not are_bound and part.startswith("{")) for part, each in pairs)

    def __str__(self) -> str:
        return self.separator.join(self.parts)


@dataclass(frozen=True, slots=True)
class IDPattern:
    """SPIFFE IDs of one trust domain, by their path: `spiffe://example.org/ns/{ns}/sa/*`."""

    trust_domain: TrustDomain
    path: Segments

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain}/{self.path}"


def segments_of(id: SpiffeID) -> Sequence[str]:
    """The segments of the path; none for the ID of an authority."""
    return id.path.split("/")[1:]


def parse_id_pattern(text: str) -> IDPattern:
    """Read a pattern of SPIFFE IDs. Raises InvalidConfiguration."""
    if not text.startswith(SCHEME):
        raise _invalid(text, f"it does not start with '{SCHEME}'")
    name, _, path = text[len(SCHEME) :].partition("/")
    try:
        trust_domain = TrustDomain(name)
    except InvalidSpiffeID as error:
        raise InvalidConfiguration(
            f"{_shown(text)} could match another trust domain: {error.message}",
            rule="policy_trust_domain",
            hint=f"write the trust domain as it is: {SCHEME}example.org/ns/*/sa/*",
        ) from error
    return IDPattern(trust_domain, _parse(text, path, "/", _is_path_segment))


def parse_dns_pattern(text: str) -> Segments:
    """Read a pattern of DNS names. Its last label has to say something. Raises InvalidConfiguration."""
    pattern = _parse(text, text, ".", is_dns_label)
    if pattern.is_open or pattern.parts[-1] == ANY or pattern.parts[-1].isdigit():
        raise _invalid(text, f"the last label of a DNS name is neither {ANY} nor {MANY} nor a number")
    return pattern


def parse_subject_pattern(text: str) -> Segments:
    """Read a pattern of token subjects, whose segments stand between colons. Raises InvalidConfiguration."""
    return _parse(text, text, ":", str.isprintable)


def _parse(text: str, rest: str, separator: str, is_literal: Callable[[str], bool]) -> Segments:
    if len(text) > MAX_PATTERN_CHARACTERS:
        raise _invalid(text, f"it has more than {MAX_PATTERN_CHARACTERS} characters")
    parts = rest.split(separator)
    for part in parts if MANY not in parts[-1:] else parts[:-1]:
        if part == ANY or _CAPTURE.fullmatch(part):
            continue
        if not part:
            raise _invalid(text, "it has an empty segment")
        if set(part) & set("*{}"):
            raise _invalid(text, f"{_shown(part)}: wildcards and captures are whole segments, and {MANY} is the last")
        if not is_literal(part):
            raise _invalid(text, f"{_shown(part)} can be no segment of it")
    pattern = Segments(tuple(parts), separator)
    if len(pattern.names) < len(pattern.captures):
        raise _invalid(text, "it has the same capture twice")
    return pattern


def _is_path_segment(text: str) -> bool:
    try:
        SpiffeID(TrustDomain("x"), f"/{text}")
    except InvalidSpiffeID:
        return False
    return True


def _invalid(text: str, why: str) -> InvalidConfiguration:
    return InvalidConfiguration(f"the pattern {_shown(text)} cannot be used: {why}", rule="policy_pattern")


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 120 else text[:120] + "...")
