"""`needs-renewal`: 0 yes, 1 no, so that cron can write `needs-renewal F && issue ...`."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from fractions import Fraction
from typing import TypeAlias

import click

from citadel_py.cli import frame, options, params
from citadel_py.cli.exits import Exit
from citadel_py.cli.session import Session
from citadel_py.core.duration import parse_duration
from citadel_py.core.errors import BadInput

Window: TypeAlias = Fraction | timedelta

_FRACTION = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)


def parse_window(text: str) -> Window:
    """`1/3` of a certificate's life, or a duration such as `12h`. Raises BadInput."""
    match = _FRACTION.fullmatch(text)
    if match is None:
        window: Window = parse_duration(text)
        is_right = bool(window)
    else:
        part, whole = map(int, match.groups())
        window = Fraction(part, whole or 1)
        is_right = 0 < part < whole
    if not is_right:
        raise BadInput(
            f"{text!a} is not a fraction between 0 and 1 or a duration", rule="renewal_window", hint="--before 1/3"
        )
    return window


@frame.command(
    "needs-renewal",
    examples=[
        "citadel-py needs-renewal web/tls.crt",
        "citadel-py needs-renewal web/tls.crt --before 12h",
        "citadel-py needs-renewal web/tls.crt && citadel-py issue ID --dir /srv/ca --out web --force",
    ],
    meanings={
        Exit.DONE: "yes: renew it",
        Exit.NO: "no, not yet",
        Exit.BAD_INPUT: "the file cannot be read",
    },
)
@click.argument("file", type=options.FILE)
@click.option(
    "--before", "window", metavar="PART", type=params.Parsed("PART", parse_window), default="1/3", show_default=True,
    help="How long before its end: a fraction of its life, or a duration.",
)  # fmt: skip
@options.as_json
@click.pass_obj
def command(session: Session, file: str, window: Window, *, as_json: bool) -> int:
    """Does the certificate in FILE (- is stdin) need renewal? It ends when the first of its chain does."""
    from citadel_py.cli.inputs import read_certificates
    from citadel_py.cli.render import moment_with_words, rfc3339

    now = session.now()
    chain = read_certificates(session, file, flag="FILE")
    begins = chain[0].not_valid_before_utc
    ends = min(certificate.not_valid_after_utc for certificate in chain)
    due = _renewal_due(begins, ends, window)
    is_due = now >= due
    if as_json:
        session.answer_json({"needs_renewal": is_due, "renew_at": rfc3339(due), "not_after": rfc3339(ends)})
    else:
        verdict = "yes" if is_due else "no"
        session.answer(f"{verdict}: renew at {moment_with_words(due, now)}, ends {moment_with_words(ends, now)}\n")
    return Exit.DONE if is_due else Exit.NO


def _renewal_due(begins: datetime, ends: datetime, window: Window) -> datetime:
    if isinstance(window, timedelta):
        return ends - window
    return ends - (ends - begins) * window.numerator / window.denominator
