"""The first tables: ledger, its writers, join tokens."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    _create_ledger()
    op.create_table(
        "ledger_writers",
        sa.Column("writer", _TEXT, primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("hash", _TEXT, nullable=False),
    )
    op.create_table(
        "join_tokens",
        sa.Column("digest", _TEXT, primary_key=True),
        sa.Column("spiffe_id", _TEXT, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("used_at", sa.BigInteger),
    )
    op.create_index("join_tokens_expires_at", "join_tokens", ["expires_at"])


def _create_ledger() -> None:
    op.create_table(
        "ledger",
        sa.Column("writer", _TEXT, primary_key=True),
        sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", _TEXT, nullable=False),
        sa.Column("serial", _TEXT, nullable=False),
        sa.Column("spiffe_id", _TEXT, nullable=False),
        sa.Column("caller", _TEXT, nullable=False),
        sa.Column("method", _TEXT, nullable=False),
        sa.Column("public_key_sha256", _TEXT, nullable=False),
        sa.Column("authority_id", _TEXT, nullable=False),
        sa.Column("not_before", sa.BigInteger, nullable=False),
        sa.Column("not_after", sa.BigInteger, nullable=False),
        sa.Column("request_id", _TEXT, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("hash", _TEXT, nullable=False),
        sa.UniqueConstraint("serial", "kind", name="ledger_serial"),
    )
    op.create_index("ledger_spiffe_id", "ledger", ["spiffe_id", "time"])
    op.create_index("ledger_time", "ledger", ["time"])
