"""The operators' REST API, and the devices' artifact downloads."""

from __future__ import annotations

from fleet_server.api.app import create_app
from fleet_server.api.services import Services

__all__ = ["Services", "create_app"]
