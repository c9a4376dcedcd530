"""The tables of trust, identity and operators; see `tables` for what holds of every table."""

from __future__ import annotations

from fleet_server.database.tables import metadata

__all__ = ["metadata"]
