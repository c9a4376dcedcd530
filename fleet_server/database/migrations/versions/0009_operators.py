"""People who operate the fleet; API keys that expire, belong to somebody and rotate."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table, and give API keys their new columns."""
    op.create_table(
        "operators",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("email", sa.String(length=254)),
        sa.Column("issuer", sa.String(length=512)),
        sa.Column("subject", sa.String(length=255)),
        sa.Column("role", sa.String(length=16)),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_ns", sa.BigInteger()),
        sa.Column("disabled_ns", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operators")),
        sa.UniqueConstraint("email", name=op.f("uq_operators_email")),
        sa.UniqueConstraint("issuer", "subject", name=op.f("uq_operators_issuer_subject")),
    )
    with op.batch_alter_table("api_keys") as keys:
        keys.add_column(sa.Column("expires_ns", sa.BigInteger()))
        keys.add_column(sa.Column("last_used_ns", sa.BigInteger()))
        keys.add_column(sa.Column("owner", sa.String(length=16)))
        keys.add_column(sa.Column("rotated_ns", sa.BigInteger()))
        keys.add_column(sa.Column("previous_sha256", sa.String(length=64)))
        keys.add_column(sa.Column("previous_until_ns", sa.BigInteger()))
        keys.create_unique_constraint(op.f("uq_api_keys_previous_sha256"), ["previous_sha256"])
