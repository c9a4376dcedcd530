"""Who may do what, and what was done."""

from __future__ import annotations

from fleet_server.identity.operators import Operator, Role

__all__ = ["Operator", "Role"]
