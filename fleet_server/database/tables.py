"""The fleet's tables. Times are UTC nanoseconds; JSON columns hold the protocol's structs as plain JSON.

Every state that two processes may change carries `revision`: a transition is an UPDATE that names the
revision it read (compare-and-set), and a lost race changes no row.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only an INTEGER key

devices = Table(
    "devices",
    metadata,
    Column("fleet", String(64), primary_key=True),
    Column("device", String(64), primary_key=True),
    Column("secret_sha256", String(64)),
    Column("labels", JSON, nullable=False, default=dict),
    Column("online", Boolean, nullable=False, default=False),
    Column("boot_id", String(17)),
    Column("reported_sequence", BigInteger, nullable=False, default=0),
    Column("reported", JSON),
    Column("last_seen_ns", BigInteger, nullable=False, default=0),
    Column("created_ns", BigInteger, nullable=False),
)

desired = Table(
    "desired",
    metadata,
    Column("fleet", String(64), primary_key=True),
    Column("device", String(64), primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("assignments", JSON, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("published_generation", BigInteger, nullable=False, default=0),
    Column("issued_at_ns", BigInteger, nullable=False),
)

device_events = Table(
    "device_events",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("fleet", String(64), nullable=False),
    Column("device", String(64), nullable=False),
    Column("boot_id", String(17), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("model", String(64), nullable=False, default=""),
    Column("bundle", String(64), nullable=False, default=""),
    Column("phase", String(16)),
    Column("detail", Text, nullable=False, default=""),
    UniqueConstraint("fleet", "device", "boot_id", "sequence"),
    Index(None, "fleet", "at_ns"),
)

ingest_ledger = Table(
    "ingest_ledger",
    metadata,
    Column("fleet", String(64), primary_key=True),
    Column("device", String(64), primary_key=True),
    Column("boot_id", String(17), primary_key=True),
    Column("ranges", JSON, nullable=False),
    Column("windows", BigInteger, nullable=False, default=0),
    Column("repeats", BigInteger, nullable=False, default=0),
    Column("updated_ns", BigInteger, nullable=False),
    Column("unmerged_from_ns", BigInteger),
    Column("unmerged_to_ns", BigInteger),
    Index("ix_ingest_ledger_unmerged", "fleet", "unmerged_from_ns"),
)

unmerged_spans = Table(
    "unmerged_spans",
    metadata,
    Column("fleet", String(64), primary_key=True),
    Column("grain", String(16), primary_key=True),
    Column("start_ns", BigInteger, primary_key=True, autoincrement=False),
    Column("mark", BigInteger, nullable=False),
    Column("marked_ns", BigInteger, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("until_ns", BigInteger, nullable=False),
)

assigned_versions = Table(
    "assigned_versions",
    metadata,
    Column("fleet", String(64), primary_key=True),
    Column("device", String(64), primary_key=True),
    Column("model", String(64), primary_key=True),
    Column("version", String(80), primary_key=True),
    Column("first_ns", BigInteger, nullable=False),
)

quarantined_windows = Table(
    "quarantined_windows",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("fleet", String(64), nullable=False),
    Column("device", String(64), nullable=False),
    Column("boot_id", String(17), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("model", String(64), nullable=False),
    Column("version", String(80), nullable=False),
    Column("variant", String(64), nullable=False),
    Column("arm", String(64), nullable=False),
    Column("start_ns", BigInteger, nullable=False),
    Column("end_ns", BigInteger, nullable=False),
    Column("reasons", JSON, nullable=False),
    Column("payload", LargeBinary),
    Column("received_ns", BigInteger, nullable=False),
    Index(None, "fleet", "device", "id"),
)

refused_telemetry = Table(
    "refused_telemetry",
    metadata,
    Column("fleet", String(64), primary_key=True),
    Column("device", String(64), primary_key=True),
    Column("reason", String(32), primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("first_ns", BigInteger, nullable=False),
    Column("last_ns", BigInteger, nullable=False),
    Column("detail", Text, nullable=False),
)

device_clocks = Table(
    "device_clocks",
    metadata,
    Column("fleet", String(64), primary_key=True),
    Column("device", String(64), primary_key=True),
    Column("skew_ns", BigInteger, nullable=False),
    Column("late_ns", BigInteger, nullable=False),
    Column("measured_ns", BigInteger, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("created_ns", BigInteger, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("version", String(80), primary_key=True),
    Column("bundle", String(64), nullable=False, unique=True),
    Column("manifest", JSON, nullable=False),
    Column("published_by", String(128), nullable=False),
    Column("published_ns", BigInteger, nullable=False),
    ForeignKeyConstraint(["model"], ["models.model"]),
)

variant_figures = Table(
    "variant_figures",
    metadata,
    Column("fleet", String(64), primary_key=True),
    Column("device", String(64), primary_key=True),
    Column("bundle", String(64), primary_key=True),
    Column("variant", String(64), primary_key=True),
    Column("cpu_signature", String(64), nullable=False),
    Column("onnxruntime_version", String(64), nullable=False),
    Column("right", Boolean, nullable=False),
    Column("p50_us", Double, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("fault", String(64), nullable=False),
    Column("measured_ns", BigInteger, nullable=False),
    Index("ix_variant_figures_kind", "bundle", "fleet", "cpu_signature", "onnxruntime_version"),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("fleet", String(64), nullable=False),
    Column("model", String(64), nullable=False),
    Column("version", String(80), nullable=False),
    Column("bundle", String(64), nullable=False),
    Column("policy", JSON, nullable=False),
    Column("state", String(20), nullable=False),
    Column("progress", JSON, nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("created_by", String(128), nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("updated_ns", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False, default=1),
    Column("outlook", JSON),
    ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
    Index(None, "fleet", "state"),
)

rollout_devices = Table(
    "rollout_devices",
    metadata,
    Column("rollout_id", String(32), primary_key=True),
    Column("fleet", String(64), primary_key=True),
    Column("device", String(64), primary_key=True),
    Column("stage", Integer, nullable=False),
    Column("incumbent", JSON),
    Column("assigned_generation", BigInteger, nullable=False, default=0),
    Column("assigned_ns", BigInteger, nullable=False, default=0),
    Column("is_control", Boolean, nullable=False, default=False),
    Column("segment", String(128), nullable=False, default=""),
    Column("restored", Boolean, nullable=False, default=False),
    Column("is_back", Boolean, nullable=False, default=False),
    Column("phase", String(16), nullable=False, default="PENDING"),
    Column("phase_ns", BigInteger, nullable=False, default=0),
    Column("attempts", Integer, nullable=False, default=0),
    Column("seen_boot_id", String(17)),
    Column("seen_sequence", BigInteger, nullable=False, default=0),
    ForeignKeyConstraint(["rollout_id"], ["rollouts.id"]),
)

gate_evaluations = Table(
    "gate_evaluations",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("rollout_id", String(32), nullable=False, index=True),
    Column("stage", Integer, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("gate", String(32), nullable=False),
    Column("segment", String(128), nullable=False, default=""),
    Column("verdict", String(16), nullable=False),
    Column("evidence", JSON, nullable=False),
    ForeignKeyConstraint(["rollout_id"], ["rollouts.id"]),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("revoked_ns", BigInteger),
    Column("expires_ns", BigInteger),
    Column("last_used_ns", BigInteger),
    Column("owner", String(16)),
    Column("rotated_ns", BigInteger),
    Column("previous_sha256", String(64), unique=True),
    Column("previous_until_ns", BigInteger),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("at_ns", BigInteger, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(256), nullable=False),
    Column("detail", JSON, nullable=False),
    Column("previous_hash", String(64), nullable=False, unique=True),
    Column("hash", String(64), nullable=False, unique=True),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("actor", String(128), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("request_sha256", String(64), nullable=False),
    Column("status", Integer),
    Column("response", LargeBinary),
    Column("created_ns", BigInteger, nullable=False),
)

drift_watches = Table(
    "drift_watches",
    metadata,
    Column("fleet", String(64), primary_key=True),
    Column("model", String(64), primary_key=True),
    Column("version", String(80), primary_key=True),
    Column("looked_ns", BigInteger, nullable=False),
    Column("outcomes", JSON, nullable=False),
    Column("revision", BigInteger, nullable=False, default=1),
)

drift_findings = Table(
    "drift_findings",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("fleet", String(64), nullable=False),
    Column("model", String(64), nullable=False),
    Column("version", String(80), nullable=False),
    Column("signal", String(64), nullable=False),
    Column("finding", JSON, nullable=False),
    Column("opened_ns", BigInteger, nullable=False),
    Column("found_ns", BigInteger, nullable=False),
    Column("closed_ns", BigInteger),
    Column("acknowledged_by", String(128)),
    Column("acknowledged_ns", BigInteger),
    Index(None, "fleet", "opened_ns"),
)
