"""The tables of trust, identity and operators; see `tables` for what holds of every table."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from fleet_server.database.tables import metadata

__all__ = ["device_certificates", "enrolment_tokens", "metadata", "operators", "revoked_devices", "trust_roots"]

operators = Table(
    "operators",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("email", String(254), unique=True),
    Column("issuer", String(512)),
    Column("subject", String(255)),
    Column("role", String(16)),
    Column("created_ns", BigInteger, nullable=False),
    Column("last_seen_ns", BigInteger),
    Column("disabled_ns", BigInteger),
    UniqueConstraint("issuer", "subject"),
)

enrolment_tokens = Table(
    "enrolment_tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("fleet", String(64), nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("note", String(120), nullable=False, default=""),
    Column("device", String(64)),
    Column("device_pattern", String(64)),
    Column("labels", JSON, nullable=False, default=dict),
    Column("max_uses", Integer, nullable=False),
    Column("uses", Integer, nullable=False, default=0),
    Column("created_by", String(128), nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Column("revoked_ns", BigInteger),
    Index(None, "fleet", "created_ns"),
)

device_certificates = Table(
    "device_certificates",
    metadata,
    Column("serial", String(32), primary_key=True),
    Column("fleet", String(64), nullable=False),
    Column("device", String(64), nullable=False),
    Column("key_sha256", String(64), nullable=False),
    Column("pem", Text, nullable=False),
    Column("token_id", String(32)),
    Column("issued_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Column("revoked_ns", BigInteger),
    Index(None, "fleet", "device", "issued_ns"),
    Index(None, "fleet", "revoked_ns"),
)

revoked_devices = Table(
    "revoked_devices",
    metadata,
    Column("fleet", String(64), primary_key=True),
    Column("device", String(64), primary_key=True),
    Column("reason", String(200), nullable=False, default=""),
    Column("revoked_by", String(128), nullable=False),
    Column("revoked_ns", BigInteger, nullable=False),
    Column("decommissioned", Boolean, nullable=False, default=False),
    Column("cut_ns", BigInteger),
)

trust_roots = Table(
    "trust_roots",
    metadata,
    Column("fleet", String(64), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("pushed_by", String(128), nullable=False),
    Column("pushed_ns", BigInteger, nullable=False),
)
