"""The tables of the ledger's database, as SQLAlchemy Core sees them, and bringing a database up to them.

Types are chosen so that SQLite and PostgreSQL hold the same values: moments are whole microseconds
since 1970 (UTC), digests are lower-case hex. migrations/ creates the tables; a test holds both together.
Alembic is imported only where there is something to migrate.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    column,
    inspect,
    select,
    table,
)

from citadel_py.core.errors import LedgerUnavailable

SCHEMA_VERSION = "0002"  # the newest revision in migrations/versions

METADATA = MetaData()

# Compared byte by byte in both databases, so that a range of SPIFFE IDs is what stands under a path.
TEXT = Text().with_variant(Text(collation="C"), "postgresql")

# The columns stand in the order in which ledger.py writes them.
LEDGER = Table(
    "ledger",
    METADATA,
    Column("writer", TEXT, primary_key=True),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", TEXT, nullable=False),
    Column("serial", TEXT, nullable=False),
    Column("spiffe_id", TEXT, nullable=False),
    Column("caller", TEXT, nullable=False),
    Column("method", TEXT, nullable=False),
    Column("public_key_sha256", TEXT, nullable=False),
    Column("authority_id", TEXT, nullable=False),
    Column("not_before", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("request_id", TEXT, nullable=False),
    Column("time", BigInteger, nullable=False),
    Column("hash", TEXT, nullable=False),
    # a certificate is issued once; other events of its life carry its serial too
    UniqueConstraint("serial", "kind", name="ledger_serial"),
    Index("ledger_spiffe_id", "spiffe_id", "time"),
    Index("ledger_time", "time"),
)

# The last position and hash of each writer: without it, taking the newest entries away would leave
# a chain that looks whole. It is also the row that writers of one name take turns on.
WRITERS = Table(
    "ledger_writers",
    METADATA,
    Column("writer", TEXT, primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("hash", TEXT, nullable=False),
)

# What authorities have signed about each chain (core/ledger_heads.py): the newest statement of each kind.
LEDGER_HEADS = Table(
    "ledger_heads",
    METADATA,
    Column("purpose", TEXT, primary_key=True),
    Column("writer", TEXT, primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("hash", TEXT, nullable=False),
    Column("time", BigInteger, nullable=False),
    Column("authority_id", TEXT, nullable=False),
    Column("signature", TEXT, nullable=False),
)

JOIN_TOKENS = Table(
    "join_tokens",
    METADATA,
    Column("digest", TEXT, primary_key=True),
    Column("spiffe_id", TEXT, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("used_at", BigInteger),
    Index("join_tokens_expires_at", "expires_at"),
)

_VERSION_TABLE = table("alembic_version", column("version_num"))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_microseconds(moment: datetime) -> int:
    """A moment as it is stored. Raises ValueError unless it is UTC: the hash chain covers its text."""
    if moment.utcoffset() != timedelta(0):
        raise ValueError(f"{moment!r} is not aware UTC")
    return (moment - _EPOCH) // _MICROSECOND


def from_microseconds(number: int) -> datetime:
    """The moment that was stored. Raises OverflowError, TypeError for what never was a moment."""
    return _EPOCH + timedelta(microseconds=number)


def schema_version(connection: Connection) -> str | None:
    """The revision that the database is at; None where it has no tables of ours."""
    if not inspect(connection).has_table(_VERSION_TABLE.name):
        return None
    version: str | None = connection.execute(select(_VERSION_TABLE.c.version_num)).scalar_one_or_none()
    return version


def upgrade(connection: Connection) -> None:
    """Bring the database to SCHEMA_VERSION inside the transaction that the caller has begun.

    Raises LedgerUnavailable (`ledger_schema_unknown`) where a newer program has been at it.
    """
    from alembic import command  # noqa: PLC0415 - a third of a second that only a first start pays
    from alembic.config import Config  # noqa: PLC0415 - the same
    from alembic.util import CommandError  # noqa: PLC0415 - the same

    config = Config()
    config.set_main_option("script_location", "citadel_py.store:migrations")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise LedgerUnavailable(
            f"the ledger has a schema that this version does not know: {error}",
            rule="ledger_schema_unknown",
            hint="a newer citadel-py wrote it: use that version",
        ) from error
