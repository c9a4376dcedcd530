"""Trust roots."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "trust_roots",
        sa.Column("fleet", sa.String(length=64), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("pushed_by", sa.String(length=128), nullable=False),
        sa.Column("pushed_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("fleet", "version", name=op.f("pk_trust_roots")),
    )
