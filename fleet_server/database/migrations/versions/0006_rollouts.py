"""Rollouts: the control, segments, retries, what was last seen of each device, and what a rollout waits for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; rows of rollouts that are open are derived anew from the devices' reports."""
    op.add_column("rollouts", sa.Column("outlook", sa.JSON()))
    segment = sa.Column("segment", sa.String(length=128), nullable=False, server_default="")
    op.add_column("gate_evaluations", segment)
    for column in (
        sa.Column("is_control", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("segment", sa.String(length=128), nullable=False, server_default=""),
        sa.Column("restored", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("is_back", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("phase", sa.String(length=16), nullable=False, server_default="PENDING"),
        sa.Column("phase_ns", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("seen_boot_id", sa.String(length=17)),
        sa.Column("seen_sequence", sa.BigInteger(), nullable=False, server_default="0"),
    ):
        op.add_column("rollout_devices", column)
    of_rollouts = sa.table("rollout_devices", sa.column("incumbent", sa.JSON()), sa.column("restored", sa.Boolean()))
    was_restored = of_rollouts.c.incumbent["restored"].as_boolean().is_(True)
    op.execute(of_rollouts.update().where(was_restored).values(restored=True))
