"""The cohort of each device: its label `cohort`."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, select

from fleet_server.database.tables import devices

COHORT_LABEL = "cohort"


def read_cohorts(connection: Connection, fleet: str) -> Callable[[str], str]:
    """A function from a device's name to its cohort as it is now; "" for a device without the label, or unknown."""
    label = devices.c.labels[COHORT_LABEL].as_string()
    rows = connection.execute(select(devices.c.device, label).where(devices.c.fleet == fleet, label.is_not(None)))
    known = {device: str(cohort) for device, cohort in rows}
    return lambda device: known.get(device, "")
