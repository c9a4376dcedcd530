"""Enrolment tokens, device certificates and revoked devices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "enrolment_tokens",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("fleet", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("note", sa.String(length=120), nullable=False),
        sa.Column("device", sa.String(length=64)),
        sa.Column("device_pattern", sa.String(length=64)),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("max_uses", sa.Integer(), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=False),
        sa.Column("revoked_ns", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enrolment_tokens")),
        sa.UniqueConstraint("sha256", name=op.f("uq_enrolment_tokens_sha256")),
    )
    op.create_index(op.f("ix_enrolment_tokens_fleet_created_ns"), "enrolment_tokens", ["fleet", "created_ns"])
    op.create_table(
        "device_certificates",
        sa.Column("serial", sa.String(length=32), nullable=False),
        sa.Column("fleet", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("key_sha256", sa.String(length=64), nullable=False),
        sa.Column("pem", sa.Text(), nullable=False),
        sa.Column("token_id", sa.String(length=32)),
        sa.Column("issued_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=False),
        sa.Column("revoked_ns", sa.BigInteger()),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_device_certificates")),
    )
    of_device = ["fleet", "device", "issued_ns"]
    op.create_index(op.f("ix_device_certificates_fleet_device_issued_ns"), "device_certificates", of_device)
    op.create_index(op.f("ix_device_certificates_fleet_revoked_ns"), "device_certificates", ["fleet", "revoked_ns"])
    op.create_table(
        "revoked_devices",
        sa.Column("fleet", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(length=200), nullable=False),
        sa.Column("revoked_by", sa.String(length=128), nullable=False),
        sa.Column("revoked_ns", sa.BigInteger(), nullable=False),
        sa.Column("decommissioned", sa.Boolean(), nullable=False),
        sa.Column("cut_ns", sa.BigInteger()),
        sa.PrimaryKeyConstraint("fleet", "device", name=op.f("pk_revoked_devices")),
    )
