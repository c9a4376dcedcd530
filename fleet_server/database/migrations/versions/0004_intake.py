"""What was ever assigned to a device, what the ingest set aside, and how far devices' clocks are off.

What was assigned before is taken from the desired states and from the rollouts' devices.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables, and fill what was assigned."""
    op.create_table(
        "assigned_versions",
        sa.Column("fleet", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=80), nullable=False),
        sa.Column("first_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("fleet", "device", "model", "version", name=op.f("pk_assigned_versions")),
    )
    op.create_table(
        "quarantined_windows",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("fleet", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("boot_id", sa.String(length=17), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=80), nullable=False),
        sa.Column("variant", sa.String(length=64), nullable=False),
        sa.Column("arm", sa.String(length=64), nullable=False),
        sa.Column("start_ns", sa.BigInteger(), nullable=False),
        sa.Column("end_ns", sa.BigInteger(), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("payload", sa.LargeBinary()),
        sa.Column("received_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quarantined_windows")),
    )
    op.create_index(op.f("ix_quarantined_windows_fleet_device_id"), "quarantined_windows", ["fleet", "device", "id"])
    op.create_table(
        "refused_telemetry",
        sa.Column("fleet", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("first_ns", sa.BigInteger(), nullable=False),
        sa.Column("last_ns", sa.BigInteger(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("fleet", "device", "reason", name=op.f("pk_refused_telemetry")),
    )
    op.create_table(
        "device_clocks",
        sa.Column("fleet", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("skew_ns", sa.BigInteger(), nullable=False),
        sa.Column("late_ns", sa.BigInteger(), nullable=False),
        sa.Column("measured_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("fleet", "device", name=op.f("pk_device_clocks")),
    )
    _fill_assigned(op.get_bind())


def _fill_assigned(connection: sa.Connection) -> None:
    columns = ("fleet", "device", "model", "version", "first_ns")
    assigned = sa.table("assigned_versions", *map(sa.column, columns))
    desired = sa.table(
        "desired", *map(sa.column, ("fleet", "device", "issued_at_ns")), sa.column("assignments", sa.JSON)
    )
    rollouts = sa.table("rollouts", *map(sa.column, ("id", "model", "version")))
    taken_part = sa.table(
        "rollout_devices",
        *map(sa.column, ("rollout_id", "fleet", "device", "assigned_generation", "assigned_ns")),
        sa.column("incumbent", sa.JSON),
    )
    first: dict[tuple[str, str, str, str], int] = {}

    def note(fleet: str, device: str, model: Any, version: Any, at_ns: int) -> None:
        if isinstance(model, str) and isinstance(version, str):
            key = (fleet, device, model, version)
            first[key] = min(at_ns, first.get(key, at_ns))

    for row in connection.execute(sa.select(desired)):
        for assignment in row.assignments or []:
            note(row.fleet, row.device, assignment.get("model"), assignment.get("version"), row.issued_at_ns)
    joined = sa.select(taken_part, rollouts.c.model, rollouts.c.version).where(rollouts.c.id == taken_part.c.rollout_id)
    for row in connection.execute(joined):
        if row.assigned_generation:
            note(row.fleet, row.device, row.model, row.version, row.assigned_ns)
        if isinstance(row.incumbent, dict):
            for before in row.incumbent.get("assignments", []):
                note(row.fleet, row.device, before.get("model"), before.get("version"), row.assigned_ns)
    if first:
        rows = [dict(zip(columns, (*key, at_ns), strict=True)) for key, at_ns in first.items()]
        connection.execute(sa.insert(assigned), rows)
