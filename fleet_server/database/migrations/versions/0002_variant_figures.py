"""What devices measured of the variants of a bundle."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table and its index by kind of device."""
    op.create_table(
        "variant_figures",
        sa.Column("fleet", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("bundle", sa.String(length=64), nullable=False),
        sa.Column("variant", sa.String(length=64), nullable=False),
        sa.Column("cpu_signature", sa.String(length=64), nullable=False),
        sa.Column("onnxruntime_version", sa.String(length=64), nullable=False),
        sa.Column("right", sa.Boolean(), nullable=False),
        sa.Column("p50_us", sa.Double(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("fault", sa.String(length=64), nullable=False),
        sa.Column("measured_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("fleet", "device", "bundle", "variant", name=op.f("pk_variant_figures")),
    )
    op.create_index(
        op.f("ix_variant_figures_kind"),
        "variant_figures",
        ["bundle", "fleet", "cpu_signature", "onnxruntime_version"],
    )
