"""The drift monitor's watches, and the findings it keeps open."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "drift_watches",
        sa.Column("fleet", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=80), nullable=False),
        sa.Column("looked_ns", sa.BigInteger(), nullable=False),
        sa.Column("outcomes", sa.JSON(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("fleet", "model", "version", name=op.f("pk_drift_watches")),
    )
    op.create_table(
        "drift_findings",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("fleet", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=80), nullable=False),
        sa.Column("signal", sa.String(length=64), nullable=False),
        sa.Column("finding", sa.JSON(), nullable=False),
        sa.Column("opened_ns", sa.BigInteger(), nullable=False),
        sa.Column("found_ns", sa.BigInteger(), nullable=False),
        sa.Column("closed_ns", sa.BigInteger()),
        sa.Column("acknowledged_by", sa.String(length=128)),
        sa.Column("acknowledged_ns", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_drift_findings")),
    )
    op.create_index(op.f("ix_drift_findings_fleet_opened_ns"), "drift_findings", ["fleet", "opened_ns"])
