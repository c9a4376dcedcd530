"""A server that is upgraded still knows what it assigned before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from fleet_server.database import schema
from fleet_server.database.engine import open_engine
from fleet_server.database.tables import assigned_versions


def test_what_was_assigned_before_the_upgrade_is_taken_from_desired_states_and_rollouts(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'fleet.db'}")
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
    with engine.begin() as connection:
        _fill(connection)
    schema.upgrade(engine)
    with engine.connect() as connection:
        rows = connection.execute(sa.select(assigned_versions).order_by(assigned_versions.c.version)).all()
    assert [(row.device, row.model, row.version, row.first_ns) for row in rows] == [
        ("pi-1", "digits", "1.0.0", 5), ("pi-1", "digits", "1.1.0", 5), ("pi-1", "digits", "1.2.0", 7),
    ]  # fmt: skip
    engine.dispose()


def _fill(connection: sa.Connection) -> None:
    def add(table: str, **values: Any) -> None:
        columns = [
            sa.column(name, sa.JSON if isinstance(value, dict | list) else None) for name, value in values.items()
        ]
        connection.execute(sa.insert(sa.table(table, *columns)).values(values))

    add(
        "desired", fleet="acme", device="pi-1", generation=3, envelope=b"", published_generation=3, issued_at_ns=7,
        assignments=[{"model": "digits", "version": "1.2.0", "bundle": "c"}],
    )  # fmt: skip
    add("models", model="digits", created_ns=1)
    add(
        "versions", model="digits", version="1.1.0", bundle="b", manifest={}, published_by="t", published_ns=1
    )  # fmt: skip
    add(
        "rollouts", id="r", fleet="acme", model="digits", version="1.1.0", bundle="b", policy={}, state="COMPLETED",
        progress={}, reason="", created_by="t", created_ns=1, updated_ns=1, revision=1,
    )  # fmt: skip
    before = {"assignments": [{"model": "digits", "version": "1.0.0", "bundle": "a"}]}
    add(
        "rollout_devices", rollout_id="r", fleet="acme", device="pi-1", stage=0, incumbent=before,
        assigned_generation=2, assigned_ns=5,
    )  # fmt: skip
    add(
        "rollout_devices", rollout_id="r", fleet="acme", device="pi-2", stage=0, incumbent={},
        assigned_generation=0, assigned_ns=0,
    )  # fmt: skip
