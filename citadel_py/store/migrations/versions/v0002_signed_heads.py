"""What authorities have signed about the chains."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "ledger_heads",
        sa.Column("purpose", _TEXT, primary_key=True),
        sa.Column("writer", _TEXT, primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("hash", _TEXT, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("authority_id", _TEXT, nullable=False),
        sa.Column("signature", _TEXT, nullable=False),
    )
