"""What is not merged yet, and who of several servers merges."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the ledger's unmerged range, the table of unmerged spans and that of leases."""
    op.add_column("ingest_ledger", sa.Column("unmerged_from_ns", sa.BigInteger(), nullable=True))
    op.add_column("ingest_ledger", sa.Column("unmerged_to_ns", sa.BigInteger(), nullable=True))
    op.create_index(op.f("ix_ingest_ledger_unmerged"), "ingest_ledger", ["fleet", "unmerged_from_ns"])
    op.create_table(
        "unmerged_spans",
        sa.Column("fleet", sa.String(length=64), nullable=False),
        sa.Column("grain", sa.String(length=16), nullable=False),
        sa.Column("start_ns", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("mark", sa.BigInteger(), nullable=False),
        sa.Column("marked_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("fleet", "grain", "start_ns", name=op.f("pk_unmerged_spans")),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("until_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
