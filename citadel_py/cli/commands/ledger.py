"""`ledger`: the record of every certificate: verify, search, export, sign, prune. Revoking is in ledger_revoke.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from citadel_py.cli import frame, options, params
from citadel_py.cli.commands.ledger_revoke import revoke
from citadel_py.cli.exits import Exit
from citadel_py.cli.session import Session
from citadel_py.core.errors import VerificationFailed
from citadel_py.core.spiffe import SpiffeID

if TYPE_CHECKING:
    from citadel_py.store.chains import Chain
    from citadel_py.store.search import Search

Function = TypeVar("Function", bound=Callable[..., Any])

_BELOW = "/*"


class Wanted(NamedTuple):
    """Whose entries: those of an ID, or of all IDs below it."""

    id: SpiffeID
    is_prefix: bool


def parse_wanted(text: str) -> Wanted:
    """`spiffe://td/ns/shop/sa/web`, or `spiffe://td/ns/shop/*`. Raises InvalidSpiffeID."""
    return Wanted(params.parse_id(text.removesuffix(_BELOW)), text.endswith(_BELOW))


_authorities = click.option(
    "--authorities", metavar="FILE", type=options.FILE,
    help="Certificates of earlier authorities that are no longer in D (PEM).",
)  # fmt: skip

_FILTERS = (
    click.option("--id", "wanted_id", type=params.Parsed("ID", parse_wanted), help="This SPIFFE ID, or ID/*."),
    click.option("--serial", type=params.SERIAL, help="This serial number."),
    click.option("--caller", metavar="TEXT", help="Asked for by this caller."),
    click.option("--since", type=params.MOMENT, help="Recorded at this moment or later (RFC 3339)."),
    click.option("--until", type=params.MOMENT, help="Recorded before this moment (RFC 3339)."),
)


def _filters(function: Function) -> Function:
    for option in reversed(_FILTERS):
        function = option(function)
    return function


def _search(
    *, wanted_id: Wanted | None, serial: str | None, caller: str | None, since: datetime | None, until: datetime | None
) -> Search:
    from citadel_py.store.search import Search

    exact, under = None, None
    if wanted_id is not None:
        exact, under = (None, wanted_id.id) if wanted_id.is_prefix else (wanted_id.id, None)
    return Search(since=since, until=until, spiffe_id=exact, under=under, serial=serial, caller=caller)


@frame.family(
    "ledger",
    examples=[
        "citadel-py ledger verify --dir /srv/ca",
        "citadel-py ledger search --dir /srv/ca --id 'spiffe://example.org/ns/shop/*'",
    ],
)
def command() -> None:
    """The record of every certificate that was issued."""


@frame.command(
    "verify",
    examples=[
        "citadel-py ledger verify --dir /srv/ca",
        "citadel-py ledger verify --dir /srv/ca --json > heads.json",
        "citadel-py ledger verify --dir /srv/ca --heads heads.json",
    ],
    codes=[Exit.UNAVAILABLE],
    meanings={
        Exit.DONE: "every chain verifies",
        Exit.NO: "it does not; stderr names the rule, the writer and the entry",
    },
)
@options.directory
@options.ledger
@_authorities
@click.option(
    "--heads", metavar="FILE", type=options.FILE,
    help="What --json printed earlier: the chains must still contain it. - is stdin.",
)  # fmt: skip
@options.as_json
@click.pass_obj
def verify(
    session: Session, /, *, directory: Path, ledger: str | None, authorities: str | None, heads: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Verify that no entry was changed, taken out, moved or made up.

    Each chain is walked to its end, and must be one that the authority in D has signed. No key is
    opened. What was added since the last signature is bound by the chain alone.
    """
    from citadel_py.cli.ledger import known_keys, open_ledger, read_heads, warn_of_unsigned

    now = session.now()
    keys = known_keys(session, directory, authorities)
    earlier = read_heads(session, heads) if heads else {}
    try:
        with open_ledger(directory, ledger, now=now) as opened:
            chains = opened.verify(keys, earlier)
    except VerificationFailed as error:
        if as_json:
            session.answer_json({"is_valid": False, "rule": error.rule, "message": error.message, "chains": []})
        raise
    _answer_chains(session, chains, now=now, as_json=as_json)
    for chain in chains.values():
        warn_of_unsigned(session, chain, now=now)


def _answer_chains(session: Session, chains: Mapping[str, Chain], *, now: datetime, as_json: bool) -> None:
    from citadel_py.cli.ledger import chain_block, chain_facts
    from citadel_py.cli.render import heading

    ordered = [chains[writer] for writer in sorted(chains)]
    if as_json:
        facts = [chain_facts(each) for each in ordered]
        session.answer_json({"is_valid": True, "rule": None, "message": None, "chains": facts})
        return
    count = sum(each.position - each.start.position for each in ordered)
    session.answer(heading("verified", f"{count} entries") + "".join(chain_block(each, now=now) for each in ordered))


@frame.command(
    "search",
    examples=[
        "citadel-py ledger search --dir /srv/ca --id spiffe://example.org/web",
        "citadel-py ledger search --dir /srv/ca --id 'spiffe://example.org/ns/shop/*' --since 2026-03-01T00:00:00Z",
        "citadel-py ledger search --dir /srv/ca --serial 7d3fb4a4b0d7e3a9c8b1 --json",
    ],
    codes=[Exit.UNAVAILABLE],
    meanings={Exit.DONE: "found", Exit.NO: "no entry matches"},
)
@options.directory
@options.ledger
@_filters
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="The newest so many.")
@options.as_json
@click.pass_obj
def search(
    session: Session, /, *, directory: Path, ledger: str | None, limit: int, as_json: bool,
    **filters: Any,  # noqa: ANN401 - handed on to _search
) -> int:  # fmt: skip
    """Find entries, oldest first. All that is given must match.

    The chain is not verified: `ledger verify` does that.
    """
    from citadel_py.cli.ledger import entry_block, entry_facts, open_ledger

    now = session.now()
    with open_ledger(directory, ledger, now=now) as opened:
        found = opened.newest(_search(**filters), limit=limit + 1)
    shown, is_complete = found[-limit:], len(found) <= limit
    if as_json:
        session.answer_json({"is_complete": is_complete, "entries": [entry_facts(each) for each in shown]})
    else:
        session.answer("\n".join(entry_block(each, now=now) for each in shown))
        if not is_complete:
            session.note(f"there are older ones: these are the newest {limit} (--limit, --until)")
    return Exit.DONE if shown else Exit.NO


@frame.command(
    "export",
    examples=[
        "citadel-py ledger export --dir /srv/ca > ledger.jsonl",
        "citadel-py ledger export --dir /srv/ca --since 2026-03-01T00:00:00Z | gzip > march.jsonl.gz",
    ],
    codes=[Exit.UNAVAILABLE, Exit.NO],
)
@options.directory
@options.ledger
@_filters
@click.pass_obj
def export(
    session: Session, /, *, directory: Path, ledger: str | None,
    **filters: Any,  # noqa: ANN401 - handed on to _search
) -> None:  # fmt: skip
    """Print entries as JSON, one per line, chain by chain, with what was signed about the chains.

    Who has the export and the authority's certificate can verify the chains without this program.
    """
    from citadel_py.cli.ledger import exported, open_ledger

    with open_ledger(directory, ledger, now=session.now()) as opened:
        for line in exported(opened, _search(**filters)):
            session.answer(line)


@frame.command(
    "sign",
    examples=[
        "citadel-py ledger sign --dir /srv/ca",
        "citadel-py ledger sign --dir /srv/ca --authorities old.crt",
        "citadel-py ledger sign --dir /srv/ca --adopt --yes",
    ],
    codes=[Exit.UNAVAILABLE],
    meanings={Exit.DONE: "every chain is signed to its end", Exit.NO: "a chain does not continue what was signed"},
)
@options.directory
@options.ledger
@_authorities
@options.passphrase_file("Passphrase of the authority's key.")
@click.option("--adopt", is_flag=True, help="Take chains that were never signed, or by an unknown authority, on trust.")
@options.yes
@click.pass_obj
def sign(
    session: Session, /, *, directory: Path, ledger: str | None, authorities: str | None,
    passphrase_file: str | None, adopt: bool, yes: bool,
) -> None:  # fmt: skip
    """Sign the end of every chain with the authority in D.

    `serve` does that every minute, and offline commands after each certificate. By hand it is needed
    after an authority was replaced, and after a crash to have the last entries signed at once.
    """
    from citadel_py.cli.authority import OfflineAuthority
    from citadel_py.cli.inputs import read_certificates
    from citadel_py.cli.ledger import open_ledger
    from citadel_py.core.ledger_heads import Seal, authority_keys

    if adopt:
        options.confirm(session, "Sign whatever the ledger holds now?", yes=yes)
    now = session.now()
    seal = OfflineAuthority.open(session, directory, passphrase_file, now=now).seal()
    if authorities:
        others = authority_keys(read_certificates(session, authorities, flag="--authorities"))
        seal = Seal(seal.authority, {**others, **seal.keys})
    with open_ledger(directory, ledger, now=now) as opened:
        for each in opened.sign_all(seal, adopt=adopt):
            session.answer(f"{each.writer}: signed to entry {each.head.position}\n")


@frame.command(
    "prune",
    examples=[
        "citadel-py ledger prune --dir /srv/ca --keep 400d --dry-run",
        "citadel-py ledger prune --dir /srv/ca --keep 400d --yes",
        "citadel-py ledger prune --dir /srv/ca --before 2026-01-01T00:00:00Z --yes",
    ],
    codes=[Exit.UNAVAILABLE],
    meanings={
        Exit.DONE: "done, also where there was nothing to do",
        Exit.NO: "the ledger does not verify: nothing went",
    },
)
@options.directory
@options.ledger
@click.option("--before", type=params.MOMENT, help="Entries of certificates that ended before this moment (RFC 3339).")
@click.option("--keep", type=params.DURATION, help="Entries of certificates that ended longer ago than this: 400d.")
@options.passphrase_file("Passphrase of the authority's key.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@options.yes
@options.as_json
@click.pass_obj
def prune(
    session: Session, /, *, directory: Path, ledger: str | None, before: datetime | None, keep: timedelta | None,
    passphrase_file: str | None, dry_run: bool, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Take old entries out, so that what remains still verifies.

    From the beginning of each chain, up to the first certificate that ended later. The ledger is
    verified first, and the authority in D signs from where on it is kept.
    """
    from citadel_py.cli.authority import OfflineAuthority
    from citadel_py.cli.ledger import open_ledger
    from citadel_py.cli.render import rfc3339

    now = session.now()
    moment = _moment(before, keep, now)
    with open_ledger(directory, ledger, now=now) as opened:
        counts = opened.prunable(moment)
        if counts and not dry_run:
            options.confirm(session, f"Take {sum(counts.values())} entries out of the ledger?", yes=yes)
            seal = OfflineAuthority.open(session, directory, passphrase_file, now=now).seal()
            counts = opened.prune(moment, seal)
    if as_json:
        pruned = [{"writer": writer, "entries": count} for writer, count in counts.items()]
        session.answer_json({"before": rfc3339(moment), "is_dry_run": dry_run, "pruned": pruned})
        return
    done = "would go" if dry_run else "pruned"
    for writer, count in counts.items():
        session.answer(f"{writer}: {count} {done}\n")
    session.note(f"{sum(counts.values())} entries of certificates that ended before {rfc3339(moment)} {done}")


def _moment(before: datetime | None, keep: timedelta | None, now: datetime) -> datetime:
    if (before is None) == (keep is None):
        raise click.UsageError("give either --before or --keep")
    if before is not None:
        return before
    try:
        return now - (keep or timedelta(0))
    except OverflowError:
        return datetime.min.replace(tzinfo=now.tzinfo)


for each in (verify, search, export, revoke, sign, prune):
    command.add_command(each)
