"""Who may do what, and what was done."""

from __future__ import annotations

from fleet_server.identity.api_keys import Operator, Role

__all__ = ["Operator", "Role"]
