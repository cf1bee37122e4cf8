"""Alembic runs this for each command. The connection, inside a transaction, comes from schema.upgrade."""

from __future__ import annotations

from alembic import context

from citadel_py.store.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True)
context.run_migrations()
