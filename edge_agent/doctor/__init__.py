"""`edge-agent doctor`: is this device fit to run the agent, and if not, what to do."""

from __future__ import annotations

from edge_agent.doctor.examination import examine
from edge_agent.doctor.findings import Finding, Grade, any_failed, as_json, as_text

__all__ = ["Finding", "Grade", "any_failed", "as_json", "as_text", "examine"]
