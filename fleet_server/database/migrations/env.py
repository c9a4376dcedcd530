"""Alembic's entry: runs the migrations on the connection that `fleet_server.database.schema` holds."""

from __future__ import annotations

from alembic import context

from fleet_server.database.identity_tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,  # the caller's transaction holds everything
    compare_type=True,
)
context.run_migrations()
